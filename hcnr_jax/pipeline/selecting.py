"""Stage 1.2 to 1.4 of the method: priorities, candidates, kernel perturbations, the kept kernels."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from hcnr_jax.checkpoints.stream import StreamedParams
from hcnr_jax.config import RestoreConfig
from hcnr_jax.method import select
from hcnr_jax.method.neurons import Granularity, Kernel, Leaves, Params, get_leaves
from hcnr_jax.models import KERNELS, ModelSpec, abstract_params
from hcnr_jax.pipeline.model import block_model
from hcnr_jax.pipeline.scoring import check_scores


@dataclass(frozen=True)
class Selection:
    """The mask A_hc (restored neurons of kept kernels), d_j of every kernel, and the kept kernels in data-flow
    order."""

    masks: Leaves
    perturbations: dict[Kernel, float]
    kept: list[Kernel]


def select_neurons(
    config: RestoreConfig,
    spec: ModelSpec,
    base: Params | StreamedParams,
    tuned: Params | StreamedParams,
    honesty: Leaves,
    task: Leaves,
    names: dict[Kernel, str],
) -> Selection:
    """From both sets' scores to the mask. The weights are read a block at a time."""
    check_scores(honesty, "honesty", names)
    check_scores(task, "task", names)
    kernels = get_leaves(abstract_params(spec), KERNELS)
    key = jax.random.key(config.seed or 0)
    axes = 2 if config.granularity == "weight" else 1
    priorities = select.priorities(config.priority, honesty, task, key, axes)
    candidates = select.in_weight_mask(priorities, kernels, config.in_weight, config.granularity)
    perturbations = measure_perturbations(spec, base, tuned, candidates, config.granularity)
    masks, kept = select.cross_weight_mask(candidates, perturbations, kernels, config.cross_weight, names)
    return Selection(masks, dict(select.rank_kernels(perturbations, kernels, names)), kept)


def measure_perturbations(
    spec: ModelSpec,
    base: Params | StreamedParams,
    tuned: Params | StreamedParams,
    candidates: Leaves,
    granularity: Granularity,
) -> Leaves:
    """d_j by path, [layers]."""
    model = block_model(spec)
    rows: dict[str, list[jax.Array]] = {path: [] for path in KERNELS}
    for index in range(spec.num_layers):
        old, new = (get_leaves(model.block_params(params, index), model.paths) for params in (base, tuned))
        for path in model.paths:
            kernel = model.kernel(index, path)
            mask = np.asarray(candidates[kernel.path][kernel.index])
            rows[kernel.path].append(_perturbation(old[path], new[path], mask, granularity))
    return {path: jnp.stack([jnp.asarray(np.asarray(d)) for d in found]) for path, found in rows.items()}


_perturbation = jax.jit(select.perturbation, static_argnums=3)
