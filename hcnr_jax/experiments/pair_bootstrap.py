"""Bounds a mean over pairs by a two-level bootstrap over pairs and questions.

    draw = mean over pairs p*, drawn with replacement, of statistic(questions of p* drawn with replacement)

Resampling questions alone would bound the mean of these pairs; the claims are about pairs that were not seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from hcnr_jax.evaluate.score.measurement import Mask, questions
from hcnr_jax.evaluate.score.statistics import mean_of
from hcnr_jax.evaluate.trait import HONESTY, KNOWN_FACTS, TASK_ACCURACY, Sample, Trait

Draws = Float[np.ndarray, "pairs draws"]


def resamples(labels: Mask, draws: int, seed: int) -> np.ndarray:
    """Draw an index matrix [draws, n]: questions with replacement within each label."""
    generator = np.random.default_rng(seed)
    groups = [np.flatnonzero(labels == value) for value in (False, True)]
    parts = [group[generator.integers(0, len(group), (draws, len(group)))] for group in groups if len(group)]
    return np.concatenate(parts, axis=1)


def statistic_of(record: Mapping[str, Any], metric: str, trait: Trait = HONESTY) -> Sample:
    """Return a metric of a record as a statistic over its questions, and the labels they are resampled within."""
    if metric in (TASK_ACCURACY, KNOWN_FACTS):
        right = questions(record, "task" if metric == TASK_ACCURACY else "known")
        return mean_of(right), np.zeros(len(right), bool)
    return trait.metric(metric).sample(questions(record, "refused"), questions(record, "answerable"))


def draws_of(record: Mapping[str, Any], metric: str, draws: int, *, seed: int, trait: Trait = HONESTY) -> np.ndarray:
    """Evaluate a metric on every resample, [draws].

    Args:
        record: with the bits of its questions.
        metric: its JSON field.
        draws: number of resamples.
        seed: one seed draws the same questions for every record of a pair.
        trait: whose metric it is.
    """
    statistic, labels = statistic_of(record, metric, trait)
    return np.asarray(statistic(resamples(labels, draws, seed)), np.float64)


def interval(found: Sequence[np.ndarray], seed: int, confidence: float = 0.95) -> tuple[float, float]:
    """Compute the percentile interval of the mean over pairs, from each pair's draws (all of one length)."""
    values = np.stack(list(found))
    pairs, draws = values.shape
    generator = np.random.default_rng(seed)
    chosen = generator.integers(0, pairs, (pairs, draws))
    places = generator.permuted(np.tile(np.arange(draws), (pairs, 1)), axis=1)
    means = values[chosen, places].mean(axis=0)
    low, high = np.quantile(means, ((1 - confidence) / 2, (1 + confidence) / 2))
    return float(low), float(high)


def mean_interval(
    records: Sequence[Mapping[str, Any]], metric: str, draws: int, *, seed: int = 0, trait: Trait = HONESTY
) -> tuple[float, float]:
    """Bound a metric's mean over the pairs, one record a pair."""
    return interval([draws_of(record, metric, draws, seed=seed, trait=trait) for record in records], seed)


def difference_interval(
    first: Sequence[Mapping[str, Any]],
    second: Sequence[Mapping[str, Any]],
    metric: str,
    *,
    draws: int,
    seed: int = 0,
    trait: Trait = HONESTY,
) -> tuple[float, float]:
    """Bound the mean over pairs of `second - first`, record by record on the same questions.

    Args:
        first: one record a pair.
        second: one record a pair, in the same order.
        metric: its JSON field.
        draws: resamples of every pair's questions.
        seed: of the resamples.
        trait: whose metric it is.
    """
    found = [
        draws_of(right, metric, draws, seed=seed, trait=trait) - draws_of(left, metric, draws, seed=seed, trait=trait)
        for left, right in zip(first, second, strict=True)
    ]
    return interval(found, seed)
