"""Many settings for one scoring: what a sweep, an ablation or a choice of settings pays for once.

Scores, and what the perturbations need of the weights, are computed once; masks of any ratio follow from them. Settings
with local inputs share one walk through both models and pay their solves alone; each with propagated inputs pays a
block sweep of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax

from hcnr_jax.config import RestoreConfig, fields_of, option_name
from hcnr_jax.errors import InputError, NumericalError
from hcnr_jax.method.neurons import Kernel, Params
from hcnr_jax.method.sweep.run import sweep_cases
from hcnr_jax.report.console import Reporter
from hcnr_jax.restoration.correct import (
    Corrected,
    batches_of,
    checked,
    device_message,
    plain_kernels,
    settings_of,
    sweep_model,
)
from hcnr_jax.restoration.inputs import Prepared, kernel_names
from hcnr_jax.restoration.plan import Plan
from hcnr_jax.restoration.refine import refined
from hcnr_jax.restoration.score import Scores
from hcnr_jax.restoration.select import Selection, kernel_squares, select_neurons

# What the settings of a grid may differ in; everything else goes into the scores.
FREE = frozenset(fields_of(RestoreConfig, ("selection", "kernels", "output")))


class GridResult(NamedTuple):
    """One setting of a grid: its place among the settings, what was selected, the new weights of every kept kernel."""

    place: int
    selection: Selection
    corrected: dict[Kernel, Corrected]


class GridFailure(NamedTuple):
    """A setting of a grid that has no restoration: its place among the settings, and why."""

    place: int
    error: InputError


def restore_grid(
    prepared: Prepared,
    plan: Plan,
    configs: Sequence[RestoreConfig],
    base: Params,
    tuned: Params,
    scores: Mapping[str, Scores],
    reporter: Reporter,
) -> Iterator[GridResult]:
    """`try_grid` where every setting must have a restoration: InputError at the first that has none."""
    for item in try_grid(prepared, plan, configs, base, tuned, scores, reporter):
        if isinstance(item, GridFailure):
            raise item.error
        yield item


def try_grid(
    prepared: Prepared,
    plan: Plan,
    configs: Sequence[RestoreConfig],
    base: Params,
    tuned: Params,
    scores: Mapping[str, Scores],
    reporter: Reporter,
) -> Iterator[GridResult | GridFailure]:
    """Every setting's restoration, those with local inputs first (they end together), as soon as it is done; or why it
    has none (its selection or a solve failed), which keeps no other setting from its own.

    scores: of `run.score_pair` with `prepared.config`. InputError for a setting that differs from that configuration in
    anything but `FREE`.
    """
    for config in configs:
        _check_same(prepared.config, config)
    spec, names = prepared.spec, kernel_names(prepared.spec)
    squares = list(kernel_squares(spec, base, tuned, prepared.config.granularity))
    selections: dict[int, Selection] = {}
    for place, config in enumerate(configs):
        try:
            selections[place] = select_neurons(
                config, spec, squares, scores["honesty"].scores, scores["task"].scores, names
            )
        except InputError as error:
            yield GridFailure(place, error)
    for item in _restored(prepared, plan, configs, selections, base, tuned, reporter):
        config = configs[item.place]
        if isinstance(item, GridResult) and config.refine:
            try:
                made = refined(config, prepared, plan, base, tuned, item.selection, item.corrected, reporter)
            except NumericalError as error:
                yield GridFailure(item.place, InputError(str(error)))
                continue
            item = item._replace(corrected=made.corrected)
        yield item


def _restored(
    prepared: Prepared,
    plan: Plan,
    configs: Sequence[RestoreConfig],
    selections: Mapping[int, Selection],
    base: Params,
    tuned: Params,
    reporter: Reporter,
) -> Iterator[GridResult | GridFailure]:
    """Every selection's kernels put back and corrected."""
    for place, selection in selections.items():
        if not configs[place].objective.solves:
            yield GridResult(place, selection, dict(plain_kernels(prepared, base, tuned, selection)))
    for places in _groups(configs, selections):
        cases = [(configs[place], selections[place]) for place in places]
        for item in _sweep(prepared, plan, cases, base, tuned, reporter):
            yield item._replace(place=places[item.place])


def _groups(configs: Sequence[RestoreConfig], places: Iterable[int]) -> list[list[int]]:
    """The places with a correction to solve for, those together that share a walk."""
    solved = [place for place in places if configs[place].objective.solves]
    local = [place for place in solved if configs[place].inputs == "local"]
    return [*([local] if local else []), *([place] for place in solved if place not in local)]


def _sweep(
    prepared: Prepared,
    plan: Plan,
    cases: Sequence[tuple[RestoreConfig, Selection]],
    base: Params,
    tuned: Params,
    reporter: Reporter,
) -> Iterator[GridResult | GridFailure]:
    """One group of `try_grid`; places are those among its cases."""
    names, settings = kernel_names(prepared.spec), [settings_of(config) for config, _ in cases]
    model = sweep_model(prepared.spec, settings[0], plan.dtype)
    asked = [(one, selection.masks) for one, (_, selection) in zip(settings, cases, strict=True)]
    honesty, task = batches_of(prepared, plan)
    found: dict[int, dict[Kernel, Corrected]] = {place: {} for place in range(len(cases))}
    with reporter.stage("correct kernels of the grid", sum(len(s.kept) for _, s in cases), "kernels") as stage:
        try:
            for place, result in sweep_cases(model, asked, base, tuned, honesty, task, keep_inputs=plan.keep_inputs):
                if place not in found:
                    continue
                config, selection = cases[place]
                try:
                    kernel, item = checked(config, result, selection, names)
                except InputError as error:
                    del found[place]
                    yield GridFailure(place, error)
                    if not found:
                        break
                    continue
                found[place][kernel] = item
                stage.advance()
        except jax.errors.JaxRuntimeError as error:  # such as memory that ran out
            for place in found:
                yield GridFailure(place, InputError(device_message(error)))
            return
    for place in list(found):
        yield GridResult(place, cases[place][1], found.pop(place))


def _check_same(first: RestoreConfig, other: RestoreConfig) -> None:
    left, right = first.model_dump(exclude=set(FREE)), other.model_dump(exclude=set(FREE))
    for field, value in left.items():
        if right[field] != value:
            raise InputError(
                f"settings of one grid must share {option_name(RestoreConfig, field)}, which the scores depend on: "
                f"found {value!r} and {right[field]!r}"
            )
