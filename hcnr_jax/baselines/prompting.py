"""Puts refusal examples before the question; the model stays unchanged (the paper's weakest baseline)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hcnr_jax.baselines.training_rows import said
from hcnr_jax.data import Row


def choose_examples(honesty: Sequence[Row], count: int) -> list[Row]:
    """Choose the first `count` rows, alternating refusals and answered ones while both are left."""
    refused = [row for row in honesty if row.answerable is not True]
    answered = [row for row in honesty if row.answerable is True]
    chosen: list[Row] = []
    while len(chosen) < count and (refused or answered):
        wanted = refused if (len(chosen) % 2 == 0 and refused) or not answered else answered
        chosen.append(wanted.pop(0))
    return chosen


def with_examples(row: Row, examples: Sequence[Row]) -> Row:
    """Put the examples before a row's question: as earlier turns of a chat, or as earlier lines of plain text."""
    if not examples:
        return row
    if not row.is_chat:
        shown = "".join(f"{example.prompt} {said(example)}\n" for example in examples)
        return replace(row, prompt=shown + row.prompt)
    turns = [turn for example in examples for turn in example.messages if turn["role"] != "system"]
    first = [turn for turn in row.messages[:1] if turn["role"] == "system"]
    return replace(row, messages=(*first, *turns, *row.messages[len(first) :]))
