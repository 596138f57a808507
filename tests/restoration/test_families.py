"""Families beyond Llama's shape restored with the default method: against float64, streamed, on a mesh, adapted."""

import numpy as np
import pytest

from tests.restoration import reference
from tests.restoration.test_adapter_output import adapted_world, check_same, merged
from tests.restoration.test_mesh import check_same as check_same_model
from tests.restoration.worlds import CROSS_WEIGHT, SAMPLES, World, make_world, neurons_of, restore, weights_of

FAMILIES = ("gemma2", "gemma3_text", "olmo2", "olmo3", "smollm3", "granite", "phi3", "glm4", "ministral3")
STREAMED = ("gemma3_text", "smollm3", "phi3")  # two rotary tables, layers that do not rotate, fused kernels
MESHED = ("gemma3_text", "olmo2", "phi3")  # four norms, a norm over all heads, fused kernels
ADAPTED = {"gemma3_text": ["q_proj", "o_proj", "up_proj"], "phi3": ["qkv_proj", "gate_up_proj"]}


@pytest.fixture(scope="module")
def world(request, tmp_path_factory) -> World:
    """Two layers of different kinds, where the family has two, and rows longer than the windows."""
    return make_world(tmp_path_factory.mktemp(request.param), request.param, tie_word_embeddings=True)


@pytest.fixture(scope="module")
def plain(world, tmp_path_factory):
    return restore(world, tmp_path_factory.mktemp("plain") / "out", "--seed", "none")


@pytest.mark.parametrize("world", FAMILIES, indirect=True)
def test_against_float64(world, plain) -> None:
    """The default method, with propagated inputs: every block runs with its own window and rotary table."""
    counts = (SAMPLES, SAMPLES)
    options = {"cross_weight": CROSS_WEIGHT}
    expected = reference.restore(world.base, world.tuned, world.honesty, world.task, counts, options)
    found, tuned, neurons = weights_of(plain), weights_of(world.tuned), neurons_of(plain)
    assert neurons.keys() == expected.neurons.keys() and neurons
    for name, weights in expected.weights.items():
        np.testing.assert_array_equal(neurons[name], expected.neurons[name])
        moved = np.linalg.norm(weights - tuned[name])
        assert np.linalg.norm(found[name] - weights) < 1e-4 * moved, name
    assert all(np.array_equal(found[name], tuned[name]) for name in tuned if name not in expected.weights)


@pytest.mark.parametrize("world", STREAMED, indirect=True)
def test_streamed(world, plain, tmp_path) -> None:
    streamed = restore(world, tmp_path / "out", "--seed", "none", "--stream")
    check_same_model(world, plain, streamed)


@pytest.mark.parametrize("world", MESHED, indirect=True)
def test_on_a_mesh(world, plain, tmp_path) -> None:
    meshed = restore(world, tmp_path / "out", "--seed", "none", "--mesh", "data=2,fsdp=2,model=2")
    check_same_model(world, plain, meshed)


@pytest.mark.parametrize("family", ADAPTED)
def test_an_adapter_is_answered_with_an_adapter(tmp_path, family) -> None:
    here = adapted_world(tmp_path / "in", family, target_modules=ADAPTED[family])
    method = ("--compensation", "two_sided", "--inputs", "local")
    out = restore(here, tmp_path / "out", *method)
    whole = restore(here, tmp_path / "whole", *method, "--output", "model")
    check_same(merged(here.base, out), weights_of(whole))
