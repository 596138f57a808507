"""Second moments however they are streamed, and Hessian-vector products against dense Hessians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from hcnr_jax.errors import InputError
from hcnr_jax.method import curvature
from hcnr_jax.method.curvature import Inputs, Moments
from tests.method import oracle, toys

RNG = np.random.default_rng(0)
NOW = RNG.normal(size=(6, 5, 4)).astype(np.float32)
REFERENCE = (NOW + 0.1 * RNG.normal(size=NOW.shape)).astype(np.float32)
MASK = RNG.random((6, 5)) < 0.7


def stream(cuts, propagated, step=curvature.update_moments):
    moments = curvature.init_moments(4, propagated)
    for rows in cuts:
        reference = jnp.asarray(REFERENCE[rows]) if propagated else None
        moments = step(moments, jnp.asarray(NOW[rows]), reference, jnp.asarray(MASK[rows]))
    return moments


def close(left, right, tolerance=2e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * 10), left, right)


@pytest.mark.parametrize("propagated", [False, True])
def test_moments_are_the_means_over_real_tokens(propagated):
    found = curvature.mean_moments(stream([slice(0, 6)], propagated))
    x, y = NOW[MASK], REFERENCE[MASK]
    assert float(found.tokens) == MASK.sum()
    np.testing.assert_allclose(found.inputs, oracle.moment(x), rtol=1e-5, atol=1e-6)
    if not propagated:
        assert found.shift is None and found.reference is None
        return
    np.testing.assert_allclose(found.shift, oracle.moment(x, x.astype(np.float64) - y), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.reference, oracle.moment(y), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("propagated", [False, True])
@pytest.mark.parametrize(
    "cuts", [[slice(0, 1), slice(1, 6)], [slice(3, 6), slice(0, 3)], [[5, 1, 3], [0, 2, 4]], [[0], [1], [2], [3, 4, 5]]]
)
def test_any_split_in_any_order_is_one_batch(cuts, propagated):
    close(stream(cuts, propagated), stream([slice(0, 6)], propagated))


@pytest.mark.parametrize("propagated", [False, True])
def test_jitted_and_sharded_moments_are_the_same(propagated):
    whole = stream([slice(0, 6)], propagated)
    step = jax.jit(curvature.update_moments)
    close(stream([slice(0, 6)], propagated, step), whole)
    rows = jax.NamedSharding(jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",)), jax.P("data"))
    now, reference, mask = (jax.device_put(array, rows) for array in (NOW, REFERENCE, MASK))
    close(step(curvature.init_moments(4, propagated), now, reference if propagated else None, mask), whole)


def test_padding_does_not_count_even_where_it_is_nan():
    spoilt = np.where(MASK[..., None], NOW, np.nan)
    found = curvature.update_moments(
        curvature.init_moments(4, True), jnp.asarray(spoilt), jnp.asarray(np.where(MASK[..., None], REFERENCE, np.inf)),
        jnp.asarray(MASK),
    )  # fmt: skip
    close(found, stream([slice(0, 6)], True), 0)


def test_bfloat16_inputs_are_summed_in_float32():
    x = jnp.asarray(NOW, jnp.bfloat16)
    found = curvature.update_moments(curvature.init_moments(4, False), x, None, jnp.asarray(MASK))
    assert found.inputs.dtype == jnp.float32
    rows = oracle.f64(x)[MASK]
    np.testing.assert_allclose(found.inputs, rows.T @ rows, rtol=1e-5, atol=1e-5)


def test_a_small_shift_keeps_its_digits():
    """Inputs that moved by one part in 1e5: subtracting two moments in float32 would leave noise."""
    x = 100 * RNG.normal(size=(200, 4)).astype(np.float32)
    y = (x + 1e-3 * RNG.normal(size=x.shape)).astype(np.float32)
    found = curvature.update_moments(
        curvature.init_moments(4, True), jnp.asarray(x), jnp.asarray(y), jnp.ones(200, bool)
    )
    expected = oracle.moment(x, oracle.f64(x) - oracle.f64(y)) * 200
    assert np.linalg.norm(found.shift - expected) / np.linalg.norm(expected) < 1e-5


@pytest.mark.parametrize("propagated", [False, True])
def test_distance_trace_and_damping_are_the_oracles_from_moments_and_from_tokens(propagated):
    change = RNG.normal(size=(4, 3)).astype(np.float32)
    x, y = NOW[MASK], REFERENCE[MASK]
    tokens = Inputs(jnp.asarray(x), jnp.asarray(x - y) if propagated else None)
    expected = oracle.distance(change.T, oracle.moment(y if propagated else x))
    for statistic in (curvature.mean_moments(stream([slice(0, 6)], propagated)), tokens):
        np.testing.assert_allclose(
            float(curvature.output_distance(statistic, jnp.asarray(change))), expected, rtol=1e-5
        )
        np.testing.assert_allclose(float(curvature.trace_of(statistic)), np.trace(oracle.moment(x)), rtol=1e-5)
        damping = oracle.damped(oracle.moment(x), 0.01)[0, 0] - oracle.moment(x)[0, 0]
        np.testing.assert_allclose(float(curvature.damping_of(statistic, 0.01)), damping, rtol=1e-4)


def quartic(tree):
    return jnp.sum(jnp.sin(tree["a"]) * tree["b"] ** 2) + jnp.sum(tree["a"] ** 4)


def test_hessian_vector_products_are_those_of_the_dense_hessian():
    with jax.enable_x64(True):
        at = {"a": jnp.asarray(RNG.normal(size=3)), "b": jnp.asarray(RNG.normal(size=3))}
        vector = {"a": jnp.asarray(RNG.normal(size=3)), "b": jnp.asarray(RNG.normal(size=3))}
        dense = jax.hessian(quartic)(at)
        found = curvature.hessian_vector_product(quartic, at, vector)
        gradient, product = curvature.linearised_gradient(quartic, at)
        for name in at:
            expected = sum(np.asarray(dense[name][other]) @ np.asarray(vector[other]) for other in at)
            np.testing.assert_allclose(found[name], expected, rtol=1e-12)
            np.testing.assert_allclose(product(vector)[name], expected, rtol=1e-12)
            np.testing.assert_allclose(gradient[name], jax.grad(quartic)(at)[name], rtol=1e-12)


def test_the_distance_has_twice_the_moments_as_its_hessian():
    statistic = Inputs(jnp.asarray(NOW[MASK]), None)
    change = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)
    found = curvature.hessian_vector_product(
        lambda e: curvature.output_distance(statistic, e), jnp.zeros((4, 3)), change
    )
    np.testing.assert_allclose(found, 2 * oracle.moment(NOW[MASK]) @ np.asarray(change), rtol=1e-4, atol=1e-5)


def test_a_whole_networks_loss_has_products_too():
    model = toys.Unrolled(1)
    params, rows = toys.make_params(model, 0), jax.tree.map(jnp.asarray, toys.make_rows(0))
    loss = toys.loss_of(model)

    def mean(params):
        return jnp.mean(jax.vmap(loss, in_axes=(None, 0))(params, rows))

    direction = jax.tree.map(lambda leaf: jnp.asarray(RNG.normal(size=leaf.shape), leaf.dtype), params)
    found = jax.jit(lambda p, v: curvature.hessian_vector_product(mean, p, v))(params, direction)
    step = 1e-2
    gradient = jax.jit(jax.grad(mean))
    plus = gradient(jax.tree.map(lambda p, v: p + step * v, params, direction))
    minus = gradient(jax.tree.map(lambda p, v: p - step * v, params, direction))
    difference = jax.tree.map(lambda a, b: (a - b) / (2 * step), plus, minus)
    size = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(found)))
    apart = jax.tree.map(lambda a, b: float(jnp.sum((a - b) ** 2)), found, difference)
    assert np.sqrt(sum(jax.tree.leaves(apart))) < 0.01 * size


def oracle_moments(model, params, rows):
    hidden, valid = toys.numpy_embed(params, [rows])
    seen = oracle.inputs_of(toys.numpy_block, toys.numpy_blocks(model, params), hidden, valid)
    return [{path: x.T @ x for path, x in block.items()} for block in seen]


@pytest.mark.parametrize("model", [toys.Scanned(2), toys.Unrolled(2)], ids=["scanned", "unrolled"])
def test_input_moments_of_any_linen_model(model):
    params, rows = toys.make_params(model, 0), toys.make_rows(0)
    paths = toys.paths_of(model)

    @jax.jit
    def run(params, rows):
        def forward(params, rows):
            return model.apply({"params": params}, rows.tokens, rows.mask)

        return curvature.input_moments(forward, params, paths, batch=rows, token_mask=rows.mask)

    found = run(params, jax.tree.map(jnp.asarray, rows))
    expected = oracle_moments(model, params, rows)
    for path in paths:
        place, relative = path.split("/", 1)
        for block in range(2) if place == "blocks" else [int(place[-1])]:
            moment = found[path][block] if place == "blocks" else found[path]
            assert np.linalg.norm(moment - expected[block][relative]) < 1e-5 * np.linalg.norm(expected[block][relative])


def test_captured_inputs_are_what_the_kernels_read():
    model = toys.Unrolled(1)
    params, rows = toys.make_params(model, 0), toys.make_rows(0)
    hidden, valid = toys.numpy_embed(params, [rows])
    apply = toys.block_model(model).apply

    def run(params, hidden):
        return curvature.capture_inputs(apply, toys.PATHS, params, hidden, rows, 0)

    for transform in (lambda f: f, jax.jit):
        captured = transform(run)(params["block_0"], jnp.asarray(hidden, jnp.float32))
        output, expected = oracle.run_block(toys.numpy_block, toys.numpy_blocks(model, params)[0], hidden, valid)
        np.testing.assert_allclose(np.asarray(captured.output)[valid], output[valid], rtol=1e-4, atol=1e-5)
        for path in toys.PATHS:
            np.testing.assert_allclose(np.asarray(captured.inputs[path])[valid], expected[path], rtol=1e-4, atol=1e-5)


def test_what_is_given_stands_for_what_led_to_it():
    """The rest of the block follows from a group's inputs: to rounding, and without the work that led to them."""
    model = toys.Unrolled(1)
    params, rows = toys.make_params(model, 0), toys.make_rows(0)
    hidden = jnp.asarray(toys.numpy_embed(params, [rows])[0], jnp.float32)
    apply, block = toys.block_model(model).apply, params["block_0"]
    whole = curvature.capture_inputs(apply, toys.PATHS, block, hidden, rows, 0)

    def rest(block, hidden, given):
        return curvature.capture_inputs(apply, [], block, hidden, rows, 0, given=given).output

    last = {"last/kernel": whole.inputs["last/kernel"]}
    np.testing.assert_allclose(jax.jit(rest)(block, hidden, last), whole.output, rtol=1e-6, atol=1e-6)
    nothing = rest(block, hidden, {"last/kernel": 0 * last["last/kernel"]})
    np.testing.assert_array_equal(nothing[0, 0], hidden[0, 0] + block["last"]["bias"])
    # First and second are not asked any more: NaN in them is not seen, and their products are not in the program.
    broken = block | {"first": jax.tree.map(lambda leaf: leaf * jnp.nan, block["first"])}
    assert jnp.all(jnp.isfinite(jax.jit(rest)(broken, hidden, last)))
    compiled = jax.jit(rest).lower(block, hidden, last).compile().as_text()
    assert compiled.count("tanh") == 0


def test_a_kernel_that_is_never_reached_is_named():
    model = toys.Unrolled(1)
    params = toys.make_params(model, 0)["block_0"]
    with pytest.raises(InputError, match=r"kernel third/kernel: no nn\.Dense of that name was called"):
        curvature.capture_inputs(
            toys.block_model(model).apply, ["third/kernel"], params, jnp.zeros((5, 7, 6)), toys.make_rows(0), 0
        )


class Keyword(nn.Module):
    """Calls its linear by keyword."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="a")(inputs=x)


def test_a_dense_called_by_keyword_is_seen():
    x = jnp.asarray(NOW)
    params = Keyword().init(jax.random.key(0), x)["params"]

    def forward(params, x):
        return Keyword().apply({"params": params}, x)

    assert curvature.capture_inputs(forward, ["a/kernel"], params, x).inputs["a/kernel"] is x
    found = curvature.input_moments(forward, params, ["a/kernel"], batch=x, token_mask=jnp.asarray(MASK))["a/kernel"]
    np.testing.assert_allclose(found, NOW[MASK].T @ NOW[MASK], rtol=1e-5, atol=1e-5)


def test_a_token_mask_of_another_shape_is_refused():
    params = Keyword().init(jax.random.key(0), jnp.asarray(NOW))["params"]
    with pytest.raises(InputError, match=r"kernel a: its inputs have shape \(6, 5, 4\), expected \(6, 4\) to match"):
        curvature.input_moments(
            lambda p, x: Keyword().apply({"params": p}, x),
            params,
            ["a/kernel"],
            batch=jnp.asarray(NOW),
            token_mask=jnp.ones(6, bool),
        )


def test_moments_of_no_token_are_nan_and_say_so_later():
    empty = curvature.mean_moments(curvature.init_moments(4, False))
    assert isinstance(empty, Moments) and np.all(np.isnan(empty.inputs))
