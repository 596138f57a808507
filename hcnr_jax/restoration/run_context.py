"""Defines `Run`, a run of `hcnr restore` with both models loaded. Every later stage takes this value."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

from hcnr_jax.checkpoints import StreamedParams
from hcnr_jax.config import RestoreConfig
from hcnr_jax.method.neurons import Params
from hcnr_jax.models import ModelSpec
from hcnr_jax.report.console import Reporter
from hcnr_jax.restoration.inputs import RunInputs
from hcnr_jax.restoration.plan import Plan

Weights = Params | StreamedParams


class Models(NamedTuple):
    """Holds the params of BASE and of TUNED, in memory or read a block at a time."""

    base: Weights
    tuned: Weights


@dataclass(frozen=True)
class Run:
    """Holds the inputs of every stage after loading.

    Args:
        inputs: the configuration, the opened models and the encoded rows.
        plan: microbatches, dtype and counts.
        models: params of both models.
        reporter: prints progress and collects warnings.
    """

    inputs: RunInputs
    plan: Plan
    models: Models
    reporter: Reporter

    @property
    def config(self) -> RestoreConfig:
        """Return the settings of this run."""
        return self.inputs.config

    @property
    def spec(self) -> ModelSpec:
        """Return the description that both models share."""
        return self.inputs.spec

    def with_config(self, config: RestoreConfig) -> Run:
        """Return the same run with other settings, which must read the same rows and models."""
        return dataclasses.replace(self, inputs=dataclasses.replace(self.inputs, config=config))
