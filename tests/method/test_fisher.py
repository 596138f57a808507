"""Probe scores against materialised per-example gradients and against float64, on our model and on two that are not."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from hcnr_jax.errors import InputError
from hcnr_jax.method import fisher
from hcnr_jax.method.sums import mean_sums
from hcnr_jax.models import Decoder, completion_nll, spec_from_config
from hcnr_jax.models.decoder import abstract_params
from hcnr_jax.models.families.llama import LLAMA
from tests.method import oracle, toys
from tests.tiny import tiny_config

ALL = ("input", "output", "weight")
SPEC = spec_from_config(
    tiny_config(
        "qwen2", hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=20
    ),
    "config.json",
)


def decoder_loss(dtype=jnp.float32):
    decoder = Decoder(SPEC, dtype)

    def loss(params, row):
        logits = decoder.apply({"params": params}, row.tokens[None], row.mask[None])
        completion = row.mask & (jnp.arange(row.mask.shape[0]) >= 2)
        return completion_nll(logits, row.tokens[None], completion[None])[0]

    return loss


def decoder_params():
    rng = np.random.default_rng(3)
    shapes = abstract_params(SPEC)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.2, jnp.float32), shapes)


def case(name):
    """(loss, params, paths) of one of the three models."""
    if name == "decoder":
        return decoder_loss(), decoder_params(), LLAMA.kernels
    model = {"scanned": toys.Scanned(2), "unrolled": toys.Unrolled(2)}[name]
    return toys.loss_of(model), toys.make_params(model, 1), toys.paths_of(model)


def rows(seed=0, count=5):
    return jax.tree.map(jnp.asarray, toys.make_rows(seed, count))


def relative_error(found, expected):
    found, expected = oracle.f64(found), oracle.f64(expected)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@cache
def scored(name):
    """Per-example tap scores at every granularity and the losses, compiled once for all tests of a model."""
    loss, params, paths = case(name)
    return jax.jit(partial(fisher.example_scores, loss, paths=paths, granularities=ALL))(params, batch=rows())


def tap_means(loss, params, paths, batch, granularities=ALL):
    scores, _ = fisher.example_scores(loss, params, paths, batch, granularities)
    return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), scores)


@pytest.mark.parametrize("name", ["decoder", "scanned", "unrolled"])
def test_tap_scores_are_the_materialised_ones(name):
    loss, params, paths = case(name)
    found = scored(name)[0]
    expected = jax.jit(partial(fisher.materialised_scores, loss, paths=paths, granularities=ALL))(params, batch=rows())
    for granularity in ALL:
        for path in paths:
            assert relative_error(found[granularity][path], expected[granularity][path]) < 1e-5
            assert np.all(np.asarray(found[granularity][path]) >= 0)


@pytest.mark.parametrize("name", ["decoder", "unrolled"])
def test_tap_scores_are_those_of_the_float64_oracle(name):
    """Gradients in float64 without taps, squared and summed by numpy; float32 taps agree to 1e-5."""
    _, params, paths = case(name)
    found = jax.tree.map(lambda leaf: np.mean(leaf, axis=0), scored(name)[0])
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), params)
        model = decoder_loss(jnp.float64) if name == "decoder" else toys.loss_of(toys.Unrolled(2, jnp.float64))
        gradients = jax.jit(jax.vmap(jax.grad(model), in_axes=(None, 0)))(wide, rows())
        flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(gradients, sep="/").items()}
    for path in paths:
        assert flat[path].dtype == np.float64
        stacked = flat[path] if name == "decoder" else flat[path][:, None]
        for layer in range(stacked.shape[1]):
            for granularity in ALL:
                expected = oracle.scores(stacked[:, layer].swapaxes(-1, -2), granularity)
                expected = expected.T if granularity == "weight" else expected
                score = found[granularity][path][layer] if name == "decoder" else found[granularity][path]
                assert relative_error(score, expected) < 1e-5


def test_float64_taps_reach_float64():
    with jax.enable_x64(True):
        model = toys.Unrolled(1, jnp.float64)
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), toys.make_params(toys.Unrolled(1), 1))
        paths = toys.paths_of(model)
        loss = toys.loss_of(model)
        found = jax.jit(partial(fisher.example_scores, loss, paths=paths))(params, batch=rows())[0]["input"]
        expected = jax.jit(partial(fisher.materialised_scores, loss, paths=paths))(params, batch=rows())["input"]
        for path in paths:
            assert found[path].dtype == jnp.float64
            assert relative_error(found[path], expected[path]) < 1e-13


def test_bfloat16_parameters_are_scored_in_float32():
    """Weights stored in bfloat16, arithmetic in float32: the same scores as from the same weights stored in float32."""
    model = toys.Scanned(2, jnp.float32)
    stored = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), toys.make_params(model, 1))
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), stored)
    run = jax.jit(partial(tap_means, toys.loss_of(model), paths=toys.paths_of(model), granularities=("input",)))
    found, expected = run(stored, batch=rows()), run(wide, batch=rows())
    for path in toys.paths_of(model):
        assert found["input"][path].dtype == jnp.float32
        assert relative_error(found["input"][path], expected["input"][path]) < 1e-6


def test_a_bfloat16_computation_is_scored_within_its_rounding():
    paths = toys.paths_of(toys.Unrolled(1))

    def run(dtype):
        loss = toys.loss_of(toys.Unrolled(1, dtype))
        return jax.jit(partial(tap_means, loss, paths=paths, granularities=("input",)))(params, batch=rows())["input"]

    params = toys.make_params(toys.Unrolled(1), 1)
    found, exact = run(jnp.bfloat16), run(jnp.float32)
    for path in found:
        assert found[path].dtype == jnp.float32
        assert relative_error(found[path], exact[path]) < 0.1


def test_the_loss_is_the_plain_loss():
    loss, params, _ = case("decoder")
    losses = scored("decoder")[1]
    plain = jax.jit(jax.vmap(loss, in_axes=(None, 0)))(params, rows())
    np.testing.assert_allclose(losses, plain, rtol=1e-6)


@pytest.mark.parametrize("granularities", [("input", "output"), ALL])
def test_any_microbatch_gives_the_same_scores(granularities):
    model = toys.Unrolled(1)
    loss, params, paths = toys.loss_of(model), toys.make_params(model, 1), toys.paths_of(model)
    batch = rows(2, 6)
    step = jax.jit(partial(fisher.score_batch, loss, paths=paths, granularities=granularities))

    def stream(size):
        sums = fisher.init_scores(params, paths, granularities)
        for start in range(0, 6, size):
            part = jax.tree.map(lambda leaf, start=start: leaf[start : start + size], batch)
            sums, _ = step(params, batch=part, weights=jnp.ones(len(part.tokens)), sums=sums)
        return mean_sums(sums)

    whole, parts = stream(6), stream(3)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-9), parts, whole)
    plain = jax.jit(partial(fisher.materialised_scores, loss, paths=paths, granularities=granularities))
    expected = plain(params, batch=batch)
    for granularity in granularities:
        for path in paths:
            assert relative_error(whole[granularity][path], np.mean(expected[granularity][path], 0)) < 1e-5


@pytest.mark.parametrize("granularities", [("input",), ("weight",)])
def test_padded_rows_do_not_count_even_where_their_loss_is_nan(granularities):
    loss, params, paths = case("unrolled")

    def poisoned(params, example):
        row, factor = example
        return loss(params, row) * factor

    batch = rows(2, 4)
    step = jax.jit(partial(fisher.score_batch, poisoned, paths=paths, granularities=granularities))
    empty = fisher.init_scores(params, paths, granularities)
    weights = jnp.asarray([1.0, 0.0, 1.0, 0.0])
    found, losses = step(params, batch=(batch, jnp.asarray([1.0, jnp.nan, 1.0, jnp.inf])), weights=weights, sums=empty)
    assert float(found.weight) == 2 and np.isnan(losses[1]) and np.all(np.isfinite(np.asarray(losses)[[0, 2]]))
    kept = jax.tree.map(lambda leaf: leaf[jnp.asarray([0, 2, 0, 2])], batch)
    expected, _ = step(params, batch=(kept, jnp.ones(4)), weights=jnp.asarray([1.0, 1.0, 0.0, 0.0]), sums=empty)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, expected)


def test_one_trace_serves_all_batches():
    loss, params, paths = case("scanned")
    traces = []

    def counted(params, row):
        traces.append(1)
        return loss(params, row)

    step = jax.jit(partial(fisher.score_batch, counted, paths=paths))
    sums = fisher.init_scores(params, paths)
    for seed in range(3):
        sums, _ = step(params, batch=rows(seed), weights=jnp.ones(5), sums=sums)
    assert len(traces) == 1


def test_both_forms_of_the_score_are_one_formula():
    rng = np.random.default_rng(0)
    for tokens, fan_in, fan_out in ((3, 40, 30), (60, 4, 5), (1, 1, 1), (7, 1, 9)):
        x, g = rng.normal(size=(tokens, fan_in)), rng.normal(size=(tokens, fan_out))
        squares = (x.T @ g) ** 2
        x32, g32 = jnp.asarray(x, jnp.float32), jnp.asarray(g, jnp.float32)
        assert relative_error(fisher.input_scores(x32, g32), squares.sum(1)) < 1e-5
        assert relative_error(fisher.output_scores(x32, g32), squares.sum(0)) < 1e-5
        assert relative_error(fisher.weight_scores(x32, g32), squares) < 1e-5


def test_a_score_that_cancels_is_never_negative():
    """Channels orthogonal to the cotangents score 0; the Gram form alone would leave rounding of either sign."""
    rng = np.random.default_rng(0)
    g = rng.normal(size=(8, 300))
    basis = np.linalg.qr(np.concatenate([g[:, :4] @ rng.normal(size=(4, 4)), rng.normal(size=(8, 4))], 1))[0]
    g = basis[:, :4] @ rng.normal(size=(4, 300))
    x = basis[:, 4:] @ rng.normal(size=(4, 300))
    found = np.asarray(fisher.input_scores(jnp.asarray(x, jnp.float32), jnp.asarray(g, jnp.float32)))
    assert np.all(found >= 0) and np.all(found < 1e-3)


class Tied(nn.Module):
    """Uses `shared` twice, `once` once and `unused` never."""

    @nn.compact
    def __call__(self, x):
        shared = nn.Dense(4, name="shared")
        nn.Dense(4, name="unused")(x)
        return nn.Dense(4, name="once")(shared(shared(x)))


def test_shared_and_unused_kernels_are_refused_by_name():
    params = Tied().init(jax.random.key(0), jnp.zeros((3, 4)))["params"]

    def loss(params, x):
        return jnp.sum(Tied().apply({"params": params}, x) ** 2)

    example = jnp.ones((3, 4))
    uses = fisher.count_uses(loss, params, ["shared/kernel", "unused/kernel", "once/kernel"], example=example)
    assert {path: int(count) for path, count in uses.items()} == {
        "shared/kernel": 2, "unused/kernel": 0, "once/kernel": 1,
    }  # fmt: skip
    fisher.check_uses(loss, params, ["once/kernel"], example=example)
    with pytest.raises(InputError, match=r"kernel shared/kernel: used 2 times per example, expected once"):
        fisher.check_uses(loss, params, ["once/kernel", "shared/kernel"], example=example)
    with pytest.raises(InputError, match=r"kernel unused/kernel: used 0 times .* leave it out of `paths`"):
        fisher.check_uses(loss, params, ["unused/kernel"], example=example)


@pytest.mark.parametrize("name", ["scanned", "decoder"])
def test_stacked_kernels_are_counted_one_by_one(name):
    loss, params, paths = case(name)
    example = jax.tree.map(lambda leaf: leaf[0], rows())
    for path, uses in fisher.count_uses(loss, params, paths, example=example).items():
        assert uses.shape == (2,), path
        assert np.all(np.asarray(uses) == 1)
    fisher.check_uses(loss, params, paths, example=example)


def test_a_kernel_that_is_no_dense_is_refused():
    class Own(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x @ self.param("kernel", nn.initializers.ones, (4, 4))

    params = Own().init(jax.random.key(0), jnp.zeros((3, 4)))["params"]
    with pytest.raises(InputError, match=r"kernel kernel: used 0 times"):
        fisher.check_uses(
            lambda p, x: jnp.sum(Own().apply({"params": p}, x)), params, ["kernel"], example=jnp.ones((3, 4))
        )


def test_eager_and_jit_agree_for_a_dense_called_by_keyword():
    class Keyword(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(5, name="a")(inputs=x)

    params = Keyword().init(jax.random.key(0), jnp.zeros((3, 4)))["params"]

    def loss(params, x):
        return jnp.sum(Keyword().apply({"params": params}, x) ** 2)

    batch = jax.random.normal(jax.random.key(1), (2, 3, 4))
    scores = partial(fisher.example_scores, loss, paths=["a/kernel"], granularities=ALL)
    eager, jitted = scores(params, batch=batch)[0], jax.jit(scores)(params, batch=batch)[0]
    expected = fisher.materialised_scores(loss, params, ["a/kernel"], batch, ALL)
    for granularity in ALL:
        for found in (eager, jitted):
            assert relative_error(found[granularity]["a/kernel"], expected[granularity]["a/kernel"]) < 1e-5


def test_no_buffer_is_as_large_as_a_batch_of_weight_gradients():
    """32 examples through 3 stacked 64 x 64 kernels: their gradients are 32 x 64 x 64 numbers, no array may be."""
    fan, examples, tokens = 64, 32, 4

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return jnp.tanh(nn.Dense(fan, name="a")(x)), None

    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            layers = nn.scan(
                nn.remat(Layer), variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast,
                length=3,
            )  # fmt: skip
            return layers(name="blocks")(x, None)[0]

    params = Deep().init(jax.random.key(0), jnp.zeros((tokens, fan)))["params"]

    def loss(params, x):
        return jnp.sum(Deep().apply({"params": params}, x) ** 2)

    def largest(scores):
        run = jax.jit(partial(scores, loss, paths=["blocks/a/kernel"]))
        compiled = run.lower(params, batch=jnp.zeros((examples, tokens, fan))).compile()
        shapes = re.findall(r"f32\[([\d,]+)\]", compiled.as_text())
        return max(np.prod([int(n) for n in shape.split(",")]) for shape in shapes), compiled.memory_analysis()

    gradients = examples * fan * fan
    numbers, memory = largest(fisher.example_scores)
    assert numbers < gradients
    assert memory.temp_size_in_bytes < 4 * gradients
    plain_numbers, plain_memory = largest(fisher.materialised_scores)
    assert plain_numbers >= gradients
    assert plain_memory.temp_size_in_bytes > 4 * gradients


@pytest.mark.parametrize("granularity", ["input", "output"])
def test_long_rows_never_hold_a_whole_gradient(granularity):
    """Where the gradient is the cheaper form it is made in pieces: right, and with no (rows, in, out) array."""
    tokens, fan_in, fan_out, count = 400, 96, 8 * fisher.CHANNELS - 8, 6
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(count, tokens, fan_in)), jnp.float32)
    g = jnp.asarray(rng.normal(size=(count, tokens, fan_out)), jnp.float32)
    assert fisher._materialising_is_cheaper(x[0], g[0])
    score = jax.jit(jax.vmap(fisher.SCORES[granularity]))
    gradients = np.einsum("nti,nto->nio", oracle.f64(x), oracle.f64(g))
    expected = np.sum(gradients**2, axis={"input": 2, "output": 1}[granularity])
    np.testing.assert_allclose(score(x, g), expected, rtol=1e-4)
    if granularity == "input":
        memory = score.lower(x, g).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 4 * count * fan_in * fan_out + x.nbytes


def test_no_gradient_of_an_example_is_ever_stored():
    """The compiled scores of a batch hold less than one example's weight gradients beside what a forward pass holds."""
    config = tiny_config(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=4, head_dim=64)  # fmt: skip
    spec = spec_from_config(config, "config.json")
    decoder, count, length = Decoder(spec), 8, 16
    params = abstract_params(spec)
    batch = jax.ShapeDtypeStruct((count, length), np.int32)

    def loss(params, tokens):
        logits = decoder.apply({"params": params}, tokens[None])
        return completion_nll(logits, tokens[None], jnp.ones((1, length), bool))[0]

    def compiled(function):
        return jax.jit(function).lower(params, batch).compile().memory_analysis()

    ours = compiled(lambda p, b: fisher.example_scores(loss, p, LLAMA.kernels, b))
    plain = compiled(lambda p, b: fisher.materialised_scores(loss, p, LLAMA.kernels, b))
    one = sum(4 * leaf.size for path, leaf in flatten_dict(params, sep="/").items() if path in LLAMA.kernels)
    assert ours.temp_size_in_bytes < one < count * one < plain.temp_size_in_bytes


def test_sixteen_bit_tokens_are_scored_with_wide_sums():
    x, g = (jnp.asarray(np.random.default_rng(k).normal(size=(7, 11 + k)), jnp.bfloat16) for k in range(2))
    for granularity, score in fisher.SCORES.items():
        found = score(x, g)
        gradient = oracle.f64(x).T @ oracle.f64(g)
        axis = {"input": 1, "output": 0, "weight": ()}[granularity]
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, np.sum(gradient**2, axis=axis), rtol=1e-5)
