"""One kernel of one block: what is asked for, which statistics its solve needs, and its new weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from hcnr_jax.errors import InputError
from hcnr_jax.method.curvature import Inputs, Moments
from hcnr_jax.method.neurons import Kernel, Params, get_leaves
from hcnr_jax.method.objectives.compensate import Info, Method, Pair, choose_form, restored_rows
from hcnr_jax.method.objectives.table import OBJECTIVES, Objective
from hcnr_jax.method.sweep.model import BlockModel

# What a solve reads of a group's inputs on one side.
Statistic = Moments | Inputs | None


class Settings(NamedTuple):
    """Holds how to compensate: stage 2 of docs/method.md."""

    method: Method = "two_sided"
    inputs: Literal["local", "propagated"] = "propagated"
    solver: Literal["dense", "cg"] = "dense"
    damping: float = 0.01
    task_weight: float = 2.0
    moments_at: Literal["base", "tuned"] = "base"

    @property
    def objective(self) -> Objective:
        """What the method reads and solves."""
        return OBJECTIVES[self.method]

    def check(self) -> None:
        """InputError for settings without a sweep: method 'none', and 'paper' with propagated inputs."""
        if not self.objective.solves:
            raise InputError(
                f"method {self.method!r} has nothing to solve: call `restore` of hcnr_jax.method.restore instead"
            )
        if not self.objective.propagates and self.inputs == "propagated":
            raise InputError(
                f"method {self.method!r} has no propagated form: use inputs 'local', or 'exact' or 'two_sided'"
            )


class Result(NamedTuple):
    """One kernel done: its new weights (in, out) in the stored dtype of tuned, whether all of them are finite there,
    the form of the solve, what to report."""

    kernel: Kernel
    weights: Array
    finite: Array
    form: str
    tokens: int
    info: Info


@dataclass(frozen=True)
class Masks:
    """{path: bool (*stack, in)} on the host, asked for one kernel at a time."""

    model: BlockModel
    leaves: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, model: BlockModel, masks: Mapping[str, Array]) -> Masks:
        """From arrays anywhere."""
        return cls(model, {path: np.asarray(mask) for path, mask in masks.items()})

    def of_kernel(self, index: int, path: str) -> np.ndarray:
        """One kernel's mask (in,); a single False for a kernel that no mask names."""
        kernel = self.model.kernel(index, path)
        return self.leaves[kernel.path][kernel.index] if kernel.path in self.leaves else np.zeros(1, bool)

    def kept(self, index: int, group: tuple[str, ...]) -> list[str]:
        """The kernels of a group with a restored neuron."""
        return [path for path in group if self.of_kernel(index, path).any()]

    def last_block(self) -> int:
        """The last block with a restored neuron, -1 for none."""
        blocks = range(self.model.num_blocks)
        return max((k for k in blocks if any(self.kept(k, group) for group in self.model.groups)), default=-1)


def form_of(settings: Settings, tokens: int, mask: np.ndarray) -> str:
    """How a kernel with this mask is solved: 'moments', 'dual' or 'free'."""
    return choose_form(settings.method, settings.solver, tokens, restored=int(mask.sum()), damping=settings.damping)


class Case(NamedTuple):
    """Holds one setting with its masks."""

    settings: Settings
    masks: Masks


class Statistics(NamedTuple):
    """Holds what the solves of one group read: honesty and task statistics, and the number of tokens behind them."""

    honesty: Mapping[bool, Statistic]
    task: Mapping[bool, Statistic]
    tokens: int


def solve_block_kernel(
    model: BlockModel, case: Case, place: tuple[int, str], *, blocks: tuple[Params, Params], statistics: Statistics
) -> Result:
    """Solve one kernel of one block.

    Args:
        model: whose kernel it is.
        case: the settings, and the masks with the kernel's restored neurons.
        place: the block's index and the kernel's path in it.
        blocks: the block's params in base and in tuned, as they are now.
        statistics: of what the kernel's group reads, as moments (True) or tokens (False).
    """
    settings, mask = case.settings, case.masks.of_kernel(*place)
    form = form_of(settings, statistics.tokens, mask)
    as_moments = form == "moments"
    kernel, pair = model.kernel(*place), [get_leaves(block, [place[1]])[place[1]] for block in blocks]
    read = statistics.honesty[as_moments], statistics.task.get(as_moments)
    old, new, honesty, task = model.to_solver(kernel, (*pair, *read))
    restored, others = jnp.asarray(np.flatnonzero(mask)), jnp.asarray(np.flatnonzero(~mask))
    weights, finite, info = _solve(
        settings.method, form, old, new, restored, others, honesty, task, settings.task_weight, settings.damping
    )
    return Result(kernel, weights, finite, form, statistics.tokens, info)


@partial(jax.jit, static_argnums=(0, 1))
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
) -> tuple[Array, Array, Info]:
    """One kernel, solved in the statistics' precision; rows that are not restored keep tuned's very bits."""
    dtype = honesty.inputs.dtype
    pair = Pair(base.astype(dtype), tuned.astype(dtype), restored, others)
    rows, info = restored_rows(method, form, pair, honesty=honesty, task=task, weight=weight, damping=damping)
    stored = rows.astype(tuned.dtype)
    return tuned.at[restored].set(stored), jnp.all(jnp.isfinite(stored)), info
