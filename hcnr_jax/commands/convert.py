"""Runs `hcnr convert`, which turns another trainer's checkpoint into a Hugging Face folder, or back."""

from __future__ import annotations

from pathlib import Path

from hcnr_jax.checkpoints import Checkpoint, is_adapter, open_adapter, open_checkpoint
from hcnr_jax.checkpoints.foreign import convert_checkpoint, write_tunix
from hcnr_jax.config import ConvertConfig
from hcnr_jax.errors import InputError
from hcnr_jax.report.console import Reporter


def convert(config: ConvertConfig, reporter: Reporter | None = None) -> Path:
    """Run `hcnr convert` and return the written folder.

    Raises:
        InputError: the checkpoint cannot be read, or does not fit the base.
    """
    reporter = reporter or Reporter()
    if config.to == "tunix" or config.like is None:
        return _to_tunix(config, reporter)
    base = open_checkpoint(config.like)
    done = convert_checkpoint(config.checkpoint, base, config.out, layout=config.format, lora_alpha=config.lora_alpha)
    for note in done.notes:
        reporter.say(note)
    reporter.say(f"read {done.source}, written by {done.format}: {done.tensors} tensors")
    reporter.say(f"{done.kind}: {done.out}")
    return done.out


def _to_tunix(config: ConvertConfig, reporter: Reporter) -> Path:
    out, count, alpha = write_tunix(_model(config), config.out)
    if alpha is not None:
        reporter.say(f"alpha is {alpha:g}, which the checkpoint does not hold: give it to tunix's LoRA configuration")
    reporter.say(f"tunix checkpoint of {count} leaves: {out}")
    return out


def _model(config: ConvertConfig) -> Checkpoint:
    """Open the model or adapter that --to tunix reads."""
    if not is_adapter(config.checkpoint):
        return open_checkpoint(config.checkpoint)
    if config.like is None:
        raise InputError(f"{config.checkpoint} is a LoRA adapter: give --like, the model it was trained on")
    return open_adapter(config.checkpoint, open_checkpoint(config.like))
