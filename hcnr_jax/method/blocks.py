"""The block sweep: second moments and corrections one block at a time, in the order data flows.

`Sweep` runs one setting, `sweep_cases` any number of them for the price of their solves where inputs are local. Only
one block's moments are alive at a time. Beside them a sweep holds the hidden states of all rows, one copy for each
model it follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from jaxtyping import Array

from hcnr_jax.method.block_model import Batch, BlockModel
from hcnr_jax.method.kernel import Masks, Result, Settings
from hcnr_jax.method.local import Case, sweep_local
from hcnr_jax.method.neurons import Params
from hcnr_jax.method.propagated import sweep_propagated

__all__ = ["BlockModel", "Result", "Settings", "Sweep", "sweep_cases"]


@dataclass
class Sweep:
    """Runs the block sweep. Iterate over `run()`; one compilation per group, side and shape, whatever the depth.

    InputError for settings without a sweep: method 'none', and 'paper' with propagated inputs.
    """

    model: BlockModel
    settings: Settings
    on_block: Callable[[int], None] = field(default=lambda index: None)

    def __post_init__(self) -> None:
        self.settings.check()

    def run(
        self,
        base: Params,
        tuned: Params,
        masks: Mapping[str, Array],
        honesty: Sequence[Batch],
        task: Sequence[Batch],
    ) -> Iterator[Result]:
        """Yield every kernel with a restored neuron, in data-flow order.

        masks: {path: bool (*stack, in)}. honesty, task: microbatches; each shape among them compiles once. Base and
        tuned must hold the same tree. Nothing is raised for a failed solve: read `info.solve.outcome`.
        """
        for _, result in sweep_cases(self.model, [(self.settings, masks)], base, tuned, honesty, task, self.on_block):
            yield result


def sweep_cases(
    model: BlockModel,
    cases: Sequence[tuple[Settings, Mapping[str, Array]]],
    base: Params,
    tuned: Params,
    honesty: Sequence[Batch],
    task: Sequence[Batch],
    on_block: Callable[[int], None] = lambda index: None,
) -> Iterator[tuple[int, Result]]:
    """(place of the case, result) for every restored kernel of every case (settings, masks).

    Cases with local inputs and the same `moments_at` share one walk and come block by block; those with propagated
    inputs each pay a sweep of their own and come one after the other.
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
            for result in sweep_propagated(model, settings, masks, base, tuned, honesty, task, on_block):
                yield place, result
