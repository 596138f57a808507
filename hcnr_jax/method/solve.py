"""Solvers of the damped normal equations: Cholesky, its dual, conjugate gradients. Each says how it ended.

All solve S E = rhs for E (r, o) with S (r, r) positive definite. Nothing is raised in here: an outcome code and a
residual come out of jit and the
host decides. There is no fallback: a factorisation that failed is reported, never replaced.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg as linalg
import lineax as lx
from jaxtyping import Array, Float, Int


class Outcome(enum.IntEnum):
    """How a solve ended."""

    OK = 0
    NOT_POSITIVE_DEFINITE = 1
    NOT_FINITE = 2
    NOT_CONVERGED = 3


REMEDY = {
    Outcome.NOT_POSITIVE_DEFINITE: (
        "the damped second moments are not positive definite: raise --damping (0.01 is usual), or give more rows or "
        "longer ones; with --damping 0 there must be more tokens than inputs"
    ),
    Outcome.NOT_FINITE: "the second moments or the weights hold NaN or Inf: see the models' activations on these rows",
    Outcome.NOT_CONVERGED: "conjugate gradients did not converge: raise --damping, or use --solver dense",
}


# Above this relative residual a set of conjugate-gradient steps has not solved the system.
RESIDUAL_LIMIT = 1e-3


class SolveInfo(NamedTuple):
    """What a person wants to see of a solve.

    outcome: an `Outcome`. residual: ||rhs - S E|| / ||rhs||. condition: a lower bound of the condition number of S
    scaled to
    unit diagonal, from the Cholesky factor (NaN for conjugate gradients). steps: iterations, 0 for a direct solve.
    """

    outcome: Int[Array, ""]
    residual: Float[Array, ""]
    condition: Float[Array, ""]
    steps: Int[Array, ""]


class Factor(NamedTuple):
    """Cholesky factor of a matrix scaled to unit diagonal: diag(scale) S diag(scale) = lower lower^T."""

    lower: Float[Array, "r r"]
    scale: Float[Array, " r"]


def factorise(matrix: Float[Array, "r r"]) -> Factor:
    """Scaled Cholesky. Scaling costs nothing and keeps outlier channels, 1e4 times the others, out of the
    conditioning."""
    diagonal = jnp.diagonal(matrix)
    scale = jnp.where(diagonal > 0, jax.lax.rsqrt(jnp.where(diagonal > 0, diagonal, 1)), 1)
    return Factor(jnp.linalg.cholesky(matrix * scale[:, None] * scale[None, :]), scale)


def backsolve(factor: Factor, rhs: Float[Array, "r o"]) -> Float[Array, "r o"]:
    """S^-1 rhs from the factor."""
    scaled = linalg.cho_solve((factor.lower, True), factor.scale[:, None] * rhs)
    return factor.scale[:, None] * scaled


def condition_of(factor: Factor) -> Float[Array, ""]:
    """(max l_ii / min l_ii)^2 <= cond of the scaled matrix."""
    pivots = jnp.diagonal(factor.lower)
    return jnp.square(jnp.max(pivots) / jnp.min(pivots))


def cholesky_solve(matrix: Float[Array, "r r"], rhs: Float[Array, "r o"]) -> tuple[Float[Array, "r o"], SolveInfo]:
    """S E = rhs by Cholesky with one step of iterative refinement."""
    factor = factorise(matrix)
    solution = backsolve(factor, rhs)
    solution = solution + backsolve(factor, rhs - _matmul(matrix, solution))
    return solution, _report(factor, matrix, rhs, rhs - _matmul(matrix, solution), solution)


def dual_solve(
    tokens: Float[Array, "n r"],
    ridge: Float[Array, ""],
    errors: Float[Array, "n o"],
    pull: Float[Array, "r o"],
) -> tuple[Float[Array, "r o"], SolveInfo]:
    """(Y^T Y + ridge I) E = Y^T Q + ridge P through the n x n dual (Woodbury), exact for ridge > 0 and cheaper for n
    < r:

    E = P + Y^T (Y Y^T + ridge I)^-1 (Q - Y P),     Y tokens, Q errors, P pull.
    """

    def normal(x: Array) -> Array:
        return _matmul(tokens.T, _matmul(tokens, x)) + ridge * x

    gram = _matmul(tokens, tokens.T) + ridge * jnp.eye(tokens.shape[0], dtype=tokens.dtype)
    factor = factorise(gram)
    aim = errors - _matmul(tokens, pull)
    weights = backsolve(factor, aim)
    weights = weights + backsolve(factor, aim - _matmul(gram, weights))
    solution = pull + _matmul(tokens.T, weights)
    rhs = _matmul(tokens.T, errors) + ridge * pull
    return solution, _report(factor, gram, rhs, rhs - normal(solution), solution)


def conjugate_gradients(
    operator: Callable[[Array], Array],
    rhs: Float[Array, "r o"],
    diagonal: Float[Array, " r"],
    tolerance: float,
    max_steps: int,
) -> tuple[Float[Array, "r o"], SolveInfo]:
    """S E = rhs knowing only E -> S E and the diagonal of S, by which the system is scaled to unit diagonal.

    Stops when every entry of the recurrence's residual is below `tolerance` of the largest entry of the scaled rhs. The
    residual reported is the true one; converged means that it too is within RESIDUAL_LIMIT.
    """
    scale = jax.lax.rsqrt(diagonal)[:, None]
    scaled = scale * rhs
    largest = jnp.max(jnp.abs(scaled))
    largest = jnp.where(largest > 0, largest, 1)
    shape = jax.eval_shape(lambda: rhs)
    with jax.numpy_dtype_promotion("standard"):
        result = lx.linear_solve(
            lx.FunctionLinearOperator(lambda x: scale * operator(scale * x), shape, lx.positive_semidefinite_tag),
            scaled / largest,
            # Recomputing the residual on the way would floor it at the operator's rounding and never let CG stop.
            lx.CG(rtol=0.0, atol=tolerance, max_steps=max_steps, stabilise_every=None),
            throw=False,
        )
    solution = scale * largest * result.value
    residual = _relative(rhs - operator(solution), rhs)
    converged = (result.result == lx.RESULTS.successful) & (residual < RESIDUAL_LIMIT)
    finite = jnp.all(jnp.isfinite(rhs)) & jnp.all(jnp.isfinite(diagonal))
    outcome = jnp.where(finite, jnp.where(converged, Outcome.OK, Outcome.NOT_CONVERGED), Outcome.NOT_FINITE)
    steps = jnp.asarray(result.stats["num_steps"], jnp.int32)
    return solution, SolveInfo(outcome.astype(jnp.int32), residual, jnp.full_like(residual, jnp.nan), steps)


def _report(factor: Factor, matrix: Array, rhs: Array, rest: Array, solution: Array) -> SolveInfo:
    finite = jnp.all(jnp.isfinite(matrix)) & jnp.all(jnp.isfinite(rhs))
    definite = jnp.all(jnp.isfinite(factor.lower)) & jnp.all(jnp.isfinite(solution))
    outcome = jnp.where(finite, jnp.where(definite, Outcome.OK, Outcome.NOT_POSITIVE_DEFINITE), Outcome.NOT_FINITE)
    return SolveInfo(outcome.astype(jnp.int32), _relative(rest, rhs), condition_of(factor), jnp.zeros((), jnp.int32))


def _relative(rest: Array, rhs: Array) -> Float[Array, ""]:
    scale = jnp.linalg.norm(rhs)
    return jnp.linalg.norm(rest) / jnp.where(scale > 0, scale, 1)


def _matmul(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, precision="highest")
