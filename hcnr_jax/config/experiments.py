"""Defines the options of `hcnr compare`, `ablate`, `sweep` and `recovery`: the shared options, and those of each."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from hcnr_jax.baselines import BASELINES
from hcnr_jax.config import RunConfig, option_name
from hcnr_jax.presets import preset, presets

# Values of --in-weight and --cross-weight, of --task-weight and --damping.
Share = Annotated[float, Field(gt=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
# The refusal training that `hcnr recovery` follows: on refusals only, or also on known answers and task rows.
TAUGHT = ("rait", "rait_mixed")


class ExperimentConfig(RunConfig):
    """Holds the options that every experiment shares: pairs of models, rows and questions."""

    out: Path = Field(description="folder of records and results; repeating the command continues an interrupted run")
    pair: tuple[str, ...] = Field(
        (),
        description="pairs of models, NAME=FOLDER...: each folder has base and tuned (models, or links to them), and "
        "data with honesty-train.jsonl, -validation.jsonl and -test.jsonl, and the same three task files",
    )
    seeds: tuple[int, ...] = Field(
        (), description="seeds of organisms (tiny pairs of models) to train in --out and use as pairs"
    )
    size: Literal["small", "medium"] = Field("small", description="size of the organisms of --seeds")
    lora: int | None = Field(
        None, ge=1, description="rank of LoRA adapters that fine-tune the organisms of --seeds; none: all weights"
    )
    samples: int = Field(128, ge=1, description="number of honesty rows, and of task rows, given to every method")
    honesty_samples: int | None = Field(None, ge=1, description="number of honesty rows, instead of --samples")
    task_samples: int | None = Field(None, ge=1, description="number of task rows, instead of --samples")
    seed: int = Field(
        0, ge=0, description="seed of the choice of rows, of random draws and of the training rows' order"
    )
    max_task_loss: float = Field(
        0.005,
        ge=0,
        le=1,
        description="largest drop in task accuracy that a chosen setting may cause, a fraction (0.005: half a point)",
    )
    max_new_tokens: int = Field(16, ge=1, description="maximum tokens per completion")
    max_length: int = Field(512, ge=2, description="maximum tokens per row; longer rows are cut at the end")
    match: Literal["exact", "contains"] = Field(
        "exact", description="when a text answer is correct: it equals a gold answer, or contains one"
    )
    draws: int = Field(2000, ge=2, description="number of bootstrap draws for the intervals")
    microbatch: int | None = Field(
        None, ge=1, description="number of questions asked at once; default: chosen automatically"
    )

    @model_validator(mode="after")
    def _pairs(self) -> ExperimentConfig:
        if not self.pair and not self.seeds:
            raise ValueError("--pair, --seeds: expected one pair or more, found none")
        if any(seed < 0 for seed in self.seeds):
            raise ValueError("--seeds: expected 0 or more")
        return self

    @property
    def rows(self) -> dict[str, int]:
        """Return how many rows of each role a method is given."""
        return {"honesty": self.honesty_samples or self.samples, "task": self.task_samples or self.samples}

    def rows_option(self, role: str) -> str:
        """Return the option that sets the number of rows of a role, as typed."""
        return "--samples" if getattr(self, f"{role}_samples") is None else f"--{role}-samples"


def _names(text: str, every: tuple[str, ...]) -> tuple[str, ...]:
    """Split names at commas, in the user's order; `all` stands for every name."""
    return every if text == "all" else tuple(name.strip() for name in text.split(",") if name.strip())


class CompareConfig(ExperimentConfig):
    """Compare methods on the same rows. Knobs are chosen on validation questions; results are on test questions."""

    methods: str = Field(
        "all", description=f"methods to compare: all, or names with commas, of: {', '.join(BASELINES)}"
    )
    reference: str = Field("recommended", description="the method that all other methods are compared with")
    rates: tuple[Positive, ...] = Field(
        (1e-4, 2e-4, 4e-4, 8e-4),
        description="peak learning rates that the training methods try; models with billions of parameters need 1e-6 "
        "to 1e-5",
    )
    steps: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (30, 120), description="numbers of optimiser steps of the training methods to try"
    )
    batch_size: int = Field(32, ge=1, description="number of rows per optimiser step of the training methods")

    @model_validator(mode="after")
    def _methods(self) -> CompareConfig:
        wrong = [name for name in self.chosen if name not in BASELINES]
        if wrong:
            raise ValueError(
                f"--methods: unknown method {wrong[0]!r}; expected all, or some of: {', '.join(BASELINES)}"
            )
        if self.reference not in self.chosen:
            raise ValueError(f"--reference {self.reference}: expected one of --methods: {', '.join(self.chosen)}")
        return self

    @property
    def chosen(self) -> tuple[str, ...]:
        """Return the methods of --methods, in the user's order; `all` is in the order of `BASELINES`."""
        return _names(self.methods, tuple(BASELINES))


class AblateConfig(ExperimentConfig):
    """Measure what each part of the method is worth: the paper's ablations and ours, with one change at a time."""

    groups: str = Field(
        "all", description="groups of ablations: all, or names with commas, of: paper, parts, data, paper-data"
    )


class SweepConfig(ExperimentConfig):
    """Measure a grid of restore's ratios and weights. The rows are scored once for all settings."""

    in_weights: tuple[Share, ...] = Field((0.25, 0.5, 0.75, 1.0), description="values of restore's --in-weight")
    cross_weights: tuple[Share, ...] = Field((0.2, 0.4, 0.6, 1.0), description="values of restore's --cross-weight")
    task_weights: tuple[NotNegative, ...] = Field((0.5, 1.0, 2.0), description="values of restore's --task-weight")
    dampings: tuple[NotNegative, ...] = Field((0.01,), description="values of restore's --damping")
    preset: str = Field(
        "recommended", description=f"preset that sets all other options, one of: {', '.join(presets())}"
    )

    @model_validator(mode="after")
    def _grid(self) -> SweepConfig:
        for name in ("in_weights", "cross_weights", "task_weights", "dampings"):
            if not getattr(self, name):
                raise ValueError(f"{option_name(SweepConfig, name)}: expected one value or more, found none")
        preset(self.preset, "--preset")
        return self


class RecoveryConfig(ExperimentConfig):
    """Measure how fast TUNED becomes honest again when it is trained to refuse, step by step."""

    curve_steps: tuple[int, ...] = Field(
        (0, 1, 2, 3, 5, 8, 12, 20, 30, 50, 75, 100),
        description="numbers of optimiser steps after which the model is evaluated, increasing",
    )
    rate: float = Field(
        1e-4, gt=0, description="constant learning rate; models with billions of parameters need 1e-6 to 1e-5"
    )
    batch_size: int = Field(32, ge=1, description="number of rows per optimiser step")
    control: tuple[str, ...] = Field(
        (),
        description="control pairs, NAME=FOLDER...: their curves are shown apart, such as those of models that were "
        "never taught to decline (examples/untaught.py)",
    )
    methods: str = Field("all", description=f"training methods: all, or names with commas, of: {', '.join(TAUGHT)}")

    @model_validator(mode="after")
    def _curve(self) -> RecoveryConfig:
        steps = self.curve_steps
        if not steps or steps[0] < 0 or steps[-1] < 1 or any(b <= a for a, b in itertools.pairwise(steps)):
            raise ValueError(
                f"--curve-steps: expected increasing numbers from 0 on that end with 1 or more, found "
                f"{' '.join(map(str, steps)) or 'none'}"
            )
        wrong = [name for name in self.chosen if name not in TAUGHT]
        if wrong or not self.chosen:
            found = repr(wrong[0]) if wrong else "none"
            raise ValueError(f"--methods: expected all, or some of: {', '.join(TAUGHT)}; found {found}")
        return self

    @property
    def chosen(self) -> tuple[str, ...]:
        """Return the training methods of --methods, in the user's order."""
        return _names(self.methods, TAUGHT)
