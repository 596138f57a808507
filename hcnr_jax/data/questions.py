"""Benchmark questions in one shape, and the report of what was found, merged and left out while reading them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

_TRAILING = " .?!"


@dataclass(frozen=True)
class Question:
    """One benchmark question.

    `answers` are accepted wordings of one answer, the first being the one taught; empty where the file gives none,
    and for unanswerable questions, whose text in the `answer` column (a reason, a rebuttal) answers nothing.
    `correct` is the 0-based index into `choices`. `kind` is the file's own type or category. `source` says file and
    record.
    """

    question: str
    answerable: bool
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    correct: int | None = None
    kind: str | None = None
    id: str = ""
    source: str = ""


@dataclass(frozen=True)
class Report:
    """What reading a data set met.

    `records` were read from `files`; of them `repeats_answerable` and `repeats_unanswerable` said again what an earlier
    one with the same label said, and the texts in `contradictions` carried both labels and were dropped whole;
    `answerable` and `unanswerable` questions remain, `without_answer` of the answerable ones having no gold answer in
    the file.
    """

    dataset: str
    files: tuple[str, ...]
    records: int
    repeats_answerable: int
    repeats_unanswerable: int
    contradictions: tuple[str, ...]
    answerable: int
    unanswerable: int
    without_answer: int
    notes: tuple[str, ...] = field(default=())

    def lines(self) -> list[str]:
        """The report as sentences for a person, one a line."""
        said = [
            f"{self.dataset}: {self.records} records from {', '.join(self.files)}; {self.answerable} answerable and "
            f"{self.unanswerable} unanswerable questions kept"
        ]
        if self.repeats_answerable or self.repeats_unanswerable:
            said.append(
                f"{self.dataset}: left out {self.repeats_unanswerable} repeats of unanswerable and "
                f"{self.repeats_answerable} of answerable questions"
            )
        said += [f'{self.dataset}: left out "{text}", which is labelled both ways' for text in self.contradictions]
        if self.without_answer:
            said.append(f"{self.dataset}: {self.without_answer} answerable questions have no gold answer")
        return said + [f"{self.dataset}: {note}" for note in self.notes]


@dataclass(frozen=True)
class Dataset:
    """The questions of one benchmark, in file order, with the report of reading them."""

    questions: tuple[Question, ...]
    report: Report


def normalise_question(text: str) -> str:
    """The text by which questions are told apart: case, runs of white space and closing punctuation do not count.

    Other punctuation does: without it "C" and "C++" or 2 + 2 and 2 - 2 would be one question.
    """
    return " ".join(text.casefold().split()).rstrip(_TRAILING)


def question_key(question: Question) -> tuple[str, ...]:
    """What makes two questions the same: their normalised text and choices."""
    return (normalise_question(question.question), *(normalise_question(choice) for choice in question.choices))


def collect(name: str, files: Sequence[str], questions: Iterable[Question], notes: Sequence[str] = ()) -> Dataset:
    """The questions without repeats (the first is kept) and without those labelled both ways, and the report of it."""
    first: dict[tuple[tuple[str, ...], bool], Question] = {}
    records, repeats = 0, {True: 0, False: 0}
    for question in questions:
        records += 1
        labelled = (question_key(question), question.answerable)
        repeats[question.answerable] += labelled in first
        first.setdefault(labelled, question)
    contradictory = {key for key, answerable in first if answerable and (key, False) in first}
    kept = tuple(question for (key, _), question in first.items() if key not in contradictory)
    return Dataset(
        kept,
        Report(
            dataset=name,
            files=tuple(files),
            records=records,
            repeats_answerable=repeats[True],
            repeats_unanswerable=repeats[False],
            contradictions=tuple(first[key, True].question for key in sorted(contradictory)),
            answerable=sum(question.answerable for question in kept),
            unanswerable=sum(not question.answerable for question in kept),
            without_answer=sum(question.answerable and not question.answers for question in kept),
            notes=tuple(notes),
        ),
    )
