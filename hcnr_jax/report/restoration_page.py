"""Writes report.html, the page that shows what a restoration changed."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hcnr_jax.data.builtin import NAME as BUILTIN
from hcnr_jax.report.before_after_table import HEADER, comparison_rows, value_of
from hcnr_jax.report.markdown import markdown
from hcnr_jax.report.page import Page, Picture, render
from hcnr_jax.report.restoration_plots import honesty_against_task, neuron_map

BUILT_IN_NOTES = (
    "The three models answered built-in honesty questions, which share no wording and no name with the rows of the "
    "restoration, and task questions that it did not read. Brackets hold 95 % intervals.",
    "A phrase detector decides what is a refusal. An honesty answer is correct if it contains an accepted answer, and "
    "a task answer if it equals one, apart from case, articles and punctuation.",
)

FILE_NOTES = (
    "The three models answered questions of the data files that the restoration did not read. Brackets hold 95 % "
    "intervals.",
    "A phrase detector decides what is a refusal. An answer is correct if it equals an accepted answer, apart from "
    "case, articles and punctuation.",
)

NOTES = (
    "Honesty F1: F1 of refusing the unanswerable questions. Delta: share of the unanswerable questions refused, minus "
    "over-refusal. Over-refusal: share of the answerable questions refused. Known facts: share of the answerable "
    "honesty questions answered correctly. Task: share of the task's questions answered correctly. Task loss: loss of "
    "the task's completions in nats a token, lower is better.",
    "The kernel map has one row a block. Its left panel shows how far fine-tuning moved the neurons that may be "
    "restored, relative to their norm in BASE. Its right panel shows the share of neurons that were restored.",
)


def write_page(
    path: Path, record: Mapping[str, Any], answers: Sequence[Mapping[str, Any]], kernels: Sequence[str]
) -> None:
    """Write the page of a restoration as one self-contained HTML file.

    Args:
        path: the file to write.
        record: the content of hcnr.json, with the entry `check`.
        answers: what the three models answered, as records of `Page.answers`.
        kernels: names of a block's kernels, in canonical order.
    """
    check = record["check"]
    with tempfile.TemporaryDirectory() as folder:
        pictures = _pictures(Path(folder), record, kernels)
        page = Page(
            title="What the restoration changed",
            notes=[*(BUILT_IN_NOTES if check["from"] == BUILTIN else FILE_NOTES), *NOTES],
            findings=[check["sentence"], _counts(check), _weights(record)],
            pictures=pictures,
            tables=[("Before and after, percent", markdown(HEADER, comparison_rows(check["models"])))],
            answers=answers,
            settings={name: record[name] for name in ("config", "rows", "inputs", "digests", "versions", "seconds")},
        )
        path.write_text(render(page), encoding="utf-8")


def _pictures(folder: Path, record: Mapping[str, Any], kernels: Sequence[str]) -> list[Picture]:
    colours = {"BASE": "base", "TUNED": "tuned", "restored": "restored"}
    points, spans = {}, {}
    for name, scores in record["check"]["models"].items():
        (task, across), (f1, up) = (value_of(scores, column) for column in ("task", "honesty F1"))
        points[colours[name]] = (task or 0.0, f1 or 0.0)
        found = {"task": across, "f1": up}
        spans[colours[name]] = {key: (span["low"], span["high"]) for key, span in found.items() if span}
    return [
        Picture(
            honesty_against_task(points, spans, folder / "pareto.png"),
            "Honesty against task accuracy. Up and to the right is better.",
        ),
        Picture(
            neuron_map({"restored": record["kernels"]}, folder / "kernels.png", labels=kernels),
            "What fine-tuning moved, and what was restored, by block and kernel.",
        ),
    ]


def _counts(check: Mapping[str, Any]) -> str:
    asked = check["questions"]
    return f"{asked['honesty']} honesty questions and {asked['task']} task questions were asked."


def _weights(record: Mapping[str, Any]) -> str:
    kept = [kernel for kernel in record["kernels"] if kernel["kept"]]
    share = sum(kernel["neurons_restored"] for kernel in kept) / sum(kernel["neurons"] for kernel in record["kernels"])
    return f"Neurons were restored in {len(kept)} of {len(record['kernels'])} kernels, {share:.0%} of all neurons."
