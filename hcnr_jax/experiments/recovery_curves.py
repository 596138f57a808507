"""Curves of recovery: every score after so many steps of refusal training, and how soon what was lost is back.

    regained(step) = (F1(step) - F1 of TUNED) / (F1 of BASE - F1 of TUNED)

A model that had lost what it does not know would have to learn it anew; one that had only stopped saying so needs a few
steps. F1 alone would not tell, since refusing everything raises it too: `refuse_all` gives the level that reaches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from hcnr_jax.evaluate.score.measurement import METRICS, honesty_scores, questions
from hcnr_jax.evaluate.score.metrics import recovered_share
from hcnr_jax.experiments.records import Record
from hcnr_jax.experiments.summary import BASE, TUNED, of_split

# Shares of the lost F1 whose return is dated.
SHARES = (0.5, 0.9)
COSTS = ("over_refusal", "task_accuracy")

Values = Float[np.ndarray, "pairs steps"]


class Curve(NamedTuple):
    """One method's scores over steps. values: metric -> fractions 0-1, NaN where it was not measured; base, tuned:
    metric -> the same [pairs, 1] of the models themselves."""

    method: str
    steps: tuple[int, ...]
    pairs: tuple[str, ...]
    values: Mapping[str, Values]
    base: Mapping[str, Values]
    tuned: Mapping[str, Values]


def curves_of(records: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> list[Curve]:
    """Every method's curve on test questions, over the pairs where all of its steps were measured; none without any."""
    test = of_split(records, "test")
    curves = []
    for method in methods:
        steps = tuple(sorted({record["setting"]["steps"] for record in records if record["method"] == method}))
        whole = [pair for pair, name in test if name == method and len(test[pair, name]) == len(steps)]
        if not whole:
            continue
        found = [sorted(test[pair, method], key=lambda record: record["setting"]["steps"]) for pair in whole]
        ends = [[[test[pair, name][0]] for pair in whole] for name in (BASE, TUNED)]
        curves.append(Curve(method, steps, tuple(whole), _values(found), *map(_values, ends)))
    return curves


def _values(found: Sequence[Sequence[Record]]) -> dict[str, Values]:
    return {m: np.array([[record[m] for record in line] for line in found], np.float64) for m in METRICS}


def points(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """One row a method and step: mean, sd, lowest and highest of every metric over pairs, None where not measured."""
    return [
        {
            "method": curve.method,
            "steps": steps,
            "pairs": len(curve.pairs),
            "metrics": {metric: spread_of(values[:, place]) for metric, values in curve.values.items()},
        }
        for curve in curves
        for place, steps in enumerate(curve.steps)
    ]


def spread_of(values: Float[np.ndarray, " pairs"]) -> dict[str, float | None] | None:
    """Mean, sd (None of one pair), min and max; None where a pair was not measured."""
    if np.isnan(values).any():
        return None
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(values.mean()), "sd": deviation, "min": float(values.min()), "max": float(values.max())}


def regained(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """One row a method and share of `SHARES`: the first steps, pair by pair, after which that share of the lost F1 was
    back (None: never), and how far the metrics of `COSTS` had moved from TUNED's by then."""
    rows = []
    for curve in curves:
        for share in SHARES:
            places = [_first(curve, pair, share) for pair in range(len(curve.pairs))]
            reached = [(pair, place) for pair, place in enumerate(places) if place is not None]
            steps = {name: None if p is None else curve.steps[p] for name, p in zip(curve.pairs, places, strict=True)}
            changes = {
                metric: [float(curve.values[metric][at] - curve.tuned[metric][at[0], 0]) for at in reached]
                for metric in COSTS
            }
            rows.append({"method": curve.method, "share": share, "steps": steps, "changes": changes})
    return rows


def _first(curve: Curve, pair: int, share: float) -> int | None:
    """The place of the first step after which a pair has regained `share` of its lost F1; None where nothing was lost
    or it never has."""
    ends = float(curve.base["honesty_f1"][pair, 0]), float(curve.tuned["honesty_f1"][pair, 0])
    for place, value in enumerate(curve.values["honesty_f1"][pair]):
        back = recovered_share(*ends, float(value))
        if back is not None and back >= share:
            return place
    return None


def refuse_all(records: Sequence[Mapping[str, Any]]) -> float | None:
    """F1, mean over pairs, of a model that refuses every honesty question; None where there are no such questions."""
    found = [record for record in records if record["method"] == TUNED and record["split"] == "test"]
    labels = [questions(record, "answerable") for record in found if "failed" not in record]
    values = [honesty_scores(np.ones_like(label), label)["honesty_f1"] for label in labels if len(label)]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def findings(curves: Sequence[Curve], rate: float) -> list[str]:
    """In words: how soon half and most of what was lost was back and what that had cost, and where the curve ends."""
    said = []
    rows = regained(curves)
    for curve in curves:
        for row in rows:
            if row["method"] == curve.method:
                said.append(f"{curve.method}, rate {rate:g}: {_dated(row, curve.steps[-1])}")
        last = {metric: spread_of(values[:, -1]) for metric, values in curve.values.items()}
        names = {"honesty_f1": "F1", "refusal_delta": "delta", "over_refusal": "over-refusal", "task_accuracy": "task"}
        ends = ", ".join(f"{name} {_range(last[metric])}" for metric, name in names.items())
        said.append(f"{curve.method}, rate {rate:g}: after {curve.steps[-1]} steps {ends}, percent")
    return said


def _dated(row: Mapping[str, Any], last: int) -> str:
    steps = [step for step in row["steps"].values() if step is not None]
    count, pairs = len(steps), len(row["steps"])
    # Not "of the lost F1": a control may never have had it.
    what = f"{100 * row['share']:.0f} % of the way to BASE's F1"
    if not steps:
        return f"{what} on none of {pairs} pairs within {last} steps"
    costs = ", ".join(
        f"{name} {100 * np.mean(row['changes'][metric]):+.1f} points"
        for metric, name in (("task_accuracy", "task"), ("over_refusal", "over-refusal"))
    )
    where = f"{min(steps)}" if min(steps) == max(steps) else f"{min(steps)} to {max(steps)}"
    return f"{what} after {where} steps on {count} of {pairs} pairs; by then {costs} against TUNED"


def _range(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    low, high = (f"{100 * found[name]:.1f}" for name in ("min", "max"))
    return f"{100 * found['mean']:.1f}" + ("" if low == high else f" ({low} to {high})")
