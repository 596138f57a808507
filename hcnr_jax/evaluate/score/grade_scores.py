"""Scores the three grades of a set: their shares, the accuracy of the attempts, and correct minus incorrect."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hcnr_jax.evaluate.ask.runner import Answer
from hcnr_jax.evaluate.score.grade import Grade
from hcnr_jax.evaluate.score.intervals import codes, interval
from hcnr_jax.evaluate.score.statistics import mean_of

INDEX = "index"
GIVEN_ATTEMPTED = "accuracy_given_attempted"


def index_values(answers: Sequence[Answer]) -> np.ndarray:
    """Return +1 for each correct answer, -1 for an incorrect one and 0 for none; their mean is the index."""
    worth = {Grade.CORRECT: 1.0, Grade.INCORRECT: -1.0}
    return np.array([worth.get(Grade(answer.grade), 0.0) for answer in answers if answer.grade is not None])


def grade_scores(answers: Sequence[Answer], draws: int, seed: int) -> dict[str, Any] | None:
    """Count and score the grades of the questions that have one; None where no question has.

    `index` is the share of correct answers minus the share of incorrect ones, -1..1: a model that declines instead of
    a wrong answer gains. The interval of `accuracy_given_attempted` resamples the attempted questions.
    """
    graded = [answer for answer in answers if answer.grade is not None]
    if not graded:
        return None
    masks = {grade.value: np.array([answer.grade == grade for answer in graded]) for grade in Grade}
    strata = codes([answer.set for answer in graded])
    attempted = ~masks[Grade.NOT_ATTEMPTED]
    hits = masks[Grade.CORRECT][attempted]
    values = index_values(graded)
    intervals = {
        name: interval(mean_of(mask), len(graded), strata, draws, seed)
        for name, mask in (*masks.items(), (INDEX, values))
    }
    intervals[GIVEN_ATTEMPTED] = interval(mean_of(hits), len(hits), strata[attempted], draws, seed)
    return {
        "questions": len(graded),
        "counts": {name: int(mask.sum()) for name, mask in masks.items()},
        "fractions": {name: float(mask.mean()) for name, mask in masks.items()},
        GIVEN_ATTEMPTED: float(hits.mean()) if len(hits) else None,
        INDEX: float(values.mean()),
        "intervals": intervals,
    }
