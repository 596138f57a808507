"""The scores' rounding that hcnr.json reports, held against what meshes and microbatches really change."""

import jax
import numpy as np
import pytest

from hcnr_jax.config import RestoreConfig, build
from hcnr_jax.method.tie_margin import DRAWS, relative_rounding
from hcnr_jax.report.console import Reporter
from hcnr_jax.restoration.inputs import open_inputs
from hcnr_jax.restoration.load import load_run
from hcnr_jax.restoration.plan import make_plan
from hcnr_jax.restoration.score import Scores, score
from hcnr_jax.restoration.score_pair import scoring_of
from tests.restoration.worlds import ROWS, World, kernels_of, make_world, record_of, restore


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("rounding"))


def scores_of(world: World, measured: bool = False, **options) -> Scores:
    """The honesty rows' scores as `hcnr restore` with these options makes them."""
    paths = {"base": str(world.base), "tuned": str(world.tuned), "honesty": world.honesty, "task": world.task}
    config = build(RestoreConfig, {**paths, "out": world.folder / "unwritten", "samples": ROWS, **options})
    inputs = open_inputs(config, Reporter())
    plan = make_plan(inputs)
    with jax.default_matmul_precision("highest"):
        tuned = load_run(inputs, plan, Reporter()).models.tuned
        how = scoring_of(inputs, plan)
        return score(
            how, tuned, inputs.honesty, shapes=plan.shapes, name="honesty", reporter=Reporter(), rounding=measured
        )


@pytest.fixture(scope="module")
def one(world) -> Scores:
    return scores_of(world, measured=True)


@pytest.mark.parametrize(
    "options", [{"mesh": "data=8"}, {"mesh": "model=8"}, {"mesh": "data=2,fsdp=2,model=2"}, {"microbatch": 1}]
)
def test_what_another_mesh_or_microbatch_changes_is_of_the_size_that_was_measured(world, one, options) -> None:
    """Measured on this model: 0.25 to 0.83 of it, over kernels."""
    other = scores_of(world, **options)
    assert one.rounding is not None
    for path, scores in one.scores.items():
        first, second = np.asarray(scores), np.asarray(other.scores[path])
        share = relative_rounding(first, second) / one.rounding[path]
        assert np.all(share > 0.1) and np.all(share < 1.5), (path, share)
        worst = np.max(np.abs(second - first) / first, axis=-1)
        assert np.all(worst <= DRAWS * one.rounding[path]), (path, worst)


def test_the_record_says_how_sure_every_kernel_is(world, tmp_path) -> None:
    out = restore(world, tmp_path / "out")
    cuts = [line["cut"] for line in kernels_of(out).values()]
    assert all(cut["gap"] > 0 and 0 < cut["rounding"] < 1 and cut["near_ties"] >= 0 for cut in cuts)
    whole = record_of(out)["cut"]
    assert whole["neurons"]["near_ties"] == sum(cut["near_ties"] for cut in cuts)
    assert len(whole["neurons"]["listed"]) == min(100, whole["neurons"]["near_ties"])
    assert whole["kernels"].keys() == {"gap", "rounding", "near_ties", "listed"}


def test_a_random_or_streamed_selection_has_no_rounding(world, tmp_path) -> None:
    drawn = restore(world, tmp_path / "random", "--priority", "random")
    assert all("cut" not in line for line in kernels_of(drawn).values())
    streamed = restore(world, tmp_path / "streamed", "--stream")
    assert all(line["cut"].keys() == {"gap"} for line in kernels_of(streamed).values())
    assert record_of(streamed)["cut"]["neurons"] is None
