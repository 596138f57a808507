"""Summarises what a selection did to every kernel, and draws the mean of such summaries over pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hcnr_jax.experiments.record_file import Record
from hcnr_jax.method.neurons import Kernel
from hcnr_jax.report import restoration_plots
from hcnr_jax.report.page import Picture
from hcnr_jax.restoration.select import Selection

KernelMap = Mapping[str, Sequence[Sequence[float]]]
"""`share` (of a kernel's neurons restored, 0 where it was not kept) and `moved` (d_j): [layers][7], the kernels in the
order of `ModelSpec.kernels`."""


def kernel_map(selection: Selection, kernels: Sequence[str]) -> KernelMap:
    """Summarise one setting's selection. kernels: the paths in the order of the map."""
    masks = [selection.masks[path] for path in kernels]
    shares = [jnp.mean(mask.astype(jnp.float32), axis=range(1, mask.ndim)) for mask in masks]
    share = np.stack(jax.device_get(shares), axis=1).tolist()
    moved = [[selection.perturbations[Kernel(path, (layer,))] for path in kernels] for layer in range(len(share))]
    return {"share": share, "moved": moved}


def mean_map(records: Sequence[Record], method: str) -> dict[str, np.ndarray] | None:
    """Average a method's maps over pairs, [layers, 7] each; None without a record, or where the models differ in
    depth.
    """
    found = [record["kernels"] for record in records if record["method"] == method and "kernels" in record]
    if len({len(item["share"]) for item in found}) != 1:
        return None
    return {name: np.mean([item[name] for item in found], axis=0) for name in ("share", "moved")}


def map_picture(out: Path, records: Sequence[Record], methods: Sequence[str]) -> list[Picture]:
    """Draw `neurons.png`: for each method, the perturbation and the restored share of every kernel. Empty without a
    map.
    """
    maps: dict[str, Any] = {name: mean_map(records, name) for name in dict.fromkeys(methods)}
    panels: dict[str, tuple[np.ndarray, float]] = {}
    for name, found in maps.items():
        if found is not None:
            panels[f"{name}: share of neurons restored"] = found["share"], 1.0
            panels[f"{name}: kernel perturbation d"] = found["moved"], float(found["moved"].max()) or 1.0
    if not panels:
        return []
    counts = {name: _pairs(records, name) for name, found in maps.items() if found is not None}
    path = restoration_plots.kernel_maps(panels, out / "neurons.png")
    caption = (
        f"Which neurons are restored, means over {_counted(counts)}: blocks down, kernels across. d is the norm of "
        "what fine-tuning changed in the candidate neurons over their norm in BASE; kernels are kept by it."
    )
    return [Picture(path, caption)]


def _counted(counts: Mapping[str, int]) -> str:
    if len(set(counts.values())) == 1:
        return f"{next(iter(counts.values()))} pairs"
    return f"pairs ({', '.join(f'{name} {count}' for name, count in counts.items())})"


def _pairs(records: Sequence[Record], method: str) -> int:
    return len({record["pair"] for record in records if record["method"] == method and "kernels" in record})
