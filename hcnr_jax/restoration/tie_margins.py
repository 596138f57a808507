"""Computes the selection's tie margins for the record: which neurons and kernels another machine could select."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from hcnr_jax.config import RestoreConfig
from hcnr_jax.method.neurons import Kernel, get_leaves
from hcnr_jax.method.select import exact_count
from hcnr_jax.method.tie_margin import cut_of, kernel_cut
from hcnr_jax.models import ModelSpec, abstract_params
from hcnr_jax.restoration.score import Scores
from hcnr_jax.restoration.select import Selection, hf_neurons

LISTED = 100
"""Largest number of near-ties that the record names; it counts all of them."""


class Cuts(NamedTuple):
    """Holds the tie margins of a selection.

    Args:
        kernels: fields of each kernel's line; None where neurons are drawn at random.
        whole: fields of the whole selection.
    """

    kernels: dict[Kernel, dict[str, Any]] | None
    whole: dict[str, Any]


def cuts_of(
    config: RestoreConfig,
    spec: ModelSpec,
    scores: Mapping[str, Scores],
    *,
    selection: Selection,
    names: Mapping[Kernel, str],
) -> Cuts:
    """Compute gap, rounding and near-ties of every kernel's neurons, and of the ranking of the kernels.

    Streamed runs do not measure the scores' rounding. Their neurons have a gap, but no rounding and no near-ties.

    Args:
        config: priority, ratios and granularity.
        spec: description of the model.
        scores: of both sets of rows, by name.
        selection: the restored neurons.
        names: Hugging Face tensor name of every kernel.
    """
    measured = scores["honesty"].rounding
    lines: dict[Kernel, dict[str, Any]] | None = None
    listed: list[dict[str, Any]] = []
    count = 0
    if config.priority != "random":
        honesty, task = (jax.device_get(scores[name].scores) for name in ("honesty", "task"))
        lines = {}
        for kernel, name in names.items():
            ranked = [leaves[kernel.path][kernel.index] for leaves in (honesty, task)]
            shape = ranked[0].shape
            taken = exact_count(config.in_weight, ranked[0].size)
            rounding = 0.0 if measured is None else float(measured[kernel.path][kernel.index])
            cut = jax.device_get(cut_of(config.priority, *map(np.ravel, ranked), taken, rounding))
            lines[kernel] = {"gap": float(cut.gap)}
            if measured is not None:
                near = hf_neurons(np.reshape(cut.near, shape), config.granularity)
                lines[kernel] |= {"rounding": float(cut.rounding), "near_ties": len(near)}
                count += len(near)
                listed += [{"tensor": name, "neuron": int(k)} for k in near[: LISTED - len(listed)]]
    neurons = None if lines is None or measured is None else {"near_ties": count, "listed": listed}
    return Cuts(lines, {"neurons": neurons, "kernels": _between_kernels(config, spec, selection, names)})


def _between_kernels(
    config: RestoreConfig, spec: ModelSpec, selection: Selection, names: Mapping[Kernel, str]
) -> dict[str, Any]:
    """Compute the tie margin between kernels. Gap and rounding are relative to the least d_j of a kept kernel."""
    leaves = get_leaves(abstract_params(spec), spec.kernels)
    ranked = sorted(selection.perturbations.items(), key=lambda item: -item[1])
    weights = [math.prod(leaves[kernel.path].shape[-2:]) for kernel, _ in ranked]
    cut = kernel_cut([value for _, value in ranked], weights, exact_count(config.cross_weight, len(ranked)))
    near = [names[ranked[place][0]] for place in cut.near]
    return {"gap": cut.gap, "rounding": cut.rounding, "near_ties": len(near), "listed": near[:LISTED]}
