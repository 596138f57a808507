"""Many settings for one scoring: what a sweep, an ablation or a choice of settings pays for once.

Scores, and what the perturbations need of the weights, are computed once; masks of any ratio follow from them. Settings
with local inputs share one walk through both models and pay their solves alone; each with propagated inputs pays a
block sweep of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from hcnr_jax.config import RestoreConfig, option_name
from hcnr_jax.errors import InputError
from hcnr_jax.method.blocks import sweep_cases
from hcnr_jax.method.neurons import Kernel, Leaves, Params, get_leaves, put_leaves
from hcnr_jax.models import KERNELS
from hcnr_jax.pipeline.batches import microbatches
from hcnr_jax.pipeline.console import Reporter
from hcnr_jax.pipeline.correcting import Corrected, checked, plain_kernels, settings_of, sweep_model
from hcnr_jax.pipeline.plan import Plan
from hcnr_jax.pipeline.prepare import Prepared, kernel_names
from hcnr_jax.pipeline.scoring import Scores
from hcnr_jax.pipeline.selecting import Selection, kernel_squares, select_neurons

# What the settings of a grid may differ in; everything else goes into the scores.
FREE = frozenset(
    ("in_weight", "cross_weight", "priority", "compensation", "task_weight", "inputs", "solver", "damping",
     "moments_at", "out")
)  # fmt: skip


class GridResult(NamedTuple):
    """One setting of a grid: its place among the settings, what was selected, the new weights of every kept kernel."""

    place: int
    selection: Selection
    corrected: dict[Kernel, Corrected]


def restore_grid(
    prepared: Prepared,
    plan: Plan,
    configs: Sequence[RestoreConfig],
    base: Params,
    tuned: Params,
    scores: Mapping[str, Scores],
    reporter: Reporter,
) -> Iterator[GridResult]:
    """Every setting's restoration, those with local inputs first (they end together), as soon as it is done.

    scores: of `run.score_pair` with `prepared.config`. InputError for a setting that differs from that configuration in
    anything but `FREE`, or whose solve fails.
    """
    for config in configs:
        _check_same(prepared.config, config)
    spec, names = prepared.spec, kernel_names(prepared.spec)
    squares = list(kernel_squares(spec, base, tuned, prepared.config.granularity))
    selections = [
        select_neurons(config, spec, squares, scores["honesty"].scores, scores["task"].scores, names)
        for config in configs
    ]
    for place, (config, selection) in enumerate(zip(configs, selections, strict=True)):
        if config.compensation == "none":
            yield GridResult(place, selection, dict(plain_kernels(config, spec, base, tuned, selection)))
    local = [i for i, config in enumerate(configs) if config.compensation != "none" and config.inputs == "local"]
    groups = [local, *([i] for i, c in enumerate(configs) if c.compensation != "none" and c.inputs == "propagated")]
    honesty, task = ([p.batch for p in microbatches(rows, plan.shapes)] for rows in (prepared.honesty, prepared.task))
    for places in filter(None, groups):
        found: dict[int, dict[Kernel, Corrected]] = {place: {} for place in places}
        cases = [(settings_of(configs[place]), selections[place].masks) for place in places]
        model = sweep_model(spec, cases[0][0], plan.dtype)
        total = sum(len(selections[place].kept) for place in places)
        with reporter.stage("correct kernels of the grid", total, "kernels") as stage:
            for number, result in sweep_cases(model, cases, base, tuned, honesty, task, keep_inputs=plan.keep_inputs):
                place = places[number]
                kernel, item = checked(configs[place], result, selections[place], names)
                found[place][kernel] = item
                stage.advance()
        for place in places:
            yield GridResult(place, selections[place], found.pop(place))


def restored_params(tuned: Params, corrected: Mapping[Kernel, Corrected]) -> Params:
    """The tuned params with the corrected kernels in place: what `write_output` would write, on the device."""
    leaves: Leaves = get_leaves(tuned, KERNELS)
    for path in KERNELS:
        layers = [kernel.index[0] for kernel in corrected if kernel.path == path]
        if layers:
            rows = jnp.stack([jnp.asarray(corrected[Kernel(path, (layer,))].weights) for layer in layers])
            leaves[path] = leaves[path].at[np.asarray(layers)].set(rows)
    return put_leaves(tuned, leaves)


def _check_same(first: RestoreConfig, other: RestoreConfig) -> None:
    left, right = first.model_dump(exclude=set(FREE)), other.model_dump(exclude=set(FREE))
    for field, value in left.items():
        if right[field] != value:
            raise InputError(
                f"settings of one grid must share {option_name(RestoreConfig, field)}, which the scores depend on: "
                f"found {value!r} and {right[field]!r}"
            )
