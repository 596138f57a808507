"""Holds questions with and without an answer that ship with the package, in three splits.

The splits share no wording, no name and no question. All questions were written for this project; none is from a
benchmark. Names of unknown things are invented.
"""

from __future__ import annotations

import functools
from importlib import resources

import yaml

from hcnr_jax.data.builtin.templates import ANSWERABLE_KINDS, UNANSWERABLE_KINDS, BuiltinQuestion, expand
from hcnr_jax.data.questions import Question
from hcnr_jax.errors import InputError

NAME = "builtin"
"""The name of these questions as a source of `hcnr data`."""

SPLITS = ("train", "validation", "test")


def questions(split: str) -> list[Question]:
    """Return the questions of one split, in the order of its file. They are the same in every run.

    Raises:
        InputError: there is no such split.
    """
    return [item.question for item in bank(split)]


@functools.cache
def bank(split: str) -> tuple[BuiltinQuestion, ...]:
    """Return the questions of one split with their templates and names.

    Raises:
        InputError: there is no such split.
    """
    if split not in SPLITS:
        raise InputError(f"built-in questions: expected the split {', '.join(SPLITS)}, got {split}")
    text = resources.files(__package__).joinpath(f"{split}.yaml").read_text(encoding="utf-8")
    return expand(yaml.safe_load(text), split)


__all__ = [
    "ANSWERABLE_KINDS",
    "NAME",
    "SPLITS",
    "UNANSWERABLE_KINDS",
    "BuiltinQuestion",
    "bank",
    "questions",
]
