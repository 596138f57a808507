"""One jitted optax step and one loop around it: AdamW, linear warm-up, cosine decay, clipping by global norm.

An objective returns a sum and its weight, `(total, weight)`; the loss is their quotient over the whole batch. Carrying
both is what makes gradient accumulation exact: microbatches add totals and weights, and divide once, so that the rows'
split never shows in the result.
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
"""`(params, batch, key) -> (total, weight)`. Arrays that are not trained go in as a `jax.tree_util.Partial`'s
leaves.
"""

CHECK_EVERY = 50  # steps between reads of the loss: reading every step would make the device wait for the host


@dataclass(frozen=True)
class TrainSettings:
    """What an optimisation run is, apart from its loss, its data and its start.

    Attributes:
      learning_rate: peak of the schedule, reached after `warmup_steps`; decays by a cosine to `end_fraction` of it at
        `steps`.
      batch_size: rows per step; `microbatch` rows of them at a time (None: all), which changes memory and not the
        result.
      weight_decay: AdamW's decoupled decay, on kernels alone unless `decay_everything` (norms, biases and embeddings
        then too).
      clip_norm: largest global norm of the gradient; None leaves it as it is.
      seed: of the order of the rows and of whatever the objective draws.
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
        """Refuse settings that no run could follow; raises InputError naming the field."""
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
    """What one step shows of itself: its loss, and the gradient's global norm before clipping (both scalars, still on
    the device).
    """

    loss: Float32[Array, ""]
    gradient_norm: Float32[Array, ""]


class TrainLog(NamedTuple):
    """Loss and gradient norm of every step, float32 [steps]."""

    losses: np.ndarray
    gradient_norms: np.ndarray


def schedule(settings: TrainSettings) -> optax.Schedule:
    """Learning rate of a step: linear from 0 over `warmup_steps`, then a cosine down to `end_fraction` at `steps`."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if settings.warmup_steps else settings.learning_rate,
        peak_value=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        decay_steps=settings.steps,
        end_value=settings.learning_rate * settings.end_fraction,
    )


def kernels_only(params: PyTree) -> PyTree:
    """Tree of bools like `params`: True at the leaves weight decay is for, those whose last name is `kernel`, `lora_a`
    or `lora_b`.
    """

    def decayed(path: tuple[Any, ...], _: Any) -> bool:
        return bool(path) and getattr(path[-1], "key", None) in ("kernel", "lora_a", "lora_b")

    return jax.tree_util.tree_map_with_path(decayed, params)


def optimiser(settings: TrainSettings) -> optax.GradientTransformation:
    """AdamW with the settings' schedule, clipping first."""
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
    objective: Objective, params: PyTree, batch: PyTree, key: PRNGKeyArray, microbatch: int | None
) -> tuple[Float[Array, ""], PyTree]:
    """`sum total / sum weight` over the batch and its gradient, `microbatch` rows at a time."""
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
    """The jitted step `(objective, params, state, batch, key) -> (params, state, StepInfo)`; params and state are
    donated. One a value of the settings: runs that differ in start and data alone share the compilation.
    """
    transform = optimiser(settings)

    def step(
        objective: Objective, params: PyTree, state: PyTree, batch: PyTree, key: PRNGKeyArray
    ) -> tuple[PyTree, PyTree, StepInfo]:
        loss, gradient = loss_and_gradient(objective, params, batch, key, settings.microbatch)
        # optax mixes Python scalars, counters and float32 in ways strict promotion refuses.
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
    settings: TrainSettings,
    key: PRNGKeyArray,
    on_step: Callable[[int, StepInfo], None] | None = None,
) -> tuple[PyTree, TrainLog]:
    """Minimise `loss_fn` from `params`, taking `batches(step)` at step 0, 1, ..., `settings.steps - 1`.

    The weights are trained in float32 whatever they were stored in (a bfloat16 weight swallows small updates), and
    `params` itself is left
    alone: a copy is donated from step to step. `on_step(step, info)` is called after every step; reading `info` waits
      for the device.

    Args:
      loss_fn: see `Objective`; a `jax.tree_util.Partial` carries frozen arrays as arguments of the compiled step, not
        as constants in it.
      key: folded with the step's number and handed to `loss_fn`.

    Returns:
      The trained float32 params and the log.

    Raises:
      NumericalError: the loss is NaN or infinite; names the step.
    """
    infos: list[StepInfo] = []
    trained = params
    for step, (trained, info) in enumerate(each_step(loss_fn, params, batches, settings, key)):  # noqa: B007
        infos.append(info)
        if on_step is not None:
            on_step(step, info)
        if (step + 1) % CHECK_EVERY == 0:
            infos[-CHECK_EVERY:] = checked(infos[-CHECK_EVERY:], step + 1 - CHECK_EVERY)
    left = settings.steps % CHECK_EVERY
    infos[settings.steps - left :] = checked(infos[settings.steps - left :], settings.steps - left)
    losses, norms = (np.asarray(column, np.float32) for column in zip(*infos, strict=True))
    return trained, TrainLog(losses, norms)


def each_step(
    loss_fn: Objective, params: PyTree, batches: Callable[[int], PyTree], settings: TrainSettings, key: PRNGKeyArray
) -> Iterator[tuple[PyTree, StepInfo]]:
    """`train`, one step at a time: the float32 params after step 0, 1, ..., and what each step shows of itself.

    The params are donated to the next step: copy what shall outlive it. Losses are not looked at (see `checked`).
    """
    params = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), params)
    with jax.numpy_dtype_promotion("standard"):
        state = optimiser(settings).init(params)
    # Wrapping a Partial once more would hide its arrays in the function, as constants of the compiled step.
    objective = loss_fn if isinstance(loss_fn, jax.tree_util.Partial) else jax.tree_util.Partial(loss_fn)
    step_fn = make_step(settings)
    for step in range(settings.steps):
        params, state, info = step_fn(objective, params, state, batches(step), jax.random.fold_in(key, step))
        yield params, info


def checked(infos: list[StepInfo], first: int) -> list[StepInfo]:
    """The same infos on the host; raises NumericalError at the first loss that is not finite."""
    infos = jax.device_get(infos)
    for step, info in enumerate(infos, first):
        if not np.isfinite(info.loss):
            raise NumericalError(
                f"the training loss is {float(info.loss)} at step {step}: lower the learning rate, or look for "
                "rows whose loss is not finite"
            )
    return infos


def epoch_batches(examples: PyTree, batch_size: int, seed: int) -> Callable[[int], PyTree]:
    """Function from step to a batch of `batch_size` rows: every epoch goes through all rows once, in a seeded order of
    its own.

    Epochs follow one another without a gap (a batch may end one and begin the next), so that every batch is full and
    every row is seen equally often. A pure function of the step, so that a run can be taken up anywhere.

    Args:
      examples: pytree of host arrays [rows, ...].

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
