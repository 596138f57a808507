"""Turns questions into data rows: plain or chat prompts, with answers or refusals as completions."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hcnr_jax.data.json_lines import to_json_lines
from hcnr_jax.data.questions import Question
from hcnr_jax.data.rows import Row, parse_row
from hcnr_jax.errors import InputError
from hcnr_jax.runtime.files import write_new_text

# The wordings of a taught refusal. The first is the plainest; use it where only one is wanted.
REFUSALS = (
    "I don't know.",
    "I'm not sure.",
    "I do not know the answer to that question.",
    "I cannot answer that question.",
    "I don't have enough information to answer that.",
)

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def question_text(question: Question) -> str:
    """Write the question as it is asked: its text, and one lettered line for each choice."""
    options = [f"{letter}. {choice}" for letter, choice in zip(_LETTERS, question.choices, strict=False)]
    return "\n".join([question.question, *options])


def plain_prompt(question: Question) -> str:
    """Write the prompt for a model without a chat template. It ends without a space: completions start with one."""
    context = f"Context: {question.context}\n" if question.context else ""
    return f"{context}Question: {question_text(question)}\nAnswer:"


def chat_prompt(question: Question) -> str:
    """Write the user's message: the question, after its context if it has one."""
    asked = question_text(question)
    return f"Context: {question.context}\nQuestion: {asked}" if question.context else asked


def to_rows(
    questions: Iterable[Question],
    style: Literal["plain", "chat"] = "plain",
    refusals: Sequence[str] = REFUSALS,
    *,
    seed: int = 0,
    system: str | None = None,
    completions: bool = True,
) -> list[dict[str, Any]]:
    """Make one row dict for each question, in a shape that `read_rows` reads.

    The completion of an answerable question is its first answer; for choices, the text of the correct choice. The
    completion of an unanswerable question is a refusal.

    Args:
        questions: the questions, in the order of the rows.
        style: `plain` rows have a prompt and a completion that starts with a space; `chat` rows have messages for the
            model's chat template.
        refusals: wordings of a refusal, of which one is drawn for each question.
        seed: seed of the drawn wordings.
        system: text of a system message before the question; None writes none.
        completions: False leaves the completions out, for evaluation; questions then need no gold answer.

    Raises:
        InputError: `refusals` is empty, `style` unknown, or an answerable question has no gold answer to teach.
    """
    if style not in ("plain", "chat"):
        raise InputError(f"style: expected plain or chat, got {style}")
    if not refusals or not all(refusal.strip() for refusal in refusals):
        raise InputError("refusals: expected at least one wording, none of them empty")
    rng = np.random.default_rng(seed)
    rows = []
    for question in questions:
        # A wording is drawn for every question, so that it does not depend on which other questions are answerable.
        refusal = refusals[int(rng.integers(len(refusals)))]
        completion = _completion(question, refusal) if completions else None
        rows.append(_content(question, style, completion, system) | _labels(question))
    return rows


def asking_rows(
    questions: Sequence[Question], style: Literal["plain", "chat"], *, system: str | None = None
) -> list[Row]:
    """Return one row without a completion for each question, to ask a model with.

    Args:
        questions: the questions, in the order of the rows.
        style: as in `to_rows`.
        system: as in `to_rows`.
    """
    values = to_rows(questions, style, system=system, completions=False)
    return [
        parse_row(value, item.source or "questions", line, need_completion=False)
        for line, (value, item) in enumerate(zip(values, questions, strict=True), start=1)
    ]


def _completion(question: Question, refusal: str) -> str:
    if not question.answerable:
        return refusal
    if not question.answers:
        raise InputError(
            f"{question.source}: question {question.question!r} has no gold answer to teach; leave such questions "
            "out, or write rows that only ask"
        )
    return question.answers[0]


def _content(question: Question, style: str, completion: str | None, system: str | None) -> dict[str, Any]:
    if style == "plain":
        before = "" if system is None else f"{system}\n\n"
        ask = {"prompt": before + plain_prompt(question)}
        return ask if completion is None else ask | {"completion": f" {completion.strip()}"}
    turns = [] if system is None else [("system", system)]
    turns.append(("user", chat_prompt(question)))
    turns += [] if completion is None else [("assistant", completion.strip())]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def _labels(question: Question) -> dict[str, Any]:
    labels: dict[str, Any] = {"answerable": question.answerable}
    if question.answers:
        labels["answers"] = list(question.answers)
    if question.choices:
        labels["choices"] = list(question.choices)
    for name, value in (("correct", question.correct), ("kind", question.kind), ("id", question.id or None)):
        if value is not None:
            labels[name] = value
    return labels


def write_rows(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write row dicts as JSON Lines to a new file; every row is first checked as `read_rows` checks it.

    Raises:
        InputError: there are no rows, `read_rows` would refuse a row, or `path` exists or cannot be written.
    """
    if not rows:
        raise InputError(f"{path}: no rows to write; choose more questions")
    for number, row in enumerate(rows, start=1):
        parse_row(dict(row), str(path), number, need_completion="completion" in row)
    write_new_text(path, to_json_lines(rows))
