"""Runs `hcnr tune`, which fine-tunes a model."""

from __future__ import annotations

from pathlib import Path

from hcnr_jax.config import TuneConfig
from hcnr_jax.report.console import Reporter, Stage
from hcnr_jax.training.trainer import StepInfo
from hcnr_jax.training.tune import tune as train_model


def tune(config: TuneConfig, reporter: Reporter | None = None) -> Path:
    """Run `hcnr tune` and return the written folder.

    Raises:
        InputError: the options, the model or the rows cannot be used.
    """
    reporter = reporter or Reporter()
    with reporter.stage("train", None, "steps") as stage:
        result = train_model(config, lambda step, steps, info: _follow(stage, step, steps, info))
    for warning in result.warnings:
        reporter.warn(warning)
    losses = result.log.losses
    reporter.say(f"loss per completion token: {losses[0]:.4f} at the first step, {losses[-1]:.4f} at the last")
    reporter.say(f"{'model' if config.lora is None else 'adapter'}: {result.out}")
    return result.out


def _follow(stage: Stage, step: int, steps: int, info: StepInfo) -> None:
    stage.expect(steps)
    stage.note = lambda: f"loss {float(info.loss):.4f}"
    stage.advance()
