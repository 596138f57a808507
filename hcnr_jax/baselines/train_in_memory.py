"""Training in memory, as the rivals need it: many short runs of one model that share their compilations."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from hcnr_jax.data import Batch, Example, pad_examples
from hcnr_jax.models import Decoder, ModelSpec
from hcnr_jax.training.objectives import Pairs, logits_of
from hcnr_jax.training.preference import objective_of, pad_pairs, with_reference
from hcnr_jax.training.trainer import Objective, StepInfo, TrainSettings, checked, each_step, epoch_batches, train

LENGTH_STEP = 8


def fit(spec: ModelSpec, params: PyTree, examples: Sequence[Example], settings: TrainSettings) -> tuple[PyTree, PyTree]:
    """Supervised fine-tuning of all weights from `params`; the trained params in their dtypes, and the log."""
    return _run(spec, params, _padded(examples), "sft", 0.0, settings)


def fit_curve(
    spec: ModelSpec, params: PyTree, examples: Sequence[Example], settings: TrainSettings, stops: Sequence[int]
) -> Iterator[tuple[int, PyTree]]:
    """One run of `fit`, looked at on its way: (steps taken, the params then) at every one of `stops`.

    stops: increasing, 0 (`params` as they are) to settings.steps; the run ends with the last of them. NumericalError as
    `train` raises it.
    """
    if stops[0] == 0:
        yield 0, params
    batches = epoch_batches(_padded(examples), settings.batch_size, settings.seed)
    key = jax.random.key(settings.seed)
    steps = each_step(_objective(spec, "sft", 0.0), params, batches, replace(settings, seed=0), key)
    infos: list[StepInfo] = []
    for done, (now, info) in enumerate(itertools.islice(steps, stops[-1]), 1):
        infos.append(info)
        if done in stops:
            checked(infos, done - len(infos))
            infos.clear()
            # A copy: the next step takes the params' memory.
            yield done, jax.tree.map(lambda new, old: jnp.array(new, old.dtype, copy=True), now, params)


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


def _padded(examples: Sequence[Example]) -> Batch:
    """One batch of all rows, its length rounded up so that pairs whose longest rows differ by a token still share the
    compiled step."""
    longest = max(len(example.tokens) for example in examples)
    return pad_examples(examples, -(-longest // LENGTH_STEP) * LENGTH_STEP)


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
