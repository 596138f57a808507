"""Restoration in a LoRA adapter's own coordinates: the restored model of an adapter is an adapter with the same B.

With PEFT's factors A (r, in), B (out, r) and the scale c, the kernel (in, out) of the tuned model is

    W_tuned = W_base + D,   D = c A^T B^T

Let the columns of Q (out, k) be an orthonormal basis of B's column space. Then D Q (in, k) holds all of D, and every
correction E that stays in the adapter's span is E = Z Q^T with Z (in, k). Because Q is orthonormal, the least-squares
objectives of the compensation, over all E of this form, are the same objectives for the thin kernels W_base Q and
W_base Q + D Q, which have k outputs in place of thousands. With local inputs the solution without this constraint
lies in the span anyway, so that nothing is lost. With propagated inputs it is the best restoration that the adapter
can hold.

The new columns of A follow from Z = A'^T R with R = c B^T Q. B may have dependent columns or be zero: then R has fewer
columns than rows, and its pseudo-inverse serves.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from hcnr_jax.method.compensate import Pair, matmul

# Singular values of B below this share of the largest one count as zero.
RANK_TOLERANCE = 1e-6


class Coordinates(NamedTuple):
    """Holds one kernel's adapter in orthonormal coordinates.

    Args:
        basis: Q (out, k), whose columns span those of B.
        change: D Q (in, k), the adapter's whole change of the kernel.
        mixing: R (r, k), which turns columns of A^T into rows of `change`.
    """

    basis: np.ndarray
    change: np.ndarray
    mixing: np.ndarray

    @property
    def rank(self) -> int:
        """Return k, the rank of B."""
        return int(self.basis.shape[1])


def coordinates(a: np.ndarray, b: np.ndarray, scale: float) -> Coordinates:
    """Compute an adapter's coordinates in float64, and return them in float32.

    Args:
        a: A (r, in), as PEFT stores it.
        b: B (out, r).
        scale: c, which is alpha / r, or alpha / sqrt(r) for rsLoRA.

    >>> found = coordinates(np.asarray([[1.0, 2.0]]), np.asarray([[3.0], [4.0]]), 2.0)
    >>> np.allclose(found.change @ found.basis.T, [[6.0, 8.0], [12.0, 16.0]]), found.rank
    (True, 1)
    >>> coordinates(np.ones((2, 3)), np.zeros((4, 2)), 1.0).rank
    0
    """
    left, values, right = np.linalg.svd(scale * b.astype(np.float64), full_matrices=False)
    rank = int(np.count_nonzero(values > RANK_TOLERANCE * max(values[0], np.finfo(np.float32).tiny)))
    mixing = right[:rank].T * values[:rank]
    change = a.astype(np.float64).T @ mixing
    return Coordinates(*(part.astype(np.float32) for part in (left[:, :rank], change, mixing)))


def thin_pair(pair: Pair, basis: Float[Array, "o k"], change: Float[Array, "i k"]) -> Pair:
    """Return the kernel before and after tuning in the adapter's coordinates, (in, k).

    Args:
        pair: the kernel, of which W_base alone is read, and its rows R and T.
        basis: Q.
        change: D Q.

    >>> rows = jnp.asarray([0]), jnp.asarray([1])
    >>> pair = Pair(jnp.asarray([[1.0, 2.0], [3.0, 4.0]]), jnp.zeros((2, 2)), *rows)
    >>> thin_pair(pair, jnp.asarray([[1.0], [0.0]]), jnp.ones((2, 1))).tuned.tolist()
    [[2.0], [4.0]]
    """
    base = matmul(pair.base, jnp.asarray(basis, pair.base.dtype))
    return pair._replace(base=base, tuned=base + jnp.asarray(change, base.dtype))


def restored_columns(correction: np.ndarray, mixing: np.ndarray) -> np.ndarray:
    """Return the new columns A'_R (r, restored) that give a correction.

    Args:
        correction: Z (restored, k), the restored rows of W' - W_base in the adapter's coordinates.
        mixing: R (r, k).

    >>> found = coordinates(np.asarray([[1.0, 2.0]]), np.asarray([[3.0], [4.0]]), 2.0)
    >>> np.allclose(restored_columns(found.change[1:], found.mixing), [[2.0]])
    True
    """
    inverse = np.linalg.pinv(mixing.astype(np.float64)) if mixing.size else np.zeros(mixing.T.shape)
    return (np.asarray(correction, np.float64) @ inverse).T


def truncated(change: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Return A (r, in) and B (out, r) whose product is the best approximation of a change of rank at most `rank`.

    Args:
        change: W' - W_base as PEFT stores weights, (out, in), float32.
        rank: r; where it exceeds the smaller side, A and B are filled up with zeros.

    >>> a, b = truncated(np.outer([1.0, 2.0], [3.0, 4.0, 5.0]).astype(np.float32), 3)
    >>> np.allclose(b @ a, np.outer([1, 2], [3, 4, 5])), a.shape, b.shape
    (True, (3, 3), (2, 3))
    """
    kept = min(rank, *change.shape)
    if 4 * kept < min(change.shape):
        from sklearn.utils.extmath import randomized_svd  # imported here because importing it takes a second

        left, values, right = randomized_svd(change, kept, n_oversamples=kept + 10, n_iter=4, random_state=0)
    else:
        left, values, right = (part for part in np.linalg.svd(change, full_matrices=False))
        left, values, right = left[:, :kept], values[:kept], right[:kept]
    roots = np.sqrt(values)
    a, b = np.zeros((rank, change.shape[1]), np.float32), np.zeros((change.shape[0], rank), np.float32)
    a[:kept], b[:, :kept] = roots[:, None] * right, left * roots
    return a, b
