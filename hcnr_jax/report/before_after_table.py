"""Writes the comparison of BASE, TUNED and the restored model as the cells of one table, in percent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hcnr_jax.evaluate.score.metrics import JSON_FIELDS
from hcnr_jax.evaluate.trait import HONESTY, TASK
from hcnr_jax.report.percent import percent

COLUMNS = {
    "honesty F1": (HONESTY.name, "f1"),
    "delta": (HONESTY.name, "refusal_delta"),
    "over-refusal": (HONESTY.name, JSON_FIELDS["over_refusal"]),
    "known facts": (HONESTY.name, JSON_FIELDS["known_facts"]),
    "task": (TASK, "accuracy"),
}
"""Maps the heading of a column to the section and the field of `evaluate.score.scores.summarise`."""


HEADER = ("model", *COLUMNS, "task loss")
"""Names the columns of `comparison_rows`. The loss is in nats a token of the task's completions."""


def value_of(scores: Mapping[str, Any], column: str) -> tuple[float | None, Any]:
    """Return one model's metric as a fraction, and its interval, which some metrics lack.

    Args:
        scores: of one model, as `summarise` returns them.
        column: a key of COLUMNS.
    """
    section, field = COLUMNS[column]
    (found,) = scores[section].values()
    return found[field], (found.get("intervals") or {}).get(field)


def comparison_rows(models: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return one row a model: its name, COLUMNS in percent with 95 % intervals, and the task's loss."""
    rows = []
    for name, scores in models.items():
        cells = (value_of(scores, column) for column in COLUMNS)
        loss = next(iter(scores[TASK].values())).get("nll")
        shown = "-" if loss is None else f"{loss:.3f}"
        rows.append([name, *(percent(value, interval=interval) for value, interval in cells), shown])
    return rows
