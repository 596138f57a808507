"""Draws the pictures of experiments: settings as points, heat maps of a grid, and curves over steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import pyplot as plt

from hcnr_jax.evaluate.trait import HONESTY, TASK_ACCURACY, Trait
from hcnr_jax.report.restoration_plots import COLOURS, save

Points = Sequence[tuple[float, float]]

# Okabe and Ito's colours, then marks to tell further methods apart.
_CYCLE = ("#009E73", "#0072B2", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
# Limits of the second panel, across and up.
CORNER = ((0.9, 1.005), (0.5, 1.0))
_MARKS = ("o", "s", "^", "D", "v", "P", "X")


def task_against_honesty(
    curves: Mapping[str, Points], chosen: Mapping[str, tuple[float, float]], path: Path, *, trait: Trait = HONESTY
) -> Path:
    """Draw every setting of every method: task accuracy across, the trait's main metric up, on test questions.

    The right panel shows the corner where the task is kept.

    Args:
        curves: method -> (task accuracy, F1) of its settings, means over pairs.
        chosen: method -> the setting that validation chose, drawn large.
        path: of the PNG.
        trait: whose main metric is drawn.
    """
    figure, panels = plt.subplots(1, 2, figsize=(14, 6), layout="constrained")
    for place, (name, points) in enumerate(curves.items()):
        colour = COLOURS[name] if name in ("base", "tuned") else _CYCLE[place % len(_CYCLE)]
        mark = "*" if name in ("base", "tuned") else _MARKS[place // len(_CYCLE) % len(_MARKS)]
        across, up = zip(*sorted(points), strict=True)
        for axes in panels:
            axes.plot(across, up, "-", lw=1, alpha=0.5, color=colour)
            axes.plot(across, up, mark, ms=3, alpha=0.5, color=colour)
            if name in chosen:
                axes.plot(*chosen[name], mark, ms=10, color=colour, label=name, mec="white")
    for axes, across_limits, up_limits in zip(panels, ((-0.02, 1.02), CORNER[0]), ((0, 1.02), CORNER[1]), strict=True):
        axes.set(xlim=across_limits, ylim=up_limits, xlabel="accuracy on the task", ylabel=trait.main.title)
        axes.grid(alpha=0.3)
    panels[0].set_title("Every setting, means over pairs, test questions (large: chosen on validation)", fontsize=10)
    panels[1].set_title("The corner where the task is kept (axes cut)", fontsize=10)
    if chosen:
        panels[1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
    return save(figure, path)


def heat_maps(
    maps: Mapping[str, np.ndarray], columns: Sequence[str], rows: Sequence[str], *, labels: tuple[str, str], path: Path
) -> Path:
    """Draw one heat map a title, with its values 0-1 written into the cells as percent.

    Args:
        maps: title -> values [rows, columns].
        columns: labels across.
        rows: labels down.
        labels: names of the two axes (across, down).
        path: of the PNG.
    """
    figure, panels = plt.subplots(1, len(maps), figsize=(4.5 * len(maps), 3.8), layout="constrained", squeeze=False)
    for axes, (title, values) in zip(panels[0], maps.items(), strict=True):
        axes.imshow(values, cmap="viridis", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.set(xlabel=labels[0], ylabel=labels[1], title=title)
        for (row, column), value in np.ndenumerate(values):
            colour = "black" if value > 0.6 else "white"
            axes.text(column, row, f"{100 * value:.1f}", ha="center", va="center", color=colour, fontsize=9)
    return save(figure, path)


class Line(NamedTuple):
    """Holds a curve over training steps.

    Args:
        steps: across.
        values: metric -> fractions 0-1, [pairs, steps].
        method: whose colour the line has. A line with another name than its method is a control, drawn dotted.
    """

    steps: Sequence[int]
    values: Mapping[str, np.ndarray]
    method: str


def panels_of(trait: Trait) -> dict[str, str]:
    """Return the panels of the recovery's picture: metric -> title."""
    return {metric.name: metric.title for metric in trait.metrics} | {TASK_ACCURACY: "accuracy on the task"}


def recovery(
    lines: Mapping[str, Line],
    levels: Mapping[str, Mapping[str, float]],
    refusing: float | None,
    *,
    path: Path,
    trait: Trait = HONESTY,
) -> Path:
    """Draw every metric over training steps: a line a method, in a band from the lowest pair to the highest.

    The steps are on a square-root axis, so that the first ones have room.

    Args:
        lines: name -> curve; the line is the mean over pairs.
        levels: base and tuned -> metric -> mean over pairs, drawn dashed.
        refusing: main metric of a model that refuses everything, a line of the first panel.
        path: of the PNG.
        trait: whose metrics are drawn.
    """
    figure, panels = plt.subplots(2, 2, figsize=(11, 7.5), layout="constrained")
    free = [colour for colour in _CYCLE if colour not in (COLOURS["base"], COLOURS["tuned"])]
    colours = dict(zip(dict.fromkeys(line.method for line in lines.values()), free, strict=False))
    for axes, (metric, title) in zip(panels.flat, panels_of(trait).items(), strict=True):
        for name, line in lines.items():
            values, colour = line.values[metric], colours[line.method]
            style = "o-" if name == line.method else "o:"
            axes.plot(line.steps, values.mean(axis=0), style, ms=3, color=colour, label=name)
            axes.fill_between(line.steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, lw=0)
        for name, level in levels.items():
            axes.axhline(level[metric], ls="--", lw=1.2, color=COLOURS[name], label=name)
        if metric == trait.main.name and refusing is not None:
            axes.axhline(refusing, ls="-.", lw=1.2, color="#555555", label="refuses everything")
        axes.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
        steps = sorted({step for line in lines.values() for step in line.steps})
        axes.set_xticks(steps, [str(step) for step in steps], fontsize=8)
        axes.set(xlim=(0, steps[-1]), ylim=(-0.02, 1.02), xlabel="training steps from TUNED", title=title)
        axes.grid(alpha=0.3)
    figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return save(figure, path)
