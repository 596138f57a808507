"""Several processes as one run, through the command line on this machine: gloo between simulated devices."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from hcnr_jax.errors import InputError
from hcnr_jax.runtime.distributed import start
from tests.restoration.test_adapter_output import adapted_world
from tests.restoration.test_mesh import check_same
from tests.restoration.worlds import World, make_world, restore


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("distributed"), shards=3)  # so that each process writes some


def launch(world: World, out: Path, processes: int, devices: int, *options: object) -> list[subprocess.Popen]:
    """`hcnr restore` as so many processes of so many devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    started = []
    for number in range(processes):
        joined = ("--distributed", f"localhost:{port},{processes},{number}")
        command = [sys.executable, "-m", "hcnr_jax.cli", *world.arguments("--out", out, *joined, *options)]
        started.append(
            subprocess.Popen(
                command, env={**os.environ, **flags}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    return started


def finish(processes: list[subprocess.Popen]) -> list[str]:
    said = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n---\n".join(said)
    return said


@pytest.mark.parametrize("mesh", ["data=2,model=2"])
def test_two_processes_give_the_model_of_one_device(world, tmp_path, mesh) -> None:
    first, second = finish(launch(world, tmp_path / "out", 2, 2, "--mesh", mesh))
    assert "restored model" in first and "restored model" not in second, "process 0 alone talks"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    check_same(world, restore(world, tmp_path / "one"), tmp_path / "out")


def test_two_processes_give_an_adapter(tmp_path) -> None:
    adapted = adapted_world(tmp_path / "in")
    finish(launch(adapted, tmp_path / "out", 2, 2, "--mesh", "data=2,model=2"))
    one = restore(adapted, tmp_path / "one")
    found, expected = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "out", one))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-4 * np.abs(value).max(), err_msg=name)


@pytest.mark.parametrize("text", ["host", "host:1,2", "host:1,2,2", "host,2,0", "none:x,1,0"])
def test_what_is_not_understood_is_refused(text) -> None:
    with pytest.raises(InputError, match=r"--distributed .*: expected auto, or COORDINATOR:PORT,PROCESSES,NUMBER"):
        start(text)


def test_the_form_is_said_once() -> None:
    with pytest.raises(InputError) as caught:
        start("foo")
    assert str(caught.value).count("COORDINATOR:PORT") == 1 and "did not meet" not in str(caught.value)
