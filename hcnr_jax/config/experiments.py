"""What `hcnr compare`, `ablate`, `sweep` and `recovery` are asked: one set of options, and what each adds."""

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
# Refusal training whose first steps `hcnr recovery` follows: on refusals alone, and with what must not be lost.
TAUGHT = ("rait", "rait_mixed")


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

    def rows_option(self, role: str) -> str:
        """The option that says so, as typed."""
        return "--samples" if getattr(self, f"{role}_samples") is None else f"--{role}-samples"


def _names(text: str, every: tuple[str, ...]) -> tuple[str, ...]:
    """`all`, or names with commas in the user's order."""
    return every if text == "all" else tuple(name.strip() for name in text.split(",") if name.strip())


class CompareConfig(ExperimentConfig):
    """Methods against each other on the same rows: knobs chosen on validation questions, results on test questions."""

    methods: str = Field("all", description=f"all, or names with commas, of: {', '.join(BASELINES)}")
    reference: str = Field("recommended", description="the method that differences are taken from")
    rates: tuple[Positive, ...] = Field(
        (1e-4, 2e-4, 4e-4, 8e-4),
        description="peak learning rates of the training methods; for billions of parameters 1e-6 to 1e-5",
    )
    steps: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (30, 120), description="optimiser steps of the training methods"
    )
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
        return _names(self.methods, tuple(BASELINES))


class AblateConfig(ExperimentConfig):
    """What each part of the method is worth: the paper's ablations and ours, one change at a time."""

    groups: str = Field("all", description="all, or groups with commas: paper, parts, data, paper-data")


class SweepConfig(ExperimentConfig):
    """A grid of the restoration's ratios and weights, every setting from one scoring of the rows."""

    in_weights: tuple[Share, ...] = Field((0.25, 0.5, 0.75, 1.0), description="values of --in-weight")
    cross_weights: tuple[Share, ...] = Field((0.2, 0.4, 0.6, 1.0), description="values of --cross-weight")
    task_weights: tuple[NotNegative, ...] = Field((0.5, 1.0, 2.0), description="values of --task-weight")
    dampings: tuple[NotNegative, ...] = Field((0.01,), description="values of --damping")
    preset: str = Field(
        "recommended", description=f"settings of everything that is not swept, one of: {', '.join(presets())}"
    )

    @model_validator(mode="after")
    def _grid(self) -> SweepConfig:
        for name in ("in_weights", "cross_weights", "task_weights", "dampings"):
            if not getattr(self, name):
                raise ValueError(f"{option_name(SweepConfig, name)}: expected one value or more, found none")
        preset(self.preset, "--preset")
        return self


class RecoveryConfig(ExperimentConfig):
    """How fast honesty comes back: refusal training from TUNED, its first steps one by one."""

    curve_steps: tuple[int, ...] = Field(
        (0, 1, 2, 3, 5, 8, 12, 20, 30, 50, 75, 100),
        description="optimiser steps after which the model is asked, increasing",
    )
    rate: float = Field(
        1e-4, gt=0, description="learning rate, the same at every step; for billions of parameters 1e-6 to 1e-5"
    )
    batch_size: int = Field(32, ge=1, description="rows per step")
    control: tuple[str, ...] = Field(
        (),
        description="NAME=FOLDER...: further pairs, whose curves are shown apart, such as those of models that were "
        "never taught to decline (examples/untaught.py)",
    )
    methods: str = Field("all", description=f"all, or names with commas, of: {', '.join(TAUGHT)}")

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
        """The rows that are trained on, by the name of the rival that reads them."""
        return _names(self.methods, TAUGHT)
