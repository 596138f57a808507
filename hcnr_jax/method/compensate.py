"""Corrects one kernel: the objective's solve, put into the kernel, with a report of how it went.

Kernels are Flax's (in, out). Rows R are restored, rows T keep their tuned values. With D = W_tuned - W_base, the new
kernel is W' = W_base + E, where E_T = D_T and the objective decides E_R; `none` leaves E_R = 0.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from hcnr_jax.method.curvature import Inputs, Moments, distances
from hcnr_jax.method.objectives.table import OBJECTIVES, Objective
from hcnr_jax.method.solve import Outcome, SolveInfo

Method = str
Solve = Callable[..., tuple[Array, SolveInfo]]
"""(pair, honesty, task, weight w, damping) -> E_R (r, o) and how the solve ended."""


class Pair(NamedTuple):
    """Holds one kernel before and after tuning, and its rows: restored (R) and task (T), together 0..in-1."""

    base: Float[Array, "i o"]
    tuned: Float[Array, "i o"]
    restored: Int[Array, " r"]
    task: Int[Array, " t"]


class Info(NamedTuple):
    """Holds what hcnr.json reports of a kernel.

    Args:
        solve: how the solve ended.
        distance_tuned: d_hon (without damping, on base inputs) of the tuned kernel, E = D.
        distance_plain: d_hon of plain restoration, E_R = 0.
        distance_restored: d_hon of the result.
        correction: ||E_R|| / ||W_base||.
    """

    solve: SolveInfo
    distance_tuned: Float[Array, ""]
    distance_plain: Float[Array, ""]
    distance_restored: Float[Array, ""]
    correction: Float[Array, ""]


def delta_of(pair: Pair) -> Float[Array, "i o"]:
    """Compute D = W_tuned - W_base."""
    return pair.tuned - pair.base


def matmul(left: Array, right: Array) -> Array:
    """Multiply in the highest precision of the device."""
    return jnp.matmul(left, right, precision="highest")


def choose_form(method: Method, solver: str, tokens: int, *, restored: int, damping: float) -> str:
    """Choose `moments`, `dual` or `free`.

    Args:
        method: the objective's name.
        solver: `dense` or `cg`.
        tokens: how many tokens there are.
        restored: |R|. The dual is chosen for fewer tokens than this, where the objective has one.
        damping: without damping the dual is not exact, and the moments serve.
    """
    if solver == "cg":
        return "free"
    return "dual" if "dual" in OBJECTIVES[method].forms and tokens < restored and damping > 0 else "moments"


def solve_of(objective: Objective, form: str) -> Solve:
    """Return the function that solves an objective in one form, importing it where the table names it."""
    found = objective.forms[form]
    if not isinstance(found, str):
        return found  # type: ignore[return-value]
    module, name = found.split(".")
    solve: Solve = getattr(importlib.import_module(f"hcnr_jax.method.objectives.{module}"), name)
    return solve


def compensate(
    method: Method,
    form: str,
    pair: Pair,
    honesty: Moments | Inputs,
    task: Moments | Inputs | None,
    weight: float | Array,
    damping: float | Array,
) -> tuple[Float[Array, "i o"], Info]:
    """Compute the new kernel W' (in, out) and a report. Under jit, `method` and `form` are static.

    A failed solve raises nothing: read `info.solve.outcome`.

    Args:
        method: the objective's name.
        form: `moments`, `dual` or `free`, see `choose_form`.
        pair: the kernel, in the precision of the solve (float32 at least), and its rows.
        honesty: `Moments` as means for form `moments`, else `Inputs`.
        task: the same on task tokens, for an objective that reads them.
        weight: w of the task term.
        damping: share of the mean diagonal of the moments that is added to it.
    """
    correction, info = correction_of(method, form, pair, honesty=honesty, task=task, weight=weight, damping=damping)
    return pair.tuned.at[pair.restored].set(pair.base[pair.restored] + correction), info


def correction_of(
    method: Method,
    form: str,
    pair: Pair,
    *,
    honesty: Moments | Inputs,
    task: Moments | Inputs | None,
    weight: float | Array,
    damping: float | Array,
) -> tuple[Float[Array, "r o"], Info]:
    """Compute the correction E_R alone; the arguments are those of `compensate`."""
    dtype = pair.base.dtype
    task = task if OBJECTIVES[method].reads_task else None
    correction, solve = solve_of(OBJECTIVES[method], form)(
        pair, honesty, task, jnp.asarray(weight, dtype), jnp.asarray(damping, dtype)
    )
    unknowns = pair.base.shape[0] if OBJECTIVES[method].unknowns == "all" else pair.restored.shape[0]
    rows = pair.base[pair.restored] + correction
    outcome = _with_rank(solve.outcome, unknowns, honesty, task, weight, damping)
    # A solve may not read every weight.
    finite = jnp.all(jnp.isfinite(rows)) & jnp.all(jnp.isfinite(pair.tuned[pair.task]))
    outcome = jnp.where((outcome == Outcome.OK) & ~finite, int(Outcome.NOT_FINITE), outcome)
    base_norm = jnp.linalg.norm(pair.base)
    return correction, Info(
        solve._replace(outcome=outcome),
        *distances(honesty, delta_of(pair), correction, pair.restored, pair.task),
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
    """Correct the outcome where rounding hid that S is singular: without damping, with fewer tokens than rows."""

    def tokens(statistic: Moments | Inputs) -> Array:
        return statistic.tokens if isinstance(statistic, Moments) else jnp.asarray(float(statistic.inputs.shape[0]))

    seen = tokens(honesty)
    if task is not None:
        seen = seen + jnp.where(jnp.asarray(weight) > 0, tokens(task), 0)
    short = (jnp.asarray(damping) <= 0) & (seen < rows) & (outcome != Outcome.NOT_FINITE)
    return jnp.where(short, int(Outcome.NOT_POSITIVE_DEFINITE), outcome).astype(outcome.dtype)
