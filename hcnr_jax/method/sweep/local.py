"""The sweep with local inputs: each kernel is solved on the inputs it had before any kernel was restored.

These are base inputs on honesty tokens (tuned ones with `moments_at: tuned`) and tuned inputs on task tokens. They
depend on no setting and no mask, so that any number of cases shares one walk through the model and one set of
statistics a block. A kernel's neurons are chosen without regard to other kernels. Cases that differ in the number of
kept kernels alone therefore share the solution of every kernel they have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from hcnr_jax.errors import InputError
from hcnr_jax.method.curvature import Inputs, Moments
from hcnr_jax.method.neurons import Params
from hcnr_jax.method.sweep.model import BlockModel, steps_of
from hcnr_jax.method.sweep.problem import Problem
from hcnr_jax.method.sweep.solve_kernel import Case, Result, Settings, Statistics, form_of, solve_block_kernel
from hcnr_jax.method.sweep.streams import Accumulator, Stream, count_tokens, token_masks


@dataclass
class _Side:
    """One set of rows in one model. `wanted`: the places of the cases that read it."""

    model: BlockModel
    stream: Stream
    wanted: list[int]
    distances: bool
    masks: list[np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        self.masks = token_masks(self.model, self.stream.batches)

    def walk(self, block: Params, index: int, forms: dict[str, set[str]]) -> dict[str, dict[bool, Moments | Inputs]]:
        """Run one block; return statistics by group (its first kernel), as the forms of its solves need them."""
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
    problem: Problem, cases: Sequence[Case], on_block: Callable[[int], None]
) -> Iterator[tuple[int, Result]]:
    """Yield (case, result) of every kernel with a restored neuron: by block, then by group, then by case.

    Raises:
        InputError: the cases' `moments_at` differ, so that their honesty inputs do too.
    """
    model, base, tuned = problem.model, problem.base, problem.tuned
    at = {case.settings.moments_at for case in cases}
    if len(at) > 1:
        raise InputError(f"cases of one local sweep must share moments_at, got {', '.join(sorted(at))}")
    two_sided = [i for i, case in enumerate(cases) if case.settings.objective.reads_task]
    aim = base if at == {"base"} else tuned
    sides = [_Side(model, Stream.start(model, aim, problem.honesty), list(range(len(cases))), True)]
    if two_sided:
        sides.append(_Side(model, Stream.start(model, tuned, problem.task), two_sided, False))
    counts = [count_tokens(side.masks) for side in sides]
    tokens = [sum(counts) if i in two_sided else counts[0] for i in range(len(cases))]
    for index in range(max((case.masks.last_block() for case in cases), default=-1) + 1):
        blocks = problem.blocks(index)
        walked = [
            side.walk(blocks[at == {"tuned"}] if place == 0 else blocks[1], index, _forms(cases, side, tokens, index))
            for place, side in enumerate(sides)
        ]
        for group in model.groups:
            solved: dict[tuple[Settings, str, bytes], Result] = {}
            for number, case in enumerate(cases):
                for path in case.masks.kept(index, group):
                    asked = (case.settings, path, case.masks.of_kernel(index, path).tobytes())
                    if asked not in solved:
                        on_task = walked[1][group[0]] if number in two_sided else {}
                        read = Statistics(walked[0][group[0]], on_task, tokens[number])
                        solved[asked] = solve_block_kernel(
                            model, case, (index, path), blocks=blocks, statistics=read, adapter=problem.adapter
                        )
                    yield number, solved[asked]
        on_block(index)


def _forms(cases: Sequence[Case], side: _Side, tokens: Sequence[int], index: int) -> dict[str, set[str]]:
    """Collect, by each group's first kernel, the forms in which the side's cases solve the group's kept kernels."""
    forms: dict[str, set[str]] = {}
    for number in side.wanted:
        settings, masks = cases[number]
        for group in side.model.groups:
            for path in masks.kept(index, group):
                form = form_of(settings, tokens[number], masks.of_kernel(index, path))
                forms.setdefault(group[0], set()).add(form)
    return forms
