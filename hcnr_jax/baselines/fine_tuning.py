"""Fine-tunes params in memory for the training baselines; many short runs of one model share their compilations."""

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
from hcnr_jax.training.preference_pairs import objective_of, pad_pairs, with_reference
from hcnr_jax.training.trainer import Objective, StepInfo, TrainSettings, checked, each_step, epoch_batches, train

LENGTH_STEP = 8


def fit(
    spec: ModelSpec, params: PyTree, examples: Sequence[Example], *, settings: TrainSettings
) -> tuple[PyTree, PyTree]:
    """Fine-tune all weights on completions; return the trained params in their dtypes, and the log.

    Args:
        spec: of the model.
        params: where training starts.
        examples: the rows.
        settings: of the optimiser.
    """
    return _run(spec, params, _padded(examples), "sft", 0.0, settings)


def fit_curve(
    spec: ModelSpec, params: PyTree, examples: Sequence[Example], *, settings: TrainSettings, stops: Sequence[int]
) -> Iterator[tuple[int, PyTree]]:
    """Run `fit` once and yield (steps taken, the params then) at every one of `stops`. NumericalError as `train`
    raises it.

    Args:
        spec: of the model.
        params: where training starts.
        examples: the rows.
        settings: of the optimiser.
        stops: increasing numbers of steps, from 0 (`params` unchanged) to settings.steps; the run ends with the last
            one.
    """
    if stops[0] == 0:
        yield 0, params
    batches = epoch_batches(_padded(examples), settings.batch_size, settings.seed)
    key = jax.random.key(settings.seed)
    steps = each_step(_objective(spec, "sft", 0.0), params, batches, settings=replace(settings, seed=0), key=key)
    infos: list[StepInfo] = []
    for done, (now, info) in enumerate(itertools.islice(steps, stops[-1]), 1):
        infos.append(info)
        if done in stops:
            checked(infos, done - len(infos))
            infos.clear()
            # A copy: the next step takes the params' memory.
            yield done, jax.tree.map(lambda new, old: jnp.array(new, old.dtype, copy=True), now, params)


def referenced(
    spec: ModelSpec, params: PyTree, chosen: Sequence[Example], *, rejected: Sequence[Example], rows: int = 32
) -> Pairs:
    """Build preference pairs with their likelihoods under `params`, which any number of runs share.

    Args:
        spec: of the model.
        params: the reference, where training starts.
        chosen: the preferred completions.
        rejected: the other completions, in the same order.
        rows: pairs at a time.
    """
    return with_reference(pad_pairs(chosen, rejected), logits_of(Decoder(spec)), params, rows=rows)


def fit_preferences(
    spec: ModelSpec, params: PyTree, pairs: Pairs, *, objective: str, beta: float, settings: TrainSettings
) -> tuple[PyTree, PyTree]:
    """Fine-tune on preference pairs by `dpo`, whose reference the pairs hold, or by `orpo`, which reads no
    reference.

    Args:
        spec: of the model.
        params: where training starts.
        pairs: as `referenced` builds them.
        objective: dpo or orpo.
        beta: strength of the objective.
        settings: of the optimiser.
    """
    return _run(spec, params, pairs, objective, beta, settings)


def _padded(examples: Sequence[Example]) -> Batch:
    """Pad all rows to one batch.

    Its length is rounded up, so that pairs whose longest rows differ by a token share the compiled step.
    """
    longest = max(len(example.tokens) for example in examples)
    return pad_examples(examples, -(-longest // LENGTH_STEP) * LENGTH_STEP)


def _run(
    spec: ModelSpec, params: PyTree, rows: Any, objective: str, beta: float, settings: TrainSettings
) -> tuple[PyTree, PyTree]:
    batches = epoch_batches(rows, settings.batch_size, settings.seed)
    key = jax.random.key(settings.seed)
    # The compiled step is kept by its settings, and the seed is no part of what it computes.
    trained, log = train(
        _objective(spec, objective, beta), params, batches, settings=replace(settings, seed=0), key=key
    )
    return jax.tree.map(lambda new, old: new.astype(old.dtype), trained, params), log


@functools.cache
def _objective(spec: ModelSpec, name: str, beta: float) -> Objective:
    """Return one function object for each objective, since a new closure would be compiled again."""
    return objective_of(name, beta)(logits_of(Decoder(spec)))
