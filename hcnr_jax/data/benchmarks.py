"""The table of benchmarks, name -> reader, and the function that reads any benchmark by its name."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from hcnr_jax.data.benchmark_records import EmptyFieldError, Record, read_records
from hcnr_jax.data.honesty_benchmarks import HONESTY, squad2_records
from hcnr_jax.data.questions import Dataset, Question, collect
from hcnr_jax.data.task_benchmarks import TASKS
from hcnr_jax.errors import InputError


@dataclass(frozen=True)
class Benchmark:
    """How to read one benchmark: its record reader, whether it is honesty data, and the key that holds its list.

    `split` divides one item of the file into the records of its questions.
    """

    read: Callable[[Record], Question]
    is_honesty: bool
    container: str | None = None
    note: str = ""
    split: Callable[[Record], Iterable[Record]] = lambda record: (record,)


_CONTAINERS = {"selfaware": "example", "bioasq": "questions", "squad2": "data"}
_NOTES = {
    "kuq": "the `answer` of an unknown question is a reason, not an answer, and was not kept",
    "falseqa": "the `answer` of a false premise is a rebuttal, not an answer, and was not kept",
    "refunq": 'the label "NEC" marks an unanswerable question',
    "xstest": "a safe prompt is answerable and has no gold answer; an unsafe one is unanswerable",
    "medmcqa": "`cop` counts from 1 in the files and from 0 on the hub; `correct` counts from 0",
    "bioasq": "a list question has one answer that names every item; a summary's answer is its ideal answer",
}

BENCHMARKS: dict[str, Benchmark] = {
    name: Benchmark(read, name in HONESTY, _CONTAINERS.get(name), _NOTES.get(name, ""))
    for name, read in (HONESTY | TASKS).items()
}
BENCHMARKS["squad2"] = replace(BENCHMARKS["squad2"], split=squad2_records)


def read_dataset(name: str, path: str | Path) -> Dataset:
    """Read the questions of benchmark `name` at `path`; repeats, contradictions and records with an empty field are
    left out and reported.

    `path` is a file, a folder (all its .csv, .json and .jsonl files), or a hub name as `records.read_records` takes it.
    A question without an id gets `NAME/FILE:NUMBER` (line or item), which is the same in every run.

    Raises:
        InputError: the name is unknown, a file is not in the official format, or every record has an empty field. The
            message names the place.
    """
    benchmark = BENCHMARKS.get(name)
    if benchmark is None:
        raise InputError(f"{name}: expected one of the data sets {', '.join(BENCHMARKS)}; spell it so")
    files, records = read_records(str(path), benchmark.container)
    questions, empty = [], []
    for record in (part for item in records for part in benchmark.split(item)):
        try:
            questions.append(_with_id(benchmark.read(record), name))
        except EmptyFieldError as error:
            empty.append(error)
    if empty and not questions:
        raise empty[0]
    notes = [benchmark.note] if benchmark.note else []
    if empty:
        notes.append(f"left out {len(empty)} records with an empty field (the first: {empty[0]})")
    return collect(name, files, questions, notes=notes)


def _with_id(question: Question, name: str) -> Question:
    if question.id:
        return question
    file, _, place = question.source.rpartition(", ")
    return replace(question, id=f"{name}/{Path(file).name}:{place.split()[-1]}")
