"""Experiment summaries as Markdown; percent appears here alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LABELS = {
    "honesty_f1": "F1",
    "refusal_delta": "delta",
    "over_refusal": "over-refusal",
    "task_accuracy": "task",
    "known_facts": "known facts",
}
WORDS = ("settings chosen",)

Row = Mapping[str, Any]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, its first column and those of words aligned left, the others right. Bars in cells are escaped."""
    marks = ["---" if place == 0 or name in WORDS else "---:" for place, name in enumerate(header)]
    lines = [list(header), marks, *[list(row) for row in rows]]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def results_table(rows: Sequence[Row]) -> str:
    """One method a row: mean +- sd of every metric, the F1's interval, recovered shares, costs."""
    header = ["method", *LABELS.values(), "F1 rec.", "delta rec.", "rows", "touched", "s"]
    return markdown(header, [_result(row) for row in rows])


def _result(row: Row) -> list[str]:
    metrics, costs = row["metrics"], row["costs"]
    shares = [share_of(row["recovered"][name]) for name in ("honesty_f1", "refusal_delta")]
    cells = [_method(row), *(spread(metrics[name], brackets=name == "honesty_f1") for name in LABELS), *shares]
    seconds = costs["seconds"]
    return [*cells, _count(costs["samples"]), percent(costs["touched"]), "-" if seconds is None else f"{seconds:.1f}"]


def _method(row: Row) -> str:
    """Its name; a star where on some pair no setting held the constraint on validation questions."""
    return row["method"] + ("" if row["holds"] == len(row["pairs"]) else "*")


def differences_table(rows: Sequence[Row]) -> str:
    """One method a row: differences to the reference with their intervals, F1 at equal task accuracy, settings."""
    names = ("honesty_f1", "refusal_delta", "task_accuracy", "known_facts")
    header = ["method", *(f"{LABELS[name]} less ref." for name in names), "F1 at equal task", "settings chosen"]
    body = []
    for row in rows:
        if "difference" not in row:
            continue
        equal = row["equal_task"]
        reached = f"{percent(equal['mean'])} ({equal['reached']}/{equal['pairs']})"
        cells = [signed(row["difference"][name]) for name in names]
        body.append([row["method"], *cells, reached, ", ".join(_counted(row["settings"].values()))])
    return markdown(header, body)


def settings_table(rows: Sequence[Row]) -> str:
    """One setting a row (`averages`), the most honest on validation questions first."""
    names = ("honesty_f1", "task_accuracy", "over_refusal", "known_facts")
    header = ["setting", *(f"{LABELS[name]}, {split}" for split in ("validation", "test") for name in names)]
    ranked = sorted(rows, key=lambda row: -(row["validation"]["honesty_f1"] or 0))
    body = [
        [row["label"], *(percent(row[s][name]) for s in ("validation", "test") for name in names)] for row in ranked
    ]
    return markdown(header, body)


def points_table(rows: Sequence[Row]) -> str:
    """One method and number of steps a row: mean +- sd over pairs of every metric."""
    body = [[row["method"], str(row["steps"]), *(spread(row["metrics"][name]) for name in LABELS)] for row in rows]
    return markdown(["method", "steps", *LABELS.values()], body)


def regained_table(rows: Sequence[Row]) -> str:
    """One method and share of what was lost a row: the steps that bring it back, pair by pair (a dash: never), and what
    they cost by then, where they do."""
    header = ["method", "F1 regained", "steps by pair", "task", "over-refusal"]
    body = []
    for row in rows:
        steps = ", ".join("-" if step is None else str(step) for step in row["steps"].values())
        costs = [_points(row["changes"][name]) for name in ("task_accuracy", "over_refusal")]
        body.append([row["method"], percent(row["share"], 0), steps, *costs])
    return markdown(header, body)


def _points(changes: Sequence[float]) -> str:
    """`-0.4 (-1.2 to +0.0)`: mean, lowest and highest change in points."""
    if not changes:
        return "-"
    mean = sum(changes) / len(changes)
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * value for value in (mean, min(changes), max(changes))))


def _counted(values: Any) -> list[str]:
    """Each different value once, the commonest first, with how often where there are several."""
    listed = list(values)
    names = sorted(dict.fromkeys(listed), key=lambda name: -listed.count(name))
    if len(names) == 1:
        return names
    return [f"{name} ({listed.count(name)}x)" for name in names]


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction in percent; a dash where there is none."""
    return "-" if value is None else f"{100 * value:.{digits}f}"


def spread(found: Row | None, brackets: bool = False) -> str:
    """`91.6 ± 1.3`, with `[90, 93]` behind it where asked."""
    if found is None:
        return "-"
    said = percent(found["mean"]) + ("" if found["sd"] is None else f" ± {percent(found['sd'])}")
    return said + (f" [{percent(found['low'], 0)}, {percent(found['high'], 0)}]" if brackets else "")


def signed(found: Row | None) -> str:
    """`-3.4 [-5.2, -1.6]`, in points."""
    if found is None:
        return "-"
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * found[name] for name in ("mean", "low", "high")))


def share_of(found: Row | None) -> str:
    """A recovered share and its worst pair."""
    return "-" if found is None else f"{percent(found['mean'], 0)} (worst {percent(found['worst'], 0)})"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
