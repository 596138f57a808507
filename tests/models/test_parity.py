"""Logits equal those of PyTorch transformers for every family, head layout, scaling and window, padded or not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from hcnr_jax.models import Decoder, completion_nll, spec_from_config
from tests.models.helpers import CASES, case_config, params_of, random_tokens, torch_model, twin

TOLERANCE = 1e-4


def torch_logits(model, tokens, mask=None):
    mask = None if mask is None else torch.tensor(mask).long()
    with torch.no_grad():
        return model(torch.tensor(tokens).long(), attention_mask=mask).logits.numpy()


def our_logits(spec, params, tokens, mask=None):
    return np.asarray(jax.jit(Decoder(spec).apply)({"params": params}, tokens, mask))


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_pytorch(name):
    model, spec, params, length = twin(name)
    tokens = random_tokens((2, length))
    expected = torch_logits(model, tokens)
    assert np.abs(expected).max() > 1  # large enough for a difference to show
    np.testing.assert_allclose(our_logits(spec, params, tokens), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["llama-llama3-v5", "mistral-window", "qwen2-windows", "qwen3"])
def test_padded_batches_equal_pytorch_at_real_tokens(name, side):
    model, spec, params, _ = twin(name)
    tokens, mask = random_tokens((3, 20)), np.ones((3, 20), bool)
    for row, real in enumerate((20, 11, 1)):
        mask[row, slice(0, 20 - real) if side == "left" else slice(real, 20)] = False
    ours = our_logits(spec, params, tokens, mask)
    np.testing.assert_allclose(ours[mask], torch_logits(model, tokens, mask)[mask], rtol=0, atol=TOLERANCE)
    assert np.isfinite(ours).all()


@pytest.mark.parametrize("name", ["llama-linear-v4", "llama-llama3-v4", "mistral-window", "qwen2-windows"])
def test_the_scaling_and_window_cases_would_notice_their_absence(name):
    """Without the attribute under test the same weights give other logits: the parity above is not vacuous."""
    config, length = case_config(name)
    spec, tokens = spec_from_config(config, "config.json"), random_tokens((1, length))
    params = params_of(torch_model(config), spec)
    plain = {**config, "rope_scaling": None, "use_sliding_window": False, "sliding_window": None}
    if config["model_type"] in ("llama", "mistral"):
        del plain["use_sliding_window"]
    other = spec_from_config(plain, "config.json")
    assert np.abs(our_logits(spec, params, tokens) - our_logits(other, params, tokens)).max() > 0.01


@pytest.mark.parametrize("name", CASES)
def test_the_config_transformers_writes_back_gives_the_same_spec(name):
    config, _ = case_config(name)
    written = torch_model(config).config.to_dict()
    assert spec_from_config(written, "config.json") == spec_from_config(config, "config.json")


def test_the_mean_loss_is_the_loss_of_transformers():
    model, spec, params, length = twin("llama-gqa")
    tokens, mask = random_tokens((1, length)), np.zeros((1, length), bool)
    mask[:, 9:] = True
    labels = torch.tensor(np.where(mask, tokens, -100)).long()
    with torch.no_grad():
        expected = model(torch.tensor(tokens).long(), labels=labels).loss.item()
    ours = completion_nll(jnp.asarray(our_logits(spec, params, tokens)), jnp.asarray(tokens), jnp.asarray(mask))
    assert ours.shape == (1,)
    assert float(ours[0]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["llama-gqa", "qwen3-layer-types"])
def test_float64_agrees_with_pytorch_in_float64(name):
    """With x64 on, the whole model runs in float64: no hidden float32 step remains."""
    model, spec, params, length = twin(name)
    tokens = random_tokens((2, length))
    expected = torch_logits(model.double(), tokens)
    with jax.enable_x64(True):
        logits = Decoder(spec, jnp.float64).apply({"params": params}, jnp.asarray(tokens))
        assert logits.dtype == jnp.float64
    # PyTorch keeps rotary angles in float32 (about 1e-7 per radian); nothing else may be that coarse.
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
