"""Run the block sweep: accumulate second moments and solve kernels one block at a time, in data-flow order.

`Sweep` runs one case, and `sweep_cases` runs many. Cases with local inputs share everything but their solves. Only one
block's moments are in memory at a time. A sweep also holds the hidden states of all rows, one copy for each model that
the sweep follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Array

from hcnr_jax.method.neurons import HostLeaves, Kernel
from hcnr_jax.method.sweep.local import sweep_local
from hcnr_jax.method.sweep.model import BlockModel
from hcnr_jax.method.sweep.problem import Problem
from hcnr_jax.method.sweep.propagated import sweep_propagated
from hcnr_jax.method.sweep.solve_kernel import Case, Masks, Result, Settings

__all__ = ["BlockModel", "Problem", "Result", "Settings", "Sweep", "sweep_cases"]


@dataclass
class Sweep:
    """Solves every kernel of a `Problem` that has a restored neuron.

    Each group, side (honesty or task) and shape compiles once, whatever the depth.

    Args:
        settings: how to compensate.
        on_block: called with a block's index when the block is done.
        keep_inputs: with propagated inputs, whether to keep what a block's groups read (one float32 array of
            rows x tokens x inputs for each group and followed model), or to run the block again for every group. Both
            give the same bits.

    Raises:
        InputError: the method is 'none', or the method is 'paper' and the inputs are propagated.

    >>> import jax.numpy as jnp
    >>> from flax import linen as nn
    >>> dense = nn.Dense(2, use_bias=False)
    >>> model = BlockModel(
    ...     num_blocks=2,
    ...     embed=lambda params, batch: batch,
    ...     apply=lambda block, hidden, batch, index: dense.apply({"params": block}, hidden),
    ...     block_params=lambda params, index: params[index],
    ...     token_mask=lambda batch: np.ones(batch.shape[:-1], bool),
    ...     groups=(("kernel",),),
    ...     kernel=lambda index, path: Kernel(f"{index}/{path}", ()),
    ... )
    >>> base, tuned = {"kernel": jnp.eye(2)}, {"kernel": jnp.asarray([[1.0, 0.0], [1.0, 1.0]])}
    >>> problem = Problem(model, [base, base], [tuned, base], honesty=[jnp.ones((1, 1, 2))], task=[])
    >>> masks = {"0/kernel": jnp.asarray([True, False])}
    >>> for result in Sweep(Settings(method="exact")).run(problem, masks):
    ...     print(result.kernel, np.asarray(result.weights, np.float64).round(2).tolist())
    0/kernel [[0.01, 0.0], [1.0, 1.0]]
    """

    settings: Settings
    on_block: Callable[[int], None] = field(default=lambda index: None)
    keep_inputs: bool = True

    def __post_init__(self) -> None:
        self.settings.check()

    def run(
        self, problem: Problem, masks: Mapping[str, Array | np.ndarray], known: Mapping[Kernel, Array] | None = None
    ) -> Iterator[Result]:
        """Yield every kernel with a restored neuron, in data-flow order.

        A failed solve raises nothing: read `info.solve.outcome`.

        Args:
            problem: both models and their rows.
            masks: {path: bool (*stack, in)}, True for a restored neuron.
            known: new weights W' (in, out) of the kernels that an interrupted run has solved. The sweep uses them and
                yields only the other kernels.
        """
        # Local solves do not depend on each other, so that a known kernel is left out of the masks.
        left = without(masks, known) if known and self.settings.inputs == "local" else masks
        cases = [(self.settings, left)]
        for _, result in sweep_cases(problem, cases, on_block=self.on_block, known=known, keep_inputs=self.keep_inputs):
            yield result


def without(masks: Mapping[str, Array | np.ndarray], kernels: Iterable[Kernel]) -> HostLeaves:
    """Return a copy of the masks in which these kernels have no restored neuron.

    >>> import jax.numpy as jnp
    >>> left = without({"q/kernel": jnp.ones((2, 2), bool)}, [Kernel("q/kernel", (1,))])
    >>> left["q/kernel"].tolist()
    [[True, True], [False, False]]
    """
    left: HostLeaves = {path: np.array(mask) for path, mask in masks.items()}
    for kernel in kernels:
        left[kernel.path][kernel.index] = False
    return left


def sweep_cases(
    problem: Problem,
    cases: Sequence[tuple[Settings, Mapping[str, Array | np.ndarray]]],
    *,
    on_block: Callable[[int], None] = lambda index: None,
    known: Mapping[Kernel, Array] | None = None,
    keep_inputs: bool = True,
) -> Iterator[tuple[int, Result]]:
    """Yield the position of the case and the result, for every case and every kernel with a restored neuron.

    Cases with local inputs and the same `moments_at` share one sweep, whose results come block by block. Each case with
    propagated inputs needs its own sweep. These sweeps come last, one after another.

    Args:
        problem: both models and their rows.
        cases: settings, and masks {path: bool (*stack, in)} with True for a restored neuron.
        on_block: called with a block's index when the block is done.
        known: as in `Sweep.run`, but read by cases with propagated inputs alone.
        keep_inputs: as in `Sweep`.

    Raises:
        InputError: a case has settings that `Settings.check` refuses.
    """
    for settings, _ in cases:
        settings.check()
    opened = [Case(settings, Masks.of(problem.model, masks)) for settings, masks in cases]
    for at in ("base", "tuned"):
        places = [i for i, (s, _) in enumerate(opened) if s.inputs == "local" and s.moments_at == at]
        if places:
            shared = [opened[i] for i in places]
            for number, result in sweep_local(problem, shared, on_block):
                yield places[number], result
    for place, case in enumerate(opened):
        if case.settings.inputs == "propagated":
            for result in sweep_propagated(
                problem, case, known=known or {}, on_block=on_block, keep_inputs=keep_inputs
            ):
                yield place, result
