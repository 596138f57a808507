"""Trains with one jitted optax step: AdamW, linear warm-up, cosine decay, clipping by global norm.

An objective returns a sum and its weight, `(total, weight)`; the loss is their quotient over the whole batch.
Microbatches add totals and weights and divide once. Gradient accumulation is therefore exact: the result does not
depend on how the rows are split.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]
from jaxtyping import Array, Float, Float32, PRNGKeyArray, PyTree

from hcnr_jax.errors import InputError, NumericalError

Objective = Callable[[PyTree, PyTree, PRNGKeyArray], tuple[Float[Array, ""], Float[Array, ""]]]
"""Maps `(params, batch, key)` to `(total, weight)`. A `jax.tree_util.Partial` also passes arrays that are not trained.
"""

CHECK_EVERY = 50  # steps between reads of the loss: reading every step would make the device wait for the host


@dataclass(frozen=True)
class TrainSettings:
    """Holds the settings of an optimisation run, without its loss, its data and its initial weights.

    Attributes:
      learning_rate: peak of the schedule.
      steps: number of optimiser steps.
      warmup_steps: steps in which the learning rate rises from 0 to its peak.
      batch_size: rows per step.
      weight_decay: AdamW's decoupled decay.
      b1: AdamW's decay rate of the mean gradient.
      b2: AdamW's decay rate of the mean squared gradient.
      clip_norm: largest global norm of the gradient; None does not clip.
      end_fraction: fraction of the peak to which a cosine lowers the learning rate after the warm-up.
      seed: seed of the order of the rows and of the objective's random numbers.
      microbatch: rows computed at a time, which changes only memory; None computes all rows of a batch at once.
      decay_everything: apply weight decay to norms, biases and embeddings too, not to kernels alone.
    """

    learning_rate: float = 2e-5
    steps: int = 1000
    warmup_steps: int = 0
    batch_size: int = 32
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    clip_norm: float | None = 1.0
    end_fraction: float = 0.0
    seed: int = 0
    microbatch: int | None = None
    decay_everything: bool = False

    def __post_init__(self) -> None:
        """Raise InputError, which names the field, for settings that no run can use."""
        rules = [
            ("learning_rate", self.learning_rate > 0, "a number above 0"),
            ("steps", self.steps >= 1, "at least 1"),
            ("warmup_steps", 0 <= self.warmup_steps < self.steps, f"from 0 to steps - 1 = {self.steps - 1}"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("b1", 0 <= self.b1 < 1, "in [0, 1)"),
            ("b2", 0 <= self.b2 < 1, "in [0, 1)"),
            ("clip_norm", self.clip_norm is None or self.clip_norm > 0, "above 0, or none"),
            ("end_fraction", 0 <= self.end_fraction <= 1, "in [0, 1]"),
            (
                "microbatch",
                self.microbatch is None or (self.microbatch >= 1 and self.batch_size % self.microbatch == 0),
                f"a divisor of batch_size = {self.batch_size}",
            ),
        ]
        for name, holds, expected in rules:
            if not holds:
                raise InputError(f"{name} is {getattr(self, name)!r}, expected {expected}")


class StepInfo(NamedTuple):
    """Holds the loss of one step and the gradient's global norm before clipping, as scalars on the device."""

    loss: Float32[Array, ""]
    gradient_norm: Float32[Array, ""]


class TrainLog(NamedTuple):
    """Holds the loss and the gradient norm of every step, float32 (steps,)."""

    losses: np.ndarray
    gradient_norms: np.ndarray


def schedule(settings: TrainSettings) -> optax.Schedule:
    """Make the schedule: linear from 0 over `warmup_steps`, then a cosine down to `end_fraction` at `steps`."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if settings.warmup_steps else settings.learning_rate,
        peak_value=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        decay_steps=settings.steps,
        end_value=settings.learning_rate * settings.end_fraction,
    )


def kernels_only(params: PyTree) -> PyTree:
    """Mark the leaves that get weight decay: True where the path ends in `kernel`, `lora_a` or `lora_b`."""

    def decayed(path: tuple[Any, ...], _: Any) -> bool:
        return bool(path) and getattr(path[-1], "key", None) in ("kernel", "lora_a", "lora_b")

    return jax.tree_util.tree_map_with_path(decayed, params)


def optimiser(settings: TrainSettings) -> optax.GradientTransformation:
    """Make AdamW with the settings' schedule; gradients are clipped first if the settings say so."""
    adamw = optax.adamw(
        schedule(settings),
        b1=settings.b1,
        b2=settings.b2,
        weight_decay=settings.weight_decay,
        mask=None if settings.decay_everything else kernels_only,
    )
    if settings.clip_norm is None:
        return adamw
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), adamw)


def loss_and_gradient(
    objective: Objective, params: PyTree, batch: PyTree, *, key: PRNGKeyArray, microbatch: int | None
) -> tuple[Float[Array, ""], PyTree]:
    """Compute `sum total / sum weight` over the batch, and its gradient.

    Args:
        objective: see `Objective`.
        params: the parameters to differentiate with respect to.
        batch: pytree of arrays (rows, ...).
        key: random key for the objective, split over the microbatches.
        microbatch: rows computed at a time, a divisor of the number of rows; None computes all rows at once.
    """
    total_gradient = jax.value_and_grad(objective, has_aux=True)
    rows = jax.tree.leaves(batch)[0].shape[0]
    if microbatch is None or microbatch == rows:
        (total, weight), gradient = total_gradient(params, batch, key)
    else:
        parts = jax.tree.map(lambda leaf: leaf.reshape(rows // microbatch, microbatch, *leaf.shape[1:]), batch)
        zero = jnp.zeros((), jnp.float32)

        def add(carry: PyTree, part: tuple[PyTree, PRNGKeyArray]) -> tuple[PyTree, None]:
            return jax.tree.map(jnp.add, carry, total_gradient(params, *part)), None

        keys = jax.random.split(key, rows // microbatch)
        start = ((zero, zero), jax.tree.map(jnp.zeros_like, params))
        ((total, weight), gradient), _ = jax.lax.scan(add, start, (parts, keys))
    return total / weight, jax.tree.map(lambda leaf: leaf / weight.astype(leaf.dtype), gradient)


@functools.cache
def make_step(settings: TrainSettings) -> Callable[..., tuple[PyTree, PyTree, StepInfo]]:
    """Make the jitted step `(objective, params, state, batch, key) -> (params, state, StepInfo)`.

    Params and state are donated. Runs with equal settings share one step, and with it the compilation.
    """
    transform = optimiser(settings)

    def step(
        objective: Objective, params: PyTree, state: PyTree, batch: PyTree, key: PRNGKeyArray
    ) -> tuple[PyTree, PyTree, StepInfo]:
        loss, gradient = loss_and_gradient(objective, params, batch, key=key, microbatch=settings.microbatch)
        # optax mixes Python scalars, counters and float32, which strict dtype promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = transform.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            norm = optax.tree.norm(gradient)
        return params, state, StepInfo(loss, norm)

    return jax.jit(step, donate_argnums=(1, 2))


def train(
    loss_fn: Objective,
    params: PyTree,
    batches: Callable[[int], PyTree],
    *,
    settings: TrainSettings,
    key: PRNGKeyArray,
    on_step: Callable[[int, StepInfo], None] | None = None,
    watch: Callable[[int, PyTree], bool] | None = None,
) -> tuple[PyTree, TrainLog]:
    """Minimise `loss_fn` from `params`, taking `batches(step)` at step 0, 1, ..., `settings.steps - 1`.

    The weights are trained in float32 whatever their stored dtype, because a bfloat16 weight loses small updates.
    `params` itself is not changed: a copy is donated from step to step.

    Args:
      loss_fn: see `Objective`. A `jax.tree_util.Partial` passes frozen arrays as arguments of the compiled step, not
        as constants in it.
      params: the initial weights.
      batches: maps a step to its batch, a pytree of arrays (batch_size, ...).
      settings: the settings of the run.
      key: random key; `loss_fn` gets it folded with the step's number.
      on_step: is called with the step and its `StepInfo` after every step; reading the info waits for the device.
      watch: is called with the number of steps done and the params, before the first step and after every step. The
        params are valid only during the call. Training ends early where it returns True.

    Returns:
      The trained float32 params and the log, of the steps that ran.

    Raises:
      NumericalError: the loss is NaN or infinite. The message names the step.
    """
    infos: list[StepInfo] = []
    trained = params
    if watch is not None:
        watch(0, params)
    for step, (trained, info) in enumerate(each_step(loss_fn, params, batches, settings=settings, key=key)):
        infos.append(info)
        if on_step is not None:
            on_step(step, info)
        if (step + 1) % CHECK_EVERY == 0:
            infos[-CHECK_EVERY:] = checked(infos[-CHECK_EVERY:], step + 1 - CHECK_EVERY)
        if watch is not None and watch(step + 1, trained):
            break
    first = len(infos) - len(infos) % CHECK_EVERY
    infos[first:] = checked(infos[first:], first)
    losses, norms = (np.asarray(column, np.float32) for column in zip(*infos, strict=True))
    return trained, TrainLog(losses, norms)


def each_step(
    loss_fn: Objective, params: PyTree, batches: Callable[[int], PyTree], *, settings: TrainSettings, key: PRNGKeyArray
) -> Iterator[tuple[PyTree, StepInfo]]:
    """Run `train` one step at a time; yield the float32 params after each step and its `StepInfo`.

    The params are donated to the next step, so that a caller must copy params it keeps. Losses are not checked (see
    `checked`).

    Args:
      loss_fn: as in `train`.
      params: as in `train`.
      batches: as in `train`.
      settings: as in `train`.
      key: as in `train`.
    """
    params = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), params)
    with jax.numpy_dtype_promotion("standard"):
        state = optimiser(settings).init(params)
    # A Partial inside a Partial would hide its arrays in the function, as constants of the compiled step.
    objective = loss_fn if isinstance(loss_fn, jax.tree_util.Partial) else jax.tree_util.Partial(loss_fn)
    step_fn = make_step(settings)
    for step in range(settings.steps):
        params, state, info = step_fn(objective, params, state, batches(step), jax.random.fold_in(key, step))
        yield params, info


def checked(infos: list[StepInfo], first: int) -> list[StepInfo]:
    """Copy the infos to the host; raise NumericalError at the first loss that is not finite."""
    infos = jax.device_get(infos)
    for step, info in enumerate(infos, first):
        if not np.isfinite(info.loss):
            raise NumericalError(
                f"the training loss is {float(info.loss)} at step {step}: lower the learning rate, or look for "
                "rows whose loss is not finite"
            )
    return infos


def epoch_batches(examples: PyTree, batch_size: int, seed: int) -> Callable[[int], PyTree]:
    """Make a function that maps a step to its batch; every epoch visits all rows once, in an order of its own.

    Epochs follow each other without a gap, and a batch may contain the end of one and the start of the next. Every
    batch is therefore full, and every row is used equally often. The batch depends on the step alone, so that a run can
    start at any step.

    Args:
      examples: pytree of host arrays (rows, ...).
      batch_size: rows per batch.
      seed: seed of the epochs' orders.

    Raises:
      InputError: there are no rows.
    """
    rows = jax.tree.leaves(examples)[0].shape[0]
    if rows == 0:
        raise InputError("there are no rows to train on")
    orders: dict[int, np.ndarray] = {}

    def order(epoch: int) -> np.ndarray:
        if epoch not in orders:
            while len(orders) > batch_size // rows + 1:  # the epochs one batch can touch
                orders.pop(next(iter(orders)))
            orders[epoch] = np.random.default_rng((seed, epoch)).permutation(rows)
        return orders[epoch]

    def batch(step: int) -> PyTree:
        places = range(step * batch_size, (step + 1) * batch_size)
        chosen = np.array([order(place // rows)[place % rows] for place in places])
        return jax.tree.map(lambda leaf: leaf[chosen], examples)

    return batch
