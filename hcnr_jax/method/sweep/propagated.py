"""The sweep with propagated inputs: each kernel is solved on the inputs that the kernels restored before it produce.

The order is q, k, v, then o, then gate, up, then down, block by block, so that errors made early are seen and corrected
later. Two models are followed on each set of rows: the aim (base on honesty rows, tuned on task rows) and the model
restored so far. Where memory has room for what a group reads until its block is done, each model runs a block once: the
rest of the block is computed from there, with the group's new weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Array

from hcnr_jax.method.curvature import Inputs, Moments
from hcnr_jax.method.neurons import Kernel, Params, put_leaves
from hcnr_jax.method.sweep.model import Batch, BlockModel
from hcnr_jax.method.sweep.problem import Problem
from hcnr_jax.method.sweep.solve_kernel import Case, Result, Statistics, form_of, solve_block_kernel
from hcnr_jax.method.sweep.streams import Accumulator, Stream, count_tokens, token_masks


@dataclass(frozen=True)
class _Side:
    """One set of rows in the model whose outputs are the aim and in the model restored so far."""

    model: BlockModel
    aim: Stream
    now: Stream
    masks: list[np.ndarray]
    distances: bool

    def advance(self, aim: Params, now: Params, index: int) -> None:
        self.aim.advance(self.model, aim, index)
        self.now.advance(self.model, now, index)

    def statistics(
        self, first: str, blocks: tuple[Params, Params], index: int, forms: set[str]
    ) -> dict[bool, Moments | Inputs]:
        """Gather what the group that starts with `first` reads, as the forms of its solves need it.

        Without a form nothing is gathered. blocks: the aim's and the restored model's.
        """
        sums = Accumulator("moments" in forms, bool(forms - {"moments"}), self.distances)
        for place, mask in enumerate(self.masks):
            met, meant = (
                stream.capture(self.model, first, block, index, place)
                for stream, block in ((self.now, blocks[1]), (self.aim, blocks[0]))
            )
            if forms:
                sums.add(met, meant, mask)
        return sums.result()


def sweep_propagated(
    problem: Problem,
    case: Case,
    *,
    known: Mapping[Kernel, Array],
    on_block: Callable[[int], None],
    keep_inputs: bool = True,
) -> Iterator[Result]:
    """Yield every kernel with a restored neuron, in data-flow order.

    Args:
        problem: both models and their rows.
        case: settings and masks.
        known: kernels that are solved already: their weights are used, and they are not yielded.
        on_block: called with a block's index when the block is done.
        keep_inputs: as `Stream.keep`.
    """
    model, settings, masks = problem.model, case.settings, case.masks

    def side(aim: Params, batches: Sequence[Batch], distances: bool) -> _Side:
        now = Stream.start(model, problem.tuned, batches, keep_inputs)
        start = Stream.start(model, aim, batches, keep_inputs)
        return _Side(model, start, now, token_masks(model, batches), distances)

    last = masks.last_block()
    honesty = side(problem.base, problem.honesty, True)
    task = side(problem.tuned, problem.task, False) if settings.objective.reads_task else None
    tokens = count_tokens(honesty.masks) + (count_tokens(task.masks) if task else 0)
    for index in range(last + 1):
        old, new = problem.blocks(index)
        now = new
        for group in model.groups:
            wanted = {path: model.kernel(index, path) for path in masks.kept(index, group)}
            done = {path: model.from_solver(k, known[k]) for path, k in wanted.items() if k in known}
            now = put_leaves(now, done)
            kept = [path for path in wanted if path not in done]
            # With inputs kept, groups without a kernel to solve are seen too: nothing is then computed twice.
            if not masks.kept(index, model.paths if keep_inputs else group):
                continue
            forms = {form_of(settings, tokens, masks.of_kernel(index, path)) for path in kept}
            on_honesty = honesty.statistics(group[0], (old, now), index, forms)
            on_task = task.statistics(group[0], (new, now), index, forms) if task else {}
            read = Statistics(on_honesty, on_task, tokens)
            for path in kept:
                result = solve_block_kernel(
                    model, case, (index, path), blocks=(old, new), statistics=read, adapter=problem.adapter
                )
                now = put_leaves(now, {path: model.from_solver(result.kernel, result.weights)})
                yield result
        if index < last:
            honesty.advance(old, now, index)
            if task:
                task.advance(new, now, index)
        on_block(index)
