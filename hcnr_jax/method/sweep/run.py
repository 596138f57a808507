"""The block sweep: second moments and corrections one block at a time, in the order data flows.

`Sweep` runs one setting, `sweep_cases` any number of them for the price of their solves where inputs are local. Only
one block's moments are alive at a time. Beside them a sweep holds the hidden states of all rows, one copy for each
model it follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from hcnr_jax.method.neurons import Kernel, Params
from hcnr_jax.method.sweep.kernel import Masks, Result, Settings
from hcnr_jax.method.sweep.local import Case, sweep_local
from hcnr_jax.method.sweep.model import Batch, BlockModel
from hcnr_jax.method.sweep.propagated import sweep_propagated

__all__ = ["BlockModel", "Result", "Settings", "Sweep", "sweep_cases"]


@dataclass
class Sweep:
    """Runs the block sweep. Iterate over `run()`; one compilation per group, side and shape, whatever the depth.

    keep_inputs: with propagated inputs, keep what a block's groups read (one float32 array of rows x tokens x in for
    each group and followed model), or go through the block once a group instead: the same numbers.

    InputError for settings without a sweep: method 'none', and 'paper' with propagated inputs.
    """

    model: BlockModel
    settings: Settings
    on_block: Callable[[int], None] = field(default=lambda index: None)
    keep_inputs: bool = True

    def __post_init__(self) -> None:
        self.settings.check()

    def run(
        self,
        base: Params,
        tuned: Params,
        masks: Mapping[str, Array],
        honesty: Sequence[Batch],
        task: Sequence[Batch],
        known: Mapping[Kernel, Array] | None = None,
    ) -> Iterator[Result]:
        """Yield every kernel with a restored neuron, in data-flow order.

        masks: {path: bool (*stack, in)}. honesty, task: microbatches; each shape among them compiles once. Base and
        tuned must hold the same tree. known: new weights (in, out) of kernels that an interrupted run solved; they are
        put in, not solved and not yielded. Nothing is raised for a failed solve: read `info.solve.outcome`.
        """
        # Local solves know nothing of each other: a kernel that is done is one that is not asked for.
        left = without(masks, known) if known and self.settings.inputs == "local" else masks
        cases = [(self.settings, left)]
        for _, result in sweep_cases(
            self.model, cases, base, tuned, honesty, task, self.on_block, known, self.keep_inputs
        ):
            yield result


def without(masks: Mapping[str, Array], kernels: Iterable[Kernel]) -> dict[str, Array]:
    """The masks cleared at these kernels."""
    left = {path: np.array(mask) for path, mask in masks.items()}
    for kernel in kernels:
        left[kernel.path][kernel.index] = False
    return {path: jnp.asarray(mask) for path, mask in left.items()}


def sweep_cases(
    model: BlockModel,
    cases: Sequence[tuple[Settings, Mapping[str, Array]]],
    base: Params,
    tuned: Params,
    honesty: Sequence[Batch],
    task: Sequence[Batch],
    on_block: Callable[[int], None] = lambda index: None,
    known: Mapping[Kernel, Array] | None = None,
    keep_inputs: bool = True,
) -> Iterator[tuple[int, Result]]:
    """(place of the case, result) for every restored kernel of every case (settings, masks).

    Cases with local inputs and the same `moments_at` share one walk and come block by block; those with propagated
    inputs each pay a sweep of their own and come one after the other. known: see `Sweep.run`, and
    keep_inputs: see `Sweep`; of propagated ones.
    """
    for settings, _ in cases:
        settings.check()
    opened = [Case(settings, Masks.of(model, masks)) for settings, masks in cases]
    for at in ("base", "tuned"):
        places = [i for i, (s, _) in enumerate(opened) if s.inputs == "local" and s.moments_at == at]
        if places:
            shared = [opened[i] for i in places]
            for number, result in sweep_local(model, shared, base, tuned, honesty, task, on_block):
                yield places[number], result
    for place, (settings, masks) in enumerate(opened):
        if settings.inputs == "propagated":
            for result in sweep_propagated(
                model, settings, masks, base, tuned, honesty, task, on_block, known or {}, keep_inputs
            ):
                yield place, result
