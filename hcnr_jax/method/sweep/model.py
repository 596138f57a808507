"""Describe a model as embedding, blocks and a loss, and compile the small programs that pass rows through the model.

The block sweep (`run`) and the block-wise scores (`scores`) read models in this form. They ask for the parameters of
one block at a time. The parameters can therefore be a tree in memory, or an object that reads a block from disk on
request.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float

from hcnr_jax.method.curvature import capture_inputs
from hcnr_jax.method.neurons import Kernel, Params
from hcnr_jax.method.program import Program

Hidden = Any
Batch = Any


class BlockModel(NamedTuple):
    """Describes a model as embedding and blocks. Equal descriptions share their compiled programs.

    Args:
        num_blocks: the number of blocks.
        embed: (outer params, batch) -> hidden states before the first block.
        apply: (block params, hidden, batch, index) -> hidden states after the block, by a plain Linen apply.
        block_params: (params, index) -> the subtree of one block.
        token_mask: batch -> bool, True where a token counts, shaped like hidden without its last axis.
        groups: kernels that read the same input, in data-flow order, as paths relative to the block.
        kernel: (index, relative path) -> the `Kernel` of the params at that place.
        outer: params -> the part that `embed` and `loss` read.
        loss: (outer params, hidden after the last block, batch) -> (rows,), one loss L per row. Only `scores` needs it.
        to_solver: (kernel, operands of its solve) -> the same operands on the device that solves the kernel.
        from_solver: (kernel, new weights) -> the same weights on the device of the block's other weights. Both
            functions move arrays without changing values. With several devices, kernels that share an input are solved
            in parallel.

    >>> import jax
    >>> model = BlockModel(
    ...     num_blocks=2,
    ...     embed=lambda params, batch: 10 * batch,
    ...     apply=lambda block, hidden, batch, index: hidden @ block["q"]["kernel"],
    ...     block_params=lambda params, index: params[index],
    ...     token_mask=lambda batch: batch[..., 0] != 0,
    ...     groups=(("q/kernel", "k/kernel"), ("o/kernel",)),
    ...     kernel=lambda index, path: Kernel(f"block_{index}/{path}", ()),
    ... )
    >>> model.paths
    ('q/kernel', 'k/kernel', 'o/kernel')
    >>> embed(model, {}, jax.numpy.ones((1, 2))).tolist()
    [[10.0, 10.0]]
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
        """List every kernel's path relative to its block, in data-flow order."""
        return tuple(path for group in self.groups for path in group)


class Steps(NamedTuple):
    """Holds the compiled programs that pass rows through a model.

    `first` names a group by its first kernel. `given` is {first: inputs} of earlier groups in the block. No program
    computes again what only led to these inputs.

    Args:
        embed: (outer params, batch) -> hidden before the first block.
        apply: (block params, hidden, batch, index) -> next hidden.
        capture: (first, block params, hidden, batch, index, given) -> inputs of the group `first`.
        finish: (block params, hidden, batch, index, given) -> next hidden.
        walk: (firsts, block params, batch, hidden, index) -> (next hidden, {first: inputs}).
    """

    embed: Callable[..., Hidden]
    apply: Callable[..., Hidden]
    capture: Callable[..., Array]
    finish: Callable[..., Hidden]
    walk: Callable[..., tuple[Hidden, dict[str, Array]]]


# The number of models whose programs stay compiled. A BlockModel is cached by its functions. A model built again from
# new lambdas is therefore compiled again, and the least recently used programs are dropped.
CACHED_MODELS = 16


@functools.lru_cache(maxsize=CACHED_MODELS)
def steps_of(model: BlockModel) -> Steps:
    """Return the programs of a model, made once per model.

    Models that are built from the same functions are equal, and share their programs. A second run on the same model
    and shapes therefore compiles nothing.
    """
    return Steps(
        Program(model.embed),
        Program(model.apply),
        Program(functools.partial(_capture, model), static_argnums=(0,)),
        Program(functools.partial(_finish, model)),
        Program(functools.partial(_walk, model), static_argnums=(0,)),
    )


def embed(model: BlockModel, params: Params, batch: Batch) -> Hidden:
    """Compute the hidden states of a batch before the first block."""
    return steps_of(model).embed(model.outer(params), batch)


def _capture(
    model: BlockModel, first: str, block: Params, hidden: Hidden, batch: Batch, index: Any, given: Mapping[str, Array]
) -> Array:
    """Compute the inputs of the group that starts with kernel `first`. Later parts of the block are not computed."""
    known = _of_kernels(model, given)
    return capture_inputs(model.apply, [first], block, hidden, batch, index, given=known).inputs[first]


def _finish(
    model: BlockModel, block: Params, hidden: Hidden, batch: Batch, index: Any, given: Mapping[str, Array]
) -> Hidden:
    """Compute the block's output from the inputs of its groups."""
    return capture_inputs(model.apply, [], block, hidden, batch, index, given=_of_kernels(model, given)).output


def _of_kernels(model: BlockModel, given: Mapping[str, Array]) -> dict[str, Array]:
    """Spread the inputs of groups over their kernels, as {kernel path: inputs}."""
    return {path: given[group[0]] for group in model.groups if group[0] in given for path in group}


def _walk(
    model: BlockModel, firsts: Sequence[str], aim: Params, batch: Batch, x: Hidden, index: Any
) -> tuple[Hidden, dict[str, Array]]:
    """Compute the output of one block and the inputs of its groups in one forward pass."""
    captured = capture_inputs(model.apply, firsts, aim, x, batch, index)
    return captured.output, captured.inputs
