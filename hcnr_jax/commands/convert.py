"""Runs `hcnr convert`, which turns another trainer's checkpoint into a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from hcnr_jax.checkpoints import open_checkpoint
from hcnr_jax.checkpoints.foreign import convert_checkpoint
from hcnr_jax.config import ConvertConfig
from hcnr_jax.report.console import Reporter


def convert(config: ConvertConfig, reporter: Reporter | None = None) -> Path:
    """Run `hcnr convert` and return the written folder.

    Raises:
        InputError: the checkpoint cannot be read, or does not fit the base.
    """
    reporter = reporter or Reporter()
    base = open_checkpoint(config.like)
    done = convert_checkpoint(config.checkpoint, base, config.out, layout=config.format, lora_alpha=config.lora_alpha)
    for note in done.notes:
        reporter.say(note)
    reporter.say(f"read {done.source}, written by {done.format}: {done.tensors} tensors")
    reporter.say(f"{done.kind}: {done.out}")
    return done.out
