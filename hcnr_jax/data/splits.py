"""Seeded splits of questions into those that score neurons and those that evaluate, with no question in both."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from hcnr_jax.data.questions import Question, normalise_question
from hcnr_jax.errors import InputError


class Split(NamedTuple):
    """`scored` questions go to scoring, restoring or training; `evaluated` ones are only ever asked."""

    scored: list[Question]
    evaluated: list[Question]


def split_questions(
    questions: Sequence[Question],
    scored: int,
    evaluated: int | None,
    seed: int,
    balanced: bool = False,
    avoid: Collection[str] = (),
    option: str = "--samples",
) -> Split:
    """`scored` and `evaluated` questions (None: all that remain), drawn by `seed`, no normalised text in both.

    Questions of one normalised text (the same question with other choices, say) are never on both sides.
    `balanced` makes either side half answerable and half unanswerable (the odd one unanswerable). Questions whose
    text is in `avoid` are left out of both: those of another data set, say, since benchmarks borrow from each other
    (SelfAware and KUQ share questions).

    Raises:
        InputError: there are fewer questions than asked for; counts and `option` are named.
    """
    barred = {normalise_question(text) for text in avoid}
    order = np.random.default_rng(seed).permutation(len(questions))
    shuffled = [questions[index] for index in order]
    shuffled = [question for question in shuffled if normalise_question(question.question) not in barred]
    chosen = _take(shuffled, scored, balanced, option)
    used = {normalise_question(question.question) for question in chosen}
    rest = [question for question in shuffled if normalise_question(question.question) not in used]
    if evaluated is None:
        evaluated = 2 * min(_sides(rest)) if balanced else len(rest)
    return Split(chosen, _take(rest, evaluated, balanced, option))


def _sides(questions: Sequence[Question]) -> tuple[int, int]:
    answerable = sum(question.answerable for question in questions)
    return answerable, len(questions) - answerable


def _take(questions: Sequence[Question], count: int, balanced: bool, option: str) -> list[Question]:
    """The first `count` questions, or the first half of `count` of each label, kept in their order."""
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
