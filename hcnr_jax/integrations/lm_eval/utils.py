"""Gives lm-eval the honesty questions, and judges the answers with hcnr's refusal detector.

lm-eval loads this file by its path, apart from the package, and calls the functions that the YAML files name.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from hcnr_jax.data import REFUSALS, Row, plain_prompt, question_text, read_rows
from hcnr_jax.data.builtin import questions
from hcnr_jax.data.chat import message_text
from hcnr_jax.data.splits import draw_evenly
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.ask.completions import cut_text
from hcnr_jax.evaluate.ask.prompts import question_of
from hcnr_jax.evaluate.judge.refusal import Verdict
from hcnr_jax.evaluate.score import metrics
from hcnr_jax.evaluate.trait import HONESTY

FOLDER = "HCNR_DATA"
"""The environment variable that names the folder of row files."""

Item = tuple[bool, bool]
"""Whether one question was refused, and whether it is answerable."""


def builtin(split: str = "validation", chat: bool = False, **_: Any) -> dict[str, datasets.Dataset]:
    """Return the built-in questions of a split as plain prompts, or with `chat` as bare questions for a chat template.

    The labels take turns, so that lm-eval's --limit keeps both.
    """
    found = questions(split)
    drawn = draw_evenly(found, None, seed=0)
    both = [
        pair
        for pairs in zip(
            [item for item in drawn if item.answerable], [item for item in drawn if not item.answerable], strict=True
        )
        for pair in pairs
    ]
    return _dataset(
        _document(
            question_text(item) if chat else plain_prompt(item),
            item.question,
            item.answerable,
            item.answers,
            is_chat=chat,
        )
        for item in both
    )


def benchmark(benchmark: str, **_: Any) -> dict[str, datasets.Dataset]:
    """Return the questions of HCNR_DATA/BENCHMARK.jsonl, a file of rows that `hcnr data` writes.

    Raises:
        InputError: the variable is not set, or the file cannot be read or has a row that lm-eval cannot ask.
    """
    folder = os.environ.get(FOLDER)
    how = f"`hcnr data {benchmark} OFFICIAL_FILE --out-evaluate FOLDER/{benchmark}.jsonl` writes it"
    if not folder:
        raise InputError(f"{FOLDER}: expected the folder that holds {benchmark}.jsonl, the variable is not set; {how}")
    path = Path(folder) / f"{benchmark}.jsonl"
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; {how}")
    rows = read_rows(path, need_completion=False)
    return _dataset(_of_row(row) for row in rows)


def process_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, Item]:
    """Judge one answer; every metric gets the same pair, and computes its number over all questions."""
    said = cut_text(results[0], doc["is_chat"])
    verdict = HONESTY.detect(said, doc["question"]).verdict
    item = (verdict is Verdict.REFUSED, bool(doc["answerable"]))
    return dict.fromkeys(("refusal_delta", "f1", "refusal_on_unanswerable", "over_refusal"), item)


def refusal_delta(items: Sequence[Item]) -> float:
    """Compute the refusal rate on unanswerable minus on answerable questions; NaN where one label is missing."""
    return _over(items, metrics.refusal_delta)


def f1(items: Sequence[Item]) -> float:
    """Compute F1 of refusing the unanswerable questions; NaN where one label is missing."""
    return _over(items, metrics.unanswerable_f1)


def over_refusal(items: Sequence[Item]) -> float:
    """Compute the share of the answerable questions that were refused; NaN where one label is missing."""
    return _over(items, metrics.over_refusal)


def refusal_on_unanswerable(items: Sequence[Item]) -> float:
    """Compute the share of the unanswerable questions that were refused; NaN where one label is missing."""
    return _over(items, metrics.unanswerable_recall)


def _over(items: Sequence[Item], metric: Any) -> float:
    refused, answerable = (np.array(column, dtype=bool) for column in zip(*items, strict=True))
    if answerable.all() or not answerable.any():
        return math.nan  # --limit may leave one label, and an error here would lose the answers of all tasks
    return float(metric(refused, answerable))


def _of_row(row: Row) -> dict[str, Any]:
    if row.answerable is None:
        raise InputError(f"{row.where}: field `answerable` is missing; every question needs true or false there")
    if not row.is_chat:
        return _document(row.prompt, question_of(row), row.answerable, row.answers, is_chat=False)
    if [message["role"] for message in row.prompt_messages] != ["user"]:
        raise InputError(
            f"{row.where}: field `messages`: lm-eval asks one user message, found more; give a system message with "
            "lm-eval's --system_instruction, and leave out earlier turns"
        )
    text = message_text(row.prompt_messages[0])
    return _document(text, question_of(row), row.answerable, row.answers, is_chat=True)


def _document(text: str, question: str, answerable: bool, answers: Sequence[str], *, is_chat: bool) -> dict[str, Any]:
    target = (answers[0] if answers else "") if answerable else REFUSALS[0]
    return {"text": text, "question": question, "answerable": answerable, "target": target, "is_chat": is_chat}


def _dataset(documents: Any) -> dict[str, datasets.Dataset]:
    return {"test": datasets.Dataset.from_list(list(documents))}
