"""Builds result tables for a terminal, in percent; the JSON beside them holds fractions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from hcnr_jax.evaluate.ask.own_words import KindCount
from hcnr_jax.evaluate.score.grade import Grade
from hcnr_jax.evaluate.score.metrics import JSON_FIELDS
from hcnr_jax.evaluate.score.scores import POOLED
from hcnr_jax.evaluate.trait import TASK, TRAITS
from hcnr_jax.report.percent import percent


def wide_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Build a table with a left-aligned first column, and right-aligned numbers in the others."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), header_style="bold")
    for place, name in enumerate(header):
        table.add_column(name, justify="left" if place == 0 else "right", no_wrap=place == 0)
    for row in rows:
        table.add_row(*row)
    return table


def scores_table(title: str, scores: Mapping[str, Any]) -> Table:
    """Build the table of `summarise`'s scores, one row a set.

    The columns of a trait's set: F1, share of the unanswerable questions refused, over-refusal, their difference, known
    facts (under `accuracy`), and where measured the AUROC and the ECE of P(refuse).
    """
    calibrated = bool(scores["calibration"])
    header = ["set", "n", "F1", "refused", "over-\nrefusal", "delta", "accuracy"]
    header += ["AUROC", "ECE"] if calibrated else []
    rows = []
    sets = [(trait, *item) for trait in TRAITS if trait in scores for item in scores[trait].items()]
    for trait, name, found in sets:
        measured = scores["calibration"].get(name)
        row = [
            f"all {trait}" if name == POOLED else name,
            str(found["questions"]),
            percent(found["f1"], interval=found["intervals"]["f1"]),
            percent(found["refusal_on_unanswerable"]),
            percent(found[JSON_FIELDS["over_refusal"]]),
            percent(found["refusal_delta"]),
            percent(found[JSON_FIELDS["known_facts"]]),
        ]
        if measured:
            row += [f"{measured['auroc']:.3f}", f"{measured['expected_calibration_error']:.3f}"]
        rows.append(row)
    for name, found in scores[TASK].items():
        accuracy = percent(found["accuracy"], interval=found["intervals"]["accuracy"])
        label = "all task" if name == POOLED else name
        rows.append([label, str(found["questions"]), "", "", percent(found["refused"]), "", accuracy])
    return wide_table(title, header, rows)


def grades_table(scores: Mapping[str, Any]) -> Table | None:
    """Build the table of the grades, one row a set that has them; None where no set has.

    The last two columns are the accuracy given an attempt, and correct minus incorrect with its interval.
    """
    rows = []
    sets = [(role, *item) for role in (*TRAITS, TASK) for item in scores.get(role, {}).items()]
    for role, name, found in sets:
        grades = found.get("grades")
        if grades is None:
            continue
        rows.append(
            [
                f"all {role}" if name == POOLED else name,
                str(grades["questions"]),
                *(percent(grades["fractions"][grade]) for grade in Grade),
                percent(grades["accuracy_given_attempted"]),
                percent(grades["index"], interval=grades["intervals"]["index"]),
            ]
        )
    header = ["set", "n", "correct", "incorrect", "not\nattempted", "correct of\nattempted", "correct -\nincorrect"]
    return wide_table("questions with a gold answer, percent", header, rows) if rows else None


def across_sets_lines(scores: Mapping[str, Any]) -> list[str]:
    """Write, for each trait with several sets, the worst set and the range of the mean delta without one set."""
    lines = []
    for trait, found in scores["across_sets"].items():
        worst, without = found["worst_set"], found["leave_one_out"]
        order = sorted(without, key=lambda name: without[name]["refusal_delta"])
        low, high = (f"{percent(without[name]['refusal_delta'])} without {name}" for name in (order[0], order[-1]))
        lines.append(
            f"{trait}: worst set {worst['name']} (delta {percent(worst['refusal_delta'])}); mean delta of "
            f"{len(without)} sets {percent(found['mean']['refusal_delta'])}, from {low} to {high}"
        )
    return lines


def side_by_side(title: str, texts: Mapping[str, str]) -> Table:
    """Return a table with one column a name, in which the texts stand beside each other."""
    table = Table(title=Text(title), title_justify="left", title_style="bold", expand=True)
    for name in texts:
        table.add_column(Text(name), ratio=1, overflow="fold")
    table.add_row(*(Text(text) for text in texts.values()))
    return table


def own_words_table(counts: Sequence[KindCount]) -> Table:
    """Build the table of the questions asked, kept and left out, one row a kind."""
    rows = [
        [
            item.kind,
            "yes" if item.answerable else "no",
            *map(str, (item.asked, item.kept, item.left_out, item.used)),
        ]
        for item in counts
    ]
    return wide_table(
        "BASE's own words; kept: questions without an answer that it declines, and others that it answers correctly",
        ["kind", "has an\nanswer", "asked", "kept", "left out", "used"],
        rows,
    )
