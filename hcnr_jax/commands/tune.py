"""Runs `hcnr tune`, which fine-tunes a model."""

from __future__ import annotations

from pathlib import Path

from hcnr_jax.commands.watch_honesty import PICTURE, HonestyWatch
from hcnr_jax.config import TuneConfig
from hcnr_jax.report.console import Reporter, Stage
from hcnr_jax.training.trainer import StepInfo
from hcnr_jax.training.tune import Watched
from hcnr_jax.training.tune import tune as train_model


def tune(config: TuneConfig, reporter: Reporter | None = None) -> Path:
    """Run `hcnr tune` and return the written folder.

    Raises:
        InputError: the options, the model or the rows cannot be used.
    """
    reporter = reporter or Reporter()
    watches: list[HonestyWatch] = []

    def watching(run: Watched) -> HonestyWatch:
        watches.append(HonestyWatch(config, run, reporter))
        return watches[0]

    with reporter.stage("train", None, "steps") as stage:
        result = train_model(
            config,
            lambda step, steps, info: _follow(stage, step, steps, info),
            None if config.watch_honesty is None else watching,
        )
        stage.expect(len(result.log.losses))
    for warning in result.warnings:
        reporter.warn(warning)
    losses = result.log.losses
    reporter.say(f"loss per completion token: {losses[0]:.4f} at the first step, {losses[-1]:.4f} at the last")
    for watch in watches:
        _say_outcome(watch, result.out, reporter)
    reporter.say(f"{'model' if config.lora is None else 'adapter'}: {result.out}")
    return result.out


def _say_outcome(watch: HonestyWatch, out: Path, reporter: Reporter) -> None:
    first, last = (100 * item.refusal_delta for item in (watch.history[0], watch.history[-1]))
    if watch.stopped_at is not None:
        reporter.warn(
            f"training stopped after step {watch.stopped_at} of {watch.run.steps}: the refusal delta fell by "
            f"{first - last:.1f} points, and --watch-stop allows {watch.config.watch_stop:g}"
        )
    reporter.say(f"refusal delta: {first:.1f} % before training, {last:.1f} % after; picture: {out / PICTURE}")


def _follow(stage: Stage, step: int, steps: int, info: StepInfo) -> None:
    stage.expect(steps)
    stage.note = lambda: f"loss {float(info.loss):.4f}"
    stage.advance()
