"""Stage 2: how the restored neurons are corrected so that they work beside the task neurons.

Kernels are Flax's (in, out); rows R are restored, rows T keep their tuned values. With D = W_tuned - W_base write the
new kernel
as W' = W_base + E; E_T = D_T always, and the method decides E_R:

    none        0                                                                    plain restoration
    paper       sum over k in T of [H^-1]_{R,k} / [H^-1]_kk D_k                      the paper's summed brain-surgeon
    steps
    exact       -(H_RR)^-1 H_RT D_T                                                  their joint minimiser
    two_sided   argmin  mean ||x'W' - x W_base||^2 + s mean ||z'W' - z W_tuned||^2 + damping

x are base inputs on honesty tokens, z tuned inputs on task tokens; x', z' what the kernel meets in the model restored
so far
(x' = x and z' = z with local inputs). With A, B the second moments of x', z', a and b the damping shares of their mean
diagonals and s = w tr A / tr B, setting the derivative in E_R to zero gives one linear system for every case:

    S_RR E_R = -[C W_base]_R - A_RT D_T + s (-[F W_tuned]_R + B_RR D_R + b D_R),   S = A + aI + s (B + bI)

C = mean x'(x'-x)^T and F = mean z'(z'-z)^T vanish for local inputs, and w = 0 leaves `exact`: the same code. It
starts from
the plain restoration and only ever handles differences, which keeps float32 honest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from hcnr_jax.method.curvature import Inputs, Moments, damping_of, distances, linearised_gradient, trace_of
from hcnr_jax.method.objectives.table import OBJECTIVES
from hcnr_jax.method.solve import (
    Outcome,
    SolveInfo,
    cholesky_solve,
    condition_of,
    conjugate_gradients,
    dual_solve,
    factorise,
    is_definite,
    refined,
)

Method = str

# Conjugate gradients stop here. With few tokens the condition is near 2000: at 1e-6 weights were
# 2e-4 off, at 1e-7 they are within 5e-5 for a fifth more steps; float32 products allow no better.
CG_TOLERANCE = 1e-7
CG_MAX_STEPS = 2000
# Columns of H^-1 solved for at once where the paper's sum is taken without the matrix.
PAPER_CHUNK = 64


class Pair(NamedTuple):
    """One kernel before and after tuning, and its rows: restored (R) and task (T), together 0..in-1."""

    base: Float[Array, "i o"]
    tuned: Float[Array, "i o"]
    restored: Int[Array, " r"]
    task: Int[Array, " t"]


class Info(NamedTuple):
    """What hcnr.json reports of a kernel: the solve, and d_hon (undamped, base inputs) of three kernels.

    tuned: E = D. plain: restoration without compensation. restored: the result. correction: ||E_R|| / ||W_base||.
    """

    solve: SolveInfo
    distance_tuned: Float[Array, ""]
    distance_plain: Float[Array, ""]
    distance_restored: Float[Array, ""]
    correction: Float[Array, ""]


def _delta(pair: Pair) -> Float[Array, "i o"]:
    return pair.tuned - pair.base


def ridge_moments(
    pair: Pair, honesty: Moments, task: Moments | None, weight: Float[Array, ""], damping: Float[Array, ""]
) -> tuple[Float[Array, "r o"], SolveInfo]:
    """E_R of `exact` (task None) and `two_sided` from second moments, by Cholesky of S_RR."""
    rows, delta = pair.restored, _delta(pair)
    delta_task = delta[pair.task]
    a = damping_of(honesty, damping)
    system = honesty.inputs[rows][:, rows] + a * jnp.eye(rows.shape[0], dtype=a.dtype)
    rhs = -_matmul(honesty.inputs[rows][:, pair.task], delta_task)
    if honesty.shift is not None:
        rhs = rhs - _matmul(honesty.shift[rows], pair.base)
    if task is not None:
        s = weight * trace_of(honesty) / trace_of(task)
        second = task.inputs[rows][:, rows] + damping_of(task, damping) * jnp.eye(rows.shape[0], dtype=a.dtype)
        system = system + s * second
        rhs = rhs + s * _matmul(second, delta[rows])
        if task.shift is not None:
            rhs = rhs - s * _matmul(task.shift[rows], pair.tuned)
    return cholesky_solve(system, rhs)


def ridge_dual(
    pair: Pair, honesty: Inputs, task: Inputs | None, weight: Float[Array, ""], damping: Float[Array, ""]
) -> tuple[Float[Array, "r o"], SolveInfo]:
    """The same E_R where tokens are fewer than restored rows: stacked tokens Y, output errors Q of the plain kernel."""
    tokens, errors = _scaled_errors(pair, honesty, task, weight)
    a, b = _damping_pair(honesty, task, weight, damping)
    pull = b / (a + b) * _delta(pair)[pair.restored]
    return dual_solve(tokens[:, pair.restored], a + b, errors, pull)


def _scaled_errors(
    pair: Pair, honesty: Inputs, task: Inputs | None, weight: Float[Array, ""]
) -> tuple[Float[Array, "n i"], Float[Array, "n o"]]:
    """Y = [X'/sqrt(n_x); sqrt(s/n_z) Z'] and the output errors, alike scaled, that E_R has to make up for."""
    delta = _delta(pair)
    scale = jnp.asarray(honesty.inputs.shape[0], honesty.inputs.dtype) ** -0.5
    errors = -_matmul(honesty.inputs[:, pair.task], delta[pair.task])
    if honesty.shift is not None:
        errors = errors - _matmul(honesty.shift, pair.base)
    tokens, errors = scale * honesty.inputs, scale * errors
    if task is None:
        return tokens, errors
    scale = jnp.sqrt(weight * trace_of(honesty) / trace_of(task) / task.inputs.shape[0])
    task_errors = _matmul(task.inputs[:, pair.restored], delta[pair.restored])
    if task.shift is not None:
        task_errors = task_errors - _matmul(task.shift, pair.tuned)
    return jnp.concatenate([tokens, scale * task.inputs]), jnp.concatenate([errors, scale * task_errors])


def _damping_pair(
    honesty: Inputs, task: Inputs | None, weight: Float[Array, ""], damping: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """a and s b: both are `damping` times a trace over in, and s is the ratio of the traces times w."""
    a = damping_of(honesty, damping)
    return a, jnp.zeros_like(a) if task is None else weight * a


def ridge_free(
    pair: Pair, honesty: Inputs, task: Inputs | None, weight: Float[Array, ""], damping: Float[Array, ""]
) -> tuple[Float[Array, "r o"], SolveInfo]:
    """The same E_R as one Newton step on the objective itself, matrix-free: S is only ever a Hessian-vector product.

    The step starts where damping alone would leave E_R, so that what no token sees is exact and the gradient lies in
    the tokens' span; from 0 conjugate gradients lost a digit or two there.
    """
    tokens, errors = _scaled_errors(pair, honesty, task, weight)
    a, b = _damping_pair(honesty, task, weight, damping)
    tokens, delta = tokens[:, pair.restored], _delta(pair)[pair.restored]
    pull = jnp.where(a + b > 0, b / (a + b), 0) * delta

    def objective(change: Float[Array, "r o"]) -> Float[Array, ""]:
        fit = jnp.sum(jnp.square(_matmul(tokens, change) - errors))
        return (fit + a * jnp.sum(jnp.square(change)) + b * jnp.sum(jnp.square(change - delta))) / 2

    gradient, hessian = linearised_gradient(objective, pull)
    diagonal = jnp.sum(jnp.square(tokens), axis=0) + a + b
    step, info = conjugate_gradients(hessian, -gradient, diagonal, CG_TOLERANCE, CG_MAX_STEPS)
    return pull + step, info


def paper_moments(
    pair: Pair, honesty: Moments, task: Moments | None, weight: Float[Array, ""], damping: Float[Array, ""]
) -> tuple[Float[Array, "r o"], SolveInfo]:
    """The paper's sum from the damped H: each task row's step -D_k taken alone, [H^-1]_{R,k} / [H^-1]_kk D_k, and
    added up.

    Always in the primal: [H^-1]_kk from the dual is 1 - v, which cancels for outlier channels.
    """
    count = honesty.inputs.shape[0]
    identity = jnp.eye(count, dtype=honesty.inputs.dtype)
    matrix = honesty.inputs + damping_of(honesty, damping) * identity
    factor = factorise(matrix)
    half = jax.scipy.linalg.solve_triangular(factor.lower, identity * factor.scale[:, None], lower=True)
    inverse_diagonal = jnp.sum(jnp.square(half), axis=0)
    steps = _delta(pair)[pair.task] / inverse_diagonal[pair.task][:, None]
    rhs = jnp.zeros_like(pair.base).at[pair.task].set(steps)
    solution, left = refined(factor, lambda x: _matmul(matrix, x), rhs)
    rest, size = jnp.linalg.norm(left), jnp.linalg.norm(rhs)
    finite = jnp.all(jnp.isfinite(matrix)) & jnp.all(jnp.isfinite(pair.tuned)) & jnp.all(jnp.isfinite(pair.base))
    residual = rest / jnp.where(size > 0, size, 1)
    definite = is_definite(factor, residual) & jnp.all(jnp.isfinite(solution))
    outcome = jnp.where(finite, jnp.where(definite, Outcome.OK, Outcome.NOT_POSITIVE_DEFINITE), Outcome.NOT_FINITE)
    info = SolveInfo(outcome.astype(jnp.int32), residual, condition_of(factor), jnp.zeros((), jnp.int32))
    return solution[pair.restored], info


def paper_free(
    pair: Pair, honesty: Inputs, task: Inputs | None, weight: Float[Array, ""], damping: Float[Array, ""]
) -> tuple[Float[Array, "r o"], SolveInfo]:
    """The paper's sum without the matrix: columns of H^-1 for the task rows by conjugate gradients, a chunk at a
    time."""
    tokens = honesty.inputs
    a = damping_of(honesty, damping)
    fan_in, count = tokens.shape[1], pair.task.shape[0]
    diagonal = jnp.mean(jnp.square(tokens), axis=0) + a
    delta = _delta(pair)

    def energy(column: Float[Array, "i c"]) -> Float[Array, ""]:
        output = jnp.sum(jnp.square(_matmul(tokens, column))) / tokens.shape[0]
        return (output + a * jnp.sum(jnp.square(column))) / 2

    chunk = max(1, min(PAPER_CHUNK, count))
    padded = -(-count // chunk) * chunk
    # Repeats of the last row pad the chunks; their share is weighted out.
    places = jnp.minimum(jnp.arange(padded), count - 1)
    alive = (jnp.arange(padded) < count).astype(tokens.dtype)
    _, hessian = linearised_gradient(energy, jnp.zeros((fan_in, chunk), tokens.dtype))

    def one(total: Array, item: tuple[Array, Array]) -> tuple[Array, SolveInfo]:
        rows, weights = item
        unit = jax.nn.one_hot(rows, fan_in, dtype=tokens.dtype, axis=0)
        columns, info = conjugate_gradients(hessian, unit, diagonal, CG_TOLERANCE, CG_MAX_STEPS)
        own = jnp.sum(columns * unit, axis=0)
        step = _matmul(columns[pair.restored] * (weights / own)[None, :], delta[rows])
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


Solve = Callable[..., tuple[Array, SolveInfo]]

# Which function serves a method, by what is known of the inputs: moments, tokens fewer than rows, or tokens and no
# matrix.
SOLVES: dict[str, dict[str, Solve]] = {
    "paper": {"moments": paper_moments, "free": paper_free},
    "exact": {"moments": ridge_moments, "dual": ridge_dual, "free": ridge_free},
    "two_sided": {"moments": ridge_moments, "dual": ridge_dual, "free": ridge_free},
}


def choose_form(method: Method, solver: str, tokens: int, restored: int, damping: float) -> str:
    """'moments', 'dual' or 'free': the dual where tokens < |R| and damping makes it exact; the paper's sum never."""
    if solver == "cg":
        return "free"
    return "dual" if "dual" in SOLVES[method] and tokens < restored and damping > 0 else "moments"


def compensate(
    method: Method,
    form: str,
    pair: Pair,
    honesty: Moments | Inputs,
    task: Moments | Inputs | None,
    weight: float | Array,
    damping: float | Array,
) -> tuple[Float[Array, "i o"], Info]:
    """The new kernel W' (in, out) and what to report. Pure, and a candidate for jit with method and form static.

    pair in the precision of the solve (float32 at least). honesty, task: `Moments` as means for form 'moments', else
    `Inputs`; task is read by two_sided alone. A failed solve is told by info.solve.outcome, never raised.
    """
    rows, info = restored_rows(method, form, pair, honesty, task, weight, damping)
    return pair.tuned.at[pair.restored].set(rows), info


def restored_rows(
    method: Method,
    form: str,
    pair: Pair,
    honesty: Moments | Inputs,
    task: Moments | Inputs | None,
    weight: float | Array,
    damping: float | Array,
) -> tuple[Float[Array, "r o"], Info]:
    """The same, but of W' its restored rows alone: W_base,R + E_R."""
    dtype = pair.base.dtype
    task = task if OBJECTIVES[method].reads_task else None
    correction, solve = SOLVES[method][form](
        pair, honesty, task, jnp.asarray(weight, dtype), jnp.asarray(damping, dtype)
    )
    unknowns = pair.base.shape[0] if OBJECTIVES[method].unknowns == "all" else pair.restored.shape[0]
    rows = pair.base[pair.restored] + correction
    outcome = _with_rank(solve.outcome, unknowns, honesty, task, weight, damping)
    # Not every solve reads every weight.
    finite = jnp.all(jnp.isfinite(rows)) & jnp.all(jnp.isfinite(pair.tuned[pair.task]))
    outcome = jnp.where((outcome == Outcome.OK) & ~finite, int(Outcome.NOT_FINITE), outcome)
    base_norm = jnp.linalg.norm(pair.base)
    return rows, Info(
        solve._replace(outcome=outcome),
        *distances(honesty, _delta(pair), correction, pair.restored, pair.task),
        jnp.linalg.norm(correction) / jnp.where(base_norm > 0, base_norm, 1),
    )


def _with_rank(
    outcome: Int[Array, ""],
    rows: int,
    honesty: Moments | Inputs,
    task: Moments | Inputs | None,
    weight: float | Array,
    damping: float | Array,
) -> Int[Array, ""]:
    """Without damping, fewer tokens than rows leave S singular whatever rounding let through the factorisation."""

    def tokens(statistic: Moments | Inputs) -> Array:
        return statistic.tokens if isinstance(statistic, Moments) else jnp.asarray(float(statistic.inputs.shape[0]))

    seen = tokens(honesty)
    if task is not None:
        seen = seen + jnp.where(jnp.asarray(weight) > 0, tokens(task), 0)
    short = (jnp.asarray(damping) <= 0) & (seen < rows) & (outcome != Outcome.NOT_FINITE)
    return jnp.where(short, int(Outcome.NOT_POSITIVE_DEFINITE), outcome).astype(outcome.dtype)


def _matmul(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, precision="highest")
