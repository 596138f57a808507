"""Scores and the selection as trees of the work folder, and back."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from hcnr_jax.method.neurons import Kernel, get_leaves, order_kernels
from hcnr_jax.models import ModelSpec, abstract_params
from hcnr_jax.restoration.resume.folder import Work
from hcnr_jax.restoration.score import Scores
from hcnr_jax.restoration.select import Selection


def has_scores(work: Work, name: str) -> bool:
    """Whether one set's scores are kept."""
    return work.has(f"scores-{name}")


def keep_scores(work: Work, name: str, scores: Scores) -> None:
    """Save one set's scores and losses."""
    rounding = {} if scores.rounding is None else {"rounding": unflatten_dict(scores.rounding, sep="/")}
    tree = {"scores": unflatten_dict(scores.scores, sep="/"), "losses": scores.losses}
    work.keep_tree(f"scores-{name}", tree | rounding)


def recall_scores(work: Work, name: str, spec: ModelSpec) -> Scores | None:
    """One set's scores as an interrupted run left them."""
    tree = work.tree(f"scores-{name}")
    if tree is None:
        return None
    found = flatten_dict(tree["scores"], sep="/")
    rounding = flatten_dict(tree["rounding"], sep="/") if "rounding" in tree else None
    return Scores({path: jnp.asarray(found[path]) for path in spec.kernels}, tree["losses"], rounding)


def keep_selection(work: Work, selection: Selection) -> None:
    """Save masks and perturbations; the kept kernels are those with a restored neuron."""
    rows = {path: np.zeros(mask.shape[:1]) for path, mask in selection.masks.items()}
    for kernel, value in selection.perturbations.items():
        rows[kernel.path][kernel.index] = value
    trees = {"masks": selection.masks, "perturbations": rows}
    work.keep_tree("selection", {name: unflatten_dict(leaves, sep="/") for name, leaves in trees.items()})


def recall_selection(work: Work, spec: ModelSpec) -> Selection | None:
    """The selection as an interrupted run left it."""
    tree = work.tree("selection")
    if tree is None:
        return None
    masks, rows = (flatten_dict(tree[name], sep="/") for name in ("masks", "perturbations"))
    order = order_kernels(get_leaves(abstract_params(spec), spec.kernels))

    def value(kernel: Kernel) -> float:
        return float(rows[kernel.path][kernel.index])

    kept = [kernel for kernel in order if masks[kernel.path][kernel.index].any()]
    return Selection({path: jnp.asarray(masks[path]) for path in spec.kernels}, {k: value(k) for k in order}, kept)
