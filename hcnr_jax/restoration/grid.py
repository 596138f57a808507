"""Restores with many settings after one scoring, for `hcnr sweep`, `hcnr ablate` and `--choose`.

The scores and the squared norms of the weights are computed once, and give the masks of any ratio. Settings with local
inputs share one pass through both models, so that only their solves are separate. Every setting with propagated inputs
needs its own block sweep.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax

from hcnr_jax.config import RestoreConfig, fields_of, option_name
from hcnr_jax.errors import InputError, NumericalError
from hcnr_jax.method.neurons import Kernel
from hcnr_jax.method.sweep.run import sweep_cases
from hcnr_jax.restoration.correct import (
    CorrectedKernel,
    checked,
    device_message,
    plain_kernels,
    problem_of,
    settings_of,
)
from hcnr_jax.restoration.refine import refine_kernels
from hcnr_jax.restoration.run_context import Run
from hcnr_jax.restoration.score import Scores
from hcnr_jax.restoration.select import Selection, kernel_squares, select_neurons

# The options in which the settings of a grid may differ; the scores depend on all other options.
FREE = frozenset(fields_of(RestoreConfig, ("selection", "kernels", "output")))


class GridResult(NamedTuple):
    """Holds one setting's restoration.

    Args:
        place: of the setting in the grid.
        selection: the restored neurons.
        corrected: the new weights of every kept kernel.
    """

    place: int
    selection: Selection
    corrected: dict[Kernel, CorrectedKernel]


class GridFailure(NamedTuple):
    """Holds the place in the grid of a setting whose restoration failed, and the reason."""

    place: int
    error: InputError


def restore_grid(run: Run, configs: Sequence[RestoreConfig], scores: Mapping[str, Scores]) -> Iterator[GridResult]:
    """Yield the results of `try_grid`.

    Raises:
        InputError: a setting whose restoration failed; the first such setting ends the grid.
    """
    for item in try_grid(run, configs, scores):
        if isinstance(item, GridFailure):
            raise item.error
        yield item


def try_grid(
    run: Run, configs: Sequence[RestoreConfig], scores: Mapping[str, Scores]
) -> Iterator[GridResult | GridFailure]:
    """Yield every setting's restoration as soon as it is done, or the reason why it failed.

    Settings with local inputs come first and end together. The failure of one setting does not stop the others.

    Args:
        run: both models and their rows.
        configs: the settings.
        scores: of `score_pair` with `run.config`.

    Raises:
        InputError: a setting differs from `run.config` in an option outside `FREE`.
    """
    for config in configs:
        _check_same(run.config, config)
    squares = list(kernel_squares(run.spec, *run.models, granularity=run.config.granularity))
    selections: dict[int, Selection] = {}
    for place, config in enumerate(configs):
        try:
            selections[place] = select_neurons(
                config,
                run.spec,
                squares,
                honesty=scores["honesty"].scores,
                task=scores["task"].scores,
                moved=run.inputs.coordinates,
            )
        except InputError as error:
            yield GridFailure(place, error)
    for item in _restored(run, configs, selections):
        config = configs[item.place]
        if isinstance(item, GridResult) and config.refine:
            try:
                made = refine_kernels(run.with_config(config), item.selection, item.corrected)
            except NumericalError as error:
                yield GridFailure(item.place, InputError(str(error)))
                continue
            item = item._replace(corrected=made.corrected)
        yield item


def _restored(
    run: Run, configs: Sequence[RestoreConfig], selections: Mapping[int, Selection]
) -> Iterator[GridResult | GridFailure]:
    """Restore and correct every selection's kernels."""
    for place, selection in selections.items():
        if not configs[place].objective.solves:
            yield GridResult(place, selection, dict(plain_kernels(run, selection)))
    for places in _groups(configs, selections):
        cases = [(configs[place], selections[place]) for place in places]
        for item in _sweep(run, cases):
            yield item._replace(place=places[item.place])


def _groups(configs: Sequence[RestoreConfig], places: Iterable[int]) -> list[list[int]]:
    """Group the places of the settings that solve for a correction: one group for each block sweep."""
    solved = [place for place in places if configs[place].objective.solves]
    local = [place for place in solved if configs[place].inputs == "local"]
    return [*([local] if local else []), *([place] for place in solved if place not in local)]


def _sweep(run: Run, cases: Sequence[tuple[RestoreConfig, Selection]]) -> Iterator[GridResult | GridFailure]:
    """Restore one group of `try_grid`; the results' places count within the group."""
    settings = [settings_of(config) for config, _ in cases]
    problem = problem_of(run, settings[0])
    asked = [(one, selection.masks) for one, (_, selection) in zip(settings, cases, strict=True)]
    found: dict[int, dict[Kernel, CorrectedKernel]] = {place: {} for place in range(len(cases))}
    with run.reporter.stage("correct kernels of the grid", sum(len(s.kept) for _, s in cases), "kernels") as stage:
        try:
            for place, result in sweep_cases(problem, asked, keep_inputs=run.plan.keep_inputs):
                if place not in found:
                    continue
                config, selection = cases[place]
                try:
                    kernel, item = checked(config, run.spec, result, selection=selection)
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
