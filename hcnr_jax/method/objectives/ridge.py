"""The objectives `exact` and `two_sided`: a ridge regression for the restored neurons of one kernel.

Kernels are Flax's (in, out). Rows R are restored, rows T keep their tuned values. With D = W_tuned - W_base, the new
kernel is W' = W_base + E, where E_T = D_T and E_R is solved for:

    exact       E_R = -(H_RR)^-1 H_RT D_T
    two_sided   E_R = argmin  mean ||x'W' - x W_base||^2 + s mean ||z'W' - z W_tuned||^2 + damping

x are base inputs on honesty tokens and z tuned inputs on task tokens; x', z' are what the kernel reads in the model
restored so far (x' = x and z' = z with local inputs). A, B are the second moments of x', z', a and b the damping shares
of their mean diagonals, and s = w tr A / tr B. A zero derivative in E_R gives one linear system for every case:

    S_RR E_R = -[C W_base]_R - A_RT D_T + s (-[F W_tuned]_R + B_RR D_R + b D_R),   S = A + aI + s (B + bI)

C = mean x'(x'-x)^T and F = mean z'(z'-z)^T vanish for local inputs, and w = 0 leaves `exact`: one function serves
both. It starts from plain restoration and computes only with differences, which keeps float32 accurate.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from hcnr_jax.method.compensate import Pair, delta_of, matmul
from hcnr_jax.method.curvature import Inputs, Moments, damping_of, linearised_gradient, trace_of
from hcnr_jax.method.solve import SolveInfo, cholesky_solve, conjugate_gradients, dual_solve

# The relative residual at which conjugate gradients stop. With few tokens the condition number is near 2000. Weights
# were then off by 2e-4 at 1e-6, and by less than 5e-5 at 1e-7 for a fifth more steps; float32 products allow no better.
CG_TOLERANCE = 1e-7
CG_MAX_STEPS = 2000


def ridge_moments(
    pair: Pair, honesty: Moments, task: Moments | None, weight: Float[Array, ""], damping: Float[Array, ""]
) -> tuple[Float[Array, "r o"], SolveInfo]:
    """Solve for E_R of `exact` (task None) or `two_sided` from second moments, by Cholesky of S_RR.

    Args:
        pair: the kernel before and after tuning, and its rows R and T.
        honesty: moments A and C, as means.
        task: moments B and F, as means.
        weight: w.
        damping: share of the mean diagonals that gives a and b.
    """
    rows, delta = pair.restored, delta_of(pair)
    delta_task = delta[pair.task]
    a = damping_of(honesty, damping)
    system = honesty.inputs[rows][:, rows] + a * jnp.eye(rows.shape[0], dtype=a.dtype)
    rhs = -matmul(honesty.inputs[rows][:, pair.task], delta_task)
    if honesty.shift is not None:
        rhs = rhs - matmul(honesty.shift[rows], pair.base)
    if task is not None:
        s = weight * trace_of(honesty) / trace_of(task)
        second = task.inputs[rows][:, rows] + damping_of(task, damping) * jnp.eye(rows.shape[0], dtype=a.dtype)
        system = system + s * second
        rhs = rhs + s * matmul(second, delta[rows])
        if task.shift is not None:
            rhs = rhs - s * matmul(task.shift[rows], pair.tuned)
    return cholesky_solve(system, rhs)


def ridge_dual(
    pair: Pair, honesty: Inputs, task: Inputs | None, weight: Float[Array, ""], damping: Float[Array, ""]
) -> tuple[Float[Array, "r o"], SolveInfo]:
    """Solve for the same E_R from fewer tokens than restored rows: tokens Y, output errors Q of the plain kernel.

    Args:
        pair: the kernel before and after tuning, and its rows R and T.
        honesty: tokens x', and their shift x' - x.
        task: tokens z', and their shift z' - z; None for `exact`.
        weight: w.
        damping: share of the mean diagonals that gives a and b; must be positive.
    """
    tokens, errors = _scaled_errors(pair, honesty, task, weight)
    a, b = _damping_pair(honesty, task, weight, damping)
    pull = b / (a + b) * delta_of(pair)[pair.restored]
    return dual_solve(tokens[:, pair.restored], a + b, errors, pull)


def _scaled_errors(
    pair: Pair, honesty: Inputs, task: Inputs | None, weight: Float[Array, ""]
) -> tuple[Float[Array, "n i"], Float[Array, "n o"]]:
    """Compute Y = [X'/sqrt(n_x); sqrt(s/n_z) Z'] and the output errors that E_R corrects, scaled alike."""
    delta = delta_of(pair)
    scale = jnp.asarray(honesty.inputs.shape[0], honesty.inputs.dtype) ** -0.5
    errors = -matmul(honesty.inputs[:, pair.task], delta[pair.task])
    if honesty.shift is not None:
        errors = errors - matmul(honesty.shift, pair.base)
    tokens, errors = scale * honesty.inputs, scale * errors
    if task is None:
        return tokens, errors
    scale = jnp.sqrt(weight * trace_of(honesty) / trace_of(task) / task.inputs.shape[0])
    task_errors = matmul(task.inputs[:, pair.restored], delta[pair.restored])
    if task.shift is not None:
        task_errors = task_errors - matmul(task.shift, pair.tuned)
    return jnp.concatenate([tokens, scale * task.inputs]), jnp.concatenate([errors, scale * task_errors])


def _damping_pair(
    honesty: Inputs, task: Inputs | None, weight: Float[Array, ""], damping: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Compute a and s b: both are `damping` times a trace over in, and s is the ratio of the traces times w."""
    a = damping_of(honesty, damping)
    return a, jnp.zeros_like(a) if task is None else weight * a


def ridge_free(
    pair: Pair, honesty: Inputs, task: Inputs | None, weight: Float[Array, ""], damping: Float[Array, ""]
) -> tuple[Float[Array, "r o"], SolveInfo]:
    """Solve for the same E_R by one matrix-free Newton step: S is known by its Hessian-vector products alone.

    The step starts at the E_R of damping alone. Directions that no token reads are then exact, and the gradient lies in
    the tokens' span; a start at 0 cost conjugate gradients one or two digits there.

    Args:
        pair: the kernel before and after tuning, and its rows R and T.
        honesty: tokens x', and their shift x' - x.
        task: tokens z', and their shift z' - z; None for `exact`.
        weight: w.
        damping: share of the mean diagonals that gives a and b.
    """
    tokens, errors = _scaled_errors(pair, honesty, task, weight)
    a, b = _damping_pair(honesty, task, weight, damping)
    tokens, delta = tokens[:, pair.restored], delta_of(pair)[pair.restored]
    pull = jnp.where(a + b > 0, b / (a + b), 0) * delta

    def objective(change: Float[Array, "r o"]) -> Float[Array, ""]:
        fit = jnp.sum(jnp.square(matmul(tokens, change) - errors))
        return (fit + a * jnp.sum(jnp.square(change)) + b * jnp.sum(jnp.square(change - delta))) / 2

    gradient, hessian = linearised_gradient(objective, pull)
    diagonal = jnp.sum(jnp.square(tokens), axis=0) + a + b
    step, info = conjugate_gradients(hessian, -gradient, diagonal, tolerance=CG_TOLERANCE, max_steps=CG_MAX_STEPS)
    return pull + step, info
