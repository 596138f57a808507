"""Makes honesty rows from the built-in questions where a user gives none: BASE answers, in its own words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from hcnr_jax.config import RestoreConfig
from hcnr_jax.data import Question, Tokenizer, asking_rows, read_rows, row_style
from hcnr_jax.data.builtin import NAME, questions
from hcnr_jax.data.json_lines import to_json_lines
from hcnr_jax.data.splits import draw_evenly
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate import Events, LoadedModel, Prompt
from hcnr_jax.evaluate.ask.model import open_model
from hcnr_jax.evaluate.ask.own_words import KindCount, OwnWords, answer_in_own_words
from hcnr_jax.evaluate.ask.prompts import encode_prompts
from hcnr_jax.evaluate.trait import HONESTY
from hcnr_jax.models import ModelSpec
from hcnr_jax.report.console import Reporter
from hcnr_jax.report.terminal_tables import own_words_table
from hcnr_jax.restoration.inputs import open_models
from hcnr_jax.runtime.files import write_file

# Positions that a model needs for the longest built-in question and an answer of 64 tokens.
LEAST_POSITIONS = 256
# The refusal delta of BASE below which a restoration has little to bring back.
LEAST_DELTA = 0.2


def rows_path(out: Path) -> Path:
    """Return the file beside the output that holds the rows which BASE wrote."""
    return out.parent / f"{out.name}.honesty.jsonl"


def is_builtin(config: RestoreConfig) -> bool:
    """Return whether the honesty rows of a run are those of the built-in questions."""
    return config.honesty in (Path(NAME), rows_path(config.out))


def with_honesty_rows(config: RestoreConfig, reporter: Reporter) -> RestoreConfig:
    """Return the configuration with a file of honesty rows, which BASE writes where the user gave none.

    The file is written beside the output. With --resume a file that is there already is used again.

    Args:
        config: the options of `hcnr restore`.
        reporter: prints progress and the counts of every kind.

    Raises:
        InputError: the options do not allow it, the models cannot be used, or BASE declines or knows too little.
    """
    if config.honesty != Path(NAME):
        return config
    path = rows_path(config.out)
    taken = config.model_copy(update={"honesty": path})
    if config.resume and path.is_file():
        reporter.say(f"honesty rows: {path}, which BASE wrote before")
        return taken
    _check_options(config)
    spec = open_models(taken)[2]
    if spec.max_positions < LEAST_POSITIONS:
        raise InputError(
            f"--honesty {NAME}: BASE has {spec.max_positions} positions (max_position_embeddings), and the built-in "
            f"questions with their answers need {LEAST_POSITIONS}; give honesty rows of your own with --honesty"
        )
    read_rows(config.task)
    _check_own(path)
    found = _own_words(config, reporter)
    if found.missing:
        reporter.say(f"{len(found.values)} honesty rows could be made, half of each label")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, to_json_lines(found.values))
    reporter.say(f"honesty rows in BASE's own words: {path}")
    return taken


def builtin_prompts(
    config: RestoreConfig, spec: ModelSpec, tokenizer: Tokenizer, *, count: int, max_new_tokens: int
) -> list[Prompt]:
    """Return built-in test questions as prompts, which share no wording and no name with the rows of a restoration.

    Args:
        config: the options, for the seed.
        spec: of the model.
        tokenizer: of the model.
        count: number of questions, half of each label.
        max_new_tokens: of an answer.
    """
    drawn = draw_evenly(questions("test"), count, seed=config.seed or 0, option="the comparison")
    rows = asking_rows(drawn, row_style(tokenizer))
    room = spec.max_positions - max_new_tokens
    return encode_prompts(
        HONESTY.name, HONESTY.name, rows, tokenizer=tokenizer, vocab_size=spec.vocab_size, max_tokens=room
    )


def ask_base(
    model: LoadedModel, asked: Sequence[Question], samples: int, *, reporter: Reporter, **how: Any
) -> OwnWords:
    """Let BASE answer questions in its own words, and print the counts of every kind and how often it declines.

    Args:
        model: BASE, loaded.
        asked: the questions.
        samples: number of rows wanted.
        reporter: prints progress and counts.
        how: further arguments of `answer_in_own_words`.

    Raises:
        InputError: as `answer_in_own_words`.
    """
    with reporter.stage("ask BASE", None, "questions") as stage, jax.default_matmul_precision("highest"):
        events = Events(
            advance=lambda kind, count: stage.advance(count),
            smaller=lambda rows: reporter.warn(f"device memory ran out: going on with {rows} questions at a time"),
        )
        found = answer_in_own_words(model, asked, samples, events=events, expect=stage.expect, **how)
    reporter.console.print(own_words_table(found.counts))
    _tell_delta(found.counts, reporter)
    return found


def _own_words(config: RestoreConfig, reporter: Reporter) -> OwnWords:
    """Ask BASE the training questions, for the rows to score and as many to judge settings with."""
    opened = open_model(config.base, None)
    with reporter.stage("load BASE", 1, "models") as stage:
        model = opened.load()
        stage.advance()
    wanted = config.rows[0] * (2 if config.choose is not None or config.refine else 1)
    return ask_base(
        model,
        questions("train"),
        wanted,
        reporter=reporter,
        style=row_style(model.tokenizer),
        seed=config.seed or 0,
    )


def _tell_delta(counts: Sequence[KindCount], reporter: Reporter) -> None:
    """Say how often BASE declines questions of either label, and warn where the two hardly differ."""
    shares = {}
    for label in (False, True):
        asked = sum(item.asked for item in counts if item.answerable == label)
        shares[label] = sum(item.declined for item in counts if item.answerable == label) / max(asked, 1)
    without, having = f"{shares[False]:.0%}", f"{shares[True]:.0%}"
    said = f"BASE declines {without} of the built-in questions without an answer and {having} of those with one"
    if shares[False] - shares[True] >= LEAST_DELTA:
        reporter.say(said)
    else:
        reporter.warn(f"{said}: it hardly tells them apart, and a restoration can bring back no more than BASE has")


def _check_options(config: RestoreConfig) -> None:
    """Refuse options under which BASE cannot be asked here."""
    given = {"--stream": config.stream, "--mesh": bool(config.mesh), "--distributed": config.distributed is not None}
    for option, is_given in given.items():
        if is_given:
            raise InputError(
                f"--honesty {NAME} asks BASE on one device, which {option} does not allow: make the rows first, with "
                f"`hcnr data {NAME} --model BASE --out honesty.jsonl`, and give them with --honesty"
            )


def _check_own(path: Path) -> None:
    """Refuse to write over a file that no run of hcnr made."""
    if path.is_file() and not all((row.id or "").startswith(f"{NAME}/") for row in read_rows(path)):
        raise InputError(f"{path} exists and holds other rows; the honesty rows would be written there: move the file")
