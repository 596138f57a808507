"""Defines the options of `hcnr convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from hcnr_jax.config.options import Positional, RunConfig


class ConvertConfig(RunConfig):
    """Convert an Orbax checkpoint that tunix or MaxText wrote into a Hugging Face model or a PEFT adapter."""

    checkpoint: Annotated[Path, Positional()] = Field(
        description="the Orbax folder: the root of the training steps (the last one is read), or one step"
    )
    like: str = Field(
        description="the model before fine-tuning, a Hugging Face folder or hub name: gives config, tokenizer and names"
    )
    out: Path = Field(description="folder to write; must not exist, or be empty")
    format: Literal["auto", "tunix", "maxtext"] = Field(
        "auto", description="program that wrote the checkpoint; auto: told by the names in it"
    )
    lora_alpha: float | None = Field(
        None, gt=0, description="alpha of a LoRA checkpoint, unitless: needed there, because it is not stored"
    )
