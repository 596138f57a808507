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
from jaxtyping import Array, Bool, Float, Int


class Outcome(enum.IntEnum):
    """How a solve ended."""

    OK = 0
    NOT_POSITIVE_DEFINITE = 1
    NOT_FINITE = 2
    NOT_CONVERGED = 3


# Above this relative residual the system is not solved, by whatever solver.
RESIDUAL_LIMIT = 1e-3
# A solution whose backward error is above this many units of rounding is refined once.
REFINE_ABOVE = 1
# Squared pivots of the unit-diagonal matrix within this many units of rounding are 0. Not more: two outlier channels in
# step leave a true pivot of only some 40 of them under the usual damping.
PIVOT_LIMIT = 8


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
    """Cholesky factor of a matrix scaled to unit diagonal: diag(scale) S diag(scale) = lower lower^T.

    size: Frobenius norm of the scaled matrix.
    """

    lower: Float[Array, "r r"]
    scale: Float[Array, " r"]
    size: Float[Array, ""]


def factorise(matrix: Float[Array, "r r"]) -> Factor:
    """Scaled Cholesky. Scaling costs nothing and keeps outlier channels, 1e4 times the others, out of the
    conditioning."""
    diagonal = jnp.diagonal(matrix)
    scale = jnp.where(diagonal > 0, jax.lax.rsqrt(jnp.where(diagonal > 0, diagonal, 1)), 1)
    scaled = matrix * scale[:, None] * scale[None, :]
    return Factor(jnp.linalg.cholesky(scaled), scale, jnp.linalg.norm(scaled))


def backsolve(factor: Factor, rhs: Float[Array, "r o"]) -> Float[Array, "r o"]:
    """S^-1 rhs from the factor."""
    scaled = linalg.cho_solve((factor.lower, True), factor.scale[:, None] * rhs)
    return factor.scale[:, None] * scaled


def condition_of(factor: Factor) -> Float[Array, ""]:
    """(max l_ii / min l_ii)^2 <= cond of the scaled matrix; 1 for an empty one."""
    pivots = jnp.diagonal(factor.lower)
    if pivots.size == 0:
        return jnp.ones((), pivots.dtype)
    return jnp.square(jnp.max(pivots) / jnp.min(pivots))


def is_definite(factor: Factor, residual: Float[Array, ""]) -> Bool[Array, ""]:
    """Whether the matrix is positive definite to working precision: no pivot at the level of rounding, and it solved.

    A singular matrix passes the factorisation whenever rounding leaves its last pivot above 0: about every second time.
    """
    squares = jnp.square(jnp.diagonal(factor.lower))
    limit = PIVOT_LIMIT * jnp.finfo(squares.dtype).eps
    return jnp.all(squares > limit) & (residual < RESIDUAL_LIMIT)


def cholesky_solve(matrix: Float[Array, "r r"], rhs: Float[Array, "r o"]) -> tuple[Float[Array, "r o"], SolveInfo]:
    """S E = rhs by Cholesky, with a step of iterative refinement where the residual asks for it."""
    factor = factorise(matrix)
    solution, rest = refined(factor, lambda x: _matmul(matrix, x), rhs)
    return solution, _report(factor, matrix, rhs, rest, solution)


def refined(factor: Factor, operator: Callable[[Array], Array], rhs: Float[Array, "r o"]) -> tuple[Array, Array]:
    """(S^-1 rhs, rhs - S of it), refined by a second substitution where the backward error asks for it.

    That is ||rest|| / (||S|| ||E|| + ||rhs||), all scaled to unit diagonal. A residual that is large beside rhs alone
    only tells of cancellation, which a second pass in the same precision does not mend: the paper's sum always has one,
    and gained nothing from a step that cost it a quarter of its time. On a CPU substitutions run at a fifth to a third
    of the rate of matrix products.
    """
    first = backsolve(factor, rhs)
    rest = rhs - operator(first)
    scale = factor.scale[:, None]
    floor = factor.size * jnp.linalg.norm(first / scale) + jnp.linalg.norm(scale * rhs)

    def again(_: None) -> tuple[Array, Array]:
        better = first + backsolve(factor, rest)
        return better, rhs - operator(better)

    limit = REFINE_ABOVE * jnp.finfo(rhs.dtype).eps * floor
    return jax.lax.cond(jnp.linalg.norm(scale * rest) > limit, again, lambda _: (first, rest), None)


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
    weights, _ = refined(factor, lambda x: _matmul(gram, x), aim)
    solution = pull + _matmul(tokens.T, weights)
    rhs = _matmul(tokens.T, errors) + ridge * pull
    return solution, _report(factor, gram, rhs, rhs - normal(solution), solution)


def conjugate_gradients(
    operator: Callable[[Array], Array],
    rhs: Float[Array, "r o"],
    diagonal: Float[Array, " r"],
    *,
    tolerance: float,
    max_steps: int,
) -> tuple[Float[Array, "r o"], SolveInfo]:
    """S E = rhs knowing only E -> S E and the diagonal of S, by which the system is scaled to unit diagonal.

    The columns share the operator's products and are otherwise solved apart; one stops when the recurrence's residual
    is below `tolerance` of its scaled right-hand side in norm. The residual reported is the true one; converged means
    that it too is within RESIDUAL_LIMIT.
    """
    scale = jax.lax.rsqrt(diagonal)[:, None]
    solution, converged, steps = _iterate(lambda x: scale * operator(scale * x), scale * rhs, tolerance, max_steps)
    solution = scale * solution
    residual = _relative(rhs - operator(solution), rhs)
    finite = jnp.all(jnp.isfinite(rhs)) & jnp.all(jnp.isfinite(diagonal))
    converged = converged & (residual < RESIDUAL_LIMIT)
    outcome = jnp.where(finite, jnp.where(converged, Outcome.OK, Outcome.NOT_CONVERGED), Outcome.NOT_FINITE)
    return solution, SolveInfo(outcome.astype(jnp.int32), residual, jnp.full_like(residual, jnp.nan), steps)


class _Iterate(NamedTuple):
    """Solution, residual, search direction, and each column's residual norm squared."""

    x: Float[Array, "r o"]
    r: Float[Array, "r o"]
    p: Float[Array, "r o"]
    gamma: Float[Array, " o"]
    steps: Int[Array, ""]


def _iterate(
    operator: Callable[[Array], Array], rhs: Float[Array, "r o"], tolerance: float, max_steps: int
) -> tuple[Float[Array, "r o"], Bool[Array, ""], Int[Array, ""]]:
    """Hestenes and Stiefel's recurrence for every column; solution, whether all columns converged, steps.

    Not lineax's CG: it takes a kernel for one vector of r * o unknowns and gives up (NaN) where p^T S p is below
    100 eps r o of the residual, which is everywhere from 256 x 256 on in float32; and it goes on from a residual of 0.
    """
    norms = jnp.sqrt(_dots(rhs, rhs))

    def unfinished(gamma: Array) -> Array:
        return jnp.sqrt(gamma) > tolerance * norms

    def step(state: _Iterate) -> _Iterate:
        x, r, p, gamma, steps = state
        product = operator(p)
        alive = unfinished(gamma)
        length = jnp.where(alive, gamma / jnp.where(alive, _dots(p, product), 1), 0)[None, :]
        x, r = x + length * p, r - length * product
        after = _dots(r, r)
        turn = jnp.where(alive, after / jnp.where(alive, gamma, 1), 0)[None, :]
        return _Iterate(x, r, r + turn * p, jnp.where(alive, after, gamma), steps + 1)

    start = _Iterate(jnp.zeros_like(rhs), rhs, rhs, _dots(rhs, rhs), jnp.zeros((), jnp.int32))
    end = jax.lax.while_loop(lambda state: jnp.any(unfinished(state.gamma)) & (state.steps < max_steps), step, start)
    return end.x, jnp.all(jnp.sqrt(end.gamma) <= tolerance * norms), end.steps


def _dots(left: Float[Array, "r o"], right: Float[Array, "r o"]) -> Float[Array, " o"]:
    return jnp.sum(left * right, axis=0)


def _report(factor: Factor, matrix: Array, rhs: Array, rest: Array, solution: Array) -> SolveInfo:
    finite = jnp.all(jnp.isfinite(matrix)) & jnp.all(jnp.isfinite(rhs))
    residual = _relative(rest, rhs)
    definite = is_definite(factor, residual) & jnp.all(jnp.isfinite(solution))
    outcome = jnp.where(finite, jnp.where(definite, Outcome.OK, Outcome.NOT_POSITIVE_DEFINITE), Outcome.NOT_FINITE)
    return SolveInfo(outcome.astype(jnp.int32), residual, condition_of(factor), jnp.zeros((), jnp.int32))


def _relative(rest: Array, rhs: Array) -> Float[Array, ""]:
    scale = jnp.linalg.norm(rhs)
    return jnp.linalg.norm(rest) / jnp.where(scale > 0, scale, 1)


def _matmul(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, precision="highest")
