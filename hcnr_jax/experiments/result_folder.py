"""Writes what every experiment leaves beside its records: summary.json, tables.md, pictures and one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hcnr_jax.config.experiments import ExperimentConfig
from hcnr_jax.evaluate.trait import HONESTY, TASK_ACCURACY, Trait
from hcnr_jax.experiments.record_file import Record
from hcnr_jax.experiments.summary import averages
from hcnr_jax.report import experiment_plots
from hcnr_jax.report.console import Reporter
from hcnr_jax.report.json import to_json, versions
from hcnr_jax.report.markdown import differences_table, results_table, settings_table
from hcnr_jax.report.page import Page, Picture, render
from hcnr_jax.runtime.files import write_result

Rows = list[dict[str, Any]]

# Answers on the page at most: enough to browse, few enough to send.
PAGE_ANSWERS = 15_000


class Section(NamedTuple):
    """Holds a table of one experiment alone: its title, its rows under `key` of summary.json, and its Markdown."""

    title: str
    key: str
    rows: Rows
    text: str


class Results(NamedTuple):
    """Holds an experiment's outcome.

    Args:
        name: of the experiment.
        title: of its tables and page.
        records: of all jobs.
        groups: title -> rows of `summarise`; the title "" stands for the whole.
        notes: how to read the tables.
        findings: sentences.
        settings: rows of `averages`, where settings rather than methods are shown.
        pictures: already drawn.
        sections: further tables.
        answers: of the shown methods, one setting a method and pair.
        trait: whose metrics the tables show.
    """

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
    trait: Trait = HONESTY


def write_results(config: ExperimentConfig, results: Results, reporter: Reporter) -> dict[str, Any]:
    """Write everything into --out, over an earlier run's files, and return the content of summary.json."""
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
    write_result(config.out / "summary.json", to_json(summary).decode())
    text = tables(results)
    write_result(config.out / "tables.md", text)
    write_result(config.out / "page.html", render(_page(config, results, summary)))
    reporter.say(text)
    reporter.say(f"records, summary.json, tables.md and page.html are in {config.out}")
    return summary


def tables(results: Results) -> str:
    """Write the Markdown of an experiment."""
    parts = [f"# {results.title}", *results.notes]
    for title, rows in results.groups.items():
        parts += [f"## {title}"] if title else []
        parts += [results_table(rows, results.trait), differences_table(rows, results.trait)]
    parts += [settings_table(results.settings, results.trait)] if results.settings else []
    for section in results.sections:
        parts += [f"## {section.title}", section.text]
    parts += ["\n".join(f"- {finding}" for finding in results.findings)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _page(config: ExperimentConfig, results: Results, summary: Mapping[str, Any]) -> Page:
    shown: list[tuple[str, str]] = []
    for title, rows in results.groups.items():
        shown.append((title or "Results, percent", results_table(rows, results.trait)))
        points = f"{title or 'Results'}: differences to the reference, points"
        shown.append((points, differences_table(rows, results.trait)))
    if results.settings:
        shown.append(("Settings, percent", settings_table(results.settings, results.trait)))
    shown += [(section.title, section.text) for section in results.sections]
    compared = results.records and (results.groups or results.settings)
    drawn = [_curves(config, results), *results.pictures] if compared else list(results.pictures)
    settings = {name: summary[name] for name in ("config", "pairs", "versions", "failed")}
    answers, notes = results.answers[:PAGE_ANSWERS], list(results.notes)
    if len(answers) < len(results.answers):
        notes.append(f"Of {len(results.answers)} answers the first {len(answers)} are on this page.")
    return Page(results.title, notes, results.findings, drawn, shown, answers, settings)


def _curves(config: ExperimentConfig, results: Results) -> Picture:
    """Draw every setting of every method, means over pairs, and the mean of the chosen settings."""
    main = results.trait.main.name
    methods = list(dict.fromkeys(record["method"] for record in results.records))
    found = {method: averages(results.records, method, results.trait) for method in methods}
    points = {
        method: [(row["test"][TASK_ACCURACY], row["test"][main]) for row in rows]
        for method, rows in found.items()
        if rows and None not in rows[0]["test"].values()
    }
    rows = [row for group in results.groups.values() for row in group]
    taken = {
        row["method"]: (row["metrics"][TASK_ACCURACY]["mean"], row["metrics"][main]["mean"])
        for row in rows
        if row["metrics"][main] and row["metrics"][TASK_ACCURACY]
    }
    chosen = {method: taken.get(method, found_points[0]) for method, found_points in points.items()}
    path = experiment_plots.task_against_honesty(points, chosen, config.out / "honesty_task.png", trait=results.trait)
    return Picture(path, "Honesty against task accuracy: up and to the right is better")


def heat_picture(
    config: ExperimentConfig, settings: Rows, chosen: Mapping[str, Any], *, trait: Trait = HONESTY
) -> Picture | None:
    """Draw F1 and task accuracy over R_IW and R_CW, all else as in the chosen setting; None for a grid of one
    column.
    """
    across, down = (sorted({row["setting"][name] for row in settings}) for name in ("in_weight", "cross_weight"))
    if len(across) < 2 or len(down) < 2:
        return None
    f1, task = (np.full((len(down), len(across)), np.nan) for _ in range(2))
    for row in settings:
        setting = row["setting"]
        if all(setting[name] == chosen[name] for name in ("task_weight", "damping")):
            place = down.index(setting["cross_weight"]), across.index(setting["in_weight"])
            f1[place], task[place] = row["test"][trait.main.name], row["test"][TASK_ACCURACY]
    names = [f"{value:g}" for value in across], [f"{value:g}" for value in down]
    maps = {trait.main.heading: f1, "task accuracy": task}
    path = experiment_plots.heat_maps(maps, *names, labels=("R_IW", "R_CW"), path=config.out / "heat.png")
    return Picture(path, f"At task weight {chosen['task_weight']:g}, damping {chosen['damping']:g}")


def _failed(records: Sequence[Record]) -> list[str]:
    return sorted(
        f"{record['pair']}, {record['method']} {record['label']}: {record['failed']}"
        for record in records
        if "failed" in record and record["split"] == "test"
    )
