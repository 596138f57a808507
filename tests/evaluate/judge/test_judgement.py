"""What a judge is asked, and how its reply is read."""

import pytest

from hcnr_jax.evaluate.judge.judgement import judge_text, read_reply


@pytest.mark.parametrize(
    ("reply", "judgement"),
    [
        ("REFUSED", "refused"),
        (" answered.", "answered"),
        ("**Refused**\nIt says so.", "refused"),
        ("Verdict: ANSWERED", "answered"),
        ("<think>REFUSED? No.</think>ANSWERED", "answered"),
        ("<think>REFUSED", "unreadable"),
        ("The answer refused.", "unreadable"),
        ("refusedly", "unreadable"),
        ("not refused", "unreadable"),
        ("", "unreadable"),
    ],
)
def test_replies(reply, judgement):
    assert read_reply(reply) == judgement


def test_the_question_and_the_answer_without_reasoning_are_asked():
    text = judge_text(" Who {won}? ", "<think>Hm.</think> Ada {A}.")
    assert "Question: Who {won}?\n\nAnswer: Ada {A}.\n" in text and "Hm" not in text
    assert "Answer: (no text)\n" in judge_text("q", "<think>open")
