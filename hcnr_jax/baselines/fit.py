"""Training in memory, as the rivals need it: many short runs of one model that share their compilations."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
from jaxtyping import PyTree

from hcnr_jax.data import Example, pad_examples
from hcnr_jax.models import Decoder, ModelSpec
from hcnr_jax.training.objectives import logits_of
from hcnr_jax.training.preference import objective_of, pad_pairs, with_reference
from hcnr_jax.training.trainer import Objective, TrainSettings, epoch_batches, train


def fit(spec: ModelSpec, params: PyTree, examples: Sequence[Example], settings: TrainSettings) -> tuple[PyTree, PyTree]:
    """Supervised fine-tuning of all weights from `params`; the trained params in their dtypes, and the log."""
    return _run(spec, params, pad_examples(examples), "sft", 0.0, settings)


def fit_preferences(
    spec: ModelSpec,
    params: PyTree,
    chosen: Sequence[Example],
    rejected: Sequence[Example],
    objective: str,
    beta: float,
    settings: TrainSettings,
) -> tuple[PyTree, PyTree]:
    """The same by `dpo` or `orpo`; dpo's reference is `params`."""
    pairs = pad_pairs(chosen, rejected)
    if objective == "dpo":
        pairs = with_reference(pairs, logits_of(Decoder(spec)), params, settings.batch_size)
    return _run(spec, params, pairs, objective, beta, settings)


def _run(
    spec: ModelSpec, params: PyTree, rows: Any, objective: str, beta: float, settings: TrainSettings
) -> tuple[PyTree, PyTree]:
    batches = epoch_batches(rows, settings.batch_size, settings.seed)
    key = jax.random.key(settings.seed)
    # The compiled step is kept by its settings, and the seed is no part of what it computes.
    trained, log = train(_objective(spec, objective, beta), params, batches, replace(settings, seed=0), key)
    return jax.tree.map(lambda new, old: new.astype(old.dtype), trained, params), log


@functools.cache
def _objective(spec: ModelSpec, name: str, beta: float) -> Objective:
    """One function object an objective: a new closure would be compiled anew."""
    return objective_of(name, beta)(logits_of(Decoder(spec)))
