"""Computes intervals and paired differences by resampling question indices, and McNemar's exact test.

A *statistic* maps a matrix of question indices [draws, m] to one value a draw. `mean_of`, `f1_of`, `refusal_delta_of`
and `auroc_of` build the usual ones; `per_draw` turns any function of one index vector into one. Both models of a
paired difference see the same indices.

BCa (Efron 1987): bias z0 from the share of draws below the point estimate, ties counted half; acceleration from the
jackknife, pooled over strata as `a = 1/6 * sum_s sum U^3 / n_s^3 / (sum_s sum U^2 / n_s^2)^1.5`, `U = (n_s - 1) (mean
- leave-one-out)`.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.score.calibration import check_two_classes, weighted_auroc

Indices = Int[np.ndarray, "draws m"]
Draws = Float[np.ndarray, " draws"]
Statistic = Callable[[np.ndarray], np.ndarray]
Method = Literal["percentile", "bca"]

_CELLS = 4_000_000
"""Index matrices are cut into blocks of about this many cells (32 MB of int64)."""


@dataclass(frozen=True)
class Interval:
    """Holds a point estimate with its bootstrap interval; `standard_error` is the standard deviation of the draws."""

    value: float
    low: float
    high: float
    standard_error: float
    confidence: float
    draws: int
    method: str

    def to_json(self) -> dict[str, float | int | str]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class McNemar:
    """Holds McNemar's exact test: questions that only the first or only the second model has right, and the p-value."""

    only_first: int
    only_second: int
    p_value: float


def mean_of(values: np.ndarray) -> Statistic:
    """Average a per-question score (accuracy where it is Boolean)."""
    scores = np.asarray(values, dtype=np.float64)
    return lambda indices: scores[indices].mean(axis=1)


def f1_of(refused: Bool[np.ndarray, " n"], answerable: Bool[np.ndarray, " n"]) -> Statistic:
    """Compute F1 of "unanswerable", `2 TP / (refused + unanswerable)`; 0 for a draw with neither."""

    def statistic(indices: np.ndarray) -> np.ndarray:
        said, truth = refused[indices], ~answerable[indices]
        return 2.0 * (said & truth).sum(axis=1) / np.maximum(said.sum(axis=1) + truth.sum(axis=1), 1)

    return statistic


def refusal_delta_of(refused: Bool[np.ndarray, " n"], answerable: Bool[np.ndarray, " n"]) -> Statistic:
    """Compute the refusal rate on unanswerable minus on answerable questions; NaN for a draw of one class (use
    strata).
    """

    def statistic(indices: np.ndarray) -> np.ndarray:
        said, known = refused[indices], answerable[indices]
        with np.errstate(invalid="ignore", divide="ignore"):
            rates = [(said & group).sum(axis=1) / group.sum(axis=1) for group in (~known, known)]
        return rates[0] - rates[1]

    return statistic


def auroc_of(scores: Float[np.ndarray, " n"], outcomes: Bool[np.ndarray, " n"]) -> Statistic:
    """Compute the AUROC of scores; NaN for a draw of one class (use `strata=outcomes`). InputError for NaN or one
    class.
    """
    check_two_classes(scores, outcomes, "AUROC")

    def statistic(indices: np.ndarray) -> np.ndarray:
        rows = np.repeat(np.arange(len(indices)), indices.shape[1])
        flat = rows * len(scores) + indices.ravel()
        weights = np.bincount(flat, minlength=len(indices) * len(scores)).reshape(len(indices), len(scores))
        return weighted_auroc(scores, outcomes, weights.astype(np.float64))

    return statistic


def per_draw(function: Callable[[np.ndarray], float]) -> Statistic:
    """Turn any function of one index vector into a statistic; the function runs once a draw."""
    return lambda indices: np.array([float(function(row)) for row in indices], dtype=np.float64)


def _evaluate(statistic: Statistic, indices: np.ndarray) -> np.ndarray:
    block = max(1, _CELLS // max(indices.shape[1], 1))
    parts = [np.asarray(statistic(indices[i : i + block]), dtype=np.float64) for i in range(0, len(indices), block)]
    values = np.concatenate(parts)
    if np.isnan(values).any():
        raise InputError(
            f"bootstrap: the statistic is NaN on {int(np.isnan(values).sum())} of {len(values)} resamples; "
            f"resample within classes "
            "(`strata=`), or mend NaN scores"
        )
    return values


def _strata(questions: int, strata: np.ndarray | None) -> list[np.ndarray]:
    if questions < 2:
        raise InputError(f"bootstrap: expected 2 questions or more, found {questions}")
    if strata is None:
        return [np.arange(questions)]
    if len(strata) != questions:
        raise InputError(
            f"bootstrap: expected one stratum label a question, found {len(strata)} labels for {questions} questions"
        )
    return [np.flatnonzero(strata == label) for label in np.unique(strata)]


def _resamples(groups: list[np.ndarray], draws: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.concatenate([group[generator.integers(0, len(group), (draws, len(group)))] for group in groups], axis=1)


def _acceleration(statistic: Statistic, groups: list[np.ndarray]) -> float:
    if min(len(group) for group in groups) < 2:
        raise InputError(
            "bootstrap: BCa needs 2 questions or more in every stratum; merge strata or use method='percentile'"
        )
    cubes = squares = 0.0
    everyone = np.concatenate(groups)
    start = 0
    for group in groups:
        kept = len(everyone) - 1
        left_out = []
        for first in range(start, start + len(group), max(1, _CELLS // kept)):
            out = np.arange(first, min(first + max(1, _CELLS // kept), start + len(group)))
            columns = np.arange(kept)[None] + (np.arange(kept)[None] >= out[:, None])
            left_out.append(_evaluate(statistic, everyone[columns]))
        jackknife = np.concatenate(left_out)
        influence = (len(group) - 1) * (jackknife.mean() - jackknife)
        cubes += float((influence**3).sum()) / len(group) ** 3
        squares += float((influence**2).sum()) / len(group) ** 2
        start += len(group)
    return cubes / (6.0 * squares**1.5) if squares > 0 else 0.0


def bca_levels(value: float, draws: Draws, acceleration: float, confidence: float) -> tuple[float, float]:
    """Return the two quantile levels of the draws that bound the BCa interval.

    Raises:
        InputError: every draw lies on one side of the point estimate, where the bias correction is infinite.
    """
    share = (float((draws < value).mean()) + float((draws <= value).mean())) / 2
    if not 0.0 < share < 1.0:
        raise InputError(
            f"bootstrap: all {len(draws)} resamples lie on one side of the estimate {value:.6g}, so BCa has no "
            f"finite bias correction; "
            "use method='percentile' or more questions"
        )
    normal = NormalDist()
    bias = normal.inv_cdf(share)
    levels = []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        shifted = bias + normal.inv_cdf(tail)
        levels.append(normal.cdf(bias + shifted / (1 - acceleration * shifted)))
    return levels[0], levels[1]


def bootstrap(
    statistic: Statistic,
    questions: int,
    *,
    draws: int = 2000,
    confidence: float = 0.95,
    method: Method = "bca",
    strata: np.ndarray | None = None,
    seed: int = 0,
) -> Interval:
    """Compute the point estimate and bootstrap interval of a statistic over questions.

    Args:
        statistic: index matrix [draws, m] -> [draws].
        questions: n; indices run over 0..n-1.
        draws: resamples. confidence: two-sided coverage, in (0, 1).
        method: "percentile" or "bca". Draws that are all equal give a zero-width interval under both.
        strata: a label a question [n]; resampling keeps the number of questions of each label.
        seed: of numpy's default generator; the same seed gives the same questions to every statistic.

    Raises:
        InputError: fewer than 2 questions, draws or confidence out of range, NaN from the statistic, BCa undefined.
    """
    if draws < 2 or not 0.0 < confidence < 1.0 or method not in ("percentile", "bca"):
        raise InputError(
            f"bootstrap: expected 2 draws or more, confidence in (0, 1), method percentile or bca; found {draws}, "
            f"{confidence}, {method!r}"
        )
    groups = _strata(questions, strata)
    value = float(_evaluate(statistic, np.arange(questions)[None])[0])
    values = _evaluate(statistic, _resamples(groups, draws, seed))
    spread = float(values.std(ddof=1))
    if values.min() == values.max():
        low = high = float(values[0])
    else:
        levels = ((1 - confidence) / 2, (1 + confidence) / 2)
        if method == "bca":
            levels = bca_levels(value, values, _acceleration(statistic, groups), confidence)
        low, high = (float(edge) for edge in np.quantile(values, levels))
    return Interval(value, low, high, spread, confidence, draws, method)


def paired_difference(
    first: Statistic,
    second: Statistic,
    questions: int,
    *,
    draws: int = 2000,
    confidence: float = 0.95,
    method: Method = "bca",
    strata: np.ndarray | None = None,
    seed: int = 0,
) -> Interval:
    """Bound `second - first`, both on the same questions and the same resamples; arguments as `bootstrap`."""
    return bootstrap(
        lambda indices: np.asarray(second(indices)) - np.asarray(first(indices)),
        questions,
        draws=draws,
        confidence=confidence,
        method=method,
        strata=strata,
        seed=seed,
    )


def mcnemar(first: Bool[np.ndarray, " n"], second: Bool[np.ndarray, " m"]) -> McNemar:
    """Test whether two models differ on the same questions, by McNemar's exact test.

    `p = min(1, 2 P(X <= min(b, c)))`, X ~ Binomial(b + c, 1/2), b and c the questions only one of them has right; 1
    where b + c = 0.

    Raises:
        InputError: unequal lengths.
    """
    if len(first) != len(second):
        raise InputError(
            f"McNemar: expected both models on the same questions, found {len(first)} and {len(second)} answers"
        )
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    total = only_first + only_second
    tail = sum(math.comb(total, k) for k in range(min(only_first, only_second) + 1))
    return McNemar(only_first, only_second, min(1.0, 2 * tail / 2**total))
