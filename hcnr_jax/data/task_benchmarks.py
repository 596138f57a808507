"""Reads the five question-answering tasks: answers as accepted wordings, or choices with the correct one.

Each function turns one record of the official files into a `Question`, answerable by definition. A test file without
gold answers is read too; its questions have no `answers`.
"""

import ast
from collections.abc import Callable
from typing import Any

from hcnr_jax.data.benchmark_records import Record
from hcnr_jax.data.questions import Question

_LETTERS = "abcd"


def hotpotqa_question(record: Record) -> Question:
    """Read HotpotQA (list: question, answer, type, _id; context and supporting facts are ignored; no test answers)."""
    answers = record.texts("answer") if "answer" in record.values else ()
    return Question(
        record.text("question"),
        True,
        answers,
        kind=record.optional_text("type"),
        id=record.optional_text("_id") or record.optional_text("id") or "",
        source=record.where,
    )


def nq_open_question(record: Record) -> Question:
    """Read NQ-open (JSON lines: question, answer as a list of accepted wordings; tests have none)."""
    answers = record.texts("answer") if "answer" in record.values else ()
    return Question(record.text("question"), True, answers, source=record.where)


def medmcqa_question(record: Record) -> Question:
    """Read MedMCQA (JSON lines: question, opa to opd, cop, id): `cop` counts from 1 in the official files.

    The copy on the hub counts from 0 and writes -1 where the test file has no `cop`. A 0 or -1 in a file, or a 4 from
    the hub, is refused, since a wrong guess would shift every answer by one.
    """
    choices = tuple(record.text(f"op{letter}") for letter in _LETTERS)
    correct = _zero_based(record)
    return Question(
        record.text("question"),
        True,
        () if correct is None else (choices[correct],),
        choices,
        correct,
        kind=record.optional_text("subject_name"),
        id=record.optional_text("id") or "",
        source=record.where,
    )


def _zero_based(record: Record) -> int | None:
    cop = record.values.get("cop")
    if cop is None or (record.from_hub and cop == -1):
        return None
    first = 0 if record.from_hub else 1
    if not isinstance(cop, int) or isinstance(cop, bool) or not first <= cop < first + len(_LETTERS):
        raise record.wrong("cop", f"a whole number from {first} to {first + len(_LETTERS) - 1}", cop)
    return cop - first


def bioasq_question(record: Record) -> Question:
    """Read BioASQ task B (object with the list `questions`: body, type, exact_answer, ideal_answer, id).

    yesno and factoid answers are the wordings of `exact_answer`. A list answer is one text that names every item by its
    first wording, since one item alone does not answer the question. A summary's answers are its `ideal_answer`, prose
    that only overlap metrics (token F1) can score.
    """
    kind = record.text("type")
    if kind not in ("yesno", "factoid", "list", "summary"):
        raise record.wrong("type", "yesno, factoid, list or summary", kind)
    field = "ideal_answer" if kind == "summary" else "exact_answer"
    items = _wordings(record, field)
    answers: tuple[str, ...]
    if kind == "list":
        answers = (", ".join(item[0] for item in items),) if items else ()
    else:
        answers = tuple(dict.fromkeys(wording for item in items for wording in item))
    return Question(
        record.text("body"), True, answers, kind=kind, id=record.optional_text("id") or "", source=record.where
    )


def simpleqa_question(record: Record) -> Question:
    """Read SimpleQA (csv: metadata, problem, answer): metadata is a Python dict as text, whose `topic` is the kind."""
    value = record.values.get("metadata") or {}
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise record.wrong("metadata", "a Python dict as text", value) from None
    if not isinstance(value, dict):
        raise record.wrong("metadata", "a Python dict as text", value)
    kind = value.get("topic")
    answer = record.text("answer")
    return Question(record.text("problem"), True, (answer,), kind=kind and str(kind), source=record.where)


def _wordings(record: Record, field: str) -> list[tuple[str, ...]]:
    """Read an answer field as items with their wordings; files hold a text, a list, or a list of lists."""
    value: Any = record.values.get(field)
    if value is None:
        return []
    items = []
    for item in value if isinstance(value, list) else [value]:
        wordings = item if isinstance(item, list) else [item]
        if not all(isinstance(wording, str) for wording in wordings):
            raise record.wrong(field, "text, a list of texts or a list of lists of texts", value)
        filled = tuple(wording.strip() for wording in wordings if wording.strip())
        items += [filled] if filled else []
    return items


TASKS: dict[str, Callable[[Record], Question]] = {
    "hotpotqa": hotpotqa_question,
    "nq_open": nq_open_question,
    "medmcqa": medmcqa_question,
    "bioasq": bioasq_question,
    "simpleqa": simpleqa_question,
}
