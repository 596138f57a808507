"""Solve the damped normal equations by Cholesky factorisation, by its dual, or by conjugate gradients.

Every solver solves S E = rhs for E (r, o), with S (r, r) positive definite. No solver raises an error, because the
solvers run under jit. Each solver returns an outcome code and a residual, and the host decides. There is no fallback: a
failed factorisation is reported and never replaced.
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
    """Says how a solve ended."""

    OK = 0
    NOT_POSITIVE_DEFINITE = 1
    NOT_FINITE = 2
    NOT_CONVERGED = 3


# Above this relative residual the system counts as not solved, for every solver.
RESIDUAL_LIMIT = 1e-3
# A solution is refined once if its backward error is above this many units of rounding.
REFINE_ABOVE = 1
# Squared pivots of the unit-diagonal matrix within this many units of rounding count as 0. The limit must not be much
# larger. Two correlated outlier channels leave a true pivot of only about 40 units under the usual damping.
PIVOT_LIMIT = 8


class SolveInfo(NamedTuple):
    """Holds the report of one solve.

    Args:
        outcome: an `Outcome`.
        residual: ||rhs - S E|| / ||rhs||, without a unit.
        condition: a lower bound of the condition number of S scaled to unit diagonal, from the Cholesky factor. The
            dual bounds its own matrix instead of S. Conjugate gradients give NaN.
        steps: the number of iterations, 0 for a direct solve.
    """

    outcome: Int[Array, ""]
    residual: Float[Array, ""]
    condition: Float[Array, ""]
    steps: Int[Array, ""]


class Factor(NamedTuple):
    """Holds the Cholesky factor of a matrix scaled to unit diagonal: diag(scale) S diag(scale) = lower lower^T.

    Args:
        lower: the lower triangular factor (r, r).
        scale: 1 / sqrt(diag S), (r,).
        size: Frobenius norm of the scaled matrix.
    """

    lower: Float[Array, "r r"]
    scale: Float[Array, " r"]
    size: Float[Array, ""]


def factorise(matrix: Float[Array, "r r"]) -> Factor:
    """Scale a matrix to unit diagonal and factorise it by Cholesky.

    Scaling costs nothing. It keeps outlier channels, 1e4 times as large as the others, out of the condition number.

    >>> factor = factorise(jnp.asarray([[4.0, 0.0], [0.0, 1.0]]))
    >>> factor.lower.tolist(), factor.scale.tolist()
    ([[1.0, 0.0], [0.0, 1.0]], [0.5, 1.0])
    """
    diagonal = jnp.diagonal(matrix)
    scale = jnp.where(diagonal > 0, jax.lax.rsqrt(jnp.where(diagonal > 0, diagonal, 1)), 1)
    scaled = matrix * scale[:, None] * scale[None, :]
    return Factor(jnp.linalg.cholesky(scaled), scale, jnp.linalg.norm(scaled))


def backsolve(factor: Factor, rhs: Float[Array, "r o"]) -> Float[Array, "r o"]:
    """Compute S^-1 rhs from the factor of S.

    >>> backsolve(factorise(jnp.asarray([[4.0, 0.0], [0.0, 1.0]])), jnp.asarray([[4.0], [3.0]])).tolist()
    [[1.0], [3.0]]
    """
    scaled = linalg.cho_solve((factor.lower, True), factor.scale[:, None] * rhs)
    return factor.scale[:, None] * scaled


def condition_of(factor: Factor) -> Float[Array, ""]:
    """Compute (max l_ii / min l_ii)^2, a lower bound of the condition number of the scaled matrix.

    The bound is 1 for an empty matrix.

    >>> float(condition_of(Factor(jnp.diag(jnp.asarray([2.0, 1.0])), jnp.ones(2), jnp.asarray(4.0))))
    4.0
    """
    pivots = jnp.diagonal(factor.lower)
    if pivots.size == 0:
        return jnp.ones((), pivots.dtype)
    return jnp.square(jnp.max(pivots) / jnp.min(pivots))


def is_definite(factor: Factor, residual: Float[Array, ""]) -> Bool[Array, ""]:
    """Return whether a matrix is positive definite to working precision.

    No pivot may lie at the level of rounding, and the relative residual of the solve must be below RESIDUAL_LIMIT. The
    factorisation alone does not tell. A singular matrix passes whenever rounding leaves its last pivot above 0, which
    is about every second time.

    >>> matrices = jnp.eye(2), jnp.ones((2, 2))
    >>> [bool(is_definite(factorise(matrix), jnp.asarray(0.0))) for matrix in matrices]
    [True, False]
    """
    squares = jnp.square(jnp.diagonal(factor.lower))
    limit = PIVOT_LIMIT * jnp.finfo(squares.dtype).eps
    return jnp.all(squares > limit) & (residual < RESIDUAL_LIMIT)


def cholesky_solve(matrix: Float[Array, "r r"], rhs: Float[Array, "r o"]) -> tuple[Float[Array, "r o"], SolveInfo]:
    """Solve S E = rhs by Cholesky, with one step of iterative refinement where the backward error requires it.

    >>> solution, info = cholesky_solve(jnp.asarray([[2.0, 1.0], [1.0, 2.0]]), jnp.asarray([[3.0], [0.0]]))
    >>> jnp.round(solution, 4).tolist(), Outcome(int(info.outcome)).name
    ([[2.0], [-1.0]], 'OK')
    """
    factor = factorise(matrix)
    solution, rest = refined(factor, lambda x: _matmul(matrix, x), rhs)
    return solution, _report(factor, matrix, rhs, rest, solution)


def refined(factor: Factor, operator: Callable[[Array], Array], rhs: Float[Array, "r o"]) -> tuple[Array, Array]:
    """Compute E = S^-1 rhs and the rest rhs - S E, refined once where the backward error requires it.

    The backward error is ||rest|| / (||S|| ||E|| + ||rhs||), with all terms scaled to unit diagonal. A residual that is
    large compared with rhs alone is only a sign of cancellation. A second pass in the same precision does not reduce
    it. The paper's sum always has such a residual, and gained nothing from a step that cost a quarter of its time. On a
    CPU, substitutions run at a fifth to a third of the rate of matrix products.

    >>> matrix = jnp.asarray([[2.0, 1.0], [1.0, 2.0]])
    >>> solution, rest = refined(factorise(matrix), lambda x: matrix @ x, jnp.asarray([[3.0], [0.0]]))
    >>> jnp.round(solution, 4).tolist(), rest.shape
    ([[2.0], [-1.0]], (2, 1))
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
    """Solve (Y^T Y + ridge I) E = Y^T Q + ridge P through the n x n dual, by the Woodbury identity.

        E = P + Y^T (Y Y^T + ridge I)^-1 (Q - Y P)

    The identity is exact for ridge > 0, and cheaper than the r x r system for n < r.

    Args:
        tokens: Y, one row per token (n, r), each scaled by the square root of its weight.
        ridge: the damping a + b_s of the system, a scalar above 0 in the unit of Y^T Y.
        errors: Q, the outputs that E has to reproduce (n, o), scaled like Y.
        pull: P, the solution towards which the damping pulls (r, o), in the unit of the weights.

    Returns:
        E (r, o) in the unit of the weights, and the report. `residual` refers to the r x r system.

    >>> tokens, errors = jnp.asarray([[1.0, 1.0]]), jnp.asarray([[3.0]])
    >>> solution, info = dual_solve(tokens, jnp.asarray(1.0), errors, jnp.zeros((2, 1)))
    >>> jnp.round(solution, 4).tolist(), Outcome(int(info.outcome)).name
    ([[1.0], [1.0]], 'OK')
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
    """Solve S E = rhs from the products E -> S E and the diagonal of S alone.

    The system is scaled to unit diagonal. The columns share the operator's products and are otherwise solved apart. The
    reported residual is the true one and not that of the recurrence. A solve counts as converged only if the true
    residual is also below RESIDUAL_LIMIT.

    Args:
        operator: E -> S E, for arrays (r, o).
        rhs: the right-hand side (r, o).
        diagonal: the diagonal of S (r,), positive.
        tolerance: a column stops when the norm of the recurrence's residual is at most this share of the norm of the
            column's scaled right-hand side.
        max_steps: the number of iterations after which the solve stops unconverged.

    Returns:
        E (r, o), and the report.

    >>> matrix = jnp.asarray([[2.0, 1.0], [1.0, 2.0]])
    >>> rhs, diagonal = jnp.asarray([[3.0], [0.0]]), jnp.diagonal(matrix)
    >>> solution, info = conjugate_gradients(lambda x: matrix @ x, rhs, diagonal, tolerance=1e-6, max_steps=10)
    >>> jnp.round(solution, 4).tolist(), Outcome(int(info.outcome)).name
    ([[2.0], [-1.0]], 'OK')
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
    """Holds the solution x, the residual r, the search direction p, and each column's squared residual norm gamma."""

    x: Float[Array, "r o"]
    r: Float[Array, "r o"]
    p: Float[Array, "r o"]
    gamma: Float[Array, " o"]
    steps: Int[Array, ""]


def _iterate(
    operator: Callable[[Array], Array], rhs: Float[Array, "r o"], tolerance: float, max_steps: int
) -> tuple[Float[Array, "r o"], Bool[Array, ""], Int[Array, ""]]:
    """Run the recurrence of Hestenes and Stiefel for every column.

    Returns the solution, whether all columns converged, and the number of steps. The CG of lineax does not serve here,
    because lineax treats a kernel as one vector of r * o unknowns. It gives up (NaN) where p^T S p is below 100 eps r o
    of the residual, which happens everywhere from 256 x 256 on in float32. It also continues from a residual of 0.
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
