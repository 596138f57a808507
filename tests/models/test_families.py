"""Families beyond Llama's shape: logits, text and blocks against transformers, and no switch without an effect."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from hcnr_jax.models import (
    Decoder,
    abstract_params,
    apply_block,
    apply_head,
    block_kinds,
    block_windows,
    embed_tokens,
    init_params,
    logical_axes,
    spec_from_config,
)
from hcnr_jax.models.families.table import FAMILIES
from hcnr_jax.models.generate import generate
from tests.models.family_cases import FAMILY_CASES, PADDED, PLAIN
from tests.models.helpers import CASES, case_config, params_of, random_tokens, torch_model, twin
from tests.models.test_generate import PAD, left_padded, torch_generate
from tests.models.test_parity import TOLERANCE, our_logits, torch_logits


def test_every_family_has_cases_and_a_padded_one():
    for cases in (CASES | FAMILY_CASES, CASES | {name: FAMILY_CASES[name] for name in PADDED}):
        assert {case["model_type"] for case in cases.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", FAMILY_CASES)
def test_logits_equal_pytorch(name):
    model, spec, params, length = twin(name)
    tokens = random_tokens((2, length))
    assert all(window is None or window < length for window in spec.layer_windows)
    expected = torch_logits(model, tokens)
    assert np.abs(expected).max() > 1  # large enough for a difference to show
    np.testing.assert_allclose(our_logits(spec, params, tokens), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", FAMILY_CASES)
def test_the_config_transformers_writes_back_gives_the_same_spec(name):
    config, _ = case_config(name)
    written = torch_model(config).config.to_dict()
    assert spec_from_config(written, "config.json") == spec_from_config(config, "config.json")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", PADDED)
def test_padded_batches_equal_pytorch_at_real_tokens(name, side):
    model, spec, params, _ = twin(name)
    tokens, mask = random_tokens((3, 20)), np.ones((3, 20), bool)
    for row, real in enumerate((20, 11, 1)):
        mask[row, slice(0, 20 - real) if side == "left" else slice(real, 20)] = False
    ours = our_logits(spec, params, tokens, mask)
    # As generate of transformers does; the model alone would count padding, which matters where queries grow.
    positions = torch.tensor(np.maximum(np.cumsum(mask, axis=1) - 1, 0))
    with torch.no_grad():
        inputs = {"attention_mask": torch.tensor(mask).long(), "position_ids": positions}
        expected = model(torch.tensor(tokens).long(), **inputs).logits.numpy()
    np.testing.assert_allclose(ours[mask], expected[mask], rtol=0, atol=TOLERANCE)
    assert np.isfinite(ours).all()


@pytest.mark.parametrize("name", PADDED)
def test_greedy_tokens_equal_transformers_for_unequal_prompts(name):
    model, spec, params, _ = twin(name)
    tokens, mask = left_padded([random_tokens((n,), seed=n) for n in (11, 4, 1)])
    ours = generate(spec, params, tokens, mask, 20, (), PAD)
    assert ours.tolist() == torch_generate(model, tokens, mask, 20).tolist()


@pytest.mark.parametrize("name", PADDED)
def test_blocks_in_sequence_are_the_decoder(name):
    _, spec, params, length = twin(name)
    tokens = jnp.asarray(random_tokens((2, length)))
    hidden, kinds = embed_tokens(spec, params, tokens), block_kinds(spec)
    for layer in range(spec.num_layers):
        block, kind = jax.tree.map(lambda leaf, i=layer: leaf[i], (params["blocks"], kinds))
        hidden = apply_block(spec, block, hidden, None, kind)
    whole = our_logits(spec, params, tokens)
    np.testing.assert_allclose(apply_head(spec, params, hidden), whole, rtol=0, atol=2e-5)


@pytest.mark.parametrize("change", PLAIN)
def test_every_attribute_has_an_effect(change):
    """Without the attribute under test the same weights give other logits: the parity above is not vacuous."""
    name, changes = PLAIN[change]
    config, length = case_config(name)
    spec, tokens = spec_from_config(config, "config.json"), random_tokens((1, length))
    params = params_of(torch_model(config), spec)
    other = spec_from_config({**config, **changes}, "config.json")
    assert np.abs(our_logits(spec, params, tokens) - our_logits(other, params, tokens)).max() > 0.01


@pytest.mark.parametrize("name", PADDED)
def test_low_precision_runs_under_strict_promotion(name):
    _, spec, params, length = twin(name)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    logits = Decoder(spec, jnp.bfloat16).apply({"params": half}, jnp.asarray(random_tokens((2, length))))
    assert logits.dtype == jnp.float32 and np.isfinite(logits).all()


@pytest.mark.parametrize("name", ["gemma3-untied-v5", "gemma2", "granite", "olmo3-yarn-v5", "glm4"])
def test_float64_agrees_with_pytorch_in_float64(name):
    """With x64 on, the whole model runs in float64: no hidden float32 step remains, apart from rotary angles."""
    model, spec, params, length = twin(name)
    tokens = random_tokens((2, length))
    expected = torch_logits(model.double(), tokens)
    with jax.enable_x64(True):
        logits = Decoder(spec, jnp.float64).apply({"params": params}, jnp.asarray(tokens))
        assert logits.dtype == jnp.float64
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FAMILY_CASES)
def test_logical_axes_and_shapes_fit_every_leaf(name):
    spec = spec_from_config(case_config(name)[0], "config.json")
    shapes, axes = abstract_params(spec), logical_axes(spec)
    is_axes = {"is_leaf": lambda node: isinstance(node, tuple)}
    assert jax.tree.structure(shapes) == jax.tree.structure(axes, **is_axes)
    for leaf, names in zip(jax.tree.leaves(shapes), jax.tree.leaves(axes, **is_axes), strict=True):
        assert len(leaf.shape) == len(names)
    assert set(spec.recipe.kernels) <= {
        "/".join(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)
    }


@pytest.mark.parametrize("name", PADDED)
def test_norms_start_as_ones(name):
    spec = spec_from_config(case_config(name)[0], "config.json")
    scale = init_params(spec, jax.random.key(0))["final_norm"]["scale"]
    assert np.all(scale + spec.recipe.norm_offset == 1)


def test_a_window_alone_is_refused_where_layers_rotate_differently():
    _, spec, params, _ = twin("gemma3-tied-v4")
    block = jax.tree.map(lambda leaf: leaf[0], params["blocks"])
    with pytest.raises(ValueError, match="expected an entry of block_kinds"):
        apply_block(spec, block, jnp.zeros((1, 2, spec.hidden_size)), None, block_windows(spec)[0])


def test_embeddings_are_scaled_by_the_factor_rounded_to_the_compute_dtype():
    """As transformers rounds it in a bfloat16 model: sqrt(1152) = 33.94 becomes 34."""
    spec = dataclasses.replace(
        spec_from_config(case_config("gemma2")[0], "config.json"), embedding_multiplier=1152**0.5
    )
    params = {"embed": {"embedding": jnp.ones((spec.vocab_size, spec.hidden_size), jnp.bfloat16)}}
    tokens = jnp.zeros((1, 1), jnp.int32)
    assert embed_tokens(spec, params, tokens, jnp.bfloat16)[0, 0, 0] == 34
    assert float(embed_tokens(spec, params, tokens, jnp.float32)[0, 0, 0]) == pytest.approx(1152**0.5, rel=1e-7)
