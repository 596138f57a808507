"""`--mesh`: the same model whatever the devices, held against one device on eight simulated ones."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.restoration.worlds import (
    World,
    call,
    kernels_of,
    make_world,
    neurons_of,
    record_of,
    restore,
    weights_of,
)

MESHES = (
    "data=8",
    "model=8",
    "fsdp=8",
    "data=2,fsdp=2,model=2",
    "data=3,model=2",  # does not divide the rows' number, uses the first six devices
    "fsdp=5",  # divides no width
)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("mesh"))


@pytest.fixture(scope="module")
def one(world, tmp_path_factory):
    """The default method on one device."""
    return restore(world, tmp_path_factory.mktemp("one") / "out")


def check_same(world: World, expected, found) -> None:
    """The same neurons, weights to rounding, the same report."""
    left, right = neurons_of(expected), neurons_of(found)
    assert left.keys() == right.keys()
    tuned, before, after = weights_of(world.tuned), weights_of(expected), weights_of(found)
    for name, weights in before.items():
        if name not in left:
            assert weights.tobytes() == after[name].tobytes()
            continue
        np.testing.assert_array_equal(left[name], right[name])
        moved = np.linalg.norm(weights - tuned[name])
        assert np.linalg.norm(after[name] - weights) <= 1e-4 * moved, name
    for name, line in kernels_of(expected).items():
        assert kernels_of(found)[name]["perturbation"] == pytest.approx(line["perturbation"], rel=1e-5)


@pytest.mark.parametrize("mesh", MESHES)
def test_any_mesh_gives_the_model_of_one_device(world, one, tmp_path, mesh) -> None:
    check_same(world, one, restore(world, tmp_path / "out", "--mesh", mesh))


METHODS = {
    "the paper": ("--compensation", "paper", "--inputs", "local", "--priority", "raw"),
    "few tokens, sums": ("--honesty-samples", 1, "--compensation", "exact", "--inputs", "local", "--loss", "sum"),
    "conjugate gradients": ("--solver", "cg"),
    "single weights": ("--compensation", "none", "--granularity", "weight", "--scores-at", "base"),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_a_mesh(world, tmp_path, method) -> None:
    expected = restore(world, tmp_path / "one", *METHODS[method])
    check_same(world, expected, restore(world, tmp_path / "mesh", *METHODS[method], "--mesh", "data=2,fsdp=2,model=2"))


def test_the_same_mesh_gives_the_same_bits(world, tmp_path) -> None:
    first, second = (restore(world, tmp_path / name, "--mesh", "data=2,model=4") for name in ("first", "second"))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(weights_of(first).values(), weights_of(second).values(),
                                                          strict=True))  # fmt: skip


def test_rows_are_rounded_up_and_what_does_not_divide_is_said(world, tmp_path) -> None:
    ended = call(*world.arguments("--out", tmp_path / "out", "--mesh", "data=3,model=5", "--dry-run"))
    assert ended.code == 2 and "15 devices are asked for, 8 are here" in ended.err
    ended = call(
        *world.arguments("--out", tmp_path / "out", "--mesh", "data=1,model=5", "--microbatch", 4, "--dry-run")
    )
    assert ended.code == 0 and "model=5 does not divide the 32 of heads" in ended.err
    assert "those weights are replicated along model" in ended.err
    ended = call(*world.arguments("--out", tmp_path / "out", "--mesh", "data=3", "--microbatch", 4, "--dry-run"))
    assert ended.code == 0 and "6 rows x" in ended.err
    ended = call(*world.arguments("--out", tmp_path / "out", "--mesh", "data=2", "--stream"))
    assert ended.code == 2 and "--stream works on one device" in ended.err


def test_a_stopped_run_goes_on_on_its_own_mesh_alone(world, tmp_path, monkeypatch) -> None:
    from tests.restoration.resume.test_resume import result_of, stopped_at

    mesh = ("--mesh", "fsdp=2,model=2")
    expected = result_of(restore(world, tmp_path / "whole", *mesh))
    assert stopped_at(monkeypatch, world, tmp_path / "out", 8, *mesh).code == 143
    ended = call(*world.arguments("--out", tmp_path / "out", "--mesh", "fsdp=4", "--resume"))
    assert ended.code == 2 and "--mesh is fsdp=2,model=2 there, fsdp=4 here" in ended.err
    assert result_of(restore(world, tmp_path / "out", *mesh, "--resume")) == expected


def test_as_a_process(world, one, tmp_path) -> None:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    arguments = world.arguments("--out", tmp_path / "out", "--mesh", "data=2,model=2")
    command = [sys.executable, "-m", "hcnr_jax.cli", *arguments]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    check_same(world, one, tmp_path / "out")
    assert record_of(tmp_path / "out")["config"]["mesh"] == "data=2,model=2"
