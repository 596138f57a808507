"""Computes recovery curves: every metric over the steps of refusal training, and when the lost F1 is regained.

    regained(step) = (F1(step) - F1 of TUNED) / (F1 of BASE - F1 of TUNED)

A model that had lost its knowledge would have to learn it again; a model that only stopped expressing it needs a few
steps. F1 alone cannot tell, since refusing everything raises F1 too: `refuse_all` gives the F1 of that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from hcnr_jax.evaluate.score.measurement import questions
from hcnr_jax.evaluate.score.metrics import recovered_share
from hcnr_jax.evaluate.trait import HONESTY, TASK_ACCURACY, Trait
from hcnr_jax.experiments.record_file import Record
from hcnr_jax.experiments.summary import BASE, TUNED, of_split

# Shares of the lost F1 whose return is dated.
SHARES = (0.5, 0.9)

Values = Float[np.ndarray, "pairs steps"]


class Curve(NamedTuple):
    """Holds one method's metrics over steps.

    Args:
        method: its name.
        steps: after which the model was asked.
        pairs: their names.
        values: metric -> fractions 0-1 [pairs, steps], NaN where not measured.
        base: metric -> the values of BASE, [pairs, 1].
        tuned: metric -> the values of TUNED, [pairs, 1].
    """

    method: str
    steps: tuple[int, ...]
    pairs: tuple[str, ...]
    values: Mapping[str, Values]
    base: Mapping[str, Values]
    tuned: Mapping[str, Values]


def curves_of(records: Sequence[Mapping[str, Any]], methods: Sequence[str], trait: Trait = HONESTY) -> list[Curve]:
    """Build every method's curve on test questions, over the pairs where all of its steps were measured."""
    test = of_split(records, "test")
    curves = []
    for method in methods:
        steps = tuple(sorted({record["setting"]["steps"] for record in records if record["method"] == method}))
        whole = [pair for pair, name in test if name == method and len(test[pair, name]) == len(steps)]
        if not whole:
            continue
        found = [sorted(test[pair, method], key=lambda record: record["setting"]["steps"]) for pair in whole]
        ends = [[[test[pair, name][0]] for pair in whole] for name in (BASE, TUNED)]
        values = [_values(item, trait) for item in (found, *ends)]
        curves.append(Curve(method, steps, tuple(whole), *values))
    return curves


def _values(found: Sequence[Sequence[Record]], trait: Trait) -> dict[str, Values]:
    return {
        name: np.array([[record[name] for record in line] for line in found], np.float64) for name in trait.headings
    }


def points(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Return one row a method and step: mean, sd, lowest and highest of every metric over pairs, None where not
    measured.
    """
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
    """Compute mean, sd (None of one pair), min and max; None where a pair was not measured."""
    if np.isnan(values).any():
        return None
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(values.mean()), "sd": deviation, "min": float(values.min()), "max": float(values.max())}


def regained(curves: Sequence[Curve], trait: Trait = HONESTY) -> list[dict[str, Any]]:
    """Return one row a method and share of `SHARES`: when each pair regained that share of its lost F1, and the
    costs.

    The steps are by pair, None where a pair never regains the share. The changes are those of over-refusal and task
    accuracy from TUNED's at that step.
    """
    rows = []
    for curve in curves:
        for share in SHARES:
            places = [_first(curve, pair, share, trait) for pair in range(len(curve.pairs))]
            reached = [(pair, place) for pair, place in enumerate(places) if place is not None]
            steps = {name: None if p is None else curve.steps[p] for name, p in zip(curve.pairs, places, strict=True)}
            changes = {
                metric: [float(curve.values[metric][at] - curve.tuned[metric][at[0], 0]) for at in reached]
                for metric in (*(cost.name for cost in trait.costs), TASK_ACCURACY)
            }
            rows.append({"method": curve.method, "share": share, "steps": steps, "changes": changes})
    return rows


def _first(curve: Curve, pair: int, share: float, trait: Trait) -> int | None:
    """Find the first step after which a pair has regained `share` of its lost F1; None without such a step or loss."""
    name = trait.main.name
    ends = float(curve.base[name][pair, 0]), float(curve.tuned[name][pair, 0])
    for place, value in enumerate(curve.values[name][pair]):
        back = recovered_share(*ends, float(value))
        if back is not None and back >= share:
            return place
    return None


def refuse_all(records: Sequence[Mapping[str, Any]], trait: Trait = HONESTY) -> float | None:
    """Compute the F1, mean over pairs, of a model that refuses every question of the trait; None without questions."""
    found = [record for record in records if record["method"] == TUNED and record["split"] == "test"]
    labels = [questions(record, "answerable") for record in found if "failed" not in record]
    values = [trait.scores(np.ones_like(label), label)[trait.main.name] for label in labels if len(label)]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def findings(curves: Sequence[Curve], rate: float, trait: Trait = HONESTY) -> list[str]:
    """Say when half and most of the lost F1 was regained, at which costs, and where each curve ends."""
    said = []
    rows = regained(curves, trait)
    names = {metric.name: metric.heading for metric in trait.metrics} | {TASK_ACCURACY: "task"}
    for curve in curves:
        for row in rows:
            if row["method"] == curve.method:
                said.append(f"{curve.method}, rate {rate:g}: {_dated(row, curve.steps[-1], trait)}")
        last = {metric: spread_of(values[:, -1]) for metric, values in curve.values.items()}
        ends = ", ".join(f"{name} {_range(last[metric])}" for metric, name in names.items())
        said.append(f"{curve.method}, rate {rate:g}: after {curve.steps[-1]} steps {ends}, percent")
    return said


def _dated(row: Mapping[str, Any], last: int, trait: Trait) -> str:
    steps = [step for step in row["steps"].values() if step is not None]
    count, pairs = len(steps), len(row["steps"])
    # Not "of the lost F1": a control may never have had it.
    what = f"{100 * row['share']:.0f} % of the way to BASE's {trait.main.heading}"
    if not steps:
        return f"{what} on none of {pairs} pairs within {last} steps"
    costs = ", ".join(
        f"{name} {100 * np.mean(row['changes'][metric]):+.1f} points"
        for metric, name in ((TASK_ACCURACY, "task"), *((cost.name, cost.heading) for cost in trait.costs))
    )
    where = f"{min(steps)}" if min(steps) == max(steps) else f"{min(steps)} to {max(steps)}"
    return f"{what} after {where} steps on {count} of {pairs} pairs; by then {costs} against TUNED"


def _range(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    low, high = (f"{100 * found[name]:.1f}" for name in ("min", "max"))
    return f"{100 * found['mean']:.1f}" + ("" if low == high else f" ({low} to {high})")
