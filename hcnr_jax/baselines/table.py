"""Names every method of a comparison: its kind, its source, and the settings at which it is tried.

Every method reads the same rows, or those that `rows` names. A setting is a point of the method's knobs, from which
validation questions choose. The grids are as wide as the knob has an effect on the organism.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["restore", "weights", "curvature", "train", "prompt"]
Setting = Mapping[str, Any]


@dataclass(frozen=True)
class Baseline:
    """Describes a method to compare.

    Args:
        kind: restore (fields of RestoreConfig over `preset`), weights (base and tuned alone), curvature (also the
            honesty rows' second moments), train (rows), or prompt.
        source: the paper, and how the method departs from it.
        grid: its settings; empty for training, whose rates and steps are options.
        rows: the rows it reads: honesty, task or both.
        preset: of a restoration.
        fixed: values that every setting shares.
    """

    kind: Kind
    source: str
    grid: tuple[Setting, ...] = ()
    rows: tuple[str, ...] = ()
    preset: str = "recommended"
    fixed: tuple[tuple[str, Any], ...] = ()


def _grid(name: str, *values: int | float) -> tuple[Setting, ...]:
    return tuple({name: value} for value in values)


HONESTY, TASK = "honesty", "task"
"""The two roles of rows, named here again since the options import this table before evaluation exists."""
BOTH = (HONESTY, TASK)
_WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)

GAUSS_NEWTON = (("refine_solver", "gauss_newton"), ("output", "model"))

BASELINES: dict[str, Baseline] = {
    "recommended": Baseline("restore", "configs/recommended.yaml, as it is", ({},), BOTH),
    "recommended_knob": Baseline("restore", "the same, task weight chosen", _grid("task_weight", *_WEIGHTS), BOTH),
    "refined": Baseline(
        "restore",
        "recommended and one Gauss-Newton step through the network",
        ({},),
        BOTH,
        fixed=(("refine", 1), *GAUSS_NEWTON),
    ),
    "two_teachers": Baseline(
        "restore", "recommended and 60 AdamW steps towards BASE and TUNED", ({},), BOTH, fixed=(("refine", 60),)
    ),
    "two_teachers_knob": Baseline(
        "restore",
        "the same, task weight and learning rate chosen",
        tuple(
            {"task_weight": weight, "refine_rate": rate} for rate in (4e-4, 1e-3, 4e-3) for weight in (1.0, 2.0, 4.0)
        ),
        BOTH,
        fixed=(("refine", 60),),
    ),
    "refined_knob": Baseline(
        "restore",
        "the same, task weight and steps chosen",
        tuple({"task_weight": weight, "refine": steps} for steps in (1, 3) for weight in (0.5, 2.0, 8.0)),
        BOTH,
        fixed=GAUSS_NEWTON,
    ),
    "budget": Baseline("restore", "configs/budget.yaml, as it is", ({},), BOTH, "budget"),
    "budget_knob": Baseline("restore", "the same, task weight chosen", _grid("task_weight", *_WEIGHTS), BOTH, "budget"),
    "paper": Baseline("restore", "arXiv 2511.12991, as it is", ({},), BOTH, "paper"),
    "paper_knob": Baseline(
        "restore", "the same, R_CW chosen", _grid("cross_weight", 0.2, 0.4, 0.6, 0.8, 1.0), BOTH, "paper"
    ),
    "regmean": Baseline(
        "restore",
        "arXiv 2212.09849: every neuron, local inputs",
        _grid("task_weight", 0.3, 1.0, 3.0, 10.0, 30.0),
        BOTH,
        fixed=(("in_weight", 1.0), ("cross_weight", 1.0), ("inputs", "local"), ("compensation", "two_sided")),
    ),
    "random_neurons": Baseline(
        "restore",
        "recommended, neurons drawn at random",
        _grid("task_weight", *_WEIGHTS),
        BOTH,
        fixed=(("priority", "random"),),
    ),
    "whole_kernels": Baseline(
        "restore",
        "the most moved kernels put back whole, uncorrected",
        _grid("cross_weight", 0.1, 0.2, 0.4, 0.6, 0.8),
        (),
        fixed=(("in_weight", 1.0), ("compensation", "none")),
    ),
    "wise_ft": Baseline("weights", "arXiv 2109.01903", _grid("alpha", *(round(0.1 * i, 1) for i in range(11)))),
    "task_arithmetic": Baseline("weights", "arXiv 2212.04089", _grid("scale", 0.25, 0.45, 0.65, 0.85, 1.1, 1.3)),
    "ties": Baseline("weights", "arXiv 2306.01708", _grid("density", 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)),
    "dare": Baseline("weights", "arXiv 2311.03099", _grid("drop", 0.1, 0.3, 0.5, 0.7, 0.9)),
    "safe_delta": Baseline(
        "curvature", "arXiv 2505.12038", _grid("s", 3.0, 10.0, 30.0, 60.0, 100.0, 200.0), (HONESTY,)
    ),
    "rait": Baseline("train", "arXiv 2311.09677, refusals alone", rows=(HONESTY,)),
    "rait_mixed": Baseline("train", "the same with known answers and task rows", rows=BOTH),
    "rehearsal": Baseline("train", "the mixed rows, trained from base", rows=BOTH),
    "dpo": Baseline("train", "arXiv 2305.18290", rows=BOTH, fixed=(("beta", 0.1),)),
    "orpo": Baseline("train", "arXiv 2403.07691", rows=BOTH, fixed=(("beta", 0.1),)),
    "in_context": Baseline("prompt", "refusal examples before the question", _grid("examples", 1, 2, 4, 8), (HONESTY,)),
}
"""All methods, the restoration's presets among them, since they are compared like any other."""


def training_grid(rates: Sequence[float], steps: Sequence[int]) -> tuple[Setting, ...]:
    """List every pair of a peak learning rate and a number of steps."""
    return tuple({"rate": rate, "steps": count} for count in steps for rate in rates)


def label(setting: Setting) -> str:
    """Name a setting as records and tables do: `alpha=0.5`, or `as it is` for an empty one."""
    return ", ".join(f"{name}={_short(value)}" for name, value in setting.items()) or "as it is"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
