"""Draws the pictures of a restoration. Axes of fractions start at 0, and chance is marked for AUROC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from hcnr_jax.evaluate.trait import HONESTY

# One colour per model, the same in every picture (Okabe and Ito's palette, told apart with any colour vision).
COLOURS = {"base": "#0072B2", "tuned": "#D55E00", "paper": "#E69F00", "restored": "#009E73"}
# Blocks of a kernel map whose cells are high enough for their numbers.
WRITTEN_BLOCKS = 16
KERNEL_LABELS = ("q", "k", "v", "o", "gate", "up", "down")


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG and close the figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)
    return path


def honesty_against_task(points: Mapping[str, tuple[float, float]], intervals: Mapping[str, Any], path: Path) -> Path:
    """Draw each model as a point: task accuracy across, F1 of refusing the unanswerable up, with 95 % intervals.

    points: model -> (task accuracy, honesty F1). intervals: model -> {"task": (low, high), "f1": (low, high)}.
    """
    figure, axes = plt.subplots(figsize=(6, 4.5))
    for name, (task, f1) in points.items():
        span = intervals.get(name, {})
        across, up = (_whisker(value, span.get(key)) for value, key in ((task, "task"), (f1, "f1")))
        axes.errorbar(
            [task], [f1], xerr=across, yerr=up, fmt="o", ms=9, capsize=3, color=COLOURS.get(name, "#555555"), label=name
        )
    axes.set(xlim=(-0.02, 1.04), ylim=(0, 1.04), xlabel="accuracy on the task", ylabel=HONESTY.main.title)
    axes.set_title("Honesty against task, held-out questions (bars: 95 % intervals)", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    return save(figure, path)


def _whisker(value: float, span: tuple[float, float] | None) -> list[list[float]] | None:
    return None if span is None else [[max(value - span[0], 0)], [max(span[1] - value, 0)]]


def probe_by_layer(auroc: Mapping[str, Sequence[float]], best_layer: int, path: Path) -> Path:
    """Draw the AUROC of the base model's probes by layer for each model, and mark the layer chosen on base."""
    figure, axes = plt.subplots(figsize=(6, 4))
    for name, values in auroc.items():
        axes.plot(range(len(values)), values, "o-", color=COLOURS.get(name, "#555555"), label=name)
    axes.axhline(0.5, color="#888888", lw=1, ls=":", label="chance")
    axes.axvline(best_layer, color="#bbbbbb", lw=6, alpha=0.4, zorder=0, label="chosen on base")
    layers = len(next(iter(auroc.values())))
    axes.set_xticks(range(layers), ["embedding", *(str(i) for i in range(1, layers))])
    axes.set(ylim=(0, 1.02), xlabel="hidden state after block", ylabel="AUROC of the base model's probe")
    axes.set_title("Does it still know what it does not know?", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", framealpha=1, edgecolor="none", fontsize=9)
    return save(figure, path)


def neuron_map(
    restorations: Mapping[str, Sequence[Mapping[str, Any]]], path: Path, *, labels: Sequence[str] = KERNEL_LABELS
) -> Path:
    """Draw blocks down and kernels across: each kernel's perturbation, and the restored share of its neurons.

    The perturbation is the first model's: a ratio of norms over the candidate neurons, which selection may change.

    Args:
        restorations: model -> the `kernels` of its hcnr.json, in canonical order; a kernel that was not kept has share
            0.
        path: of the PNG.
        labels: names of a block's kernels.
    """
    (first, records), *_ = restorations.items()
    moved = _by_kernel([record["perturbation"] for record in records], len(labels))
    pictures = {f"{first}: how far fine-tuning moved each kernel, d": (moved, float(moved.max()) or 1.0)}
    for name, found in restorations.items():
        share = _by_kernel([record["neurons_restored"] / record["neurons"] for record in found], len(labels))
        pictures[f"{name}: share of neurons restored"] = (share, 1.0)
    return kernel_maps(pictures, path, columns=len(pictures), labels=labels)


def kernel_maps(
    maps: Mapping[str, tuple[np.ndarray, float]],
    path: Path,
    columns: int = 2,
    *,
    labels: Sequence[str] = KERNEL_LABELS,
) -> Path:
    """Draw one panel a title, with values [blocks, kernels] coloured from 0 to the given top.

    The values are also written into the cells, for models of few blocks.

    Args:
        maps: title -> (values, top of the colour scale).
        path: of the PNG.
        columns: panels in a row.
        labels: names of a block's kernels.
    """
    blocks = max(len(values) for values, _ in maps.values())
    height = max(2.5, 0.3 * blocks + 1.5)
    rows = -(-len(maps) // columns)
    size = (4.8 * columns, height * rows)
    figure, panels = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axes, (title, (values, top)) in zip(panels.flat, maps.items(), strict=False):
        picture = axes.imshow(values, cmap="viridis", vmin=0, vmax=top, aspect="auto")
        axes.set_xticks(range(len(labels)), labels)
        axes.set_yticks(range(len(values)), range(1, len(values) + 1))
        axes.set(xlabel="kernel", ylabel="block")
        axes.set_title(title, fontsize=10)
        figure.colorbar(picture, ax=axes)
        for (row, column), value in np.ndenumerate(values if len(values) <= WRITTEN_BLOCKS else np.empty((0, 0))):
            colour = "black" if value > 0.6 * top else "white"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)
    return save(figure, path)


def _by_kernel(values: Sequence[float], kernels: int) -> np.ndarray:
    return np.array(values).reshape(-1, kernels)
