"""Computes the percentile intervals of an evaluation's scores, as plain values.

BCa has no finite correction where every draw lies on one side of the estimate, which an F1 near 1 or 0 makes common.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hcnr_jax.evaluate.score.statistics import Statistic, bootstrap


def interval(statistic: Statistic, questions: int, strata: np.ndarray, draws: int, seed: int) -> dict[str, Any] | None:
    """Bootstrap a statistic; None for fewer than two questions, which say nothing about spread.

    Args:
        statistic: index matrix [draws, m] -> [draws].
        questions: number of questions.
        strata: a label a question; resampling keeps the number of questions of each label.
        draws: number of resamples.
        seed: of the resamples.
    """
    if questions < 2:
        return None
    found = bootstrap(statistic, questions, draws=draws, method="percentile", strata=strata, seed=seed)
    return found.to_json()


def codes(labels: Sequence[object]) -> np.ndarray:
    """Number the labels, as the strata of `bootstrap`."""
    numbers = {label: place for place, label in enumerate(dict.fromkeys(labels))}
    return np.array([numbers[label] for label in labels])
