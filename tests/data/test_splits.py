"""Splits: seeded, sized, balanced, and without a normalised text on both sides."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from hcnr_jax.data import Question, normalise_question, read_dataset, split_questions
from hcnr_jax.data.splits import draw_evenly, in_turn
from hcnr_jax.errors import InputError

QUESTIONS = [Question(f"Question {number}?", answerable=number % 3 == 0, id=str(number)) for number in range(30)]


def texts(questions: list[Question]) -> set[str]:
    return {normalise_question(question.question) for question in questions}


def test_split_is_seeded_and_disjoint() -> None:
    split = split_questions(QUESTIONS, 8, 12, seed=1)
    assert (len(split.scored), len(split.evaluated)) == (8, 12)
    assert not texts(split.scored) & texts(split.evaluated)
    assert split == split_questions(QUESTIONS, 8, 12, seed=1)
    assert split != split_questions(QUESTIONS, 8, 12, seed=2)
    rest = split_questions(QUESTIONS, 8, None, seed=1)
    assert len(rest.evaluated) == 22 and rest.scored == split.scored


@pytest.mark.parametrize("seed", range(5))
def test_other_spellings_of_a_scored_question_are_not_evaluated(seed: int) -> None:
    respelt = [
        replace(question, question=f" question  {number} ", id=f"{number}b")
        for number, question in enumerate(QUESTIONS)
    ]
    split = split_questions([*QUESTIONS, *respelt], 10, None, seed=seed)
    assert not texts(split.scored) & texts(split.evaluated)
    assert len(split.evaluated) == 60 - 2 * len(texts(split.scored))


def test_balanced_sides_are_half_and_half() -> None:
    split = split_questions(QUESTIONS, 8, 10, seed=0, balanced=True)
    assert sum(question.answerable for question in split.scored) == 4
    assert sum(question.answerable for question in split.evaluated) == 5
    rest = split_questions(QUESTIONS, 8, None, seed=0, balanced=True)
    assert (len(rest.evaluated), sum(question.answerable for question in rest.evaluated)) == (12, 6)


def test_avoided_texts_are_on_neither_side() -> None:
    split = split_questions(QUESTIONS, 5, None, seed=0, avoid=["question 3", "QUESTION 4?"])
    assert len(split.scored) + len(split.evaluated) == 28
    assert not texts([*split.scored, *split.evaluated]) & {"question 3", "question 4"}


@pytest.mark.parametrize(
    ("scored", "evaluated", "balanced", "message"),
    [
        (31, 0, False, "--samples asks for 31 questions, 10 answerable and 20 unanswerable ones are left"),
        (10, 21, False, "--samples asks for 21 questions"),
        (22, 0, True, "--samples asks for 22 balanced questions, 10 answerable"),
        (-1, 0, False, "expected a number of questions, got -1"),
    ],
)
def test_too_few_questions_are_refused(scored: int, evaluated: int, balanced: bool, message: str) -> None:
    with pytest.raises(InputError) as error:
        split_questions(QUESTIONS, scored, evaluated, seed=0, balanced=balanced)
    assert message in str(error.value)


def test_normalised_text_keeps_what_tells_questions_apart() -> None:
    assert normalise_question("  What IS\tit ?! ") == "what is it"
    assert normalise_question("What is C++?") != normalise_question("What is C?")
    assert normalise_question("STRASSE?") == normalise_question("straße")


def test_real_kuq_is_kept_apart_from_selfaware(real_data: Path) -> None:
    selfaware, kuq = (read_dataset(name, real_data / "data" / name).questions for name in ("selfaware", "kuq"))
    split = split_questions(kuq, 128, None, seed=0, avoid=[question.question for question in selfaware])
    assert not texts([*split.scored, *split.evaluated]) & texts(list(selfaware))
    assert len(split.scored) + len(split.evaluated) == len(kuq) - 4


def kinds_of(count):
    """Answerable questions of kinds a and b, unanswerable ones of c and d, in unequal numbers."""
    sizes = {"a": count, "b": 2 * count, "c": count, "d": 3 * count}
    return [
        Question(f"{kind} {i}?", kind in "ab", ("x",), kind=kind) for kind, size in sizes.items() for i in range(size)
    ]


def test_kinds_take_turns():
    assert [item.kind for item in in_turn(kinds_of(2))] == list("abcd" * 2 + "bd" * 2 + "d" * 2)


def test_questions_are_drawn_evenly_over_kinds_and_labels():
    drawn = draw_evenly(kinds_of(10), 40, seed=0)
    assert Counter(item.kind for item in drawn) == {"a": 10, "b": 10, "c": 10, "d": 10}
    assert drawn == draw_evenly(kinds_of(10), 40, seed=0) != draw_evenly(kinds_of(10), 40, seed=1)
    everything = draw_evenly(kinds_of(10), None, seed=0)
    assert Counter(item.answerable for item in everything) == {True: 30, False: 30}
    with pytest.raises(InputError, match="--evaluate-samples asks for 62 balanced questions, 30 answerable and 40"):
        draw_evenly(kinds_of(10), 62, seed=0, option="--evaluate-samples")
