"""Draws questions by a seed: to score neurons and to evaluate, with no question in both, or evenly over kinds."""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from hcnr_jax.data.questions import Question, normalise_question
from hcnr_jax.errors import InputError


class Split(NamedTuple):
    """Two disjoint lists: `scored` questions score, restore or train; `evaluated` questions only evaluate."""

    scored: list[Question]
    evaluated: list[Question]


def split_questions(
    questions: Sequence[Question],
    scored: int,
    evaluated: int | None,
    *,
    seed: int,
    balanced: bool = False,
    avoid: Collection[str] = (),
    option: str = "--samples",
) -> Split:
    """Draw two lists of questions by a seed, so that no normalised text is in both.

    Questions with one normalised text, such as one question with different choices, go to one side.

    Args:
        questions: all questions.
        scored: number of questions for scoring.
        evaluated: number of questions for evaluation; None takes all that remain.
        seed: seed of the shuffle.
        balanced: make each side half answerable and half unanswerable; an odd number has one more unanswerable.
        avoid: texts of questions to leave out of both sides, such as those of another data set. Benchmarks borrow
            from each other: SelfAware and KUQ share questions.
        option: name of the option that asked, for messages.

    Raises:
        InputError: there are fewer questions than asked for. The message names the counts and `option`.
    """
    barred = {normalise_question(text) for text in avoid}
    order = np.random.default_rng(seed).permutation(len(questions))
    shuffled = [questions[index] for index in order]
    shuffled = [question for question in shuffled if normalise_question(question.question) not in barred]
    chosen = _take(shuffled, scored, balanced, option=option)
    used = {normalise_question(question.question) for question in chosen}
    rest = [question for question in shuffled if normalise_question(question.question) not in used]
    if evaluated is None:
        evaluated = 2 * min(_sides(rest)) if balanced else len(rest)
    return Split(chosen, _take(rest, evaluated, balanced, option=option))


def in_turn(questions: Sequence[Question]) -> list[Question]:
    """Order questions so that the kinds take turns: the first of every kind, then the second of every kind."""
    met: Counter[str | None] = Counter()
    ranks = []
    for question in questions:
        ranks.append(met[question.kind])
        met[question.kind] += 1
    return [questions[index] for index in sorted(range(len(questions)), key=ranks.__getitem__)]


def draw_evenly(
    questions: Sequence[Question], count: int | None, *, seed: int, option: str = "--samples"
) -> list[Question]:
    """Draw questions by a seed, half of each label, evenly over the kinds of a label as far as they last.

    Args:
        questions: all questions.
        count: number of questions; None takes as many as balance allows.
        seed: seed of the shuffle.
        option: name of the option that asked, for messages.

    Raises:
        InputError: there are fewer questions than asked for. The message names the counts and `option`.
    """
    order = np.random.default_rng(seed).permutation(len(questions))
    shuffled = in_turn([questions[index] for index in order])
    return _take(shuffled, 2 * min(_sides(questions)) if count is None else count, True, option=option)


def _sides(questions: Sequence[Question]) -> tuple[int, int]:
    answerable = sum(question.answerable for question in questions)
    return answerable, len(questions) - answerable


def _take(questions: Sequence[Question], count: int, balanced: bool, *, option: str) -> list[Question]:
    """Take the first `count` questions, or the first half of `count` for each label, in their order."""
    if count < 0:
        raise InputError(f"{option}: expected a number of questions, got {count}")
    if not balanced:
        quota = {True: count, False: count}
        enough = len(questions) >= count
    else:
        quota = {True: count // 2, False: count - count // 2}
        answerable, unanswerable = _sides(questions)
        enough = answerable >= quota[True] and unanswerable >= quota[False]
    if not enough:
        answerable, unanswerable = _sides(questions)
        raise InputError(
            f"{option} asks for {count} {'balanced ' if balanced else ''}questions, {answerable} answerable and "
            f"{unanswerable} unanswerable ones are left; ask for fewer or give more data"
        )
    taken: list[Question] = []
    for question in questions:
        if len(taken) < count and quota[question.answerable]:
            quota[question.answerable] -= 1
            taken.append(question)
    return taken
