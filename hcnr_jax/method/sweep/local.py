"""The sweep with local inputs: every kernel is solved as if those before it still gave their old inputs.

Base inputs on honesty tokens (tuned ones with `moments_at: tuned`), tuned inputs on task tokens. They depend on no
setting and no mask, so that any number of cases shares one walk through the model and one set of statistics a block.
Only the solves are paid for, and those once: a kernel's neurons are chosen without a look at the other kernels, so that
cases which differ in the number of kept kernels alone ask for the same solution of every kernel they share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from hcnr_jax.errors import InputError
from hcnr_jax.method.neurons import Params
from hcnr_jax.method.sweep.kernel import Masks, Result, Settings, form_of, solve_block_kernel
from hcnr_jax.method.sweep.model import Batch, BlockModel, steps_of
from hcnr_jax.method.sweep.streams import Accumulator, Statistics, Stream, count_tokens, token_masks


class Case(NamedTuple):
    """One setting with its masks."""

    settings: Settings
    masks: Masks


@dataclass
class _Side:
    """One set of rows in one model. `wanted`: which cases read it."""

    model: BlockModel
    stream: Stream
    wanted: list[int]
    distances: bool
    masks: list[np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        self.masks = token_masks(self.model, self.stream.batches)

    def walk(self, block: Params, index: int, forms: dict[str, set[str]]) -> dict[str, Statistics]:
        """Through one block; statistics by group (its first kernel), as the forms of its solves need them."""
        sums = {
            first: Accumulator("moments" in needed, bool(needed - {"moments"}), self.distances)
            for first, needed in forms.items()
        }
        walk, firsts = steps_of(self.model).walk, tuple(group[0] for group in self.model.groups)
        for place, (batch, mask) in enumerate(zip(self.stream.batches, self.masks, strict=True)):
            hidden, inputs = walk(firsts, block, batch, self.stream.hidden[place], index)
            self.stream.hidden[place] = hidden
            for first, accumulator in sums.items():
                accumulator.add(inputs[first], None, mask)
        return {first: accumulator.result() for first, accumulator in sums.items()}


def sweep_local(
    model: BlockModel,
    cases: Sequence[Case],
    base: Params,
    tuned: Params,
    honesty: Sequence[Batch],
    task: Sequence[Batch],
    on_block: Callable[[int], None],
) -> Iterator[tuple[int, Result]]:
    """(case, result) of every kernel with a restored neuron: block by block, then group by group, then case by case.

    InputError where the cases' `moments_at` differ: their honesty inputs are not the same.
    """
    at = {case.settings.moments_at for case in cases}
    if len(at) > 1:
        raise InputError(f"cases of one local sweep must share moments_at, got {', '.join(sorted(at))}")
    two_sided = [i for i, case in enumerate(cases) if case.settings.objective.reads_task]
    aim = base if at == {"base"} else tuned
    sides = [_Side(model, Stream.start(model, aim, honesty), list(range(len(cases))), True)]
    if two_sided:
        sides.append(_Side(model, Stream.start(model, tuned, task), two_sided, False))
    counts = [count_tokens(side.masks) for side in sides]
    tokens = [sum(counts) if i in two_sided else counts[0] for i in range(len(cases))]
    for index in range(max((case.masks.last_block() for case in cases), default=-1) + 1):
        blocks = model.block_params(base, index), model.block_params(tuned, index)
        walked = [
            side.walk(
                blocks[at == {"tuned"}] if place == 0 else blocks[1], index, _forms(model, cases, side, tokens, index)
            )
            for place, side in enumerate(sides)
        ]
        for group in model.groups:
            solved: dict[tuple[Settings, str, bytes], Result] = {}
            for number, case in enumerate(cases):
                for path in case.masks.kept(index, group):
                    mask = case.masks.of_kernel(index, path)
                    asked = (case.settings, path, mask.tobytes())
                    if asked not in solved:
                        as_moments = form_of(case.settings, tokens[number], mask) == "moments"
                        on_task = walked[1][group[0]][as_moments] if number in two_sided else None
                        solved[asked] = solve_block_kernel(
                            model, case.settings, index, path, mask, blocks,
                            walked[0][group[0]][as_moments], on_task, tokens[number],
                        )  # fmt: skip
                    yield number, solved[asked]
        on_block(index)


def _forms(
    model: BlockModel, cases: Sequence[Case], side: _Side, tokens: Sequence[int], index: int
) -> dict[str, set[str]]:
    """By group with a kept kernel, its first kernel: the forms in which the side's cases solve it."""
    forms: dict[str, set[str]] = {}
    for number in side.wanted:
        settings, masks = cases[number]
        for group in model.groups:
            for path in masks.kept(index, group):
                form = form_of(settings, tokens[number], masks.of_kernel(index, path))
                forms.setdefault(group[0], set()).add(form)
    return forms
