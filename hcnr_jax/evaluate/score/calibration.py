"""Measures how well a model's own probability of refusing agrees with the question being unanswerable.

The measures are ECE, Brier score, AUROC and reliability. The probability comes from log-likelihoods, not from text:
several refusal wordings against the answers the model itself would give. In every function here `outcomes` is True
where the event happened (the question *is* unanswerable), and `probabilities` is the P of that event.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from hcnr_jax.errors import InputError

Values = Float[np.ndarray, " n"]
Outcomes = Bool[np.ndarray, " outcomes"]
BinKind = Literal["width", "mass"]


def _log_sum_exp(values: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
    top = values.max(axis=1, keepdims=True)
    anchor = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(values - anchor).sum(axis=1)) + anchor[:, 0]


def refusal_probability(
    refusals: Float[np.ndarray, "n wordings"],
    answers: Float[np.ndarray, "m answers"],
    *,
    answer_refuses: Bool[np.ndarray, "m answers"] | None = None,
    wordings: Literal["sum", "mean", "max"] = "sum",
) -> Float[np.ndarray, " n"]:
    """`P(refuse) = R / (R + A)`, R the likelihood of the refusal wordings, A that of the model's own answers; float64
    in 0..1.

    Args:
        refusals: log-likelihood (nats, summed over completion tokens) of each refusal wording.
        answers: the same for the model's own answer, or several sampled ones (distinct texts); one column for one
            answer.
        answer_refuses: True where an own answer is itself a refusal: it then counts for R and not for A. It must not
            be one of the wordings already given, or it counts twice. With no other answer P is 1.
        wordings: "sum" adds the wordings' likelihoods (they are disjoint events); "mean" makes their number not matter;
            "max" takes the likeliest one.

    Raises:
        InputError: unequal numbers of questions, NaN, a log-likelihood above 0, or a question whose every completion
            has likelihood 0 (-inf).
    """
    refused, answered = refusals.astype(np.float64), answers.astype(np.float64)
    if len(refused) != len(answered):
        raise InputError(
            f"refusal probability: expected the same questions twice, found {len(refused)} rows of refusals and "
            f"{len(answered)} of answers"
        )
    for name, values in (("refusals", refused), ("answers", answered)):
        bad = np.isnan(values) | (values > 1e-6)
        if values.shape[1] == 0 or bad.any():
            rows = np.flatnonzero(bad.any(axis=1))
            raise InputError(
                f"refusal probability: {name}: expected log-likelihoods <= 0, one column or more, found "
                f"{values.shape[1]} columns and "
                f"{int(bad.sum())} values that are NaN or "
                f"positive{f', first in question {rows[0] + 1}' if len(rows) else ''}"
            )
    score = refused.max(axis=1) if wordings == "max" else _log_sum_exp(refused)
    if wordings == "mean":
        score = score - np.log(refused.shape[1])
    if answer_refuses is not None:
        own = np.where(answer_refuses, answered, -np.inf)
        score = np.logaddexp(score, _log_sum_exp(own))
        answered = np.where(answer_refuses, -np.inf, answered)
    rival = _log_sum_exp(answered)
    dead = np.flatnonzero(np.isneginf(score) & np.isneginf(rival))
    if len(dead):
        raise InputError(
            f"refusal probability: question {dead[0] + 1}: every completion has likelihood 0; add a wording or an "
            f"answer"
        )
    return np.exp(score - np.logaddexp(score, rival))


def _check(probabilities: Values, outcomes: Outcomes) -> None:
    if len(probabilities) != len(outcomes) or len(outcomes) == 0:
        raise InputError(
            f"calibration: expected as many probabilities as outcomes, and at least one, found "
            f"{len(probabilities)} and {len(outcomes)}"
        )
    bad = np.flatnonzero(~((probabilities >= 0) & (probabilities <= 1)))
    if len(bad):
        raise InputError(
            f"calibration: question {bad[0] + 1}: expected a probability in 0..1, found {probabilities[bad[0]]} "
            f"({len(bad)} such in all)"
        )


@dataclass(frozen=True)
class Reliability:
    """Holds a reliability diagram: one entry per non-empty bin, in rising order of probability.

    low, high: the bin's edges. mean_probability: what the model said there. frequency: how often the event happened.
    count: questions.
    """

    low: Float[np.ndarray, " bins"]
    high: Float[np.ndarray, " bins"]
    mean_probability: Float[np.ndarray, " bins"]
    frequency: Float[np.ndarray, " bins"]
    count: Int[np.ndarray, " bins"]

    def to_json(self) -> dict[str, list[float]]:
        """Lists, ready for a plot."""
        return {
            name: getattr(self, name).tolist() for name in ("low", "high", "mean_probability", "frequency", "count")
        }


def reliability(probabilities: Values, outcomes: Outcomes, bins: int = 10, *, kind: BinKind = "width") -> Reliability:
    """Group questions by probability: bins of equal width on 0..1, or of (near) equal mass between quantiles.

    A probability on an inner edge belongs to the bin below; equal probabilities always share a bin, so that the order
    of the questions does not matter (equal-mass bins are then unequal). Empty bins are left out.

    Raises:
        InputError: no questions, unequal lengths, a probability outside 0..1 or NaN, bins below 1.
    """
    _check(probabilities, outcomes)
    if bins < 1:
        raise InputError(f"calibration: expected 1 bin or more, found {bins}")
    said = probabilities.astype(np.float64)
    grid = np.linspace(0.0, 1.0, bins + 1)
    edges = grid if kind == "width" else np.quantile(said, grid)
    place = np.searchsorted(edges[1:-1], said, side="left")
    count = np.bincount(place, minlength=bins)
    full = count > 0
    weight = count[full].astype(np.float64)
    return Reliability(
        low=edges[:-1][full],
        high=edges[1:][full],
        mean_probability=np.bincount(place, weights=said, minlength=bins)[full] / weight,
        frequency=np.bincount(place, weights=outcomes.astype(np.float64), minlength=bins)[full] / weight,
        count=count[full],
    )


def expected_calibration_error(
    probabilities: Values, outcomes: Outcomes, bins: int = 10, *, kind: BinKind = "width"
) -> float:
    """`ECE = sum over bins of count/n * |frequency - mean probability|` (Naeini et al. 2015); errors as
    `reliability`.
    """
    diagram = reliability(probabilities, outcomes, bins, kind=kind)
    gap = np.abs(diagram.frequency - diagram.mean_probability)
    return float((gap * diagram.count).sum() / diagram.count.sum())


def brier(probabilities: Values, outcomes: Outcomes) -> float:
    """Compute `mean (p - outcome)^2`, 0 the best. InputError as `reliability`."""
    _check(probabilities, outcomes)
    return float(np.mean((probabilities.astype(np.float64) - outcomes.astype(np.float64)) ** 2))


def weighted_auroc(
    scores: Values, outcomes: Outcomes, weights: Float[np.ndarray, "draws n"]
) -> Float[np.ndarray, " draws"]:
    """Compute the AUROC under each row of question weights, ties counting half.

    A row that gives one class no weight has NaN. With scores sorted and tied ones merged into groups g: `sum_g pos_g
    (neg before g + neg_g / 2) / (pos * neg)`.
    """
    groups, place = np.unique(scores, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(groups)))
    sorted_weights = weights[:, order]
    positive = np.add.reduceat(sorted_weights * outcomes[order].astype(np.float64)[None], starts, axis=1)
    negative = np.add.reduceat(sorted_weights * (~outcomes[order]).astype(np.float64)[None], starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return (positive * below).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1))


def auroc(scores: Values, outcomes: Outcomes) -> float:
    """Compute the probability that a positive question scores above a negative one, ties counting half.

    Raises:
        InputError: unequal lengths, one class only, or a NaN score (infinite scores are ranked).
    """
    check_two_classes(scores, outcomes, "AUROC")
    return float(weighted_auroc(scores, outcomes, np.ones((1, len(scores))))[0])


def check_two_classes(scores: Values, outcomes: Outcomes, what: str) -> None:
    """Refuse (InputError) unequal lengths, NaN scores and sets of one class; `what` opens the message."""
    if len(scores) != len(outcomes):
        raise InputError(f"{what}: expected as many scores as outcomes, found {len(scores)} and {len(outcomes)}")
    if np.isnan(scores).any():
        raise InputError(f"{what}: question {int(np.argmax(np.isnan(scores))) + 1}: expected a number, found NaN")
    happened = int(outcomes.sum())
    if happened in (0, len(outcomes)):
        raise InputError(
            f"{what}: expected questions of both classes, found {happened} positive of {len(outcomes)}; add "
            f"questions of the missing class"
        )
