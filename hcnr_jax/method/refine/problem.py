"""The last step's problem: the divergence of the whole model's outputs from two reference models.

    J = mean over honesty rows KL(base || model) + w * mean over task rows KL(tuned || model)

KL is the mean over a row's completion tokens of the divergence of next-token distributions. No label is read. Its
Gauss-Newton matrix G (here the Fisher matrix as well) is known by its products alone:

    G u = sum over rows and tokens  J_t^T (diag p - p p^T) J_t u            jvp of the logits, then their vjp

(Schraudolph 2002; Martens 2010). Memory is that of one microbatch's backward pass: no matrix is formed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hcnr_jax.errors import NumericalError
from hcnr_jax.method.neurons import Leaves, Params, put_leaves, wide

Batch = Any
Outputs = Callable[[Params, Batch], tuple[Float[Array, "n t v"], Float[Array, "n t"]]]
"""(params, batch) -> logits and their weights.

A weight is 1 / (completion tokens of the row) where a position predicts a completion token, and 0 elsewhere.
"""


class Side(NamedTuple):
    """Holds one set of rows and the model whose outputs are the aim there.

    Args:
        reference: params of that model.
        batches: microbatches of the rows.
        rows: how many rows they hold, padding aside.
        weight: of the rows' mean KL in J.
    """

    reference: Params
    batches: Sequence[Batch]
    rows: int
    weight: float


class OutputDivergence:
    """Computes J, its gradient and its Gauss-Newton products over all rows, a microbatch at a time.

    Args:
        outputs: the model.
        params: its params; the leaves that move are given to each method.
        masks: {path: True where entries may move}, of the leaf's shape or one that broadcasts to it.
        sides: rows and their reference models.
        on_pass: called after each pass over the rows.
    """

    def __init__(
        self,
        outputs: Outputs,
        params: Params,
        masks: Leaves,
        sides: Sequence[Side],
        on_pass: Callable[[], None],
    ) -> None:
        self._outputs, self._params, self._masks = outputs, params, masks
        self._sides, self._on_pass = sides, on_pass

    def distances(self, leaves: Leaves) -> tuple[float, ...]:
        """Compute every side's mean KL in nats."""
        params, found = put_leaves(self._params, leaves), []
        for side in self._sides:
            parts = [_distance(self._outputs, side.reference, params, batch) for batch in side.batches]
            found.append(sum(map(float, parts)) / side.rows)
        self._on_pass()
        return tuple(found)

    def total(self, values: Sequence[float]) -> float:
        """Compute J from the sides' distances. NumericalError where it is not finite."""
        total = sum(side.weight * value for side, value in zip(self._sides, values, strict=True))
        if not total < float("inf"):
            raise NumericalError(f"the distance between the models' outputs is {total}: their logits overflow")
        return total

    def gradient(self, leaves: Leaves) -> Leaves:
        """Compute the gradient of J, 0 where the mask is False."""

        def part(side: Side, batch: Batch, sums: Leaves) -> Leaves:
            scale = side.weight / side.rows
            return _add_gradient(self._outputs, self._params, leaves, self._masks, side.reference, batch, scale, sums)

        return self._sum(leaves, part)

    def product(self, leaves: Leaves, direction: Leaves) -> Leaves:
        """Multiply G with a direction; both are 0 where the mask is False."""

        def part(side: Side, batch: Batch, sums: Leaves) -> Leaves:
            scale = side.weight / side.rows
            return _add_product(self._outputs, self._params, leaves, self._masks, batch, scale, direction, sums)

        return self._sum(leaves, part)

    def _sum(self, leaves: Leaves, part: Callable[[Side, Batch, Leaves], Leaves]) -> Leaves:
        sums = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, wide(leaf.dtype)), leaves)
        for side in self._sides:
            for batch in side.batches:
                sums = part(side, batch, sums)
        self._on_pass()
        return sums


def _kl(
    reference: Float[Array, "n t v"], logits: Float[Array, "n t v"], weights: Float[Array, "n t"]
) -> Float[Array, ""]:
    """Weighted sum of KL(softmax reference || softmax logits)."""
    before, now = jax.nn.log_softmax(reference), jax.nn.log_softmax(logits)
    return jnp.sum(weights * jnp.sum(jnp.exp(before) * (before - now), axis=-1))


@partial(jax.jit, static_argnums=0)
def _distance(outputs: Outputs, reference: Params, params: Params, batch: Batch) -> Float[Array, ""]:
    return _kl(outputs(reference, batch)[0], *outputs(params, batch))


@partial(jax.jit, static_argnums=0, donate_argnums=7)
def _add_gradient(
    outputs: Outputs,
    params: Params,
    leaves: Leaves,
    masks: Leaves,
    reference: Params,
    batch: Batch,
    scale: Float[Array, ""] | float,
    sums: Leaves,
) -> Leaves:
    aim = outputs(reference, batch)[0]
    gradient = jax.grad(lambda leaves: _kl(aim, *outputs(put_leaves(params, leaves), batch)))(leaves)
    return _added(sums, gradient, masks, scale)


@partial(jax.jit, static_argnums=0, donate_argnums=7)
def _add_product(
    outputs: Outputs,
    params: Params,
    leaves: Leaves,
    masks: Leaves,
    batch: Batch,
    scale: Float[Array, ""] | float,
    direction: Leaves,
    sums: Leaves,
) -> Leaves:
    def logits(leaves: Leaves) -> tuple[Array, Array]:
        return outputs(put_leaves(params, leaves), batch)

    tangent = {path: direction[path].astype(leaf.dtype) for path, leaf in leaves.items()}
    (found, weights), pull = jax.vjp(logits, leaves)
    _, (change, _) = jax.jvp(logits, (leaves,), (tangent,))
    p = jax.nn.softmax(found)
    change = weights[..., None] * p * (change - jnp.sum(p * change, axis=-1, keepdims=True))
    return _added(sums, pull((change, jnp.zeros_like(weights)))[0], masks, scale)


def _added(sums: Leaves, part: Leaves, masks: Leaves, scale: Any) -> Leaves:
    return {
        path: total + jnp.asarray(scale, total.dtype) * jnp.where(masks[path], part[path].astype(total.dtype), 0)
        for path, total in sums.items()
    }
