"""Defines the options of `hcnr convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from hcnr_jax.config.options import Positional, RunConfig


class ConvertConfig(RunConfig):
    """Convert an Orbax checkpoint that tunix or MaxText wrote into a Hugging Face model or a PEFT adapter, and back."""

    checkpoint: Annotated[Path, Positional()] = Field(
        description="the Orbax folder: the root of the training steps (the last one is read), or one step; with --to "
        "tunix a Hugging Face model or a PEFT adapter"
    )
    like: str | None = Field(
        None,
        description="the model before fine-tuning, a Hugging Face folder or hub name: gives config, tokenizer and "
        "names; with --to tunix for an adapter only",
    )
    out: Path = Field(description="folder to write; must not exist, or be empty")
    format: Literal["auto", "tunix", "maxtext"] = Field(
        "auto", description="program that wrote the checkpoint; auto: told by the names in it"
    )
    lora_alpha: float | None = Field(
        None, gt=0, description="alpha of a LoRA checkpoint, unitless: needed there, because it is not stored"
    )
    to: Literal["hf", "tunix"] = Field(
        "hf", description="what to write: a Hugging Face folder, or an Orbax folder as tunix writes it"
    )

    @model_validator(mode="after")
    def _combinations(self) -> ConvertConfig:
        if self.to == "hf" and self.like is None:
            raise ValueError("--like: required, since an Orbax checkpoint has no config, tokenizer or names of its own")
        if self.to == "tunix" and (self.format != "auto" or self.lora_alpha is not None):
            raise ValueError("--to tunix reads Hugging Face folders: leave out --format and --lora-alpha")
        return self
