"""Which leaves are kernels, which axis is the neuron, in which order kernels stand."""

import jax.numpy as jnp
import numpy as np
import pytest

from hcnr_jax.errors import InputError
from hcnr_jax.method import neurons
from hcnr_jax.method.neurons import Kernel

PARAMS = {
    "embed": {"embedding": jnp.zeros((5, 4))},
    "blocks": {
        "q": {"kernel": jnp.arange(24.0).reshape(2, 4, 3), "bias": jnp.zeros((2, 3))},
        "down": {"kernel": jnp.zeros((2, 6, 4))},
        "norm": {"scale": jnp.ones((2, 4))},
        "odd": {"kernel": jnp.zeros((4,))},
    },
    "head": {"kernel": jnp.zeros((4, 5))},
}


def test_kernels_are_the_leaves_of_that_name_with_two_axes():
    assert neurons.find_kernels(PARAMS) == ("blocks/q/kernel", "blocks/down/kernel", "head/kernel")
    assert neurons.find_kernels(PARAMS, r"blocks/.*") == ("blocks/q/kernel", "blocks/down/kernel")


def test_a_pattern_must_match_the_whole_path_of_something():
    with pytest.raises(InputError, match=r"no kernel matches the pattern 'blocks'; the leaves are: embed/embedding, "):
        neurons.find_kernels(PARAMS, "blocks")


def test_get_names_what_is_missing():
    with pytest.raises(InputError, match=r"no parameter at 'blocks/k/kernel'; the leaves are: .*blocks/q/bias"):
        neurons.get_leaves(PARAMS, ["head/kernel", "blocks/k/kernel"])


def test_put_undoes_get_and_leaves_the_original_alone():
    taken = neurons.get_leaves(PARAMS, ["blocks/q/kernel"])
    again = neurons.put_leaves(PARAMS, taken)
    assert again["blocks"]["q"]["kernel"] is PARAMS["blocks"]["q"]["kernel"]
    changed = neurons.put_leaves(PARAMS, {"blocks/q/kernel": jnp.ones((2, 4, 3)), "blocks/q/probe": jnp.zeros(2)})
    assert "probe" in changed["blocks"]["q"] and "probe" not in PARAMS["blocks"]["q"]
    assert changed["blocks"]["q"]["bias"] is PARAMS["blocks"]["q"]["bias"]
    assert float(PARAMS["blocks"]["q"]["kernel"][1, 3, 2]) == 23


def test_beside():
    assert neurons.beside("blocks/q/kernel", "probe") == "blocks/q/probe"
    assert neurons.beside("kernel", "probe") == "probe"


@pytest.mark.parametrize(("granularity", "shape"), [("input", (4,)), ("output", (3,)), ("weight", (4, 3))])
def test_shapes_counts_and_spread(granularity, shape):
    leaf = PARAMS["blocks"]["q"]["kernel"]
    assert neurons.stack_shape(leaf) == (2,)
    assert neurons.neuron_shape(leaf, granularity) == shape
    assert neurons.neuron_count(leaf, granularity) == np.prod(shape)
    mask = np.random.default_rng(0).random((2, *shape)) < 0.5
    spread = np.asarray(neurons.spread(jnp.asarray(mask), leaf, granularity))
    for block in range(2):
        for row in range(4):
            for column in range(3):
                place = {"input": (row,), "output": (column,), "weight": (row, column)}[granularity]
                assert spread[block, row, column] == mask[(block, *place)]


def test_order_is_by_block_and_then_by_name():
    stacked = {"b/kernel": jnp.zeros((2, 3, 3)), "a/kernel": jnp.zeros((2, 3, 3))}
    order = [Kernel("b/kernel", (0,)), Kernel("a/kernel", (0,)), Kernel("b/kernel", (1,)), Kernel("a/kernel", (1,))]
    assert neurons.order_kernels(stacked) == order
    reverse = neurons.order_kernels(stacked, ["a/kernel", "b/kernel"])
    assert [kernel.path for kernel in reverse] == ["a/kernel", "b/kernel"] * 2


def test_unstacked_kernels_keep_the_order_given():
    single = {f"block_{i}/{name}/kernel": jnp.zeros((3, 3)) for i in (0, 1) for name in "qk"}
    assert [kernel.path for kernel in neurons.order_kernels(single)] == list(single)
    assert str(neurons.order_kernels(single)[0]) == "block_0/q/kernel"
    assert str(Kernel("a/kernel", (1, 2))) == "a/kernel[1][2]"


def test_kernels_stacked_twice():
    order = neurons.order_kernels({"x/kernel": jnp.zeros((2, 2, 3, 3))})
    assert [kernel.index for kernel in order] == [(0, 0), (0, 1), (1, 0), (1, 1)]
