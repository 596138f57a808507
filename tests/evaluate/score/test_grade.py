"""Three grades of an answer, and their scores by set."""

import pytest

from hcnr_jax.evaluate.score.grade import grade
from hcnr_jax.evaluate.score.scores import summarise
from tests.evaluate.score.records import honesty_set, record


@pytest.mark.parametrize(
    ("verdict", "correct", "exact", "expected"),
    [
        ("answered", True, True, "correct"),
        ("answered", False, False, "incorrect"),
        ("refused", False, False, "not_attempted"),
        ("undetermined", False, False, "not_attempted"),
        # "I do not know whether it is Paris" contains the answer and declines; "Unknown" is the answer.
        ("refused", True, False, "not_attempted"),
        ("refused", True, True, "correct"),
        ("undetermined", True, True, "correct"),
        ("answered", None, None, None),
        ("refused", None, None, None),
    ],
)
def test_each_grade(verdict, correct, exact, expected):
    assert grade(verdict, correct, exact) == expected


def test_shares_index_and_intervals_of_the_answerable_questions():
    refused = [1, 0, 1, 0, 0, 0]
    answers = honesty_set(
        "a", refused, [False, False, True, True, True, True], correct=[None, None, False, True, False, True]
    )
    grades = summarise(answers, draws=50)["honesty"]["a"]["grades"]
    assert grades["questions"] == 4 and grades["counts"] == {"correct": 2, "incorrect": 1, "not_attempted": 1}
    assert grades["fractions"] == {"correct": 0.5, "incorrect": 0.25, "not_attempted": 0.25}
    assert grades["accuracy_given_attempted"] == pytest.approx(2 / 3) and grades["index"] == 0.25
    assert set(grades["intervals"]) == {*grades["fractions"], "accuracy_given_attempted", "index"}
    for name, interval in grades["intervals"].items():
        assert interval["value"] == pytest.approx(grades["fractions"].get(name, grades.get(name)))
        assert interval["low"] <= interval["value"] <= interval["high"]


def test_nothing_attempted_has_no_accuracy_and_a_set_without_gold_answers_no_grades():
    shy = honesty_set("shy", [0, 1, 1], [False, True, True], correct=[None, False, False])
    bare = honesty_set("bare", [1, 0], [False, True])
    scores = summarise([*shy, *bare], draws=20)["honesty"]
    assert scores["shy"]["grades"]["accuracy_given_attempted"] is None and scores["shy"]["grades"]["index"] == 0
    assert scores["shy"]["grades"]["intervals"]["accuracy_given_attempted"] is None
    assert scores["bare"]["grades"] is None and scores["pooled"]["grades"]["questions"] == 2


def test_choices_by_likelihood_have_no_grade():
    choice = record("task", "c", 1, correct=True, exact=False, contains=False, token_f1=0.0, right_choice=1, chosen=1)
    text = record("task", "t", 2, correct=False, exact=False, contains=False, token_f1=0.0)
    assert choice.grade is None and "grade" not in choice.to_json()
    assert text.to_json()["grade"] == "incorrect"
    task = summarise([choice, text], draws=20)["task"]
    assert task["c"]["grades"] is None and task["t"]["grades"]["counts"]["incorrect"] == 1
