"""Safe Delta (arXiv 2505.12038): take the task's changes where they cost the base model's behaviour least.

    H = 2 / n sum x x^T + damping mean(diag H) I,   H^-1 = U^T U,  U upper triangular
    cost of taking entry (o, k) of the tuned weight: delta_ok^2 / U_kk^2
    taken: entries by rising 1 / U_kk^2, the last 15 % never, while their summed cost <= s/2 * mean(1/U_kk^2) * out/4096
    then column by column: q_k = tuned where taken, else w_k; the columns after k are moved by
    - (w_k - q_k) U_k,: / U_kk, so that the kernel's outputs on the honesty rows stay where they were

Stated from the authors' released code (github.com/ColinLu50/SafeDelta, `safedelta_runner.py`, commit c30ff4a), whose
rows are the outputs and whose x are the base model's inputs on its safety data. Departures: safety data is the honesty
data here; a kernel is one block of columns (theirs: 2048 at a time, within which costs are summed), and every column is
compensated for, where theirs does so four columns at a time. Embeddings, head, norms and biases stay tuned, as theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from hcnr_jax.errors import NumericalError
from hcnr_jax.method.curvature import input_moments
from hcnr_jax.method.neurons import Leaves, Params, get_leaves, put_leaves, stack_shape, wide

# Share of the entries that is never taken, those of largest 1 / U_kk^2, and the width their constant s is meant for.
NEVER = 0.15
WIDTH = 4096


def honesty_moments(
    forward: Callable[[Params, Any], Array], base: Params, paths: Sequence[str], *, batches: Sequence[tuple[Any, Array]]
) -> Leaves:
    """Sum x x^T over the honesty rows in BASE, (*stack, in, in).

    Args:
        forward: (params, batch) -> logits.
        base: params of BASE.
        paths: of the kernels.
        batches: (batch, mask of its real tokens).
    """
    step = jax.jit(lambda params, batch, mask: input_moments(forward, params, paths, batch=batch, token_mask=mask))
    total: Leaves = {}
    for batch, mask in batches:
        found = step(base, batch, mask)
        total = found if not total else jax.tree.map(jnp.add, total, found)
    return total


def safe_delta(base: Params, tuned: Params, moments: Leaves, *, s: float, damping: float = 0.01) -> Params:
    """Replace every kernel of `moments` in the tuned params.

    Args:
        base: params of BASE.
        tuned: params of TUNED.
        moments: kernel path -> sum x x^T.
        s: the budget; 0 takes no entry, which gives the kernels of BASE.
        damping: share of the mean diagonal of H that is added.

    Raises:
        NumericalError: a kernel's damped H has no Cholesky factor.
    """
    old, new = get_leaves(base, moments), get_leaves(tuned, moments)
    found: Leaves = {}
    for path, leaf in new.items():
        shape = (-1, *leaf.shape[-2:])
        flat = [x.reshape(shape) for x in (old[path], leaf)]
        sums = moments[path].reshape(-1, shape[1], shape[1])
        kernels = jnp.stack([_kernel(*item, s, damping) for item in zip(*flat, sums, strict=True)])
        if not bool(jnp.all(jnp.isfinite(kernels))):
            raise NumericalError(f"{path}: Safe Delta's Hessian is not positive definite; give it more rows or damping")
        found[path] = kernels.reshape(*stack_shape(leaf), *shape[1:]).astype(leaf.dtype)
    return put_leaves(tuned, found)


@partial(jax.jit, static_argnums=(4,))
def _kernel(
    base: Float[Array, "i o"], tuned: Float[Array, "i o"], second: Float[Array, "i i"], s: float | Array, damping: float
) -> Float[Array, "i o"]:
    dtype = wide(tuned.dtype)
    root = inverse_root(second.astype(dtype), damping)
    diagonal = jnp.diagonal(root)
    start = base.astype(dtype)
    take = taken(tuned.astype(dtype) - start, diagonal, jnp.asarray(s, dtype))
    return _compensated(start, tuned.astype(dtype), take, root)


def inverse_root(second: Float[Array, "i i"], damping: float) -> Float[Array, "i i"]:
    """Return the upper U with U^T U = (H + damping mean(diag H) I)^-1.

    The scale of H cancels in every later step. An input that is always 0 gets 1 on the diagonal, as in the authors'
    code.
    """
    diagonal = jnp.diagonal(second)
    second = second + jnp.diag(jnp.where(diagonal == 0, 1, 0).astype(second.dtype))
    eye = jnp.eye(second.shape[0], dtype=second.dtype)
    damped = second + damping * jnp.mean(jnp.diagonal(second)) * eye
    inverse = jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(damped), True), eye)
    return jnp.linalg.cholesky(inverse).T


def taken(delta: Float[Array, "i o"], diagonal: Float[Array, " i"], s: Float[Array, ""]) -> Bool[Array, "i o"]:
    """Select the entries that take their tuned value: the greedy choice of the header, ties by input, then output."""
    weight = 1 / jnp.square(diagonal)
    inputs, outputs = delta.shape
    order = jnp.argsort(weight, stable=True)
    costs = (jnp.square(delta) * weight[:, None])[order].reshape(-1)
    within = jnp.cumsum(costs) <= s / 2 * jnp.mean(weight) * (outputs / WIDTH)
    allowed = np.arange(inputs * outputs) < inputs * outputs - int(NEVER * inputs * outputs)
    return jnp.zeros(delta.shape, bool).at[order].set((within & allowed).reshape(inputs, outputs))


def _compensated(
    start: Float[Array, "i o"], tuned: Float[Array, "i o"], take: Bool[Array, "i o"], root: Float[Array, "i i"]
) -> Float[Array, "i o"]:
    """Fix one input after the other, and compensate in the inputs after it (a column of the paper's out x in
    matrix).
    """
    places = np.arange(start.shape[0])

    def fix(k: Array, weights: Array) -> Array:
        row = jnp.where(take[k], tuned[k], weights[k])
        error = (weights[k] - row) / root[k, k]
        later = jnp.where(jnp.asarray(places) > k, root[k], 0)
        return (weights - later[:, None] * error[None, :]).at[k].set(row)

    return jax.lax.fori_loop(0, start.shape[0], fix, start)
