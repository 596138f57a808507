"""Makes the rows of `hcnr data builtin`: the built-in questions, with completions in a model's own words."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import jax

from hcnr_jax.config import DataConfig
from hcnr_jax.data import Question, Tokenizer, normalise_question, to_rows
from hcnr_jax.data.builtin import questions
from hcnr_jax.data.splits import draw_evenly
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate import Events
from hcnr_jax.evaluate.ask.model import open_model
from hcnr_jax.evaluate.ask.own_words import OwnWords, answer_in_own_words
from hcnr_jax.report.console import Reporter
from hcnr_jax.report.terminal_tables import own_words_table
from hcnr_jax.runtime.compile import AUTO, compilation_cache
from hcnr_jax.runtime.devices import open_devices

Rows = list[dict[str, Any]]


def builtin_rows(config: DataConfig, barred: Collection[str], reporter: Reporter) -> list[tuple[Path, Rows]]:
    """Return the rows of --out (train questions, the model's own words) and --out-evaluate (test questions alone).

    Args:
        config: the options of `hcnr data`.
        barred: normalised questions to leave out.
        reporter: prints progress and the counts of every kind.

    Raises:
        InputError: the options or the model cannot be used, or the model declines or knows too little.
    """
    _check_options(config)
    model = open_model(config.model) if config.model else None
    style = _style(config, model.tokenizer if model else None)
    outputs: list[tuple[Path, Rows]] = []
    if config.out and model:
        open_devices()
        with reporter.stage("load", 1, "model") as stage:
            loaded = model.load(config.dtype)
            stage.advance()
        with (
            compilation_cache(AUTO),
            reporter.stage("ask BASE", None, "questions") as stage,
            jax.default_matmul_precision("highest"),
        ):
            found = answer_in_own_words(
                loaded,
                _allowed("train", barred, reporter),
                config.samples,
                style=style,
                system=config.system,
                seed=config.seed,
                max_new_tokens=config.max_new_tokens,
                microbatch=config.microbatch,
                events=Events(
                    advance=lambda kind, count: stage.advance(count),
                    smaller=lambda rows: reporter.warn(f"device memory ran out: going on with --microbatch {rows}"),
                ),
                expect=stage.expect,
            )
        _report(config, found, reporter)
        outputs.append((config.out, list(found.values)))
    if config.out_evaluate:
        asked = draw_evenly(
            _allowed("test", barred, reporter), config.evaluate_samples, seed=config.seed, option="--evaluate-samples"
        )
        outputs.append((config.out_evaluate, to_rows(asked, style, system=config.system, completions=False)))
    return outputs


def _check_options(config: DataConfig) -> None:
    """Raise InputError for an option that the built-in questions do not take, and where --model is missing."""
    if config.path is not None:
        raise InputError(f"PATH: builtin ships with hcnr_jax and takes no file, got {config.path}; leave it out")
    if config.only != "both":
        raise InputError(
            f"--only {config.only}: the rows of builtin are half answerable and half unanswerable; leave --only out"
        )
    if config.out and config.model is None:
        raise InputError(
            "--model: required for --out; the completions of builtin are the model's own, so name BASE with --model"
        )


def _style(config: DataConfig, tokenizer: Tokenizer | None) -> Literal["plain", "chat"]:
    if config.template != "auto":
        return config.template
    return "chat" if getattr(tokenizer, "chat_template", None) else "plain"


def _allowed(split: str, barred: Collection[str], reporter: Reporter) -> list[Question]:
    """Return the questions of a split that are not barred."""
    every = questions(split)
    found = [item for item in every if normalise_question(item.question) not in barred]
    if barred:
        reporter.say(f"builtin, {split}: left out {len(every) - len(found)} questions of --avoid")
    return found


def _report(config: DataConfig, found: OwnWords, reporter: Reporter) -> None:
    """Print the counts, and warn where there are fewer rows than wanted."""
    reporter.console.print(own_words_table(found.counts))
    if found.missing:
        reporter.warn(
            f"--samples {config.samples}: only {len(found.values)} rows could be made, half of each label, because "
            "BASE declines or knows too few of the questions"
        )
