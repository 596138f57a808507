"""The comparison for compensation: the SparseGPT way, one input channel after the other on the same damped H.

SparseGPT (arXiv 2301.00774) prunes columns from the first to the last and pushes each one's error into those that are
still to come. Here a task neuron k is not set to zero but to its tuned value, and a restored one is left as pushed:

    H^-1 = U^T U, U upper triangular                      so that row k of U spans the inverse of H over columns >= k
    e_k  = (E_k - D_k) / U_kk   for k in T,  0 for k in R       E = 0 at the start, D = W_tuned - W_base
    E_j -= U_kj e_k             for all j >= k                  which makes E_k = D_k

A step only reaches later columns: restored neurons before a task neuron never answer for it, which is what it loses
against the joint solution. With a single task neuron that comes first it is the joint solution.

Written as well as the recurrence allows: U from ONE factorisation (of H in reverse order: H = M M^T with M upper,
U = M^-1) where the original takes two and an inverse; lazy blocks of 128 columns, in which a scan does the steps, and
one matmul pushes a whole block's errors into the columns behind it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import jax.scipy.linalg as linalg
from jaxtyping import Array, Bool, Float

from hcnr_jax.method.objectives.ridge import Pair

# SparseGPT's own block size.
LAZY = 128


def sequential(
    pair: Pair, second: Float[Array, "i i"], damping: float | Array, lazy: int = LAZY
) -> Float[Array, "i o"]:
    """The corrected kernel (in, out), Flax's way round; `second` is the undamped mean of x x^T."""
    fan_in = second.shape[0]
    ridge = jnp.asarray(damping, second.dtype) * jnp.trace(second) / fan_in
    upper = inverse_factor(second + ridge * jnp.eye(fan_in, dtype=second.dtype))
    task = jnp.zeros(fan_in, bool).at[pair.task].set(True)
    delta = pair.tuned - pair.base
    change = jnp.zeros_like(pair.base)
    for start in range(0, fan_in, lazy):
        stop = min(start + lazy, fan_in)
        rows = slice(start, stop)
        block, errors = _one_block(change[rows], upper[rows, rows], task[rows], delta[rows])
        change = change.at[rows].set(block)
        if stop < fan_in:
            change = change.at[stop:].add(-_matmul(upper[rows, stop:].T, errors))
    return pair.base + change


def inverse_factor(matrix: Float[Array, "i i"]) -> Float[Array, "i i"]:
    """U, upper triangular, with matrix^-1 = U^T U."""
    lower = jnp.linalg.cholesky(matrix[::-1, ::-1])
    inverse = linalg.solve_triangular(lower, jnp.eye(matrix.shape[0], dtype=matrix.dtype), lower=True)
    return inverse[::-1, ::-1]


def _one_block(
    block: Float[Array, "b o"], upper: Float[Array, "b b"], task: Bool[Array, " b"], delta: Float[Array, "b o"]
) -> tuple[Float[Array, "b o"], Float[Array, "b o"]]:
    """The steps of one block's columns, within the block; its changes and the errors e to push behind it."""

    def step(block: Array, column: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        place, row, is_task, aim = column
        error = jnp.where(is_task, (block[place] - aim) / row[place], 0)
        # Left of the diagonal U is 0, so that columns already passed stay as they are.
        return block - row[:, None] * error[None, :], error

    return jax.lax.scan(step, block, (jnp.arange(block.shape[0]), upper, task, delta))


def _matmul(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, precision="highest")
