"""The contender of compensation: SparseGPT's sequential solve, one input channel after the other, on the damped H.

SparseGPT (arXiv 2301.00774) prunes columns from the first to the last and adds each column's error to later columns.
Here a task neuron k is set to its tuned value instead of zero, and a restored neuron keeps the added errors:

    H^-1 = U^T U, U upper triangular                      so that row k of U spans the inverse of H over columns >= k
    e_k  = (E_k - D_k) / U_kk   for k in T,  0 for k in R       E = 0 at the start, D = W_tuned - W_base
    E_j -= U_kj e_k             for all j >= k                  which makes E_k = D_k

A step changes only later columns, so that restored neurons before a task neuron do not compensate for it. This is the
loss against the joint solution. With a single task neuron that comes first, both solutions are equal.

The implementation is as fast as the recurrence allows. U comes from one factorisation of H in reverse order (H = M M^T
with M upper, U = M^-1), where the original needs two and an inverse. A scan does the steps in lazy blocks of 128
columns, and one matmul adds the errors of a block to all later columns.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import jax.scipy.linalg as linalg
from jaxtyping import Array, Bool, Float

from hcnr_jax.method.compensate import Pair

# SparseGPT's own block size.
LAZY = 128


def sequential(
    pair: Pair, second: Float[Array, "i i"], damping: float | Array, *, lazy: int = LAZY
) -> Float[Array, "i o"]:
    """Correct one kernel (in, out) in Flax's layout.

    Args:
        pair: the kernel before and after tuning, and its restored (R) and task (T) rows.
        second: H without damping, the mean of x x^T.
        damping: relative to the mean diagonal of H.
        lazy: columns of a block.
    """
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
    """Return U, upper triangular, with matrix^-1 = U^T U."""
    lower = jnp.linalg.cholesky(matrix[::-1, ::-1])
    inverse = linalg.solve_triangular(lower, jnp.eye(matrix.shape[0], dtype=matrix.dtype), lower=True)
    return inverse[::-1, ::-1]


def _one_block(
    block: Float[Array, "b o"], upper: Float[Array, "b b"], task: Bool[Array, " b"], delta: Float[Array, "b o"]
) -> tuple[Float[Array, "b o"], Float[Array, "b o"]]:
    """Do the steps of one block's columns; return the changes of the block and the errors e for later columns."""

    def step(block: Array, column: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        place, row, is_task, aim = column
        error = jnp.where(is_task, (block[place] - aim) / row[place], 0)
        # U is 0 left of the diagonal, so that earlier columns do not change.
        return block - row[:, None] * error[None, :], error

    return jax.lax.scan(step, block, (jnp.arange(block.shape[0]), upper, task, delta))


def _matmul(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, precision="highest")
