"""Makes the rows of `hcnr data builtin`: the built-in questions, with completions in a model's own words."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from hcnr_jax.config import DataConfig
from hcnr_jax.data import Question, Tokenizer, normalise_question, row_style, to_rows
from hcnr_jax.data.builtin import questions
from hcnr_jax.data.splits import draw_evenly
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.ask.model import open_model
from hcnr_jax.report.console import Reporter
from hcnr_jax.restoration.questions.builtin import ask_base
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
        with compilation_cache(AUTO):
            found = ask_base(
                loaded,
                _allowed("train", barred, reporter),
                config.samples,
                reporter=reporter,
                style=style,
                system=config.system,
                seed=config.seed,
                max_new_tokens=config.max_new_tokens,
                microbatch=config.microbatch,
            )
        if found.missing:
            reporter.warn(
                f"--samples {config.samples}: only {len(found.values)} rows could be made, half of each label, because "
                "BASE declines or knows too few of the questions"
            )
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
    return row_style(tokenizer) if config.template == "auto" else config.template


def _allowed(split: str, barred: Collection[str], reporter: Reporter) -> list[Question]:
    """Return the questions of a split that are not barred."""
    every = questions(split)
    found = [item for item in every if normalise_question(item.question) not in barred]
    if barred:
        reporter.say(f"builtin, {split}: left out {len(every) - len(found)} questions of --avoid")
    return found
