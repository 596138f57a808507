"""`--stream`, `--dtype`, `--compilation-cache`: other ways to the same model."""

import numpy as np
import pytest

from hcnr_jax.checkpoints import StreamedParams, load_params, open_checkpoint
from hcnr_jax.models import spec_from_config
from tests.restoration.worlds import World, call, kernels_of, make_world, neurons_of, record_of, restore, weights_of


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("streamed"), num_hidden_layers=3)


CASES = {
    "the default": (),
    "the paper": ("--compensation", "paper", "--inputs", "local", "--priority", "raw"),
    "single weights": ("--compensation", "none", "--granularity", "weight", "--seed", 1),
    "scored at base, sums": ("--scores-at", "base", "--loss", "sum", "--inputs", "local", "--microbatch", 3),
}


@pytest.mark.parametrize("case", CASES)
def test_a_streamed_run_gives_the_same_model(world, tmp_path, case) -> None:
    whole, streamed = (restore(world, tmp_path / name, *CASES[case], *more) for name, more in
                       (("whole", ()), ("streamed", ("--stream",))))  # fmt: skip
    left, right = neurons_of(whole), neurons_of(streamed)
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])
    tuned, expected, found = weights_of(world.tuned), weights_of(whole), weights_of(streamed)
    for name, weights in expected.items():
        moved = np.linalg.norm(weights - tuned[name])
        assert np.linalg.norm(found[name] - weights) <= 1e-4 * moved, name
    for name, line in kernels_of(whole).items():
        assert kernels_of(streamed)[name]["perturbation"] == pytest.approx(line["perturbation"], rel=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["streamed", "whole"], "the spill folder is gone"


def test_the_plan_says_what_streaming_reads(world, tmp_path) -> None:
    ended = call(*world.arguments("--out", tmp_path / "out", "--stream", "--dry-run"))
    assert ended.code == 0 and list(tmp_path.iterdir()) == []
    assert all(words in ended.err for words in ("3 blocks and the embeddings", "meanwhile", "block by block"))


def test_blocks_come_in_any_order(world) -> None:
    checkpoint = open_checkpoint(world.tuned)
    spec = spec_from_config(checkpoint.config, "config.json")
    whole, streamed = load_params(checkpoint, spec), StreamedParams(checkpoint, spec)
    assert set(streamed.outer) == set(whole) - {"blocks"}
    for index in (0, 1, 2, 2, 1, 0, 2):
        block = streamed.block(index)
        expected = np.asarray(whole["blocks"]["mlp"]["down"]["kernel"][index])
        np.testing.assert_array_equal(block["mlp"]["down"]["kernel"], expected)
    streamed.drop()
    np.testing.assert_array_equal(streamed.outer["final_norm"]["scale"], whole["final_norm"]["scale"])


def test_bfloat16_scores_choose_nearly_the_same_neurons(world, tmp_path) -> None:
    wide, narrow = (restore(world, tmp_path / dtype, "--dtype", dtype, "--compensation", "none") for dtype in
                    ("float32", "bfloat16"))  # fmt: skip
    assert (record_of(wide)["dtype"], record_of(narrow)["dtype"]) == ("float32", "bfloat16")
    left, right = neurons_of(wide), neurons_of(narrow)
    shared = [name for name in left if name in right]
    same = sum(len(np.intersect1d(left[name], right[name])) for name in shared)
    assert same >= 0.9 * sum(len(left[name]) for name in shared) and len(shared) >= 0.8 * len(left)


def test_compiled_programs_are_kept(world, tmp_path) -> None:
    options = ("--compensation", "none", "--microbatch", 5)  # shapes that no other test has compiled here
    restore(world, tmp_path / "out", *options, "--compilation-cache", tmp_path / "programs")
    assert any((tmp_path / "programs").iterdir())
