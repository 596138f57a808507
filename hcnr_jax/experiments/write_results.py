"""What every experiment leaves beside its records: summary.json, tables.md, pictures, and one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hcnr_jax.config.experiments import ExperimentConfig
from hcnr_jax.evaluate.ask.journal import write_over
from hcnr_jax.experiments.records import Record
from hcnr_jax.experiments.summary import averages
from hcnr_jax.report import curves
from hcnr_jax.report.console import Reporter
from hcnr_jax.report.json import to_json, versions
from hcnr_jax.report.markdown import differences_table, results_table, settings_table
from hcnr_jax.report.page import Page, Picture, render

Rows = list[dict[str, Any]]

# Answers on the page at most: enough to browse, few enough to send.
PAGE_ANSWERS = 15_000


class Section(NamedTuple):
    """A table of an experiment's own: its title, its rows under `key` of summary.json, and their Markdown."""

    title: str
    key: str
    rows: Rows
    text: str


class Results(NamedTuple):
    """An experiment's outcome. groups: title -> rows of `summarise`; a title of "" stands for the whole. settings: rows
    of `averages`, where settings rather than methods are shown. pictures: drawn already. answers: what the methods said
    that are shown, one setting a method and pair."""

    name: str
    title: str
    records: Sequence[Record]
    groups: Mapping[str, Rows]
    notes: Sequence[str]
    findings: Sequence[str] = ()
    settings: Rows | None = None
    pictures: Sequence[Picture] = ()
    sections: Sequence[Section] = ()
    answers: Sequence[Record] = ()


def write_results(config: ExperimentConfig, results: Results, reporter: Reporter) -> dict[str, Any]:
    """Write all of it into --out, over an earlier run's, and tell the tables; returns what summary.json holds."""
    failed = _failed(results.records)
    for reason in failed:
        reporter.warn(f"left out: {reason}")
    summary = {
        "experiment": results.name,
        "config": config.model_dump(mode="json"),
        "groups": results.groups,
        "settings": results.settings,
        **{section.key: section.rows for section in results.sections},
        "findings": list(results.findings),
        "failed": failed,
        "pairs": sorted({record["key"].rsplit("/", 3)[0] for record in results.records}),
        "versions": versions(),
        "warnings": reporter.warnings,
    }
    write_over(config.out / "summary.json", to_json(summary).decode())
    text = tables(results)
    write_over(config.out / "tables.md", text)
    write_over(config.out / "page.html", render(_page(config, results, summary)))
    reporter.say(text)
    reporter.say(f"records, summary.json, tables.md and page.html are in {config.out}")
    return summary


def tables(results: Results) -> str:
    """The Markdown of an experiment."""
    parts = [f"# {results.title}", *results.notes]
    for title, rows in results.groups.items():
        parts += [f"## {title}"] if title else []
        parts += [results_table(rows), differences_table(rows)]
    parts += [settings_table(results.settings)] if results.settings else []
    for section in results.sections:
        parts += [f"## {section.title}", section.text]
    parts += ["\n".join(f"- {finding}" for finding in results.findings)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _page(config: ExperimentConfig, results: Results, summary: Mapping[str, Any]) -> Page:
    shown: list[tuple[str, str]] = []
    for title, rows in results.groups.items():
        shown.append((title or "Results, percent", results_table(rows)))
        shown.append((f"{title or 'Results'}: differences to the reference, points", differences_table(rows)))
    if results.settings:
        shown.append(("Settings, percent", settings_table(results.settings)))
    shown += [(section.title, section.text) for section in results.sections]
    compared = results.records and (results.groups or results.settings)
    drawn = [_curves(config, results), *results.pictures] if compared else list(results.pictures)
    settings = {name: summary[name] for name in ("config", "pairs", "versions", "failed")}
    answers, notes = results.answers[:PAGE_ANSWERS], list(results.notes)
    if len(answers) < len(results.answers):
        notes.append(f"Of {len(results.answers)} answers the first {len(answers)} are on this page.")
    return Page(results.title, notes, results.findings, drawn, shown, answers, settings)


def _curves(config: ExperimentConfig, results: Results) -> Picture:
    """Every setting of every method, means over pairs, and the mean of what was chosen."""
    methods = list(dict.fromkeys(record["method"] for record in results.records))
    found = {method: averages(results.records, method) for method in methods}
    points = {
        method: [(row["test"]["task_accuracy"], row["test"]["honesty_f1"]) for row in rows]
        for method, rows in found.items()
        if rows and None not in rows[0]["test"].values()
    }
    rows = [row for group in results.groups.values() for row in group]
    taken = {
        row["method"]: (row["metrics"]["task_accuracy"]["mean"], row["metrics"]["honesty_f1"]["mean"])
        for row in rows
        if row["metrics"]["honesty_f1"] and row["metrics"]["task_accuracy"]
    }
    chosen = {method: taken.get(method, found_points[0]) for method, found_points in points.items()}
    path = curves.task_against_honesty(points, chosen, config.out / "honesty_task.png")
    return Picture(path, "Honesty against task accuracy: up and to the right is better")


def heat_picture(config: ExperimentConfig, settings: Rows, chosen: Mapping[str, Any]) -> Picture | None:
    """F1 and task accuracy over R_IW and R_CW, all else as in the chosen setting; None for a grid of one column."""
    across, down = (sorted({row["setting"][name] for row in settings}) for name in ("in_weight", "cross_weight"))
    if len(across) < 2 or len(down) < 2:
        return None
    maps = {"F1": np.full((len(down), len(across)), np.nan), "task accuracy": np.full((len(down), len(across)), np.nan)}
    for row in settings:
        setting = row["setting"]
        if all(setting[name] == chosen[name] for name in ("task_weight", "damping")):
            place = down.index(setting["cross_weight"]), across.index(setting["in_weight"])
            maps["F1"][place] = row["test"]["honesty_f1"]
            maps["task accuracy"][place] = row["test"]["task_accuracy"]
    names = [f"{value:g}" for value in across], [f"{value:g}" for value in down]
    path = curves.heat_maps(maps, *names, ("R_IW", "R_CW"), config.out / "heat.png")
    return Picture(path, f"At task weight {chosen['task_weight']:g}, damping {chosen['damping']:g}")


def _failed(records: Sequence[Record]) -> list[str]:
    return sorted(
        f"{record['pair']}, {record['method']} {record['label']}: {record['failed']}"
        for record in records
        if "failed" in record and record["split"] == "test"
    )
