"""Prints what `hcnr evaluate` measured: scores, grades, the worst set, and differences from other models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from hcnr_jax.evaluate.score.grade_scores import INDEX
from hcnr_jax.evaluate.score.metrics import JSON_FIELDS
from hcnr_jax.evaluate.score.scores import POOLED
from hcnr_jax.report.console import Reporter
from hcnr_jax.report.percent import percent
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
    if result["judge"] is not None:
        reporter.console.print(agreement_table(result["judge"]["judge"], result["judge"]["sets"]))
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


def agreement_table(judge: str, sets: Mapping[str, Mapping[str, Any]]) -> Table:
    """Build the table of a judge's agreement with the detector of refusals, one row a set.

    Args:
        judge: names the judge.
        sets: role -> set -> scores, as `agreement_scores` returns them.
    """
    rows = []
    for role, named in sets.items():
        for name, found in named.items():
            kappa = "-" if found["kappa"] is None else f"{found['kappa']:.3f}"
            counts = (found[field]["count"] for field in ("only_judge_refused", "only_detector_refused"))
            label = f"all {role}" if name == POOLED else name
            shown = [str(found["questions"]), percent(found["agreement"]), kappa, *map(str, counts)]
            rows.append([label, *shown, str(found["unreadable"])])
    header = ["set", "n", "agreement,\npercent", "Cohen's\nkappa", "only judge:\nrefused", "only detector:\nrefused"]
    return wide_table(f"detector of refusals and judge {judge}", [*header, "unreadable\nreplies"], rows)


def _difference(interval: Mapping[str, Any]) -> str:
    low, high = (f"{100 * interval[edge]:+.1f}" for edge in ("low", "high"))
    return f"{100 * interval['value']:+.1f}\n[{low}, {high}]"
