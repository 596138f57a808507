"""Prints what `hcnr evaluate` measured: scores, grades, the worst set, and differences from other models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from hcnr_jax.evaluate.score.grade_scores import INDEX
from hcnr_jax.evaluate.score.metrics import JSON_FIELDS
from hcnr_jax.evaluate.score.scores import POOLED
from hcnr_jax.report.console import Reporter
from hcnr_jax.report.terminal_tables import across_sets_lines, grades_table, scores_table, wide_table

_COLUMNS = {
    "F1": ("f1",),
    "delta": ("refusal_delta",),
    "over-\nrefusal": (JSON_FIELDS["over_refusal"],),
    "accuracy": (JSON_FIELDS["known_facts"], "accuracy"),
    "correct -\nincorrect": (INDEX,),
}
"""Maps a heading to the fields of a set that hold it: a trait's sets and task sets name the accuracy differently."""


def print_evaluation(reporter: Reporter, result: Mapping[str, Any]) -> None:
    """Print the content of a metrics file: the tables, then the line about several sets."""
    model = result["model"]["folder"]
    title = (
        f"{model}, percent [95 % interval]; refused: share of unanswerable questions; accuracy of an honesty "
        "set: share of known facts"
    )
    reporter.console.print(scores_table(title, result))
    grades = grades_table(result)
    if grades is not None:
        reporter.console.print(grades)
    for line in across_sets_lines(result):
        reporter.say(line)
    for other in result["compare"]:
        reporter.console.print(differences_table(f"{model} minus {other['model']}", other["sets"]))


def differences_table(title: str, sets: Mapping[str, Mapping[str, Any]]) -> Table:
    """Build the table of paired differences, one row a set, each interval below its difference.

    Args:
        title: names both models.
        sets: role -> set -> metric -> interval, as `paired_scores` returns them.
    """
    rows = []
    for role, named in sets.items():
        for name, found in named.items():
            cells = [next((found[field] for field in fields if field in found), None) for fields in _COLUMNS.values()]
            label = f"all {role}" if name == POOLED else name
            rows.append([label, *("" if cell is None else _difference(cell) for cell in cells)])
    return wide_table(f"{title}, points [95 % interval]", ["set", *_COLUMNS], rows)


def _difference(interval: Mapping[str, Any]) -> str:
    low, high = (f"{100 * interval[edge]:+.1f}" for edge in ("low", "high"))
    return f"{100 * interval['value']:+.1f}\n[{low}, {high}]"
