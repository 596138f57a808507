"""The decoder in every transform: blocks in sequence, jit, vmap, remat, bfloat16, interception, depth."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from hcnr_jax.models import (
    LOGICAL_AXES,
    Decoder,
    abstract_params,
    apply_block,
    apply_head,
    block_windows,
    completion_nll,
    embed_tokens,
    init_params,
    logical_axes,
    spec_from_config,
)
from hcnr_jax.models.families.llama import GROUPS, LLAMA
from hcnr_jax.models.layers import FULL_WINDOW, Block
from tests.models.helpers import CASES, case_config, random_tokens

NAMES = ["llama-biases", "qwen3-layer-types"]


def spec_of(name):
    return spec_from_config(case_config(name)[0], "config.json")


def at(tree, path):
    for key in path.split("/"):
        tree = tree[key]
    return tree


def example(name, dtype=jnp.float32):
    """(spec, params, tokens [3, 10], mask with padding on both sides)."""
    spec, rng = spec_of(name), np.random.default_rng(0)

    def fill(path, leaf):
        noise = 0.1 * rng.normal(size=leaf.shape)
        return jnp.asarray(1 + noise if path[-1].key == "scale" else noise, leaf.dtype)

    params = jax.tree_util.tree_map_with_path(fill, abstract_params(spec, dtype))
    mask = np.ones((3, 10), bool)
    mask[0, :4] = mask[1, 7:] = False
    return spec, params, jnp.asarray(random_tokens((3, 10))), jnp.asarray(mask)


def blockwise(spec, params, tokens, mask, dtype=jnp.float32):
    hidden, windows = embed_tokens(spec, params, tokens, dtype), block_windows(spec)
    for layer in range(spec.num_layers):
        block = jax.tree.map(lambda leaf, i=layer: leaf[i], params["blocks"])
        hidden = apply_block(spec, block, hidden, mask, windows[layer], dtype)
    return apply_head(spec, params, hidden, dtype)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_in_sequence_are_the_decoder(name):
    spec, params, tokens, mask = example(name)
    whole = Decoder(spec).apply({"params": params}, tokens, mask)
    np.testing.assert_allclose(blockwise(spec, params, tokens, mask), whole, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_eager_jit_vmap_and_plain_scan_agree(name):
    spec, params, tokens, mask = example(name)

    def run(tokens, mask):
        return Decoder(spec).apply({"params": params}, tokens, mask)

    eager = run(tokens, mask)
    assert eager.shape == (3, 10, spec.vocab_size) and eager.dtype == jnp.float32
    np.testing.assert_allclose(jax.jit(run)(tokens, mask), eager, rtol=0, atol=2e-5)
    rows = jax.vmap(lambda t, m: run(t[None], m[None])[0])(tokens, mask)
    np.testing.assert_allclose(rows, eager, rtol=0, atol=2e-5)
    kept = Decoder(spec, remat=False).apply({"params": params}, tokens, mask)
    np.testing.assert_allclose(kept, eager, rtol=0, atol=2e-5)


def test_no_mask_means_no_padding():
    spec, params, tokens, _ = example("qwen3")
    full = Decoder(spec).apply({"params": params}, tokens, jnp.ones(tokens.shape, bool))
    assert np.array_equal(Decoder(spec).apply({"params": params}, tokens), full)


def test_what_stands_at_padding_changes_nothing_at_real_tokens():
    spec, params, tokens, mask = example("qwen2-windows")
    other = jnp.where(mask, tokens, 0)
    ours, theirs = (Decoder(spec).apply({"params": params}, t, mask) for t in (tokens, other))
    assert np.array_equal(ours[mask], theirs[mask])


def test_gradient_through_remat_is_the_gradient_without_and_the_slope():
    spec, params, tokens, mask = example("llama-gqa")

    def loss(params, remat):
        logits = Decoder(spec, remat=remat).apply({"params": params}, tokens, mask)
        return completion_nll(logits, tokens, mask).sum()

    gradient, kept = (jax.jit(jax.grad(loss), static_argnums=1)(params, remat) for remat in (True, False))
    for ours, plain in zip(jax.tree.leaves(gradient), jax.tree.leaves(kept), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        rng = np.random.default_rng(0)
        direction = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), wide)

        @jax.jit
        def along(step):
            moved = jax.tree.map(lambda leaf, by: leaf + step * by, wide, direction)
            logits = Decoder(spec, jnp.float64).apply({"params": moved}, tokens, mask)
            return completion_nll(logits, tokens, mask).sum()

        slope = (along(1e-6) - along(-1e-6)) / 2e-6
        inner = sum(jax.tree.leaves(jax.tree.map(lambda g, by: (g.astype(by.dtype) * by).sum(), gradient, direction)))
    assert float(inner) == pytest.approx(float(slope), rel=1e-4)


@pytest.mark.parametrize(
    ("stored", "compute"),
    [("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float16", "bfloat16")],
)
def test_low_precision_runs_and_differentiates_under_strict_promotion(stored, compute):
    spec, params, tokens, mask = example("qwen3", stored)

    def loss(params):
        logits = Decoder(spec, compute).apply({"params": params}, tokens, mask)
        assert logits.dtype == jnp.float32
        return completion_nll(logits, tokens, mask).sum()

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    exact = jax.jit(Decoder(spec).apply)(
        {"params": jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)}, tokens, mask
    )
    assert float(value) == pytest.approx(float(completion_nll(exact, tokens, mask).sum()), rel=0.03)
    assert all(leaf.dtype == stored and np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@jax.custom_vjp
def probed_linear(x, kernel, probe):
    """x @ kernel; the cotangent of `probe` [in] is defined as the row sums of the squared kernel gradient."""
    return x @ kernel


def _probed_forward(x, kernel, probe):
    return x @ kernel, (x, kernel)


def _probed_backward(residuals, cotangent):
    x, kernel = residuals
    kernel_gradient = jnp.einsum("bti,bto->io", x, cotangent)
    return cotangent @ kernel.T, jnp.zeros_like(kernel), jnp.square(kernel_gradient).sum(axis=1)


probed_linear.defvjp(_probed_forward, _probed_backward)


def read_probe(call, args, kwargs, context):
    """Replaces every nn.Dense that has an `input_probe` beside its kernel."""
    module = context.module
    if not isinstance(module, nn.Dense) or not module.has_variable("params", "input_probe"):
        return call(*args, **kwargs)
    output = probed_linear(
        args[0], module.get_variable("params", "kernel"), module.get_variable("params", "input_probe")
    )
    if module.use_bias:
        output = output + module.get_variable("params", "bias")[None, None, :]
    return output


def with_probes(params):
    params = jax.tree.map(lambda leaf: leaf, params)
    for path in LLAMA.kernels:
        module = at(params, path.removesuffix("/kernel"))
        module["input_probe"] = jnp.zeros(module["kernel"].shape[:2])
    return params


def test_extra_leaves_beside_kernels_are_read_and_differentiated_inside_scan_and_remat():
    """What the neuron Fisher needs: per-example gradients of probe leaves through an intercepted, scanned Dense."""
    spec, params, tokens, mask = example("qwen3-layer-types")  # biases, q/k norms and mixed windows in one

    def loss(params, tokens, mask):
        logits = Decoder(spec, remat=True).apply({"params": params}, tokens[None], mask[None])
        return completion_nll(logits, tokens[None], mask[None])[0]

    def probed_loss(*arguments):
        with nn.intercept_methods(read_probe):
            return loss(*arguments)

    per_example = (None, 0, 0)
    probed = jax.jit(jax.vmap(jax.grad(probed_loss), per_example))(with_probes(params), tokens, mask)
    materialised = jax.jit(jax.vmap(jax.grad(loss), per_example))(params, tokens, mask)
    for path in LLAMA.kernels:
        score = at(probed, path.removesuffix("kernel") + "input_probe")
        expected = jnp.square(at(materialised, path)).sum(axis=-1)
        assert score.shape == (3, *at(params, path).shape[:2]) and float(expected.max()) > 0
        np.testing.assert_allclose(score, expected, rtol=1e-4, atol=1e-6 * float(expected.max()), err_msg=path)


@pytest.mark.parametrize("probes", [False, True])
def test_an_interceptor_around_a_block_sees_its_seven_linears_in_order(probes):
    spec, params, tokens, mask = example("llama-biases")
    blocks = (with_probes(params) if probes else params)["blocks"]
    seen = []

    def tap(call, args, kwargs, context):
        if isinstance(context.module, nn.Dense):
            seen.append("/".join([*context.module.path, "kernel"]))
        return call(*args, **kwargs)

    with nn.intercept_methods(tap):
        hidden = embed_tokens(spec, params, tokens)
        apply_block(spec, jax.tree.map(lambda leaf: leaf[0], blocks), hidden, mask, block_windows(spec)[0])
    assert seen == [path.removeprefix("blocks/") for path in LLAMA.kernels]
    assert seen == [path for group in GROUPS for path in group]


@pytest.mark.parametrize("remat", [True, False])
def test_the_block_is_traced_once_whatever_the_depth(remat, monkeypatch):
    """A scan, not a loop: twelve layers of differing windows trace the block as often as three."""
    traces = []
    inner = Block.__call__

    def counting(self, *arguments):
        traces.append(1)
        return inner(self, *arguments)

    monkeypatch.setattr(Block, "__call__", counting)
    counts = []
    for layers in (3, 12):
        windows = (*range(1, layers), None)
        spec = dataclasses.replace(spec_of("qwen2-windows"), num_layers=layers, layer_windows=windows)
        params, before = abstract_params(spec), len(traces)
        tokens = jax.ShapeDtypeStruct((2, 6), jnp.int32)
        jax.jit(Decoder(spec, remat=remat).apply).lower({"params": params}, tokens)
        counts.append(len(traces) - before)
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("name", CASES)
def test_logical_axes_name_every_dimension(name):
    spec = spec_of(name)
    shapes, axes = abstract_params(spec), logical_axes(spec)
    is_axes = {"is_leaf": lambda node: isinstance(node, tuple)}
    assert jax.tree.structure(shapes) == jax.tree.structure(axes, **is_axes)
    sizes = {
        "layers": {spec.num_layers},
        "vocab": {spec.vocab_size},
        "embed": {spec.hidden_size},
        "heads": {spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim},
        "head_dim": {spec.head_dim},
        "mlp": {spec.intermediate_size},
    }
    assert set(sizes) == set(LOGICAL_AXES)
    for leaf, names in zip(jax.tree.leaves(shapes), jax.tree.leaves(axes, **is_axes), strict=True):
        assert len(names) == leaf.ndim
        assert all(size in sizes[axis] for size, axis in zip(leaf.shape, names, strict=True)), names


def test_the_param_tree_is_the_agreed_one():
    spec = spec_of("llama-biases")
    shapes = abstract_params(spec, jnp.bfloat16)
    assert set(shapes) == {"embed", "blocks", "final_norm", "lm_head"}
    assert set(abstract_params(spec_of("llama-mqa-tied"))) == {"embed", "blocks", "final_norm"}
    assert {path: at(shapes, path).shape for path in LLAMA.kernels} == {
        "blocks/attention/q/kernel": (3, 32, 32),
        "blocks/attention/k/kernel": (3, 32, 16),
        "blocks/attention/v/kernel": (3, 32, 16),
        "blocks/attention/o/kernel": (3, 32, 32),
        "blocks/mlp/gate/kernel": (3, 32, 44),
        "blocks/mlp/up/kernel": (3, 32, 44),
        "blocks/mlp/down/kernel": (3, 44, 32),
    }
    assert at(shapes, "blocks/mlp/down/bias").shape == (3, 32)
    assert at(shapes, "lm_head/kernel").shape == (32, 97)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.bfloat16)}


def test_init_is_seeded_and_as_the_families_initialise():
    spec = spec_of("llama-biases")
    params, again, other = (init_params(spec, jax.random.key(seed)) for seed in (0, 0, 1))
    assert all(np.array_equal(*pair) for pair in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True))
    kernel = at(params, "blocks/attention/q/kernel")
    assert not np.array_equal(kernel, at(other, "blocks/attention/q/kernel"))
    assert not np.array_equal(kernel[0], kernel[1])
    assert float(kernel.std()) == pytest.approx(0.02, rel=0.1)
    assert not at(params, "blocks/mlp/down/bias").any() and np.all(at(params, "final_norm/scale") == 1)


def test_windows_are_data():
    assert block_windows(spec_of("qwen3-layer-types")).tolist() == [6, FULL_WINDOW, 6]
