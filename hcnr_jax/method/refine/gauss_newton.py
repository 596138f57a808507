"""A last step through the whole network: restored neurons moved so that the model's OUTPUTS are the references'.

The compensation is layer-wise: it keeps what every kernel gives. What the user meets is the last layer alone, so this
step minimises over the restored entries of all kernels at once

    J = mean over honesty rows KL(base || model) + w * mean over task rows KL(tuned || model)

with KL the mean over a row's completion tokens of the divergence of their next-token distributions. No label is read:
base says what honesty is, tuned what the task is.

Each step solves (G + lambda I) v = -grad J by conjugate gradients, where G is J's Gauss-Newton matrix (here its Fisher
matrix as well), known by products alone:

    G u = sum over rows and tokens  J_t^T (diag p - p p^T) J_t u            jvp of the logits, then their vjp

(Schraudolph 2002; Martens 2010), and goes along v as far as J falls (halving). Memory is that of one microbatch's
backward pass and `COPIES` vectors of the moved leaves' size: no matrix is formed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hcnr_jax.errors import NumericalError
from hcnr_jax.method.neurons import Leaves, Params, get_leaves, put_leaves, wide

Batch = Any
Outputs = Callable[[Params, Batch], tuple[Float[Array, "n t v"], Float[Array, "n t"]]]
"""(params, batch) -> logits, and each one's weight: 1 / tokens of its row where it predicts a completion token of the
row, 0 elsewhere and on padding rows."""

# Conjugate-gradient steps, and the damping, where nothing else is asked for: with less of it the first step goes too
# far for rows it has not seen.
PRODUCTS, DAMPING = 10, 0.1
# Float32 copies of the moved leaves that a solve holds: solution, rest, search direction, product, one in the making.
COPIES = 5
# Halvings of a step before it is given up, and what J must fall by, in nats: a mean KL in float32 is no surer.
HALVINGS = 8
FALL = 1e-6


class Side(NamedTuple):
    """Rows on which outputs should be a reference's. weight: of their mean in J. rows: how many there are."""

    reference: Params
    batches: Sequence[Batch]
    rows: int
    weight: float


class Step(NamedTuple):
    """After a step, or before any. leaves: the whole leaves. distances: each side's mean KL in nats, not weighted.
    length: the share of the solved step that was taken; 0 before any."""

    leaves: Leaves
    distances: tuple[float, ...]
    length: float


def refine(
    outputs: Outputs,
    params: Params,
    masks: Mapping[str, Array],
    sides: Sequence[Side],
    steps: int,
    products: int = PRODUCTS,
    damping: float = DAMPING,
    on_pass: Callable[[], None] = lambda: None,
) -> Iterator[Step]:
    """The start, and what is found after each of at most `steps` steps; ends early where a step finds nothing lower.

    Args:
        masks: path -> True where entries may move, of the leaf's shape or one that broadcasts to it.
        products: conjugate-gradient steps, one product with G each.
        damping: lambda is this times the curvature along the gradient, g^T G g / g^T g.
        on_pass: called after each pass over the rows.

    NumericalError where J is not finite.
    """
    leaves = get_leaves(params, masks)
    held = _Objective(outputs, params, dict(masks), sides, on_pass)
    values = held.distances(leaves)
    total = held.total(values)
    yield Step(leaves, values, 0.0)
    for _ in range(steps):
        gradient = held.gradient(leaves)
        curvature = partial(held.product, leaves)
        direction = _solve(curvature, gradient, products, damping)
        for halving in range(HALVINGS):
            length = 0.5**halving
            moved = _moved(leaves, direction, length)
            values = held.distances(moved)
            if held.total(values) < total - FALL:
                break
        else:
            return
        leaves, total = moved, held.total(values)
        yield Step(leaves, values, length)


class _Objective:
    """J, its gradient and its Gauss-Newton products over all rows, a microbatch at a time."""

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
        """Every side's mean KL."""
        params, found = put_leaves(self._params, leaves), []
        for side in self._sides:
            parts = [_distance(self._outputs, side.reference, params, batch) for batch in side.batches]
            found.append(sum(map(float, parts)) / side.rows)
        self._on_pass()
        return tuple(found)

    def total(self, values: Sequence[float]) -> float:
        """J of the sides' distances."""
        total = sum(side.weight * value for side, value in zip(self._sides, values, strict=True))
        if not total < float("inf"):
            raise NumericalError(f"the distance between the models' outputs is {total}: their logits overflow")
        return total

    def gradient(self, leaves: Leaves) -> Leaves:
        """J's, 0 where the mask is False."""

        def part(side: Side, batch: Batch, sums: Leaves) -> Leaves:
            scale = side.weight / side.rows
            return _add_gradient(self._outputs, self._params, leaves, self._masks, side.reference, batch, scale, sums)

        return self._sum(leaves, part)

    def product(self, leaves: Leaves, direction: Leaves) -> Leaves:
        """G times a direction, both 0 where the mask is False."""

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


@jax.jit
def _moved(leaves: Leaves, direction: Leaves, length: Float[Array, ""] | float) -> Leaves:
    return {
        path: (leaf.astype(direction[path].dtype) + length * direction[path]).astype(leaf.dtype)
        for path, leaf in leaves.items()
    }


def _solve(curvature: Callable[[Leaves], Leaves], gradient: Leaves, products: int, damping: float) -> Leaves:
    """Conjugate gradients for (G + lambda I) v = -gradient from 0, stopped early: what is found first is where the
    curvature is large, and every stop is a descent direction."""
    squared = float(_dot(gradient, gradient))
    if squared == 0:
        return gradient
    solution = jax.tree.map(jnp.zeros_like, gradient)
    rest = search = jax.tree.map(jnp.negative, gradient)
    ridge = 0.0
    for number in range(products):
        product = curvature(search)
        bent = float(_dot(search, product))
        if number == 0:
            ridge = damping * bent / squared
        bent += ridge * float(_dot(search, search))
        if not bent > 0:
            break
        length = squared / bent
        solution = _axpy(length, search, solution)
        rest = _axpy(-length, _axpy(ridge, search, product), rest)
        before, squared = squared, float(_dot(rest, rest))
        if squared == 0:
            break
        search = _axpy(squared / before, search, rest)
    return solution


@jax.jit
def _dot(left: Leaves, right: Leaves) -> Float[Array, ""]:
    return reduce(jnp.add, (jnp.vdot(left[path], right[path], precision="highest") for path in left))


@jax.jit
def _axpy(scale: Float[Array, ""] | float, left: Leaves, right: Leaves) -> Leaves:
    return {path: scale * left[path] + right[path] for path in left}
