"""Makes, asks and records every setting on every pair of an experiment, each once however often the run is stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from hcnr_jax.baselines import label
from hcnr_jax.baselines.prompting import with_examples
from hcnr_jax.checkpoints import open_checkpoint
from hcnr_jax.config.experiments import ExperimentConfig
from hcnr_jax.data import Row, choose_rows, read_rows
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.ask.model import open_model
from hcnr_jax.evaluate.ask.runner import Answer
from hcnr_jax.evaluate.score.measurement import measure
from hcnr_jax.experiments.cache_keys import digest, pair_fingerprint
from hcnr_jax.experiments.pair_session import ExperimentModel, Failure, Lab, questions_of
from hcnr_jax.experiments.pairs import Pair, find_pairs
from hcnr_jax.experiments.record_file import Record, Records
from hcnr_jax.experiments.summary import BASE, TUNED
from hcnr_jax.report.console import Reporter

ASKED = ("validation", "test")


class Job(NamedTuple):
    """Describes one setting of one method, to be recorded on every pair.

    Args:
        method: its name.
        setting: the values that are varied.
        samples: rows the method reads.
        made_of: all settings that decide the outcome, also those of a preset or of the optimiser that are not varied.
        restores: whether the job is a restoration; its record then says what happened to every kernel, where the method
            is shown.
    """

    method: str
    setting: Mapping[str, Any]
    samples: int = 0
    made_of: Mapping[str, Any] = MappingProxyType({})
    restores: bool = False

    @property
    def label(self) -> str:
        """Name the setting as records do."""
        return label(self.setting)


class Outcome(NamedTuple):
    """Holds the result of a job.

    Args:
        place: of the job in the list of jobs.
        made: the model, or the reason why there is none.
        examples: rows shown before every question.
        samples: rows that were read, where their number differs from the job's.
    """

    place: int
    made: ExperimentModel | Failure
    examples: tuple[Row, ...] = ()
    samples: int | None = None


Make = Callable[[Lab, Sequence[Job]], Iterator[Outcome]]
"""Carries out the jobs it is given (never base or tuned themselves) on a pair."""


class Found(NamedTuple):
    """Holds the records of all jobs, pair by pair in the order of the jobs, and the test answers of the shown
    methods.
    """

    records: list[Record]
    answers: list[Record]


def run_experiment(
    config: ExperimentConfig,
    jobs: Sequence[Job],
    make: Make,
    *,
    shown: Sequence[str],
    reporter: Reporter,
    splits: Sequence[str] = ASKED,
) -> Found:
    """Run every job on every pair, and BASE and TUNED beside them.

    A record in `records.jsonl` of --out is reused while the pair, the rows and the settings are unchanged.
    `answers.jsonl` holds the test answers of BASE, TUNED and the shown methods.

    Args:
        config: options of the experiment.
        jobs: what to record.
        make: carries out jobs on a pair.
        shown: methods whose answers and kernel maps are kept.
        reporter: prints progress.
        splits: whose questions are asked.
    """
    every = [Job(BASE, {}), Job(TUNED, {}), *jobs]
    with Records(config.out / "records.jsonl") as records, Records(config.out / "answers.jsonl") as answers:
        pairs = find_pairs(config, reporter)
        for pair in pairs:
            _check_rows(pair, config)
            _check_questions(pair, splits, config.max_new_tokens)
        prefixes = [f"{pair.name}/{pair_fingerprint(pair, config)}" for pair in pairs]
        kept = records, answers, {BASE, TUNED, *shown}, splits
        books = [_Book(pair, prefix, *kept) for pair, prefix in zip(pairs, prefixes, strict=True)]
        for book in books:
            todo = [job for job in every if not all(book.has(job, split) for split in splits)]
            if todo:
                with jax.default_matmul_precision("highest"):
                    _run_pair(Lab(book.pair, config, reporter), todo, make, book, reporter)
        placed = [(book, job) for book in books for job in every]
        return Found(
            [record for book, job in placed for record in book.records_of(job)],
            [answer for book, job in placed for answer in book.answers_of(job)],
        )


def _check_rows(pair: Pair, config: ExperimentConfig) -> None:
    """Refuse, before the work on any pair, more rows than the files of the pair have."""
    for role, count in config.rows.items():
        choose_rows(read_rows(pair.rows(role, "train")), count, config.seed, option=config.rows_option(role))


def _check_questions(pair: Pair, splits: Sequence[str], max_new_tokens: int) -> None:
    """Refuse, before the work on any pair, questions that TUNED cannot be asked."""
    model = open_model(str(pair.tuned), open_checkpoint(pair.base))
    for split in splits:
        questions_of(pair, split, model.spec, tokenizer=model.tokenizer, max_new_tokens=max_new_tokens)


class _Book(NamedTuple):
    """Writes one pair's records and answers."""

    pair: Pair
    prefix: str
    records: Records
    answers: Records
    shown: set[str]
    splits: Sequence[str]

    def has(self, job: Job, split: str) -> bool:
        """Tell whether a record exists with all its parts; an earlier run may have shown other methods."""
        key = _key(self.prefix, job, split)
        if key not in self.records:
            return False
        record = self.records[key]
        if "failed" in record or split != "test" or job.method not in self.shown:
            return True
        asked = sum(len(record["bits"][name]) for name in ("refused", "task"))
        return len(self.answers_of(job)) == asked and (not job.restores or "kernels" in record)

    def records_of(self, job: Job) -> list[Record]:
        """List a job's records, one a split."""
        keys = [_key(self.prefix, job, split) for split in self.splits]
        return [self.records[key] for key in keys if key in self.records]

    def write(self, job: Job, split: str, content: Mapping[str, Any]) -> None:
        """Write one record."""
        key = _key(self.prefix, job, split)
        about = {"key": key, "pair": self.pair.name, "method": job.method, "setting": dict(job.setting)}
        self.records.add({**about, "label": job.label, "split": split, "samples": job.samples, **content})

    def answers_of(self, job: Job) -> list[Record]:
        """List the test answers that are kept of a job."""
        if job.method not in self.shown:
            return []
        start = f"{_key(self.prefix, job, 'test')}/"
        return [answer for answer in self.answers if answer["key"].startswith(start)]

    def keep(self, job: Job, answers: Sequence[Answer]) -> None:
        """Write the test answers of a job whose method is shown."""
        if job.method not in self.shown:
            return
        fields = ("role", "kind", "question", "answerable", "answers", "completion", "verdict", "correct")
        for item in answers:
            key = f"{_key(self.prefix, job, 'test')}/{item.role}/{item.line}"
            about = {"key": key, "pair": self.pair.name, "method": job.method, "label": job.label}
            self.answers.add(about | {"line": item.line} | {name: getattr(item, name) for name in fields})


def _run_pair(lab: Lab, jobs: Sequence[Job], make: Make, book: _Book, reporter: Reporter) -> None:
    own = {BASE: lab.base, TUNED: lab.tuned}
    others = [job for job in jobs if job.method not in own]
    for job in jobs:
        if job.method in own:
            _record(lab, job, Outcome(0, ExperimentModel(own[job.method], 0.0)), book)
    last = ""
    for outcome in make(lab, others) if others else ():
        job = others[outcome.place]
        if job.method != last:
            reporter.say(f"{book.pair.name}: {job.method}")
            last = job.method
        _record(lab, job, outcome, book)


def _record(lab: Lab, job: Job, outcome: Outcome, book: _Book) -> None:
    """Record every split of a setting; a setting without a model, or whose questions do not fit, is recorded as
    failed.

    InputError where that setting is BASE or TUNED, since every other setting is compared with them.
    """
    missing = [split for split in book.splits if not book.has(job, split)]
    if isinstance(outcome.made, Failure):
        for split in missing:
            book.write(job, split, {"failed": str(outcome.made)})
        return
    (params, seconds, kernels), shown = outcome.made, outcome.examples
    change = (lambda row: with_examples(row, shown)) if shown else None
    costs: dict[str, Any] = {"touched": lab.touched(params), "seconds": round(seconds, 3)}
    costs |= {} if outcome.samples is None else {"samples": outcome.samples}
    for split in missing:
        try:
            answers = lab.ask(params, split, change, len(shown))
        except InputError as error:
            if job.method in (BASE, TUNED):
                raise
            book.write(job, split, {"failed": str(error)})
            continue
        if split == "test":
            # Before the record, which says that all of it is there.
            book.keep(job, answers)
        mapped = job.restores and split == "test" and job.method in book.shown
        book.write(job, split, costs | measure(answers) | ({"kernels": kernels} if mapped else {}))


def _key(prefix: str, job: Job, split: str) -> str:
    return f"{prefix}/{job.method}/{job.label} {digest(dict(job.made_of))}/{split}"
