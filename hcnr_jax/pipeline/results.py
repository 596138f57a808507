"""What every experiment leaves beside its records: summary.json, tables.md, a picture, and one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hcnr_jax.evaluate.journal import write_over
from hcnr_jax.experiments.config import ExperimentConfig
from hcnr_jax.experiments.records import Record
from hcnr_jax.pipeline.console import Reporter
from hcnr_jax.report.records import to_json, versions
from hcnr_jax.report.tables import differences_table, results_table, settings_table

Rows = list[dict[str, Any]]


class Results(NamedTuple):
    """An experiment's outcome. groups: title -> rows of `summarise`; a title of "" stands for the whole. settings: rows
    of `averages`, where settings rather than methods are shown."""

    name: str
    title: str
    records: Sequence[Record]
    groups: Mapping[str, Rows]
    notes: Sequence[str]
    findings: Sequence[str] = ()
    settings: Rows | None = None


def write_results(config: ExperimentConfig, results: Results, reporter: Reporter) -> dict[str, Any]:
    """Write all of it into --out, over an earlier run's, and tell the table; returns what summary.json holds."""
    failed = {
        f"{r['pair']}, {r['method']} {r['label']}: {r['failed']}"
        for r in results.records
        if "failed" in r and r["split"] == "test"
    }
    for reason in sorted(failed):
        reporter.warn(f"left out: {reason}")
    summary = {
        "experiment": results.name,
        "config": config.model_dump(mode="json"),
        "groups": results.groups,
        "settings": results.settings,
        "findings": list(results.findings),
        "failed": sorted(failed),
        "versions": versions(),
        "warnings": reporter.warnings,
    }
    write_over(config.out / "summary.json", to_json(summary).decode())
    text = tables(results)
    write_over(config.out / "tables.md", text)
    reporter.say(text)
    reporter.say(f"records, summary.json and tables.md are in {config.out}")
    return summary


def tables(results: Results) -> str:
    """The Markdown of an experiment."""
    parts = [f"# {results.title}", *results.notes]
    for title, rows in results.groups.items():
        parts += [f"## {title}"] if title else []
        parts += [results_table(rows), differences_table(rows)]
    parts += [settings_table(results.settings)] if results.settings else []
    parts += ["\n".join(f"- {finding}" for finding in results.findings)]
    return "\n\n".join(part.strip() for part in parts) + "\n"
