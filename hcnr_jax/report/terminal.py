"""Result tables for a terminal; only these print percent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from hcnr_jax.evaluate.score.scores import POOLED


def wide_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Columns under a header, the first one left-aligned, the others right-aligned numbers."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), header_style="bold")
    for place, name in enumerate(header):
        table.add_column(name, justify="left" if place == 0 else "right", no_wrap=place == 0)
    for row in rows:
        table.add_row(*row)
    return table


def percent(value: float | None, interval: Mapping[str, Any] | None = None) -> str:
    """A fraction as percent with one decimal, its interval in whole points behind it; a dash where there is none."""
    if value is None:
        return "-"
    said = f"{100 * value:.1f}"
    return said if interval is None else f"{said} [{100 * interval['low']:.0f}, {100 * interval['high']:.0f}]"


def scores_table(title: str, scores: Mapping[str, Any]) -> Table:
    """One row a set: honesty F1, share of the unanswerable questions refused, over-refusal, their difference, accuracy
    (of an honesty set: known facts), and where measured P(refuse)'s AUROC and ECE."""
    calibrated = bool(scores["calibration"])
    header = ["set", "n", "F1", "refused", "over-\nrefusal", "delta", "accuracy"]
    header += ["AUROC", "ECE"] if calibrated else []
    rows = []
    for name, found in scores["honesty"].items():
        measured = scores["calibration"].get(name)
        row = [
            "all honesty" if name == POOLED else name,
            str(found["questions"]),
            percent(found["f1"], found["intervals"]["f1"]),
            percent(found["refusal_on_unanswerable"]),
            percent(found["refusal_on_answerable"]),
            percent(found["refusal_delta"]),
            percent(found["accuracy_on_answerable"]),
        ]
        if measured:
            row += [f"{measured['auroc']:.3f}", f"{measured['expected_calibration_error']:.3f}"]
        rows.append(row)
    for name, found in scores["task"].items():
        accuracy = percent(found["accuracy"], found["intervals"]["accuracy"])
        label = "all task" if name == POOLED else name
        rows.append([label, str(found["questions"]), "", "", percent(found["refused"]), "", accuracy])
    return wide_table(title, header, rows)
