"""What `hcnr compare`, `hcnr ablate` and `hcnr sweep` are asked: one set of options, and what each adds."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from hcnr_jax.baselines import BASELINES
from hcnr_jax.config import RunConfig


class ExperimentConfig(RunConfig):
    """What every experiment shares: pairs, rows, questions."""

    out: Path = Field(
        description="folder of records and results; the same command goes on where an earlier one stopped"
    )
    pair: tuple[str, ...] = Field(
        (),
        description="NAME=FOLDER...: folders with base, tuned (models, or links to them) and data, which holds "
        "honesty-train.jsonl, honesty-validation.jsonl, honesty-test.jsonl and as many task-*.jsonl",
    )
    seeds: tuple[int, ...] = Field((), description="organisms to build in --out and use as pairs, by seed")
    size: Literal["small", "medium"] = Field("small", description="of the organisms that are built")
    lora: int | None = Field(None, ge=1, description="rank of adapters the built organisms are tuned with")
    samples: int = Field(128, ge=1, description="honesty rows and task rows every method is given")
    honesty_samples: int | None = Field(None, ge=1, description="honesty rows, instead of --samples")
    task_samples: int | None = Field(None, ge=1, description="task rows, instead of --samples")
    seed: int = Field(0, ge=0, description="choice of the rows, random draws, order of training rows")
    max_task_loss: float = Field(
        0.005, ge=0, le=1, description="task accuracy on validation questions a setting may cost, a fraction"
    )
    max_new_tokens: int = Field(16, ge=1, description="tokens of a completion at most")
    max_length: int = Field(512, ge=2, description="tokens per row; longer rows are cut at the end")
    match: Literal["exact", "contains"] = Field("exact", description="what makes a text answer correct")
    draws: int = Field(2000, ge=2, description="bootstrap draws of the intervals")
    microbatch: int | None = Field(None, ge=1, description="questions asked at once; default: chosen from the sizes")

    @model_validator(mode="after")
    def _pairs(self) -> ExperimentConfig:
        if not self.pair and not self.seeds:
            raise ValueError("--pair, --seeds: expected one pair or more, found none")
        if any(seed < 0 for seed in self.seeds):
            raise ValueError("--seeds: expected 0 or more")
        return self

    @property
    def rows(self) -> dict[str, int]:
        """How many rows of each role a method is given."""
        return {"honesty": self.honesty_samples or self.samples, "task": self.task_samples or self.samples}


class CompareConfig(ExperimentConfig):
    """Methods against each other on the same rows: knobs chosen on validation questions, results on test questions."""

    methods: str = Field("all", description=f"all, or names with commas, of: {', '.join(BASELINES)}")
    reference: str = Field("recommended", description="the method that differences are taken from")
    rates: tuple[float, ...] = Field(
        (1e-4, 2e-4, 4e-4, 8e-4),
        description="peak learning rates of the training methods; for billions of parameters 1e-6 to 1e-5",
    )
    steps: tuple[int, ...] = Field((30, 120), description="optimiser steps of the training methods")
    batch_size: int = Field(32, ge=1, description="rows per step of the training methods")

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
        """The methods, in the table's order or the user's."""
        if self.methods == "all":
            return tuple(BASELINES)
        return tuple(name.strip() for name in self.methods.split(",") if name.strip())


class AblateConfig(ExperimentConfig):
    """What each part of the method is worth: the paper's ablations and ours, one change at a time."""

    groups: str = Field("all", description="all, or groups with commas: paper, parts, data, paper-data")


class SweepConfig(ExperimentConfig):
    """A grid of the restoration's ratios and weights, every setting from one scoring of the rows."""

    in_weights: tuple[float, ...] = Field((0.25, 0.5, 0.75, 1.0), description="values of --in-weight")
    cross_weights: tuple[float, ...] = Field((0.2, 0.4, 0.6, 1.0), description="values of --cross-weight")
    task_weights: tuple[float, ...] = Field((0.5, 1.0, 2.0), description="values of --task-weight")
    dampings: tuple[float, ...] = Field((0.01,), description="values of --damping")
    preset: str = Field("recommended", description="settings of everything that is not swept, a name in configs/")
