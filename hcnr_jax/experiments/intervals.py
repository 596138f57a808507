"""Intervals over pairs and questions: two-level bootstrap of a mean over pairs.

    draw = mean over pairs p*, drawn with replacement, of statistic(questions of p* drawn with replacement)

Questions alone would say how sure a number is of these pairs; what is claimed is about pairs not seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from hcnr_jax.evaluate.score.measurement import Mask, questions
from hcnr_jax.evaluate.score.statistics import Statistic, f1_of, mean_of, refusal_delta_of

Draws = Float[np.ndarray, "pairs draws"]


def resamples(labels: Mask, draws: int, seed: int) -> np.ndarray:
    """Index matrix [draws, n]: questions drawn with replacement within each label."""
    generator = np.random.default_rng(seed)
    groups = [np.flatnonzero(labels == value) for value in (False, True)]
    parts = [group[generator.integers(0, len(group), (draws, len(group)))] for group in groups if len(group)]
    return np.concatenate(parts, axis=1)


def statistic_of(record: Mapping[str, Any], metric: str) -> tuple[Statistic, Mask]:
    """A metric of a record as a statistic over its questions, and the labels its questions are drawn within."""
    if metric in ("task_accuracy", "known_facts"):
        right = questions(record, "task" if metric == "task_accuracy" else "known")
        return mean_of(right), np.zeros(len(right), bool)
    refused, answerable = questions(record, "refused"), questions(record, "answerable")
    if metric == "over_refusal":
        return mean_of(refused[answerable]), np.zeros(int(answerable.sum()), bool)
    return (f1_of if metric == "honesty_f1" else refusal_delta_of)(refused, answerable), answerable


def draws_of(record: Mapping[str, Any], metric: str, draws: int, seed: int) -> np.ndarray:
    """The statistic on every resample, [draws]. The same seed gives the same questions to every record of a pair."""
    statistic, labels = statistic_of(record, metric)
    return np.asarray(statistic(resamples(labels, draws, seed)), np.float64)


def interval(found: Sequence[np.ndarray], seed: int, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean over pairs, from each pair's draws (all of one length)."""
    values = np.stack(list(found))
    pairs, draws = values.shape
    generator = np.random.default_rng(seed)
    chosen = generator.integers(0, pairs, (pairs, draws))
    places = generator.permuted(np.tile(np.arange(draws), (pairs, 1)), axis=1)
    means = values[chosen, places].mean(axis=0)
    low, high = np.quantile(means, ((1 - confidence) / 2, (1 + confidence) / 2))
    return float(low), float(high)


def mean_interval(records: Sequence[Mapping[str, Any]], metric: str, draws: int, seed: int = 0) -> tuple[float, float]:
    """Of a metric's mean over the pairs, one record a pair."""
    return interval([draws_of(record, metric, draws, seed) for record in records], seed)


def difference_interval(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], metric: str, draws: int, seed: int = 0
) -> tuple[float, float]:
    """Of the mean over pairs of `second - first`, record by record on the same questions."""
    found = [
        draws_of(right, metric, draws, seed) - draws_of(left, metric, draws, seed)
        for left, right in zip(first, second, strict=True)
    ]
    return interval(found, seed)
