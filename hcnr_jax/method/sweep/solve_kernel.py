"""Solve one kernel of one block: the settings, the statistics that the solve reads, and the kernel's new weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from hcnr_jax.errors import InputError
from hcnr_jax.method.adapter import Coordinates, thin_pair
from hcnr_jax.method.compensate import (
    Info,
    Method,
    Pair,
    choose_form,
    correction_of,
    matmul,
)
from hcnr_jax.method.curvature import Inputs, Moments
from hcnr_jax.method.neurons import Kernel, Params, get_leaves
from hcnr_jax.method.objectives.table import OBJECTIVES, Objective
from hcnr_jax.method.program import Program
from hcnr_jax.method.sweep.model import BlockModel

# The inputs of a group on one side (honesty or task), in the form that a solve reads: moments, tokens or neither.
Statistic = Moments | Inputs | None


class Settings(NamedTuple):
    """Holds how to compensate (docs/method.md, stage 2).

    Args:
        method: a name in `OBJECTIVES`, the value of `--compensation`.
        inputs: `local` solves every kernel alone. `propagated` solves with the inputs of the model restored so far.
        solver: `dense` factorises a matrix, and `cg` iterates without a matrix.
        damping: a / mean(diag A) and b / mean(diag B), without a unit.
        task_weight: w, the weight of the task term of `two_sided`, without a unit.
        moments_at: the model that local honesty inputs come from.
    """

    method: Method = "two_sided"
    inputs: Literal["local", "propagated"] = "propagated"
    solver: Literal["dense", "cg"] = "dense"
    damping: float = 0.01
    task_weight: float = 2.0
    moments_at: Literal["base", "tuned"] = "base"

    @property
    def objective(self) -> Objective:
        """Return the entry of `OBJECTIVES` that says what the method reads and solves."""
        return OBJECTIVES[self.method]

    def check(self) -> None:
        """Refuse settings that no sweep can run.

        Raises:
            InputError: the method is 'none', or the method is 'paper' and the inputs are propagated.

        >>> Settings().check()
        >>> try:
        ...     Settings(method="paper").check()
        ... except InputError as error:
        ...     print(error)
        method 'paper' has no propagated form: use inputs 'local', or 'exact' or 'two_sided'
        """
        if not self.objective.solves:
            raise InputError(
                f"method {self.method!r} has nothing to solve: call `restore` of hcnr_jax.method.restore instead"
            )
        if not self.objective.propagates and self.inputs == "propagated":
            raise InputError(
                f"method {self.method!r} has no propagated form: use inputs 'local', or 'exact' or 'two_sided'"
            )


class Result(NamedTuple):
    """Holds one solved kernel.

    Args:
        kernel: which kernel was solved.
        weights: W' (in, out), in the stored dtype of tuned.
        finite: whether all restored weights are finite in that dtype, a boolean scalar.
        form: the form of the solve, as in `form_of`.
        tokens: the number of honesty and task tokens that the solve read.
        info: the report of the solve.
        thin: the restored rows of W' - W_base in the adapter's coordinates, (restored, k); None for whole kernels.
    """

    kernel: Kernel
    weights: Array
    finite: Array
    form: str
    tokens: int
    info: Info
    thin: Array | None = None


@dataclass(frozen=True)
class Masks:
    """Holds masks on the host, which are read one kernel at a time.

    Args:
        model: the model whose kernels the masks name.
        leaves: {path: bool (*stack, in)}, True for a restored neuron.
    """

    model: BlockModel
    leaves: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, model: BlockModel, masks: Mapping[str, Array | np.ndarray]) -> Masks:
        """Bring masks from any device to the host."""
        return cls(model, {path: np.asarray(mask) for path, mask in masks.items()})

    def of_kernel(self, index: int, path: str) -> np.ndarray:
        """Return one kernel's mask (in,), or a single False for a kernel without a mask."""
        kernel = self.model.kernel(index, path)
        return self.leaves[kernel.path][kernel.index] if kernel.path in self.leaves else np.zeros(1, bool)

    def kept(self, index: int, group: tuple[str, ...]) -> list[str]:
        """List the kernels of a group that have a restored neuron."""
        return [path for path in group if self.of_kernel(index, path).any()]

    def last_block(self) -> int:
        """Return the index of the last block that has a restored neuron, or -1 if no block has one."""
        blocks = range(self.model.num_blocks)
        return max((k for k in blocks if any(self.kept(k, group) for group in self.model.groups)), default=-1)


def form_of(settings: Settings, tokens: int, mask: np.ndarray) -> str:
    """Choose the form in which a kernel with this mask is solved: 'moments', 'dual' or 'free'.

    >>> form_of(Settings(), 3, np.ones(4, bool)), form_of(Settings(), 5, np.ones(4, bool))
    ('dual', 'moments')
    """
    return choose_form(settings.method, settings.solver, tokens, restored=int(mask.sum()), damping=settings.damping)


class Case(NamedTuple):
    """Holds the settings and the masks of one restoration."""

    settings: Settings
    masks: Masks


class Statistics(NamedTuple):
    """Holds the statistics that the solves of one group read.

    Args:
        honesty: {True: moments, False: tokens} of the group's inputs on honesty rows, as far as a solve reads them.
        task: the same on task rows.
        tokens: the number of tokens in the statistics, honesty and task together.
    """

    honesty: Mapping[bool, Statistic]
    task: Mapping[bool, Statistic]
    tokens: int


def solve_block_kernel(
    model: BlockModel,
    case: Case,
    place: tuple[int, str],
    *,
    blocks: tuple[Params, Params],
    statistics: Statistics,
    adapter: Mapping[Kernel, Coordinates] | None = None,
) -> Result:
    """Solve one kernel of one block.

    Args:
        model: the model to which the kernel belongs.
        case: the settings, and the masks with the kernel's restored neurons R.
        place: the block's index, and the kernel's path relative to the block.
        blocks: the block's params in base and in tuned, as they are now; the kernels W_base and W_tuned are read.
        statistics: the inputs of the kernel's group, as moments (True) or tokens (False).
        adapter: coordinates of the kernels' adapters, as in `Problem`.

    Returns:
        W' and the report. A failed solve raises nothing, and `info.solve.outcome` names the failure.
    """
    settings, mask = case.settings, case.masks.of_kernel(*place)
    form = form_of(settings, statistics.tokens, mask)
    as_moments = form == "moments"
    kernel, pair = model.kernel(*place), [get_leaves(block, [place[1]])[place[1]] for block in blocks]
    read = statistics.honesty[as_moments], statistics.task.get(as_moments)
    old, new, honesty, task = model.to_solver(kernel, (*pair, *read))
    restored, others = (np.flatnonzero(chosen).astype(np.int32) for chosen in (mask, ~mask))
    operands = (old, new, restored, others, honesty, task, settings.task_weight, settings.damping)
    own = None if adapter is None else adapter[kernel]
    weights, finite, info, thin = _solve(settings.method, form, *operands, own)
    return Result(kernel, weights, finite, form, statistics.tokens, info, thin)


@partial(Program, static_argnums=(0, 1))
def _solve(
    method: Method,
    form: str,
    base: Float[Array, "i o"],
    tuned: Float[Array, "i o"],
    restored: Array,
    others: Array,
    honesty: Any,
    task: Any,
    weight: float | Array,
    damping: float | Array,
    adapter: Coordinates | None,
) -> tuple[Array, Array, Info, Array | None]:
    """Solve one kernel in the precision of the statistics. Rows that are not restored stay bit-identical to tuned.

    With an adapter's coordinates the kernel is solved in these (`hcnr_jax.method.adapter`).
    """
    dtype = honesty.inputs.dtype
    pair = Pair(base.astype(dtype), tuned.astype(dtype), restored, others)
    solved = pair
    if adapter is not None:
        basis = jnp.asarray(adapter.basis)
        solved = thin_pair(pair, basis, jnp.asarray(adapter.change))
    correction, info = correction_of(method, form, solved, honesty=honesty, task=task, weight=weight, damping=damping)
    thin = None
    if adapter is not None:
        thin, correction = correction, matmul(correction, basis.T.astype(dtype))
        size = jnp.linalg.norm(pair.base)
        info = info._replace(correction=jnp.linalg.norm(thin) / jnp.where(size > 0, size, 1))
    stored = (pair.base[restored] + correction).astype(tuned.dtype)
    return tuned.at[restored].set(stored), jnp.all(jnp.isfinite(stored)), info, thin
