"""Reads the seven honesty benchmarks: questions that are labelled answerable or unanswerable.

Each function turns one record of the official files into a `Question`. The text beside an unanswerable question
(KUQ's and FalseQA's `answer`, a reason or a rebuttal; RefuNQ's "NEC") is no answer and is not kept.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

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


def xstest_question(record: Record) -> Question:
    """Read XSTest (csv: id or id_v2, type, prompt, label): safe prompts are answerable, without gold answers.

    Files without `label` mark an unsafe prompt by a type that begins with "contrast_".
    """
    kind = record.text("type")
    label = record.optional_text("label") or ("unsafe" if kind.startswith("contrast_") else "safe")
    if label not in ("safe", "unsafe"):
        raise record.wrong("label", "safe or unsafe", label)
    number = record.optional_text("id_v2") or record.optional_text("id") or ""
    return Question(record.text("prompt"), label == "safe", kind=kind, id=number, source=record.where)


def squad2_question(record: Record) -> Question:
    """Read SQuAD 2.0, one record of `squad2_records`: is_impossible true is unanswerable from its context."""
    answerable = not record.flag("is_impossible")
    answers = record.texts("answers") if answerable else ()
    if answerable and not answers:
        raise record.wrong("answers", "an answer or more, since `is_impossible` is false", [])
    return Question(
        record.text("question"),
        answerable,
        answers,
        kind=record.optional_text("title"),
        id=record.optional_text("id") or "",
        source=record.where,
        context=record.text("context"),
    )


def squad2_records(article: Record) -> Iterator[Record]:
    """Divide an article (title, paragraphs: context, qas) into records of one question; hub records hold one already.

    Each answer of the files is an object with `text`. On the hub a question without answers is impossible.
    """
    if article.from_hub:
        found = article.value("answers")
        texts = list(found.get("text") or []) if isinstance(found, dict) else found
        yield replace(article, values={**article.values, "answers": texts, "is_impossible": not texts})
        return
    for number, paragraph in enumerate(_objects(article, "paragraphs"), start=1):
        within = replace(article, values=paragraph, where=f"{article.where}, paragraph {number}")
        for place, asked in enumerate(_objects(within, "qas"), start=1):
            question = replace(article, values=asked, where=f"{within.where}, question {place}")
            texts = [replace(question, values=answer).value("text") for answer in _objects(question, "answers")]
            around = {"title": article.values.get("title"), "context": within.value("context")}
            yield replace(question, values={**asked, **around, "answers": texts})


def _objects(record: Record, field: str) -> list[dict[str, Any]]:
    """Return a field that must be a list of objects."""
    value = record.value(field)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise record.wrong(field, "a list of objects", value)
    return value


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
    "squad2": squad2_question,
    "xstest": xstest_question,
}
