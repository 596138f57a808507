"""The block sweep: second moments and corrections one block at a time, in the order data flows.

Local inputs: every kernel is solved as if those before it still gave base inputs on honesty tokens (tuned ones with
`moments_at: tuned`) and tuned inputs on task tokens. Propagated inputs: q, k, v, then o, then gate, up, then down,
block by
block, each solved against what it meets in the model restored so far, so that errors made early are seen and mended
later.

Only one group's moments are alive at a time. Beside them the sweep holds the hidden states of all rows, one copy for
each
model it follows: base and restored on honesty rows, tuned and restored on task rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from hcnr_jax.errors import InputError
from hcnr_jax.method.compensate import Info, Method, Pair, choose_form, compensate
from hcnr_jax.method.curvature import Inputs, Moments, capture_inputs, init_moments, mean_moments, update_moments
from hcnr_jax.method.neurons import Kernel, Params, get_leaves, put_leaves, wide

Hidden = Any
Batch = Any


class BlockModel(NamedTuple):
    """A model seen as embedding and blocks; what the sweep needs to know of it.

    embed: (params, batch) -> hidden. apply: (block_params, hidden, batch, index) -> hidden, a plain Linen apply.
    block_params: (params, index) -> the block's subtree. token_mask: batch -> bool, True where a token counts, shaped
    like
    hidden without its last axis. groups: kernels that read the same input, in data-flow order, paths relative to the
    block.
    kernel: (index, relative path) -> which `Kernel` of the params that is.
    """

    num_blocks: int
    embed: Callable[[Params, Batch], Hidden]
    apply: Callable[[Params, Hidden, Batch, Any], Hidden]
    block_params: Callable[[Params, int], Params]
    token_mask: Callable[[Batch], Bool[Array, ...]]
    groups: tuple[tuple[str, ...], ...]
    kernel: Callable[[int, str], Kernel]


class Settings(NamedTuple):
    """How to compensate; METHOD stage 2."""

    method: Method = "two_sided"
    inputs: Literal["local", "propagated"] = "propagated"
    solver: Literal["dense", "cg"] = "dense"
    damping: float = 0.01
    task_weight: float = 2.0
    moments_at: Literal["base", "tuned"] = "base"


class Result(NamedTuple):
    """One kernel done: its new weights (in, out) in the stored dtype of tuned, the form of the solve, what to
    report."""

    kernel: Kernel
    weights: Array
    form: str
    tokens: int
    info: Info


@dataclass
class _Stream:
    """The hidden states of one set of rows in one model, microbatch by microbatch."""

    batches: Sequence[Batch]
    hidden: list[Hidden]


@dataclass(frozen=True)
class _Side:
    """Honesty or task rows: the model whose outputs are the aim, and the model restored so far (None: local inputs)."""

    reference: _Stream
    now: _Stream | None
    masks: list[np.ndarray]
    tokens: int


@dataclass
class Sweep:
    """Runs the block sweep. Iterate over `run()`; one compilation per group, side and shape, whatever the depth.

    InputError for settings without a sweep: method 'none', and 'paper' with propagated inputs.
    """

    model: BlockModel
    settings: Settings
    on_block: Callable[[int], None] = field(default=lambda index: None)

    def __post_init__(self) -> None:
        method, inputs = self.settings.method, self.settings.inputs
        if method == "none":
            raise InputError("method 'none' has nothing to solve: call `restore` of hcnr_jax.method.restore instead")
        if method == "paper" and inputs == "propagated":
            raise InputError("method 'paper' has no propagated form: use inputs 'local', or 'exact' or 'two_sided'")
        self._steps = _compiled(self.model)

    def run(
        self,
        base: Params,
        tuned: Params,
        masks: Mapping[str, Array],
        honesty: Sequence[Batch],
        task: Sequence[Batch],
    ) -> Iterator[Result]:
        """Yield every kernel with a restored neuron, in data-flow order.

        masks: {path: bool (*stack, in)}. honesty, task: microbatches; all of one shape compile once. Base and tuned
        must hold the same tree. Nothing is raised for a failed solve: read `info.solve.outcome`.
        """
        rows = {path: np.asarray(mask) for path, mask in masks.items()}
        sides = self._sides(base, tuned, honesty, task)
        last = max((k for k in range(self.model.num_blocks) if self._kept(rows, k)), default=-1)
        for index in range(last + 1):
            blocks = _Blocks(self.model.block_params(base, index), self.model.block_params(tuned, index))
            for group in self.model.groups:
                kept = [path for path in group if self._mask(rows, index, path).any()]
                if kept:
                    for result in self._group(index, group[0], kept, rows, blocks, sides):
                        relative = kept[result[0]]
                        blocks.now = put_leaves(blocks.now, {relative: result[1].weights})
                        yield result[1]
            if index < last:
                self._advance(index, blocks, sides)
            self.on_block(index)

    def _mask(self, rows: Mapping[str, np.ndarray], index: int, path: str) -> np.ndarray:
        kernel = self.model.kernel(index, path)
        return rows[kernel.path][kernel.index] if kernel.path in rows else np.zeros(1, bool)

    def _kept(self, rows: Mapping[str, np.ndarray], index: int) -> bool:
        return any(self._mask(rows, index, path).any() for group in self.model.groups for path in group)

    def _sides(
        self, base: Params, tuned: Params, honesty: Sequence[Batch], task: Sequence[Batch]
    ) -> tuple[_Side, _Side | None]:
        propagated = self.settings.inputs == "propagated"

        def stream(params: Params, batches: Sequence[Batch]) -> _Stream:
            return _Stream(batches, [self._steps.embed(params, batch) for batch in batches])

        def side(aim: Params, batches: Sequence[Batch]) -> _Side:
            masks = [np.asarray(self.model.token_mask(batch)) for batch in batches]
            now = stream(tuned, batches) if propagated else None
            return _Side(stream(aim, batches), now, masks, int(sum(mask.sum() for mask in masks)))

        aim = base if self.settings.moments_at == "base" or propagated else tuned
        return side(aim, honesty), side(tuned, task) if self.settings.method == "two_sided" else None

    def _advance(self, index: int, blocks: _Blocks, sides: tuple[_Side, _Side | None]) -> None:
        def through(params: Params, stream: _Stream | None) -> None:
            if stream is not None:
                stream.hidden = [
                    self._steps.apply(params, hidden, batch, index)
                    for hidden, batch in zip(stream.hidden, stream.batches, strict=True)
                ]

        honesty, task = sides
        through(self._honesty_aim(blocks), honesty.reference)
        through(blocks.now, honesty.now)
        if task is not None:
            through(blocks.tuned, task.reference)
            through(blocks.now, task.now)

    def _honesty_aim(self, blocks: _Blocks) -> Params:
        local_at_tuned = self.settings.inputs == "local" and self.settings.moments_at == "tuned"
        return blocks.tuned if local_at_tuned else blocks.base

    def _group(
        self,
        index: int,
        first: str,
        kept: Sequence[str],
        rows: Mapping[str, np.ndarray],
        blocks: _Blocks,
        sides: tuple[_Side, _Side | None],
    ) -> Iterator[tuple[int, Result]]:
        honesty, task = sides
        tokens = honesty.tokens + (task.tokens if task else 0)
        counts = {path: int(self._mask(rows, index, path).sum()) for path in kept}
        s = self.settings
        forms = {path: choose_form(s.method, s.solver, tokens, counts[path], s.damping) for path in kept}
        statistics: dict[bool, tuple[Any, Any]] = {}
        for place, path in enumerate(kept):
            as_moments = forms[path] == "moments"
            if as_moments not in statistics:
                statistics[as_moments] = (
                    self._statistic(as_moments, index, first, self._honesty_aim(blocks), blocks.now, honesty),
                    self._statistic(as_moments, index, first, blocks.tuned, blocks.now, task),
                )
            mask = self._mask(rows, index, path)
            old, new = get_leaves(blocks.base, [path])[path], get_leaves(blocks.tuned, [path])[path]
            restored, others = jnp.asarray(np.flatnonzero(mask)), jnp.asarray(np.flatnonzero(~mask))
            weights, info = _solve_kernel(
                s.method, forms[path], old, new, restored, others, *statistics[as_moments], s.task_weight, s.damping
            )
            yield place, Result(self.model.kernel(index, path), weights, forms[path], tokens, info)

    def _statistic(
        self, as_moments: bool, index: int, first: str, aim: Params, now: Params, side: _Side | None
    ) -> Moments | Inputs | None:
        """Moments (as means) or the tokens themselves of what one group of kernels reads."""
        if side is None:
            return None
        arguments = zip(
            side.reference.batches,
            side.reference.hidden,
            side.now.hidden if side.now else [None] * len(side.masks),
            strict=True,
        )
        current = now if side.now else None
        if not as_moments:
            seen = [self._steps.tokens(first, aim, current, batch, x, y, index) for batch, x, y in arguments]
            return _gather(seen, side.masks)
        fan_in = get_leaves(aim, [first])[first].shape[-2]
        moments = init_moments(fan_in, side.now is not None, wide(side.reference.hidden[0].dtype))
        for batch, x, y in arguments:
            moments = self._steps.moments(first, moments, aim, current, batch, x, y, index)
        return mean_moments(moments)


class _Steps(NamedTuple):
    """The compiled pieces of a sweep."""

    embed: Callable[..., Any]
    apply: Callable[..., Any]
    moments: Callable[..., Moments]
    tokens: Callable[..., Any]


@functools.cache
def _compiled(model: BlockModel) -> _Steps:
    """Compiled once per model, not per sweep: a second run on the same model and shapes compiles nothing."""
    return _Steps(
        jax.jit(model.embed),
        jax.jit(model.apply),
        jax.jit(partial(_add_moments, model), static_argnums=0, donate_argnums=1),
        jax.jit(partial(_captured_group, model), static_argnums=0),
    )


@dataclass
class _Blocks:
    """One block in three models; `now` takes each correction as it is made."""

    base: Params
    tuned: Params

    def __post_init__(self) -> None:
        self.now = self.tuned


def _captured_group(
    model: BlockModel,
    first: str,
    aim: Params,
    now: Params | None,
    batch: Batch,
    x: Hidden,
    y: Hidden | None,
    index: Any,
) -> tuple[Array, Array | None]:
    """What the group that starts with kernel `first` reads: (x', x), or (x, None) for local inputs."""
    reference = capture_inputs(model.apply, [first], aim, x, batch, index).inputs[first]
    if now is None:
        return reference, None
    return capture_inputs(model.apply, [first], now, y, batch, index).inputs[first], reference


def _add_moments(
    model: BlockModel,
    first: str,
    moments: Moments,
    aim: Params,
    now: Params | None,
    batch: Batch,
    x: Hidden,
    y: Hidden | None,
    index: Any,
) -> Moments:
    current, reference = _captured_group(model, first, aim, now, batch, x, y, index)
    return update_moments(moments, current, reference, jnp.asarray(model.token_mask(batch)))


def _gather(seen: Sequence[tuple[Array, Array | None]], masks: Sequence[np.ndarray]) -> Inputs:
    """The real tokens of all microbatches, one row each; padding dropped on the host, where the masks are."""

    def rows(arrays: list[Array]) -> Array:
        dtype = wide(arrays[0].dtype)
        flat = [
            array.reshape(-1, array.shape[-1])[np.flatnonzero(mask.reshape(-1))]
            for array, mask in zip(arrays, masks, strict=True)
        ]
        return jnp.concatenate(flat).astype(dtype)

    now = rows([current for current, _ in seen])
    references = [reference for _, reference in seen if reference is not None]
    return Inputs(now, now - rows(references) if references else None)


@partial(jax.jit, static_argnums=(0, 1))
def _solve_kernel(
    method: Method,
    form: str,
    base: Float[Array, "i o"],
    tuned: Float[Array, "i o"],
    restored: Array,
    others: Array,
    honesty: Moments | Inputs,
    task: Moments | Inputs | None,
    weight: float | Array,
    damping: float | Array,
) -> tuple[Array, Info]:
    """One kernel, solved in the statistics' precision; rows that are not restored keep tuned's very bits."""
    dtype = honesty.inputs.dtype
    pair = Pair(base.astype(dtype), tuned.astype(dtype), restored, others)
    weights, info = compensate(method, form, pair, honesty, task, weight, damping)
    return tuned.at[restored].set(weights[restored].astype(tuned.dtype)), info
