"""Benchmark questions in one shape, and the report of the questions that were read, merged and left out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

_TRAILING = " .?!"


@dataclass(frozen=True)
class Question:
    """One benchmark question.

    `answers` are accepted wordings of one answer, of which the first is taught. They are empty where the file gives
    none, and for unanswerable questions: the text in their `answer` column (a reason, a rebuttal) is no answer.
    `correct` is the 0-based index into `choices`. `context` is the text that the question is about. `kind` is the
    file's own type or category. `source` names file and record.
    """

    question: str
    answerable: bool
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    correct: int | None = None
    kind: str | None = None
    id: str = ""
    source: str = ""
    context: str = ""


@dataclass(frozen=True)
class Report:
    """Counts of the records that were read from a data set, left out and kept.

    `records` were read from `files`. `repeats_answerable` and `repeats_unanswerable` count records that repeat an
    earlier question with the same label. The questions in `contradictions` had both labels and were left out.
    `answerable` and `unanswerable` count the kept questions; `without_answer` of the answerable have no gold answer.
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
        """Write the report as sentences for a person, one a line."""
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
    """Normalise a question for comparison: case, runs of white space and closing punctuation do not count.

    Other punctuation counts: without it "C" and "C++" or 2 + 2 and 2 - 2 would be one question.
    """
    return " ".join(text.casefold().split()).rstrip(_TRAILING)


def question_key(question: Question) -> tuple[str, ...]:
    """Return the key by which questions are compared: their normalised text, choices and context."""
    rest = (*question.choices, question.context) if question.context else question.choices
    return (normalise_question(question.question), *(normalise_question(text) for text in rest))


def collect(name: str, files: Sequence[str], questions: Iterable[Question], *, notes: Sequence[str] = ()) -> Dataset:
    """Collect questions without repeats and contradictions, with the report.

    Args:
        name: name of the data set.
        files: files that were read.
        questions: all questions, in file order; the first of several equal ones is kept.
        notes: remarks on the data set, which the report repeats.
    """
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
