"""A model seen as embedding, blocks and a loss, and the small compiled programs that walk rows through it.

The block sweep (`run`) and the block-wise scores (`scores`) read models in this form. Parameters are
only ever asked for one block at a time, so that they may be a tree in memory or something that reads a block from a
disk when it is asked.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Bool, Float

from hcnr_jax.method.curvature import capture_inputs
from hcnr_jax.method.neurons import Kernel, Params

Hidden = Any
Batch = Any


class BlockModel(NamedTuple):
    """A model seen as embedding and blocks; a value, whose compiled programs are shared by all who hold it.

    embed: (outer params, batch) -> hidden. apply: (block params, hidden, batch, index) -> hidden, a plain Linen apply.
    block_params: (params, index) -> the block's subtree. token_mask: batch -> bool, True where a token counts, shaped
    like hidden without its last axis. groups: kernels that read the same input, in data-flow order, paths relative to
    the block. kernel: (index, relative path) -> which `Kernel` of the params that is. outer: params -> what `embed`
    and `loss` read of them. loss: (outer params, hidden after the last block, batch) -> (rows,), one loss a row;
    needed by `scores` alone. to_solver: (kernel, what its solve reads) -> the same where it is to be solved;
    from_solver: (kernel, new weights) -> the same where the block's other weights are. They move arrays and change
    none: with several devices, kernels that share an input are solved side by side.
    """

    num_blocks: int
    embed: Callable[[Params, Batch], Hidden]
    apply: Callable[[Params, Hidden, Batch, Any], Hidden]
    block_params: Callable[[Params, int], Params]
    token_mask: Callable[[Batch], Bool[Array, ...]]
    groups: tuple[tuple[str, ...], ...]
    kernel: Callable[[int, str], Kernel]
    outer: Callable[[Params], Params] = lambda params: params
    loss: Callable[[Params, Hidden, Batch], Float[Array, " b"]] | None = None
    to_solver: Callable[[Kernel, Any], Any] = lambda kernel, operands: operands
    from_solver: Callable[[Kernel, Array], Array] = lambda kernel, weights: weights

    @property
    def paths(self) -> tuple[str, ...]:
        """Every kernel's path relative to its block, in data-flow order."""
        return tuple(path for group in self.groups for path in group)


class Steps(NamedTuple):
    """The compiled pieces of a walk.

    apply: (block params, hidden, batch, index) -> next hidden.
    capture: (first, block params, hidden, batch, index, given) -> what the group that starts with `first` reads.
    finish: (block params, hidden, batch, index, given) -> next hidden.
    walk: (firsts, block params, batch, hidden, index) -> (next hidden, {first: input of its group}).
    given: {first: what its group reads}, of groups before; nothing that led to these is computed again.
    """

    embed: Callable[..., Hidden]
    apply: Callable[..., Hidden]
    capture: Callable[..., Array]
    finish: Callable[..., Hidden]
    walk: Callable[..., tuple[Hidden, dict[str, Array]]]


# Models whose programs stay compiled. A BlockModel is known by its functions: whoever builds it anew out of new lambdas
# compiles anew, and the oldest programs are then let go.
CACHED_MODELS = 16


@functools.lru_cache(maxsize=CACHED_MODELS)
def steps_of(model: BlockModel) -> Steps:
    """Compile the pieces of a walk once per model, so that a second run on the same model and shapes compiles nothing.

    Models that are equal, built of the same functions, share their programs.
    """
    return Steps(
        jax.jit(model.embed),
        jax.jit(model.apply),
        jax.jit(functools.partial(_capture, model), static_argnums=0),
        jax.jit(functools.partial(_finish, model)),
        jax.jit(functools.partial(_walk, model), static_argnums=0),
    )


def embed(model: BlockModel, params: Params, batch: Batch) -> Hidden:
    """The rows before the first block."""
    return steps_of(model).embed(model.outer(params), batch)


def _capture(
    model: BlockModel, first: str, block: Params, hidden: Hidden, batch: Batch, index: Any, given: Mapping[str, Array]
) -> Array:
    """What the group that starts with kernel `first` reads; what comes after it in the block is never computed."""
    known = _of_kernels(model, given)
    return capture_inputs(model.apply, [first], block, hidden, batch, index, given=known).inputs[first]


def _finish(
    model: BlockModel, block: Params, hidden: Hidden, batch: Batch, index: Any, given: Mapping[str, Array]
) -> Hidden:
    """The block's output from what its groups read."""
    return capture_inputs(model.apply, [], block, hidden, batch, index, given=_of_kernels(model, given)).output


def _of_kernels(model: BlockModel, given: Mapping[str, Array]) -> dict[str, Array]:
    """What groups read, by kernel."""
    return {path: given[group[0]] for group in model.groups if group[0] in given for path in group}


def _walk(
    model: BlockModel, firsts: Sequence[str], aim: Params, batch: Batch, x: Hidden, index: Any
) -> tuple[Hidden, dict[str, Array]]:
    """One block of one model, and what its groups read: one forward pass for all of them."""
    captured = capture_inputs(model.apply, firsts, aim, x, batch, index)
    return captured.output, captured.inputs
