"""Many settings from one scoring are the models that single runs write."""

import numpy as np
import pytest

from hcnr_jax.checkpoints import HFTensors
from hcnr_jax.checkpoints.names import tensor_names
from hcnr_jax.config import RestoreConfig
from hcnr_jax.errors import InputError
from hcnr_jax.report.console import Reporter
from hcnr_jax.restoration import grid
from hcnr_jax.restoration import score as scoring
from hcnr_jax.restoration.correct import restored_params
from hcnr_jax.restoration.grid import GridFailure, restore_grid, try_grid
from hcnr_jax.restoration.inputs import open_inputs
from hcnr_jax.restoration.load import load_run
from hcnr_jax.restoration.plan import make_plan
from hcnr_jax.restoration.score_pair import score_pair
from tests.restoration.worlds import SAMPLES, make_world, restore, weights_of

SETTINGS = [
    {"in_weight": 0.5, "cross_weight": 1.0},
    {"in_weight": 0.25, "cross_weight": 0.4, "compensation": "exact", "inputs": "local"},
    {"in_weight": 0.25, "cross_weight": 0.4, "compensation": "exact", "inputs": "local", "damping": 0.1},
    {"cross_weight": 0.6, "compensation": "paper", "inputs": "local", "priority": "raw"},
    {"cross_weight": 0.6, "compensation": "none"},
    {"cross_weight": 0.6, "refine": 1, "refine_solver": "gauss_newton"},
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("grid"))


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def opened(world, request):
    """(configs, run, scores) of one scoring."""
    given = {"base": str(world.base), "tuned": str(world.tuned), "honesty": world.honesty, "task": world.task}
    configs = [
        RestoreConfig(**given, samples=SAMPLES, dtype=request.param, out=world.folder / f"out{i}", **setting)
        for i, setting in enumerate(SETTINGS)
    ]
    reporter = Reporter()
    inputs = open_inputs(configs[0], reporter)
    run = load_run(inputs, make_plan(inputs), reporter)
    return configs, run, score_pair(run)


def test_a_grid_is_the_single_runs(world, opened, tmp_path, monkeypatch) -> None:
    configs, run, scores = opened
    monkeypatch.setattr(scoring, "_score_step", None)  # nothing is scored again
    found = {item.place: item for item in restore_grid(run, configs, scores)}
    monkeypatch.undo()
    assert sorted(found) == list(range(len(SETTINGS)))
    stored = dict.fromkeys(tensor_names(run.spec), "F32")
    for place, setting in enumerate(SETTINGS):
        options = [str(part) for key, value in setting.items() for part in (f"--{key.replace('_', '-')}", value)]
        usual = [] if "cross_weight" in setting else ["--cross-weight", "1.0"]
        expected = weights_of(restore(world, tmp_path / str(place), *options, *usual, "--dtype", run.plan.dtype))
        tensors = HFTensors(restored_params(run.models.tuned, found[place].corrected), run.spec, stored)
        for name, weights in expected.items():
            np.testing.assert_allclose(tensors[name], weights, rtol=1e-5, atol=1e-6, err_msg=f"{place} {name}")


def test_settings_that_need_other_scores_are_refused(opened) -> None:
    configs, run, scores = opened
    other = configs[1].model_copy(update={"scores_at": "base"})
    with pytest.raises(
        InputError, match="must share --scores-at, which the scores depend on: found 'tuned' and 'base'"
    ):
        next(restore_grid(run, [configs[0], other], scores))


def test_a_setting_that_fails_keeps_no_other_from_its_restoration(opened, monkeypatch) -> None:
    configs, run, scores = opened
    too_few = configs[0].model_copy(update={"cross_weight": 0.001})
    undamped = configs[1].model_copy(update={"damping": 0.0})  # shares the walk of two that are well
    every = [*configs, too_few, undamped]
    checked = grid.checked

    def check(config, spec, result, *, selection):
        if config is undamped:
            raise InputError("tensor t: not positive definite")
        return checked(config, spec, result, selection=selection)

    monkeypatch.setattr(grid, "checked", check)
    found = {item.place: item for item in try_grid(run, every, scores)}
    failed = {place: str(item.error) for place, item in found.items() if isinstance(item, GridFailure)}
    few, singular = len(configs), len(configs) + 1
    assert sorted(found) == list(range(singular + 1)) and sorted(failed) == [few, singular]
    assert "rounds to 0" in failed[few] and failed[singular] == "tensor t: not positive definite"
    assert all(set(found[place].corrected) == set(found[place].selection.kept) for place in range(few))
    with pytest.raises(InputError, match="not positive definite"):
        list(restore_grid(run, [*configs, undamped], scores))
