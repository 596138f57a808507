"""Question sets as the command line names them: NAME=FILE, rows of ours or a benchmark's official files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hcnr_jax.data import BENCHMARKS, Row, Tokenizer, parse_row, read_dataset, read_rows, to_rows
from hcnr_jax.data.files import read_text
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.ask.questions import Role, check_labels, sample_rows, unique_names

Template = Literal["auto", "plain", "chat"]


@dataclass(frozen=True)
class QuestionSet:
    """A named set of checked rows; `notes` are what reading it met."""

    role: Role
    name: str
    path: str
    rows: list[Row]
    notes: tuple[str, ...] = ()


def read_sets(
    role: Role,
    named: Sequence[str],
    template: Template,
    tokenizer: Tokenizer,
    samples: int | None = None,
    seed: int | None = 0,
) -> list[QuestionSet]:
    """The sets of one option (`--honesty` or `--task`), each with at most `samples` rows.

    Raises:
        InputError: a word that is not NAME=FILE, a name given twice, a file that cannot be read, a row without the
            labels its role needs, an honesty set of one class.
    """
    pairs = [split_name(word, f"--{role}") for word in named]
    unique_names([name for name, _ in pairs], f"--{role}")
    style: Literal["plain", "chat"] = "plain"
    if template == "chat" or (template == "auto" and getattr(tokenizer, "chat_template", None)):
        style = "chat"
    sets = []
    for name, path in pairs:
        found = read_set(role, name, path, style)
        check_labels(role, name, found.rows)
        sets.append(QuestionSet(role, name, path, sample_rows(found.rows, samples, seed), found.notes))
    return sets


def split_name(word: str, option: str) -> tuple[str, str]:
    """NAME and FILE of a word NAME=FILE; a bare FILE is named by its stem. InputError for a bare word that is none."""
    name, separator, path = word.partition("=")
    if not separator and not Path(word).exists():
        raise InputError(f"{option} {word}: expected NAME=FILE, such as kuq=data/kuq.jsonl; there is no file {word}")
    if not separator:
        return Path(word).stem, word
    if not name or not path or "/" in name:
        raise InputError(f"{option} {word}: expected NAME=FILE, such as kuq=data/kuq.jsonl")
    return name, path


def read_set(role: Role, name: str, path: str, style: Literal["plain", "chat"]) -> QuestionSet:
    """One set from a file of rows, or, under a benchmark's name, from its official file or folder (asked in `style`).

    A file of rows is read as one whatever its name.
    """
    if name not in BENCHMARKS or _is_row_file(path):
        return QuestionSet(role, name, path, read_rows(path, need_completion=False))
    if BENCHMARKS[name].is_honesty != (role == "honesty"):
        other = "honesty" if role == "task" else "task"
        raise InputError(f"--{role} {name}={path}: {name} is a {other} benchmark; give it under --{other}")
    dataset = read_dataset(name, path)
    questions, notes = list(dataset.questions), dataset.report.lines()
    if role == "task" and dataset.report.without_answer:
        questions = [question for question in questions if question.answers]
        notes.append(f"{name}: those without a gold answer are left out")
    rows = to_rows(questions, style, completions=False)
    parsed = [parse_row(row, path, number, need_completion=False) for number, row in enumerate(rows, start=1)]
    return QuestionSet(role, name, path, parsed, tuple(notes))


def _is_row_file(path: str) -> bool:
    """Whether a file holds rows of ours: its first line is an object with a prompt or messages, and no `label`."""
    if not Path(path).is_file():
        return False
    try:
        first = json.loads(read_text(path).lstrip().split("\n", 1)[0])
    except (json.JSONDecodeError, RecursionError):
        return False
    return isinstance(first, dict) and ("prompt" in first or "messages" in first) and "label" not in first
