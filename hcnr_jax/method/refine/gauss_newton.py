"""A last step through the whole network: restored neurons move until the model's outputs are the references'.

The compensation is layer-wise: it keeps the output of every kernel. Users meet the last layer alone, so this step
minimises the `OutputDivergence` J over the restored entries of all kernels at once. Each step solves

    (G + lambda I) v = -grad J

by conjugate gradients and moves along v as far as J falls (halving). It holds `COPIES` vectors of the moved leaves'
size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hcnr_jax.method.neurons import Leaves, Params, get_leaves
from hcnr_jax.method.refine.problem import OutputDivergence, Outputs, Side

# Default number of conjugate-gradient steps and default damping. With less damping the first step goes too far for rows
# it has not seen.
PRODUCTS, DAMPING = 10, 0.1
# Float32 copies of the moved leaves that a solve holds: solution, residual, search direction, product, and a temporary.
COPIES = 5
# Halvings of a step before it is given up, and the least fall of J in nats, below which float32 is too coarse.
HALVINGS = 8
FALL = 1e-6


class Step(NamedTuple):
    """Holds the state after a step, or at the start.

    Args:
        leaves: the moved leaves, whole.
        distances: each side's mean KL in nats, without its weight.
        length: the share of the solved step that was taken; 0 at the start.
    """

    leaves: Leaves
    distances: tuple[float, ...]
    length: float


def refine(
    outputs: Outputs,
    params: Params,
    masks: Mapping[str, Array],
    *,
    sides: Sequence[Side],
    steps: int,
    products: int = PRODUCTS,
    damping: float = DAMPING,
    on_pass: Callable[[], None] = lambda: None,
) -> Iterator[Step]:
    """Yield the start, then the state after each step; end early where a step does not lower J.

    Args:
        outputs: the model.
        params: its params theta at the start.
        masks: path -> True where entries may move, of the leaf's shape or one that broadcasts to it.
        sides: rows and the reference models of J.
        steps: at most so many steps.
        products: conjugate-gradient steps, one product with G each.
        damping: lambda is this times the curvature along the gradient, g^T G g / g^T g.
        on_pass: called after each pass over the rows.

    Raises:
        NumericalError: J is not finite.
    """
    leaves = get_leaves(params, masks)
    held = OutputDivergence(outputs, params, dict(masks), sides, on_pass)
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


@jax.jit
def _moved(leaves: Leaves, direction: Leaves, length: Float[Array, ""] | float) -> Leaves:
    return {
        path: (leaf.astype(direction[path].dtype) + length * direction[path]).astype(leaf.dtype)
        for path, leaf in leaves.items()
    }


def _solve(curvature: Callable[[Leaves], Leaves], gradient: Leaves, products: int, damping: float) -> Leaves:
    """Solve (G + lambda I) v = -gradient by conjugate gradients from 0.

    The solve stops early: its first iterations cover the directions of large curvature, and every iterate is a descent
    direction.
    """
    squared = float(_dot(gradient, gradient))
    if squared == 0:
        return gradient
    solution = jax.tree.map(jnp.zeros_like, gradient)
    residual = search = jax.tree.map(jnp.negative, gradient)
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
        residual = _axpy(-length, _axpy(ridge, search, product), residual)
        before, squared = squared, float(_dot(residual, residual))
        if squared == 0:
            break
        search = _axpy(squared / before, search, residual)
    return solution


@jax.jit
def _dot(left: Leaves, right: Leaves) -> Float[Array, ""]:
    return reduce(jnp.add, (jnp.vdot(left[path], right[path], precision="highest") for path in left))


@jax.jit
def _axpy(scale: Float[Array, ""] | float, left: Leaves, right: Leaves) -> Leaves:
    return {path: scale * left[path] + right[path] for path in left}
