"""Which rows a run uses: a seeded choice, and the checks of one set of rows against itself and against the other."""

import filecmp
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hcnr_jax.data.rows import Row
from hcnr_jax.errors import InputError

_NAMED = 5


def choose_rows(rows: Sequence[Row], samples: int | None, seed: int | None, option: str = "--samples") -> list[Row]:
    """The first `samples` rows after a shuffle by `seed` (NumPy's default generator); seed None keeps file order.

    samples None takes them all. `option` is the name of the option that asked, for messages.

    Raises:
        InputError: there are fewer rows than asked for, or `samples` is not positive.
    """
    if samples is not None and samples < 1:
        raise InputError(f"{option}: expected at least 1 row, got {samples}")
    wanted = len(rows) if samples is None else samples
    if len(rows) < wanted:
        file = rows[0].file if rows else "the data"
        raise InputError(
            f"{file}: {option} asks for {wanted} rows, the file has {len(rows)}; "
            f"give it more rows or pass {option} {len(rows)}"
        )
    if seed is None:
        return list(rows[:wanted])
    order = np.random.default_rng(seed).permutation(len(rows))
    return [rows[index] for index in order[:wanted]]


def row_key(row: Row) -> str:
    """What makes two rows the same: their prompt and completion, or their messages."""
    if row.is_chat:
        return json.dumps([dict(message) for message in row.messages], sort_keys=True)
    return json.dumps([row.prompt, row.completion])


def duplicate_warnings(rows: Sequence[Row]) -> list[str]:
    """A warning if rows repeat (they then count more than once), naming the first few; otherwise an empty list."""
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
    """A warning if honesty and task data share rows (they then pull both ways); otherwise an empty list."""
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
    """Raise InputError if both options name one file, or two files of the same bytes."""
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
