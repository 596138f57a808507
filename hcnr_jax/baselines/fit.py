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
from hcnr_jax.training.objectives import Pairs, logits_of
from hcnr_jax.training.preference import objective_of, pad_pairs, with_reference
from hcnr_jax.training.trainer import Objective, TrainSettings, epoch_batches, train

LENGTH_STEP = 8


def fit(spec: ModelSpec, params: PyTree, examples: Sequence[Example], settings: TrainSettings) -> tuple[PyTree, PyTree]:
    """Supervised fine-tuning of all weights from `params`; the trained params in their dtypes, and the log."""
    longest = max(len(example.tokens) for example in examples)
    # Rounded up, so that pairs whose longest rows differ by a token still share the compiled step.
    return _run(spec, params, pad_examples(examples, -(-longest // LENGTH_STEP) * LENGTH_STEP), "sft", 0.0, settings)


def referenced(
    spec: ModelSpec, params: PyTree, chosen: Sequence[Example], rejected: Sequence[Example], rows: int = 32
) -> Pairs:
    """Preference pairs with their likelihoods under `params`, which any number of runs from there share."""
    return with_reference(pad_pairs(chosen, rejected), logits_of(Decoder(spec)), params, rows)


def fit_preferences(
    spec: ModelSpec, params: PyTree, pairs: Pairs, objective: str, beta: float, settings: TrainSettings
) -> tuple[PyTree, PyTree]:
    """The same by `dpo`, whose reference the pairs hold, or `orpo`, which reads none."""
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
