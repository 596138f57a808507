"""Questions as data rows: plain or chat prompts, answers or refusals as completions."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hcnr_jax.data.files import to_json_lines, write_new_text
from hcnr_jax.data.questions import Question
from hcnr_jax.data.rows import parse_row
from hcnr_jax.errors import InputError

# The wordings taught as a refusal; the first is the plainest and the one to use alone.
REFUSALS = (
    "I don't know.",
    "I'm not sure.",
    "I do not know the answer to that question.",
    "I cannot answer that question.",
    "I don't have enough information to answer that.",
)

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def question_text(question: Question) -> str:
    """The question as it is asked: its text and, where it has choices, one lettered line for each."""
    options = [f"{letter}. {choice}" for letter, choice in zip(_LETTERS, question.choices, strict=False)]
    return "\n".join([question.question, *options])


def plain_prompt(question: Question) -> str:
    """The prompt for a model without a chat template; it ends without a space, so that completions start with one."""
    return f"Question: {question_text(question)}\nAnswer:"


def to_rows(
    questions: Iterable[Question],
    style: Literal["plain", "chat"] = "plain",
    refusals: Sequence[str] = REFUSALS,
    seed: int = 0,
    system: str | None = None,
    completions: bool = True,
) -> list[dict[str, Any]]:
    """One row dict for each question, of the shape `read_rows` reads.

    `plain` rows have a prompt and a completion that starts with a space; `chat` rows have messages, after a `system`
    one if given, for the model's own template. The completion is the first answer (for choices the text of the
    correct one) or, for an unanswerable question, a wording of `refusals` drawn by `seed`. With `completions=False`
    rows only ask, for evaluation, and questions without a gold answer are welcome.

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
        # Drawn for every question, so that a question's wording does not depend on which others are answerable.
        refusal = refusals[int(rng.integers(len(refusals)))]
        completion = _completion(question, refusal) if completions else None
        rows.append(_content(question, style, completion, system) | _labels(question))
    return rows


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
    turns.append(("user", question_text(question)))
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
    """Write row dicts as JSON Lines to `path`, which must not exist; every row is first checked as `read_rows` would.

    Raises:
        InputError: there are no rows, a row would be refused when read, or `path` exists or cannot be written.
    """
    if not rows:
        raise InputError(f"{path}: no rows to write; choose more questions")
    for number, row in enumerate(rows, start=1):
        parse_row(dict(row), str(path), number, need_completion="completion" in row)
    write_new_text(path, to_json_lines(rows))
