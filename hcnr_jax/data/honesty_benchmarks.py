"""Reads the five honesty benchmarks: questions that are labelled answerable or unanswerable.

Each function turns one record of the official files into a `Question`. The text beside an unanswerable question
(KUQ's and FalseQA's `answer`, a reason or a rebuttal; RefuNQ's "NEC") is no answer and is not kept.
"""

import ast
from collections.abc import Callable

from hcnr_jax.data.benchmark_records import Record
from hcnr_jax.data.questions import Question


def falseqa_question(record: Record) -> Question:
    """Read FalseQA (csv: question, answer, label): label 1 is a false premise. Answers of the test file are lists."""
    label = record.value("label")
    if label not in (0, 1, "0", "1") or isinstance(label, bool):
        raise record.wrong("label", "0 or 1", label)
    answerable = int(label) == 0
    answers = _listed(record.texts("answer")) if answerable else ()
    return Question(record.text("question"), answerable, answers, source=record.where)


def nec_question(record: Record) -> Question:
    """Read NEC (JSON lines: prompt, label 0/1, category): label 1 asks about something made up; no gold answers."""
    label = record.value("label")
    if label not in (0, 1) or isinstance(label, bool):
        raise record.wrong("label", "0 or 1", label)
    return Question(record.text("prompt"), label == 0, kind=record.optional_text("category"), source=record.where)


def refunq_question(record: Record) -> Question:
    """Read RefuNQ (JSON lines: prompt, label): label is the list of answers, or the string "NEC" if there is none."""
    label = record.value("label")
    if not isinstance(label, list) and label != "NEC":
        raise record.wrong("label", 'a list of answers or the text "NEC"', label)
    answers = () if label == "NEC" else record.texts("label")
    return Question(record.text("prompt"), label != "NEC", answers, source=record.where)


def kuq_question(record: Record) -> Question:
    """Read KUQ (JSON lines: question, answer, unknown, source, category): unknown true is unanswerable."""
    answerable = not record.flag("unknown")
    answers = record.texts("answer") if answerable else ()
    kind = record.optional_text("category") or record.optional_text("source")
    return Question(record.text("question"), answerable, answers, kind=kind, source=record.where)


def selfaware_question(record: Record) -> Question:
    """Read SelfAware (object with the list `example`: question_id, question, answer, answerable, source)."""
    answerable = record.flag("answerable")
    answers = record.texts("answer") if answerable else ()
    return Question(
        record.text("question"),
        answerable,
        answers,
        kind=record.optional_text("source"),
        id=record.optional_text("question_id") or "",
        source=record.where,
    )


def _listed(answers: tuple[str, ...]) -> tuple[str, ...]:
    """Parse an answer cell that is written as a Python list; any other cell stays as it is."""
    if len(answers) != 1 or not (answers[0].startswith("[") and answers[0].endswith("]")):
        return answers
    try:
        items = ast.literal_eval(answers[0])
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return answers
    if not items or not all(isinstance(item, str) and item.strip() for item in items):
        return answers
    return tuple(dict.fromkeys(item.strip() for item in items))


HONESTY: dict[str, Callable[[Record], Question]] = {
    "falseqa": falseqa_question,
    "nec": nec_question,
    "refunq": refunq_question,
    "kuq": kuq_question,
    "selfaware": selfaware_question,
}
