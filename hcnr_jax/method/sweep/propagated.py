"""The sweep with propagated inputs: every kernel meets what the kernels restored before it leave.

q, k, v, then o, then gate, up, then down, block by block, each solved against the inputs of the model restored so far,
so that errors made early are seen and mended later. Two models are followed on each set of rows: the aim (base on
honesty rows, tuned on task rows) and the restored one. With room to keep what a group reads until the block is done,
each goes through a block once: what comes after the group is computed from there with its new weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Array

from hcnr_jax.method.neurons import Kernel, Params, put_leaves
from hcnr_jax.method.sweep.kernel import Masks, Result, Settings, form_of, solve_block_kernel
from hcnr_jax.method.sweep.model import Batch, BlockModel
from hcnr_jax.method.sweep.streams import Accumulator, Statistics, Stream, count_tokens, token_masks


@dataclass(frozen=True)
class _Side:
    """One set of rows in the model whose outputs are the aim and in the model restored so far."""

    aim: Stream
    now: Stream
    masks: list[np.ndarray]
    distances: bool

    @classmethod
    def start(
        cls, model: BlockModel, aim: Params, tuned: Params, batches: Sequence[Batch], distances: bool, keep: bool
    ) -> _Side:
        start = Stream.start(model, tuned, batches, keep)
        return cls(Stream.start(model, aim, batches, keep), start, token_masks(model, batches), distances)

    def advance(self, model: BlockModel, aim: Params, now: Params, index: int) -> None:
        self.aim.advance(model, aim, index)
        self.now.advance(model, now, index)

    def statistics(
        self, model: BlockModel, first: str, aim: Params, now: Params, index: int, forms: set[str]
    ) -> Statistics:
        """Of what the group that starts with `first` reads, as the forms of its solves need them; none for no form."""
        sums = Accumulator("moments" in forms, bool(forms - {"moments"}), self.distances)
        for place, mask in enumerate(self.masks):
            met, meant = (stream.capture(model, first, block, index, place)
                          for stream, block in ((self.now, now), (self.aim, aim)))  # fmt: skip
            if forms:
                sums.add(met, meant, mask)
        return sums.result()


def sweep_propagated(
    model: BlockModel,
    settings: Settings,
    masks: Masks,
    base: Params,
    tuned: Params,
    honesty: Sequence[Batch],
    task: Sequence[Batch],
    on_block: Callable[[int], None],
    known: Mapping[Kernel, Array],
    keep_inputs: bool = True,
) -> Iterator[Result]:
    """Every kernel with a restored neuron, in data-flow order, but for those of `known`, which are put in unsolved.

    keep_inputs: `Stream.keep`.
    """
    two_sided, last = settings.objective.reads_task, masks.last_block()
    first_side = _Side.start(model, base, tuned, honesty, True, keep_inputs)
    second_side = _Side.start(model, tuned, tuned, task, False, keep_inputs) if two_sided else None
    tokens = count_tokens(first_side.masks) + (count_tokens(second_side.masks) if second_side else 0)
    for index in range(last + 1):
        old, new = model.block_params(base, index), model.block_params(tuned, index)
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
            on_honesty = first_side.statistics(model, group[0], old, now, index, forms)
            on_task = second_side.statistics(model, group[0], new, now, index, forms) if second_side else {}
            for path in kept:
                mask = masks.of_kernel(index, path)
                as_moments = form_of(settings, tokens, mask) == "moments"
                result = solve_block_kernel(
                    model, settings, index, path, mask, (old, new),
                    on_honesty[as_moments], on_task.get(as_moments), tokens,
                )  # fmt: skip
                now = put_leaves(now, {path: model.from_solver(result.kernel, result.weights)})
                yield result
        if index < last:
            first_side.advance(model, old, now, index)
            if second_side:
                second_side.advance(model, new, now, index)
        on_block(index)
