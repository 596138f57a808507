"""Checks of rows against each other: duplicates in one set, rows that both sets share, one file given for both."""

import filecmp
import json
from collections.abc import Sequence
from pathlib import Path

from hcnr_jax.data.rows import Row
from hcnr_jax.errors import InputError

# Places that a warning names; it counts the others.
_NAMED = 5


def row_key(row: Row) -> str:
    """Return the key by which rows are compared: prompt and completion, or the messages."""
    if row.is_chat:
        chat = [
            [dict(message) for message in row.messages],
            [dict(tool) for tool in row.tools],
            dict(row.template_options),
        ]
        return json.dumps(chat, sort_keys=True, default=str)
    return json.dumps([row.prompt, row.completion])


def duplicate_warnings(rows: Sequence[Row]) -> list[str]:
    """Warn of repeated rows, which count more than once, and name the first few; an empty list if none repeats."""
    first: dict[str, Row] = {}
    repeats = []
    for row in rows:
        seen = first.setdefault(row_key(row), row)
        if seen is not row:
            repeats.append(f"line {row.line} repeats line {seen.line}")
    if not repeats:
        return []
    return [
        f"{rows[0].file}: {_counted(len(repeats), 'duplicate row')} ({_some(repeats)}); each counts again in every mean"
    ]


def overlap_warnings(honesty: Sequence[Row], task: Sequence[Row]) -> list[str]:
    """Warn of rows in both honesty and task data, which pull in both directions; an empty list if there are none."""
    lines = {row_key(row): row.line for row in honesty}
    shared = [
        f"line {lines[key]} of the honesty data is line {row.line} of the task data"
        for row in task
        if (key := row_key(row)) in lines
    ]
    if not shared:
        return []
    return [
        f"{honesty[0].file} and {task[0].file}: {_counted(len(shared), 'shared row')} ({_some(shared)}); "
        "such a row asks to be restored and to be kept"
    ]


def refuse_same_file(honesty: str | Path, task: str | Path) -> None:
    """Raise InputError if both options name the same file, or two files with the same bytes."""
    honesty, task = Path(honesty), Path(task)
    if not (honesty.is_file() and task.is_file()):
        return
    if honesty.samefile(task):
        raise InputError(f"--honesty and --task both name {honesty}; give the two sets of rows as two different files")
    if filecmp.cmp(honesty, task, shallow=False):
        raise InputError(f"--honesty {honesty} and --task {task} hold the same bytes; give two different sets of rows")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _some(items: Sequence[str]) -> str:
    more = len(items) - _NAMED
    return "; ".join(items[:_NAMED]) + (f"; and {more} more" if more > 0 else "")
