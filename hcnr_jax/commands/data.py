"""Runs `hcnr data`, which makes rows to restore, tune, evaluate or probe with.

The questions are a benchmark's official files, or the built-in questions.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

from hcnr_jax.commands.builtin_rows import builtin_rows
from hcnr_jax.config import DataConfig
from hcnr_jax.data import (
    BENCHMARKS,
    Question,
    encode_rows,
    example_warnings,
    load_tokenizer,
    normalise_question,
    parse_row,
    read_dataset,
    read_rows,
    split_questions,
    to_rows,
    write_rows,
)
from hcnr_jax.data.builtin import NAME as BUILTIN
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.ask.prompts import question_of
from hcnr_jax.report.console import Reporter
from hcnr_jax.report.result_file import check_new_file

Rows = list[dict[str, Any]]


def data(config: DataConfig, reporter: Reporter | None = None) -> dict[str, int]:
    """Run `hcnr data` and return the number of rows of each written file.

    Raises:
        InputError: the options or the benchmark's files cannot be used.
    """
    reporter = reporter or Reporter()
    for path, option in ((config.out, "--out"), (config.out_evaluate, "--out-evaluate")):
        if path is not None:
            check_new_file(path, option)
    _check_source(config)
    avoid = [question_of(row) for path in config.avoid for row in read_rows(path, need_completion=False)]
    barred = {normalise_question(text) for text in avoid}
    make = builtin_rows if config.name == BUILTIN else benchmark_rows
    outputs = make(config, barred, reporter)
    for path, rows in outputs:
        if path == config.out:
            _check_tokens(config, rows, path, reporter)
    for path, rows in outputs:
        write_rows(path, rows)
        answerable = sum(bool(row["answerable"]) for row in rows)
        reporter.say(f"{path}: {len(rows)} rows, {answerable} answerable and {len(rows) - answerable} unanswerable")
    return {str(path): len(rows) for path, rows in outputs}


def benchmark_rows(config: DataConfig, barred: Collection[str], reporter: Reporter) -> list[tuple[Path, Rows]]:
    """Return the rows of --out and --out-evaluate from the files of a benchmark.

    Args:
        config: the options of `hcnr data`.
        barred: normalised questions to leave out.
        reporter: prints the report of the files.

    Raises:
        InputError: the options or the files cannot be used.
    """
    dataset = read_dataset(config.name, str(config.path))
    for line in dataset.report.lines():
        reporter.say(line)
    questions = [item for item in dataset.questions if normalise_question(item.question) not in barred]
    if config.avoid:
        reporter.say(f"{config.name}: left out {len(dataset.questions) - len(questions)} questions of --avoid")
    style: Literal["plain", "chat"] = "chat" if config.template == "chat" else "plain"
    outputs: list[tuple[Path, Rows]] = []
    scored = choose_scored(config, questions, reporter) if config.out else []
    if config.out:
        outputs.append((config.out, to_rows(scored, style, seed=config.seed, system=config.system)))
    if config.out_evaluate:
        asked = choose_evaluated(config, questions, scored)
        rows = to_rows(asked, style, seed=config.seed, system=config.system, completions=False)
        outputs.append((config.out_evaluate, rows))
    return outputs


def _check_source(config: DataConfig) -> None:
    """Raise InputError for an unknown name, and for options that a benchmark needs or does not take."""
    if config.name == BUILTIN:
        return
    if config.name not in BENCHMARKS:
        raise InputError(f"NAME: expected {BUILTIN} or one of {', '.join(BENCHMARKS)}, got {config.name}")
    if config.path is None:
        raise InputError(
            f"PATH: required; name the file or folder of {config.name}, or its hub name. Only {BUILTIN} needs none"
        )
    if config.model is not None:
        raise InputError(
            f"--model {config.model}: only {BUILTIN} asks a model; the completions of {config.name} are its gold "
            "answers and taught refusals. Leave --model out"
        )
    _check_only(config)


def _check_only(config: DataConfig) -> None:
    """Raise InputError if --only asks a task benchmark for unanswerable questions."""
    if not BENCHMARKS[config.name].is_honesty and config.only == "unanswerable":
        honesty = ", ".join(name for name, found in BENCHMARKS.items() if found.is_honesty)
        raise InputError(
            f"--only unanswerable: {config.name} is a task benchmark and has no unanswerable questions; leave --only "
            f"out, or take them from one of {honesty}"
        )


def choose_scored(config: DataConfig, questions: Sequence[Question], reporter: Reporter) -> list[Question]:
    """Choose the questions of --out, of the labels that --only names.

    An answerable question needs a gold answer, which becomes its completion.
    """
    teachable = [item for item in questions if item.answers or not item.answerable]
    if config.only != "both":
        teachable = [item for item in teachable if item.answerable == (config.only == "answerable")]
    both = BENCHMARKS[config.name].is_honesty and config.only == "both"
    if both and not any(item.answerable for item in teachable):
        if not teachable:
            raise InputError(
                f"{config.path}: {config.name} has no question to teach: no gold answer, none unanswerable"
            )
        both = False
        reporter.warn(
            f"{config.path}: no answerable question of {config.name} has a gold answer to teach, so that --out has "
            "unanswerable ones alone; take answerable rows from another benchmark (kuq, refunq, nq_open)"
        )
    return split_questions(teachable, config.samples, 0, seed=config.seed, balanced=both).scored


def choose_evaluated(config: DataConfig, questions: Sequence[Question], scored: Sequence[Question]) -> list[Question]:
    """Choose the questions of --out-evaluate among those not in --out, half of each label for honesty benchmarks."""
    honesty = BENCHMARKS[config.name].is_honesty
    # A task row without a gold answer can be asked but not marked.
    usable = [item for item in questions if honesty or item.answers]
    used = [item.question for item in scored]
    found = split_questions(
        usable, 0, config.evaluate_samples, seed=config.seed, balanced=honesty, avoid=used, option="--evaluate-samples"
    ).evaluated
    if not found:
        raise InputError(f"--out-evaluate {config.out_evaluate}: no question is left for it; lower --samples")
    return found


def _check_tokens(config: DataConfig, rows: Rows, path: Path, reporter: Reporter) -> None:
    """Encode every row if --tokenizer is given. Warn about cut rows, and print the mean and the largest length."""
    if config.tokenizer is None:
        return
    parsed = [parse_row(row, str(path), number) for number, row in enumerate(rows, start=1)]
    examples = encode_rows(parsed, load_tokenizer(config.tokenizer), config.max_length)
    for warning in example_warnings(examples):
        reporter.warn(warning)
    longest = max(examples, key=lambda example: len(example.tokens) + example.cut)
    tokens = [len(example.tokens) for example in examples]
    reporter.say(
        f"tokens per row: {sum(tokens) / len(tokens):.0f} on average, {len(longest.tokens) + longest.cut} in the "
        f"longest (line {longest.row.line})"
    )
