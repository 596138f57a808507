"""Hugging Face models and adapters in tunix's layout, and back."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from hcnr_jax.checkpoints import open_adapter, open_checkpoint
from hcnr_jax.checkpoints.foreign import convert_checkpoint, open_orbax_tree, write_tunix
from hcnr_jax.errors import InputError
from tests.checkpoints.foreign.trees import lora_tree, tunix_tree, write_orbax
from tests.tiny import read_weights, write_tiny_model


def assert_same_tree(found, expected):
    """Two Orbax folders with the same leaves, bit for bit."""
    found, expected = open_orbax_tree(found).leaves, open_orbax_tree(expected).leaves
    assert set(found) == set(expected)
    for path, leaf in expected.items():
        assert found[path].dtype == leaf.dtype
        np.testing.assert_array_equal(found[path].read(), leaf.read(), err_msg=path)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"dtype": "bfloat16", "shards": 2}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {}),
        ("gemma3_text", {"tie_word_embeddings": True}),
    ],
)
def test_a_model_goes_to_tunix(tmp_path, family, options):
    model = open_checkpoint(write_tiny_model(tmp_path / "m", family, **options))
    out, count, alpha = write_tunix(model, tmp_path / "ckpt")
    assert (out, alpha) == (tmp_path / "ckpt", None)
    expected = write_orbax(tmp_path / "expected", tunix_tree(read_weights(model.folder), model.config))
    assert_same_tree(out, expected)
    assert count == len(open_orbax_tree(expected).leaves)


def test_gemma_of_equal_heads_is_fused(tmp_path):
    model = open_checkpoint(write_tiny_model(tmp_path / "m", "gemma3_text", num_key_value_heads=4))
    out, _, _ = write_tunix(model, tmp_path / "ckpt")
    assert open_orbax_tree(out).leaves["layers/0/attn/qkv_einsum/w"].shape == (3, 4, 32, 12)
    convert_checkpoint(out, model, tmp_path / "back")
    for name, tensor in read_weights(model.folder).items():
        np.testing.assert_array_equal(read_weights(tmp_path / "back")[name], tensor)


@pytest.mark.parametrize(("name", "alpha"), [("full", None), ("lora-rank4-alpha8", 8.0)])
def test_what_tunix_wrote_comes_back(real_data, tmp_path, name, alpha):
    """The leaves and Orbax's own description of the tree are those of the folder that tunix wrote."""
    real = real_data / "tunix" / name
    base = open_checkpoint(write_tiny_model(tmp_path / "base"))
    convert_checkpoint(real, base, tmp_path / "hf", lora_alpha=alpha)
    model = open_checkpoint(tmp_path / "hf") if alpha is None else open_adapter(tmp_path / "hf", base)
    out, _, found = write_tunix(model, tmp_path / "back")
    assert found == alpha
    assert_same_tree(out, real)
    mine, theirs = (json.loads((root / "1" / "model_params" / "_METADATA").read_text()) for root in (out, real))
    keys = [{path: entry["key_metadata"] for path, entry in tree["tree_metadata"].items()} for tree in (mine, theirs)]
    assert keys[0] == keys[1]
    items = [json.loads((root / "1" / "_CHECKPOINT_METADATA").read_text())["item_handlers"] for root in (out, real)]
    assert items[0] == items[1]


@pytest.mark.parametrize("name", ["stories260K", "stories3M"])
def test_a_real_model_there_and_back(real_data, tmp_path, name):
    model = open_checkpoint(real_data / "models" / name)
    out, _, _ = write_tunix(model, tmp_path / "ckpt")
    convert_checkpoint(out, model, tmp_path / "back")
    back, own = read_weights(tmp_path / "back"), read_weights(model.folder)
    assert set(back) == set(own) - {"lm_head.weight"}  # a copy of the tied embedding is left out
    for tensor in back:
        np.testing.assert_array_equal(back[tensor], own[tensor], err_msg=tensor)


def test_an_adapter_goes_to_tunix(tmp_path):
    base = open_checkpoint(write_tiny_model(tmp_path / "base"))
    checkpoint = write_orbax(tmp_path / "ckpt", lora_tree(base.config, rank=4))
    convert_checkpoint(checkpoint, base, tmp_path / "peft", lora_alpha=6.0)
    out, count, alpha = write_tunix(open_adapter(tmp_path / "peft", base), tmp_path / "back")
    assert (count, alpha) == (28, 6.0)
    assert_same_tree(out, checkpoint)


def gemma_adapter(tmp_path, base, modules):
    """A PEFT folder over a tiny Gemma 3 with one A for all of `modules` of layer 0, and a B for each."""
    rng = np.random.default_rng(0)
    a, tensors = rng.standard_normal((2, 32)).astype("f4"), {}
    for module in modules:
        width = base.tensors[f"model.layers.0.self_attn.{module}.weight"].shape[0]
        for part, tensor in (("A", a), ("B", rng.standard_normal((width, 2)).astype("f4"))):
            tensors[f"base_model.model.model.layers.0.self_attn.{module}.lora_{part}.weight"] = tensor
    folder = tmp_path / "peft"
    folder.mkdir()
    names = [f"model.layers.0.self_attn.{module}" for module in modules]
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": names}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder, tensors


def test_gemmas_keys_and_values_share_a(tmp_path):
    base = open_checkpoint(write_tiny_model(tmp_path / "base", "gemma3_text", tie_word_embeddings=True))
    folder, tensors = gemma_adapter(tmp_path, base, ("k_proj", "v_proj"))
    save_file(tensors, folder / "adapter_model.safetensors")
    out, _, _ = write_tunix(open_adapter(folder, base), tmp_path / "ckpt")
    leaves = open_orbax_tree(out).leaves
    assert {path: leaf.shape for path, leaf in leaves.items()} == {
        "layers/0/attn/kv_einsum/w_lora_a": (32, 2),
        "layers/0/attn/kv_einsum/w_lora_b": (2, 2, 2, 12),
    }
    convert_checkpoint(out, base, tmp_path / "back", lora_alpha=4.0)
    back = read_weights(tmp_path / "back")
    assert set(back) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)
    tensors["base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight"] = tensors[min(tensors)] + 1
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"one A for keys and values, and those of .*v_proj.weight differ"):
        write_tunix(open_adapter(folder, base), tmp_path / "ckpt2")


def test_adapters_that_tunix_cannot_hold(tmp_path):
    base = open_checkpoint(write_tiny_model(tmp_path / "base"))
    checkpoint = write_orbax(tmp_path / "ckpt", lora_tree(base.config, rank=4))
    convert_checkpoint(checkpoint, base, tmp_path / "peft", lora_alpha=6.0)
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    changed = config | {"alpha_pattern": {"q_proj": 9}}
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(changed))
    with pytest.raises(InputError, match=r"one alpha for all modules, and the adapter has \[6.0, 9.0\]"):
        write_tunix(open_adapter(tmp_path / "peft", base), tmp_path / "out")
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    tensors = read_weights(tmp_path / "peft")
    for name in list(tensors):
        if name.endswith("lora_B.weight"):
            magnitude = np.ones(len(tensors[name]), "f4")
            tensors[name.replace("lora_B.weight", "lora_magnitude_vector")] = magnitude
    save_file(tensors, tmp_path / "peft" / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"a DoRA adapter .* has no form in tunix; merge it"):
        write_tunix(open_adapter(tmp_path / "peft", base), tmp_path / "out")


def test_models_that_tunix_has_not(tmp_path):
    mistral = open_checkpoint(write_tiny_model(tmp_path / "m", "mistral"))
    with pytest.raises(InputError, match="tunix checkpoints over a base of model_type 'mistral' are not handled"):
        write_tunix(mistral, tmp_path / "ckpt")
    biased = open_checkpoint(write_tiny_model(tmp_path / "b", mlp_bias=True))
    with pytest.raises(InputError, match=r"tunix has no llama model with model.layers.0.mlp.gate_proj.bias"):
        write_tunix(biased, tmp_path / "ckpt")
    assert not (tmp_path / "ckpt").exists()
