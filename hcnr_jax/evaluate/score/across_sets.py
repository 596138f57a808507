"""Compares the sets of one evaluation: the worst set, the mean over sets, and that mean without each set in turn.

A mean that changes much without one set rests on that set.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hcnr_jax.evaluate.score.grade_scores import INDEX
from hcnr_jax.evaluate.score.metrics import JSON_FIELDS

DELTA = "refusal_delta"
FIELDS = ("f1", DELTA, JSON_FIELDS["over_refusal"], JSON_FIELDS["known_facts"], INDEX)
"""The fields of a set that are averaged over sets."""


def across_sets(sets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Name the worst set and average FIELDS over the sets, each set with the same weight; None for fewer than two.

    Args:
        sets: set name -> its scores, without the pooled ones.

    Returns:
        `worst_set` (name and refusal delta), `mean` (field -> mean over all sets), and `leave_one_out` (name of the
        set left out -> field -> mean over the others). A field counts the sets that have it, and is None where none
        has.
    """
    if len(sets) < 2:
        return None
    values = {name: {field: _value(scores, field) for field in FIELDS} for name, scores in sets.items()}
    worst = min(values, key=lambda name: float(values[name][DELTA] or 0.0))
    return {
        "worst_set": {"name": worst, DELTA: values[worst][DELTA]},
        "mean": _mean(list(values.values())),
        "leave_one_out": {out: _mean([found for name, found in values.items() if name != out]) for out in values},
    }


def _value(scores: Mapping[str, Any], field: str) -> float | None:
    value: float | None = (scores["grades"] or {}).get(INDEX) if field == INDEX else scores[field]
    return value


def _mean(sets: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    known = {field: [found[field] for found in sets if found[field] is not None] for field in FIELDS}
    return {field: float(np.mean(np.array(values, float))) if values else None for field, values in known.items()}
