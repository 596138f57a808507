"""Correct the selected kernels of a view, with local or with propagated inputs, and report each kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array

from hcnr_jax.errors import InputError
from hcnr_jax.method.compensate import Info, Pair, correction_of
from hcnr_jax.method.curvature import Moments
from hcnr_jax.method.neurons import Kernel, put_leaves, wide
from hcnr_jax.method.one_call.batches import Batch
from hcnr_jax.method.one_call.linear_view import LinearView
from hcnr_jax.method.one_call.report import Choices
from hcnr_jax.method.one_call.statistics import Matrices, Programs, propagated_moments
from hcnr_jax.method.solve import Outcome

# Largest norm of a correction, relative to the base kernel's norm. A larger correction shows that the solve failed.
EXPLODED = 10.0

REMEDY = {
    Outcome.NOT_POSITIVE_DEFINITE: (
        "the second moments of its inputs are not positive definite: raise `damping` (0.01 is usual), or give more "
        "examples; with damping 0 there must be more tokens than inputs"
    ),
    Outcome.NOT_FINITE: "the second moments or the weights hold NaN or Inf: look at the activations on these examples",
    Outcome.NOT_CONVERGED: "the solve did not converge: raise `damping`",
}


class Statistics(NamedTuple):
    """Holds the moments that a kernel's solve reads, as means; None where the objective reads none."""

    honesty: Moments | None
    task: Moments | None


class Solved(NamedTuple):
    """Holds a corrected kernel: W' (in, out), its report, and ||W' - W_tuned|| / ||W_tuned||."""

    weights: Array
    info: Info | None
    shift: Array


def solve(
    choices: Choices, base: Array, tuned: Array, mask: np.ndarray, statistics: Statistics, kernel: Kernel
) -> Solved:
    """Correct one kernel and check the outcome.

    Args:
        choices: the objective, w and the damping.
        base: W_base (in, out).
        tuned: W_tuned (in, out).
        mask: True for a restored neuron, (in,).
        statistics: of the kernel's inputs.
        kernel: which kernel it is, for messages.

    Raises:
        InputError: the solve failed, or its correction is too large or overflows.
    """
    restored, others = jnp.asarray(np.flatnonzero(mask)), jnp.asarray(np.flatnonzero(~mask))
    weights, finite, info, shift = _solve(
        choices.objective if choices.rule.solves else None, base, tuned, restored, others, statistics,
        choices.task_weight, choices.damping,
    )  # fmt: skip
    if info is not None:
        _check(info, bool(finite), kernel)
    return Solved(weights, info, shift)


@partial(jax.jit, static_argnums=0)
def _solve(
    objective: str | None,
    base: Array,
    tuned: Array,
    restored: Array,
    others: Array,
    statistics: Statistics,
    weight: float | Array,
    damping: float | Array,
) -> tuple[Array, Array, Info | None, Array]:
    """Solve in the precision of the moments. Rows that are not restored stay bit-identical to tuned."""
    dtype = wide(tuned.dtype)
    pair, info = Pair(base.astype(dtype), tuned.astype(dtype), restored, others), None
    rows = pair.base[restored]
    if objective is not None and statistics.honesty is not None:
        correction, info = correction_of(
            objective, "moments", pair, honesty=statistics.honesty, task=statistics.task, weight=weight, damping=damping
        )
        rows = rows + correction
    stored = rows.astype(tuned.dtype)
    size = jnp.linalg.norm(pair.tuned)
    shift = jnp.linalg.norm(stored.astype(dtype) - pair.tuned[restored]) / jnp.where(size > 0, size, 1)
    return tuned.at[restored].set(stored), jnp.all(jnp.isfinite(stored)), info, shift


def _check(info: Info, finite: bool, kernel: Kernel) -> None:
    outcome = Outcome(int(info.solve.outcome))
    if outcome is not Outcome.OK:
        raise InputError(f"kernel {kernel}: {REMEDY[outcome]} (residual {float(info.solve.residual):.2g})")
    if float(info.correction) > EXPLODED or not finite:
        raise InputError(
            f"kernel {kernel}: the correction is {float(info.correction):.3g} times the base kernel's norm (expected "
            f"well below {EXPLODED:g}), or overflows the kernel's dtype: raise `damping`, or use objective 'two_sided'"
        )


class Restoration(NamedTuple):
    """Holds what both orders of solving read.

    Args:
        view: the model.
        choices: of the restoration.
        base: its matrices.
        tuned: its matrices.
        masks: {path: bool (*stack, in)} on the host.
    """

    view: LinearView
    choices: Choices
    base: Matrices
    tuned: Matrices
    masks: Mapping[str, np.ndarray]

    def solve(self, kernel: Kernel, statistics: Statistics) -> Solved:
        """Solve one kernel."""
        base, tuned = (flatten_dict(params, sep="/")[kernel.path][kernel.index] for params in (self.base, self.tuned))
        return solve(self.choices, base, tuned, self.masks[kernel.path][kernel.index], statistics, kernel)


def correct_local(
    work: Restoration, kept: Iterable[Kernel], honesty: Mapping[str, Moments], on_task: Mapping[str, Moments]
) -> dict[Kernel, Solved]:
    """Solve every kernel on the inputs that it had before any kernel was restored.

    Args:
        work: the models and the masks.
        kept: the kernels that have a restored neuron.
        honesty: moments at base by the first kernel of a group; empty where the objective reads none.
        on_task: moments at tuned, likewise.
    """
    layers = dict(work.view.layers)

    def of(moments: Mapping[str, Moments], kernel: Kernel) -> Moments | None:
        found = moments.get(layers[kernel.path].group)
        return None if found is None else jax.tree.map(lambda leaf: leaf[_position(work.view, kernel)], found)

    return {kernel: work.solve(kernel, Statistics(of(honesty, kernel), of(on_task, kernel))) for kernel in kept}


def correct_propagated(
    work: Restoration, kept: Iterable[Kernel], programs: Programs, rows: Mapping[str, Callable[[], Iterable[Batch]]]
) -> dict[Kernel, Solved]:
    """Solve the kernels in data-flow order, each on the inputs that the model restored so far gives it.

    Args:
        work: the models and the masks.
        kept: the kernels that have a restored neuron.
        programs: of the view.
        rows: {'honesty', 'task': function that reads the batches from the start}.
    """
    now, solved, wanted = work.tuned, {}, set(kept)
    aims = {"honesty": work.base} | ({"task": work.tuned} if work.choices.rule.reads_task else {})
    for first, index in data_flow(work.view):
        kernels = [kernel for path in work.view.groups[first] if (kernel := Kernel(path, index)) in wanted]
        if not kernels:
            continue
        place = first, _position(work.view, kernels[0])
        means = {
            name: jax.tree.map(
                lambda leaf: leaf[0],
                propagated_moments(work.view, programs, rows[name](), place=place, now=now, aim=aim, name=name),
            )
            for name, aim in aims.items()
        }
        for kernel in kernels:
            solved[kernel] = work.solve(kernel, Statistics(means["honesty"], means.get("task")))
        now = put_kernels(now, {kernel: solved[kernel].weights for kernel in kernels})
    return solved


def data_flow(view: LinearView) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield (first kernel of a group, index along the stack) in data-flow order.

    Neighbouring groups with the same stack in the same top-level module belong to one scan, whose layers come one
    after another.
    """
    layers = dict(view.layers)

    def scan_of(first: str) -> Any:
        return layers[first].stack, first.split("/")[0] if layers[first].stack else first

    for (stack, _), firsts in groupby(view.groups, key=scan_of):
        members = list(firsts)
        for index in np.ndindex(*stack):
            yield from ((first, tuple(map(int, index))) for first in members)


def put_kernels(matrices: Matrices, weights: Mapping[Kernel, Array]) -> Any:
    """Return the matrices with new weights for some kernels."""
    leaves: dict[str, Any] = {kernel.path: None for kernel in weights}
    flat = flatten_dict(matrices, sep="/")
    for path in leaves:
        found = {kernel.index: new for kernel, new in weights.items() if kernel.path == path}
        if () in found:
            leaves[path] = found[()]
        else:
            places = tuple(np.asarray(axis) for axis in zip(*found, strict=True))
            leaves[path] = flat[path].at[places].set(jnp.stack(list(found.values())))
    return put_leaves(matrices, leaves)


def _position(view: LinearView, kernel: Kernel) -> int:
    """Return the position of a kernel among the flattened stack of its leaf."""
    stack = dict(view.layers)[kernel.path].stack
    return int(np.ravel_multi_index(kernel.index, stack)) if stack else 0
