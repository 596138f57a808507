"""The four verbs of taps: which layers they reach, in which order, and inside which transforms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from hcnr_jax.method import taps

X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32)


class Two(nn.Module):
    """Two linears, the second called by keyword."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="b")(inputs=jnp.tanh(nn.Dense(4, name="a")(x)))


class Step(nn.Module):
    """One step of a scan over layers, rematerialised."""

    @nn.compact
    def __call__(self, x, _):
        return nn.Dense(4, name="a")(x), None


def scanned():
    return nn.scan(nn.remat(Step), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()


def params_of(model, *args):
    return model.init(jax.random.key(0), *args)["params"]


def test_replace_reaches_only_layers_with_a_tap():
    params = params_of(Two(), X)
    params["a"]["gain"] = jnp.asarray(2.0)
    with taps.replace(["gain"], lambda call, found: found["gain"] * call.plain(call.inputs)):
        found = Two().apply({"params": params}, X)
    a, b = params["a"], params["b"]
    expected = jnp.tanh(2 * (X @ a["kernel"] + a["bias"][None])) @ b["kernel"] + b["bias"][None]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_replaced_product_is_the_layers_own_to_the_bit():
    params = params_of(Two(), X)
    expected = Two().apply({"params": params}, X)
    for name in params:
        params[name]["mark"] = jnp.zeros(())
    with taps.replace(["mark"], lambda call, found: call.through(lambda x, kernel: x @ kernel)):
        np.testing.assert_array_equal(Two().apply({"params": params}, X), expected)


def test_record_sees_the_inputs_before_they_are_fed():
    params = params_of(Two(), X)
    fed = jnp.ones((5, 4))
    with taps.record(["a/kernel", "b/kernel", "c/kernel"]) as seen, taps.feed({"b/kernel": fed}):
        found = Two().apply({"params": params}, X)
    assert seen["a/kernel"] is X and set(seen) == {"a/kernel", "b/kernel"}
    hidden = jnp.tanh(X @ params["a"]["kernel"] + params["a"]["bias"][None])
    np.testing.assert_allclose(seen["b/kernel"], hidden, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found, fed @ params["b"]["kernel"] + params["b"]["bias"][None], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_count_goes_through_scan_and_remat(wrap):
    model = scanned()
    params = params_of(model, X, None)

    def total(uses):
        with taps.count("uses"):
            return jnp.sum(model.apply({"params": {"a": params["a"] | {"uses": uses}}}, X, None)[0])

    np.testing.assert_array_equal(wrap(jax.grad(total))(jnp.zeros(3)), jnp.ones(3))


def test_nothing_is_intercepted_after_the_context():
    params = params_of(Two(), X)
    with taps.record(["a/kernel"]) as seen:
        pass
    Two().apply({"params": params}, X)
    assert not seen
