"""The block sweep: second moments and corrections one block at a time, in the order data flows.

`Sweep` runs one setting and `sweep_cases` runs many; cases with local inputs share everything but their solves. Only
one block's moments are alive at a time. A sweep also holds the hidden states of all rows, one copy for each model it
follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from hcnr_jax.method.neurons import Kernel
from hcnr_jax.method.sweep.kernel import Case, Masks, Result, Settings
from hcnr_jax.method.sweep.local import sweep_local
from hcnr_jax.method.sweep.model import BlockModel
from hcnr_jax.method.sweep.problem import Problem
from hcnr_jax.method.sweep.propagated import sweep_propagated

__all__ = ["BlockModel", "Problem", "Result", "Settings", "Sweep", "sweep_cases"]


@dataclass
class Sweep:
    """Solves every restored kernel of a `Problem`. Each group, side and shape compiles once, whatever the depth.

    Args:
        settings: how to compensate.
        on_block: called with a block's index when the block is done.
        keep_inputs: with propagated inputs, whether to keep what a block's groups read (one float32 array of
            rows x tokens x inputs for each group and followed model), or to run the block again for every group. Both
            give the same bits.

    Raises:
        InputError: settings without a sweep, which are method 'none', and 'paper' with propagated inputs.
    """

    settings: Settings
    on_block: Callable[[int], None] = field(default=lambda index: None)
    keep_inputs: bool = True

    def __post_init__(self) -> None:
        self.settings.check()

    def run(
        self, problem: Problem, masks: Mapping[str, Array], known: Mapping[Kernel, Array] | None = None
    ) -> Iterator[Result]:
        """Yield every kernel with a restored neuron, in data-flow order.

        A failed solve raises nothing: read `info.solve.outcome`.

        Args:
            problem: both models and their rows.
            masks: {path: bool (*stack, in)}, True for a restored neuron.
            known: new weights (in, out) of kernels that an interrupted run solved. The sweep uses them and yields only
                the other kernels.
        """
        # Local solves do not depend on each other, so that a known kernel is left out of the masks.
        left = without(masks, known) if known and self.settings.inputs == "local" else masks
        cases = [(self.settings, left)]
        for _, result in sweep_cases(problem, cases, on_block=self.on_block, known=known, keep_inputs=self.keep_inputs):
            yield result


def without(masks: Mapping[str, Array], kernels: Iterable[Kernel]) -> dict[str, Array]:
    """Return the masks with these kernels cleared."""
    left = {path: np.array(mask) for path, mask in masks.items()}
    for kernel in kernels:
        left[kernel.path][kernel.index] = False
    return {path: jnp.asarray(mask) for path, mask in left.items()}


def sweep_cases(
    problem: Problem,
    cases: Sequence[tuple[Settings, Mapping[str, Array]]],
    *,
    on_block: Callable[[int], None] = lambda index: None,
    known: Mapping[Kernel, Array] | None = None,
    keep_inputs: bool = True,
) -> Iterator[tuple[int, Result]]:
    """Yield (place of the case, result) for every restored kernel of every case.

    Cases with local inputs and the same `moments_at` share one walk and come block by block. Each case with propagated
    inputs pays for a sweep of its own; these come last, one after another.

    Args:
        problem: both models and their rows.
        cases: settings and masks.
        on_block: called with a block's index when the block is done.
        known: as in `Sweep.run`, for propagated inputs alone.
        keep_inputs: as in `Sweep`.

    Raises:
        InputError: settings without a sweep.
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
