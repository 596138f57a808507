"""Writes experiment summaries as Markdown tables, in percent; the JSON beside them holds fractions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hcnr_jax.evaluate.trait import HONESTY, KNOWN_FACTS, TASK_ACCURACY, Trait
from hcnr_jax.report.percent import percent

WORDS = ("settings chosen",)

Row = Mapping[str, Any]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table, its first column and those of words aligned left, the others right. Bars in cells are escaped."""
    marks = ["---" if place == 0 or name in WORDS else "---:" for place, name in enumerate(header)]
    lines = [list(header), marks, *[list(row) for row in rows]]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def results_table(rows: Sequence[Row], trait: Trait = HONESTY) -> str:
    """Write one method a row: mean ± sd of every metric, the F1's interval, recovered shares, costs."""
    shares = [f"{metric.heading} recovered" for metric in trait.lost]
    header = ["method", *trait.headings.values(), *shares, "rows", "weights changed", "seconds"]
    return markdown(header, [_result(row, trait) for row in rows])


def _result(row: Row, trait: Trait) -> list[str]:
    metrics, costs, main = row["metrics"], row["costs"], trait.main.name
    shares = [share_of(row["recovered"][metric.name]) for metric in trait.lost]
    cells = [_method(row), *(spread(metrics[name], brackets=name == main) for name in trait.headings), *shares]
    seconds = costs["seconds"]
    return [*cells, _count(costs["samples"]), percent(costs["touched"]), "-" if seconds is None else f"{seconds:.1f}"]


def _method(row: Row) -> str:
    """Name the method, with a star where on some pair no setting held the constraint on validation questions."""
    return row["method"] + ("" if row["holds"] == len(row["pairs"]) else "*")


def differences_table(rows: Sequence[Row], trait: Trait = HONESTY) -> str:
    """Write one method a row: differences to the reference with intervals, F1 at equal task accuracy, settings."""
    names = (*(metric.name for metric in trait.lost), TASK_ACCURACY, KNOWN_FACTS)
    less = [f"{trait.headings[name]} minus reference" for name in names]
    header = ["method", *less, f"{trait.main.heading} at equal task", "settings chosen"]
    body = []
    for row in rows:
        if "difference" not in row:
            continue
        equal = row["equal_task"]
        reached = f"{percent(equal['mean'])} ({equal['reached']}/{equal['pairs']})"
        cells = [signed(row["difference"][name]) for name in names]
        body.append([row["method"], *cells, reached, ", ".join(_counted(row["settings"].values()))])
    return markdown(header, body)


def settings_table(rows: Sequence[Row], trait: Trait = HONESTY) -> str:
    """Write one setting a row (`averages`), the most honest on validation questions first."""
    names = (trait.main.name, TASK_ACCURACY, *(cost.name for cost in trait.costs), KNOWN_FACTS)
    header = ["setting", *(f"{trait.headings[name]}, {split}" for split in ("validation", "test") for name in names)]
    ranked = sorted(rows, key=lambda row: -(row["validation"][trait.main.name] or 0))
    body = [
        [row["label"], *(percent(row[s][name]) for s in ("validation", "test") for name in names)] for row in ranked
    ]
    return markdown(header, body)


def points_table(rows: Sequence[Row], trait: Trait = HONESTY) -> str:
    """Write one method and number of steps a row: mean ± sd over pairs of every metric."""
    names = trait.headings
    body = [[row["method"], str(row["steps"]), *(spread(row["metrics"][name]) for name in names)] for row in rows]
    return markdown(["method", "steps", *names.values()], body)


def regained_table(rows: Sequence[Row], trait: Trait = HONESTY) -> str:
    """Write one method and share of the lost F1 a row: the steps that regain the share, pair by pair (a dash: never),
    and the changes of task accuracy and over-refusal by then."""
    names = (TASK_ACCURACY, *(cost.name for cost in trait.costs))
    header = ["method", f"{trait.main.heading} regained", "steps by pair", *(trait.headings[name] for name in names)]
    body = []
    for row in rows:
        steps = ", ".join("-" if step is None else str(step) for step in row["steps"].values())
        costs = [_points(row["changes"][name]) for name in names]
        body.append([row["method"], percent(row["share"], 0), steps, *costs])
    return markdown(header, body)


def _points(changes: Sequence[float]) -> str:
    """Write `-0.4 (-1.2 to +0.0)`: mean, lowest and highest change in points."""
    if not changes:
        return "-"
    mean = sum(changes) / len(changes)
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * value for value in (mean, min(changes), max(changes))))


def _counted(values: Any) -> list[str]:
    """List each different value once, the most frequent first, with its count where there are several."""
    listed = list(values)
    names = sorted(dict.fromkeys(listed), key=lambda name: -listed.count(name))
    if len(names) == 1:
        return names
    return [f"{name} ({listed.count(name)}x)" for name in names]


def spread(found: Row | None, brackets: bool = False) -> str:
    """Write `91.6 ± 1.3`, with `[90, 93]` behind it where asked."""
    if found is None:
        return "-"
    said = percent(found["mean"]) + ("" if found["sd"] is None else f" ± {percent(found['sd'])}")
    return said + (f" [{percent(found['low'], 0)}, {percent(found['high'], 0)}]" if brackets else "")


def signed(found: Row | None) -> str:
    """Write `-3.4 [-5.2, -1.6]`, in points."""
    if found is None:
        return "-"
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * found[name] for name in ("mean", "low", "high")))


def share_of(found: Row | None) -> str:
    """Write a recovered share and its worst pair."""
    return "-" if found is None else f"{percent(found['mean'], 0)} (worst {percent(found['worst'], 0)})"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
