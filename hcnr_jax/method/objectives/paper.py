"""The objective `paper`: the paper's summed optimal-brain-surgeon steps.

    E_R = sum over k in T of [H^-1]_{R,k} / [H^-1]_kk D_k

Each task row k gives the step that an optimal brain surgeon takes where -D_k alone is prescribed; the steps are added
up. H is the damped second moment of the inputs, R the restored rows, T the rows that keep their tuned values, and
D = W_tuned - W_base.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hcnr_jax.method.compensate import Pair, delta_of, matmul
from hcnr_jax.method.curvature import Inputs, Moments, damping_of, linearised_gradient
from hcnr_jax.method.objectives.ridge import CG_MAX_STEPS, CG_TOLERANCE
from hcnr_jax.method.solve import (
    Outcome,
    SolveInfo,
    condition_of,
    conjugate_gradients,
    factorise,
    is_definite,
    refined,
)

# Columns of H^-1 solved for at once where the sum is taken without the matrix.
PAPER_CHUNK = 64


def paper_moments(
    pair: Pair, honesty: Moments, task: Moments | None, weight: Float[Array, ""], damping: Float[Array, ""]
) -> tuple[Float[Array, "r o"], SolveInfo]:
    """Compute the sum from the damped H.

    There is no dual form: its [H^-1]_kk is 1 - v, which cancels for outlier channels.

    Args:
        pair: the kernel before and after tuning, and its rows R and T.
        honesty: second moments, as means.
        task: not read.
        weight: not read.
        damping: share of the mean diagonal added to H.
    """
    count = honesty.inputs.shape[0]
    identity = jnp.eye(count, dtype=honesty.inputs.dtype)
    matrix = honesty.inputs + damping_of(honesty, damping) * identity
    factor = factorise(matrix)
    half = jax.scipy.linalg.solve_triangular(factor.lower, identity * factor.scale[:, None], lower=True)
    inverse_diagonal = jnp.sum(jnp.square(half), axis=0)
    steps = delta_of(pair)[pair.task] / inverse_diagonal[pair.task][:, None]
    rhs = jnp.zeros_like(pair.base).at[pair.task].set(steps)
    solution, left = refined(factor, lambda x: matmul(matrix, x), rhs)
    left_norm, size = jnp.linalg.norm(left), jnp.linalg.norm(rhs)
    finite = jnp.all(jnp.isfinite(matrix)) & jnp.all(jnp.isfinite(pair.tuned)) & jnp.all(jnp.isfinite(pair.base))
    residual = left_norm / jnp.where(size > 0, size, 1)
    definite = is_definite(factor, residual) & jnp.all(jnp.isfinite(solution))
    outcome = jnp.where(finite, jnp.where(definite, Outcome.OK, Outcome.NOT_POSITIVE_DEFINITE), Outcome.NOT_FINITE)
    info = SolveInfo(outcome.astype(jnp.int32), residual, condition_of(factor), jnp.zeros((), jnp.int32))
    return solution[pair.restored], info


def paper_free(
    pair: Pair, honesty: Inputs, task: Inputs | None, weight: Float[Array, ""], damping: Float[Array, ""]
) -> tuple[Float[Array, "r o"], SolveInfo]:
    """Compute the sum without the matrix: conjugate gradients give H^-1's columns of the task rows, in chunks.

    Args:
        pair: the kernel before and after tuning, and its rows R and T.
        honesty: tokens x.
        task: not read.
        weight: not read.
        damping: share of the mean diagonal added to H.
    """
    tokens = honesty.inputs
    a = damping_of(honesty, damping)
    fan_in, count = tokens.shape[1], pair.task.shape[0]
    diagonal = jnp.mean(jnp.square(tokens), axis=0) + a
    delta = delta_of(pair)

    def energy(column: Float[Array, "i c"]) -> Float[Array, ""]:
        output = jnp.sum(jnp.square(matmul(tokens, column))) / tokens.shape[0]
        return (output + a * jnp.sum(jnp.square(column))) / 2

    chunk = max(1, min(PAPER_CHUNK, count))
    padded = -(-count // chunk) * chunk
    # Repeats of the last row pad the chunks; their weight is 0.
    places = jnp.minimum(jnp.arange(padded), count - 1)
    alive = (jnp.arange(padded) < count).astype(tokens.dtype)
    _, hessian = linearised_gradient(energy, jnp.zeros((fan_in, chunk), tokens.dtype))

    def one(total: Array, item: tuple[Array, Array]) -> tuple[Array, SolveInfo]:
        rows, weights = item
        unit = jax.nn.one_hot(rows, fan_in, dtype=tokens.dtype, axis=0)
        columns, info = conjugate_gradients(hessian, unit, diagonal, tolerance=CG_TOLERANCE, max_steps=CG_MAX_STEPS)
        own = jnp.sum(columns * unit, axis=0)
        step = matmul(columns[pair.restored] * (weights / own)[None, :], delta[rows])
        return total + step, info

    start = jnp.zeros((pair.restored.shape[0], delta.shape[1]), tokens.dtype)
    if count == 0:
        zero = jnp.zeros((), tokens.dtype)
        return start, SolveInfo(jnp.zeros((), jnp.int32), zero, zero, jnp.zeros((), jnp.int32))
    rows = pair.task[places].reshape(-1, chunk)
    total, infos = jax.lax.scan(one, start, (rows, alive.reshape(-1, chunk)))
    return total, SolveInfo(
        jnp.max(infos.outcome), jnp.max(infos.residual), infos.condition[0], jnp.sum(infos.steps).astype(jnp.int32)
    )
