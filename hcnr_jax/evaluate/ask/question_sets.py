"""Reads the question sets that the command line names: NAME=FILE, a row file or a benchmark's official files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hcnr_jax.data import BENCHMARKS, Row, Tokenizer, parse_row, read_dataset, read_rows, row_style, to_rows
from hcnr_jax.data.json_lines import read_text
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.ask.prompts import Role, check_labels, sample_rows, unique_names
from hcnr_jax.evaluate.trait import HONESTY, TASK, trait_of

Template = Literal["auto", "plain", "chat"]


@dataclass(frozen=True)
class QuestionSet:
    """Holds a named set of checked rows, and the notes of its reader."""

    role: Role
    name: str
    path: str
    rows: list[Row]
    notes: tuple[str, ...] = ()


def read_sets(
    role: Role,
    named: Sequence[str],
    template: Template,
    *,
    tokenizer: Tokenizer,
    samples: int | None = None,
    seed: int | None = 0,
) -> list[QuestionSet]:
    """Read the sets of one option (`--honesty` or `--task`).

    Args:
        role: the name of the option.
        named: words NAME=FILE.
        template: how official questions are asked.
        tokenizer: of the model; tells `auto` whether there is a chat template.
        samples: questions of each set at most; None keeps all.
        seed: of the draw; None takes the first ones.

    Raises:
        InputError: a word that is not NAME=FILE, a name given twice, a file that cannot be read, a row without the
            labels its role needs, or a set of a trait with one class.
    """
    pairs = [split_name(word, f"--{role}") for word in named]
    unique_names([name for name, _ in pairs], f"--{role}")
    style: Literal["plain", "chat"] = row_style(tokenizer) if template == "auto" else template
    sets = []
    for name, path in pairs:
        found = read_set(role, name, path, style=style)
        check_labels(role, name, found.rows)
        sets.append(
            QuestionSet(role, name, path, sample_rows(found.rows, samples, seed, trait=trait_of(role)), found.notes)
        )
    return sets


def split_name(word: str, option: str) -> tuple[str, str]:
    """Split a word NAME=FILE; a bare FILE is named by its stem. InputError for a bare word that is no file."""
    name, separator, path = word.partition("=")
    if not separator and not Path(word).exists():
        raise InputError(f"{option} {word}: expected NAME=FILE, such as kuq=data/kuq.jsonl; there is no file {word}")
    if not separator:
        return Path(word).stem, word
    if not name or not path or "/" in name:
        raise InputError(f"{option} {word}: expected NAME=FILE, such as kuq=data/kuq.jsonl")
    return name, path


def read_set(role: Role, name: str, path: str, *, style: Literal["plain", "chat"]) -> QuestionSet:
    """Read one set from a row file, or, under a benchmark's name, from its official file or folder.

    A row file is read as such whatever its name.

    Args:
        role: the name of the option.
        name: of the set.
        path: file or folder.
        style: how official questions are asked.
    """
    if name not in BENCHMARKS or _is_row_file(path):
        return QuestionSet(role, name, path, read_rows(path, need_completion=False))
    if BENCHMARKS[name].is_honesty != (role == HONESTY.name):
        other = HONESTY.name if BENCHMARKS[name].is_honesty else TASK
        raise InputError(f"--{role} {name}={path}: {name} is a {other} benchmark; give it under --{other}")
    dataset = read_dataset(name, path)
    questions, notes = list(dataset.questions), dataset.report.lines()
    if role == TASK and dataset.report.without_answer:
        questions = [question for question in questions if question.answers]
        notes.append(f"{name}: those without a gold answer are left out")
    rows = to_rows(questions, style, completions=False)
    parsed = [parse_row(row, path, number, need_completion=False) for number, row in enumerate(rows, start=1)]
    return QuestionSet(role, name, path, parsed, tuple(notes))


def _is_row_file(path: str) -> bool:
    """Tell whether a file holds rows: its first line is an object with a prompt or messages, and no `label`."""
    if not Path(path).is_file():
        return False
    try:
        first = json.loads(read_text(path).lstrip().split("\n", 1)[0])
    except (json.JSONDecodeError, RecursionError):
        return False
    return isinstance(first, dict) and ("prompt" in first or "messages" in first) and "label" not in first
