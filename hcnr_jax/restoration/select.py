"""Selects neurons (stages 1.2 to 1.4 of the method): priorities, candidates, perturbations and the kept kernels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np

from hcnr_jax.checkpoints.stream import StreamedParams
from hcnr_jax.config import RestoreConfig
from hcnr_jax.method import select
from hcnr_jax.method.neurons import (
    Granularity,
    HostLeaves,
    Kernel,
    Leaves,
    Params,
    get_leaves,
    neuron_shape,
    stack_shape,
)
from hcnr_jax.method.priority import PriorityName, priorities
from hcnr_jax.method.program import Program, lowering
from hcnr_jax.method.select import Squares, exact_count
from hcnr_jax.method.sweep.run import without
from hcnr_jax.method.tie_margin import cut_of
from hcnr_jax.models import ModelSpec, abstract_params
from hcnr_jax.restoration.decoder_blocks import block_model
from hcnr_jax.restoration.kernel_names import kernel_names
from hcnr_jax.restoration.score import check_scores
from hcnr_jax.runtime.compile import compile_later


@dataclass(frozen=True)
class Selection:
    """Holds which neurons are restored.

    Args:
        masks: A_hc by path, True for a restored neuron of a kept kernel.
        perturbations: d_j of every kernel.
        kept: the kept kernels in data-flow order.
    """

    masks: HostLeaves
    perturbations: dict[Kernel, float]
    kept: list[Kernel]


def select_neurons(
    config: RestoreConfig,
    spec: ModelSpec,
    squares: Iterable[tuple[Kernel, Squares]],
    *,
    honesty: Leaves,
    task: Leaves,
    moved: Container[Kernel] | None = None,
) -> Selection:
    """Turn both sets' scores into the mask of restored neurons.

    Args:
        config: priority, granularity and both ratios.
        spec: description of the model.
        squares: of `kernel_squares`.
        honesty: scores s_hon on honesty rows, by path.
        task: scores s_task on task rows, by path.
        moved: the kernels that may be kept, those that an adapter moves; None for all.

    Raises:
        InputError: a score is NaN or Inf, or a ratio selects nothing.
    """
    names = kernel_names(spec)
    check_scores(honesty, "honesty", names)
    check_scores(task, "task", names)
    kernels = get_leaves(abstract_params(spec), spec.kernels)
    candidates = jax.device_get(
        _candidates(spec, config.priority, config.in_weight, config.granularity, config.seed or 0, honesty, task)
    )
    perturbations = _perturbations(spec, squares, candidates)
    masks, kept = select.cross_weight_mask(candidates, perturbations, kernels, ratio=config.cross_weight, names=names)
    if moved is not None:
        masks = without(masks, [kernel for kernel in kept if kernel not in moved])
        kept = [kernel for kernel in kept if kernel in moved]
    return Selection(masks, dict(select.rank_kernels(perturbations, kernels, names)), kept)


def prepare_selection(config: RestoreConfig, spec: ModelSpec) -> None:
    """Start to compile the programs of the selection and of its tie margins, in background threads."""
    shapes = {
        path: (*stack_shape(leaf), *neuron_shape(leaf, config.granularity))
        for path, leaf in get_leaves(abstract_params(spec), spec.kernels).items()
    }
    scores = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in shapes.items()}
    asked = (spec, config.priority, config.in_weight, config.granularity, config.seed or 0)
    with lowering(compile_later):
        _candidates(*asked, scores, scores)
        for count in {math.prod(shape[1:]) for shape in shapes.values()} if config.priority != "random" else ():
            flat = jax.ShapeDtypeStruct((count,), np.float32)
            cut_of(config.priority, flat, flat, exact_count(config.in_weight, count), 0.0)


@partial(Program, static_argnums=(0, 1, 2, 3))
def _candidates(
    spec: ModelSpec,
    priority: PriorityName,
    ratio: float,
    granularity: Granularity,
    seed: int | jax.Array,
    honesty: Leaves,
    task: Leaves,
) -> Leaves:
    """Compute the candidate masks of every kernel, in one program."""
    axes = 2 if granularity == "weight" else 1
    ranked = priorities(priority, honesty, task, key=jax.random.key(seed), neuron_axes=axes)
    return select.in_weight_mask(
        ranked, get_leaves(abstract_params(spec), spec.kernels), ratio, granularity=granularity
    )


def hf_neurons(mask: np.ndarray, granularity: str) -> np.ndarray:
    """Return the indices of a mask's neurons as patch and record count them.

    Single weights are counted by their flat position in the (out, in) tensor.
    """
    return np.flatnonzero(mask.T if granularity == "weight" else mask)


def kernel_squares(
    spec: ModelSpec, base: Params | StreamedParams, tuned: Params | StreamedParams, *, granularity: Granularity
) -> Iterator[tuple[Kernel, Squares]]:
    """Yield every kernel's squared norms by neuron, from which the d_j of any selection follow.

    The weights are read one block at a time.

    Args:
        spec: description of the models.
        base: params of BASE.
        tuned: params of TUNED.
        granularity: unit of restoring.
    """
    model = block_model(spec)
    for index in range(spec.num_layers):
        old, new = (get_leaves(model.block_params(params, index), model.paths) for params in (base, tuned))
        for path, found in _block_squares(old, new, granularity).items():
            yield model.kernel(index, path), found


def _perturbations(
    spec: ModelSpec, squares: Iterable[tuple[Kernel, Squares]], candidates: HostLeaves
) -> dict[str, np.ndarray]:
    """Compute d_j by path, [layers]."""
    blocks: list[dict[str, jax.Array]] = []
    waiting = iter(squares)
    while block := list(itertools.islice(waiting, len(spec.kernels))):
        pairs = {kernel.path: (found, candidates[kernel.path][kernel.index]) for kernel, found in block}
        blocks.append(_block_perturbations(pairs))
    host = jax.device_get(blocks)
    return {path: np.asarray([block[path] for block in host]) for path in spec.kernels}


@partial(jax.jit, static_argnums=2)
def _block_squares(old: Leaves, new: Leaves, granularity: Granularity) -> dict[str, Squares]:
    """Compute the squares of all kernels of a block in one program."""
    return {path: select.neuron_squares(old[path], new[path], granularity) for path in old}


@jax.jit
def _block_perturbations(pairs: dict[str, tuple[Squares, jax.Array]]) -> dict[str, jax.Array]:
    """Compute d_j of all kernels of a block in one program, from their squares and candidate masks."""
    return {path: select.perturbation_of(squares, mask, 0) for path, (squares, mask) in pairs.items()}
