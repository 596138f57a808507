"""Calls of NNX's linear layers and of general Linen layers are intercepted like those of nn.Dense."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from hcnr_jax.errors import InputError
from hcnr_jax.method import taps
from hcnr_jax.method.taps_layers import intercept

X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32)


def layers():
    """(name, function of x) of every linear layer that is known."""
    rngs = nnx.Rngs(0)
    linen = {
        "nn.Dense": nn.Dense(6),
        "nn.DenseGeneral": nn.DenseGeneral((2, 3)),
        "nn.Einsum": nn.Einsum((2, 4, 3), "td,ndh->tnh"),
    }
    found = {
        "nnx.Linear": nnx.Linear(4, 6, rngs=rngs),
        "nnx.LinearGeneral": nnx.LinearGeneral(4, (2, 3), rngs=rngs),
        "nnx.Einsum": nnx.Einsum("td,ndh->tnh", (2, 4, 3), rngs=rngs),
        "nnx.LoRALinear": nnx.LoRALinear(4, 6, lora_rank=2, rngs=rngs),
    }
    for name, layer in linen.items():
        found[name] = layer.bind(layer.init(jax.random.key(0), X))
    return found


@pytest.mark.parametrize(("name", "layer"), layers().items())
def test_every_layer_is_visited_in_the_order_of_the_contexts(name, layer):
    plain, seen = layer(X), []

    def visit(mark):
        def of(layer, inputs, own, axes):
            seen.append((mark, inputs is X, axes is not None))
            return own(inputs) + mark

        return of

    with intercept(visit(1.0)), intercept(visit(2.0)):
        found = layer(X)
    assert seen == [(1.0, True, True), (2.0, True, True)]
    np.testing.assert_allclose(found, plain + 3, rtol=1e-6)
    np.testing.assert_array_equal(layer(X), plain)
    assert len(seen) == 2


def test_inputs_and_the_equation_may_be_keywords():
    layer = nnx.Einsum("td,df->tf", (4, 3), rngs=nnx.Rngs(0))
    with intercept(lambda layer, inputs, own, axes: own(2 * inputs)):
        np.testing.assert_allclose(layer(inputs=X), 2 * X @ layer.kernel[...], rtol=1e-6)
    linen = nn.Einsum((4, 3), None, use_bias=False)
    params = linen.init(jax.random.key(0), X, "td,df->tf")
    with intercept(lambda layer, inputs, own, axes: own(2 * inputs)):
        found = linen.apply(params, inputs=X, einsum_str="td,df->tf")
    np.testing.assert_allclose(found, 2 * X @ params["params"]["kernel"], rtol=1e-6)


def test_other_threads_see_their_own_layers_and_the_class_is_put_back_last():
    own, layer = nnx.Linear.__call__, nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    plain, found = layer(X), {}
    entered, leave = threading.Event(), threading.Event()

    def other():
        found["before"] = layer(X)
        with intercept(lambda layer, inputs, own, axes: own(inputs) + 2):
            entered.set()
            leave.wait(10)
            found["inside"] = layer(X)

    thread = threading.Thread(target=other)
    with intercept(lambda layer, inputs, own, axes: own(inputs) + 1):
        thread.start()
        assert entered.wait(10)
        np.testing.assert_allclose(layer(X), plain + 1, rtol=1e-6)
    np.testing.assert_array_equal(layer(X), plain)
    leave.set()
    thread.join()
    np.testing.assert_array_equal(found["before"], plain)
    np.testing.assert_allclose(found["inside"], plain + 2, rtol=1e-6)
    assert nnx.Linear.__call__ is own


def test_an_error_inside_puts_the_class_back():
    own = nnx.LinearGeneral.__call__
    with pytest.raises(KeyError), intercept(lambda *call: call[2](call[1])):
        raise KeyError
    assert nnx.LinearGeneral.__call__ is own


def tapped(layer, **found):
    """A layer whose kernel has taps."""
    graph, state = nnx.split(layer)
    return nnx.merge(
        graph, state | {"kernel": state["kernel"].replace(taps.Tapped(state["kernel"][...], found, "a/kernel", 0))}
    )


def test_taps_inside_an_nnx_kernel_are_found_and_the_layer_computes_as_before():
    layer = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    with taps.replace(["gain"], lambda call, found: found["gain"] * call.plain(call.inputs)):
        np.testing.assert_allclose(tapped(layer, gain=jnp.asarray(5.0))(X), 5 * layer(X), rtol=1e-6)
        np.testing.assert_array_equal(layer(X), layer(X))
    np.testing.assert_array_equal(tapped(layer, gain=jnp.asarray(5.0))(X), layer(X))


def test_observe_gives_inputs_and_cotangents_as_matrices():
    layer = nnx.Einsum("td,ndh->tnh", (2, 4, 3), rngs=nnx.Rngs(0))
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(5, 2, 3)), jnp.float32)

    def total(tap):
        with taps.observe({"tap": lambda x, g: x.T @ g}):
            return jnp.sum(tapped(layer, tap=tap)(X) * weights)

    found = jax.grad(total)(jnp.zeros((4, 6)))
    np.testing.assert_allclose(found, X.T @ weights.reshape(5, 6), rtol=1e-5)


def test_a_layer_that_is_no_matrix_product_cannot_be_observed():
    layer = nnx.LinearGeneral(4, 3, batch_axis={0: 5}, rngs=nnx.Rngs(0))
    with taps.observe({"tap": lambda x, g: x}), pytest.raises(InputError, match="kernel a: its layer is no matrix"):
        tapped(layer, tap=jnp.zeros(4))(X)
