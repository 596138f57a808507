"""LoRA checkpoints of tunix as PEFT adapters."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from hcnr_jax.checkpoints import load_params, open_adapter, open_checkpoint, open_tuned
from hcnr_jax.checkpoints.foreign import convert_checkpoint, open_orbax_tree
from hcnr_jax.errors import InputError
from tests.checkpoints.foreign.trees import lora_tree, merged, tunix_tree, write_orbax
from tests.tiny import read_weights, write_tiny_model

ALPHA = 8.0


@pytest.fixture
def base(tmp_path):
    return open_checkpoint(write_tiny_model(tmp_path / "base"))


def value_at(tree, path):
    for part in path.split("/"):
        tree = tree[part]
    return tree["value"] if isinstance(tree, dict) else tree


def expected_delta(lora, layer, place, kernel, alpha=ALPHA):
    """(in, out) of one kernel, from qwix's own einsum over the contracted axes."""
    a, b = (np.asarray(value_at(lora, f"layers/{layer}/{place}/{kernel}_lora_{half}"), "f4") for half in "ab")
    rank = b.shape[0]
    return (a.reshape(-1, rank) @ b.reshape(rank, -1)) * np.float32(alpha / rank)


PLACES = {
    "self_attn.q_proj": ("attn/q_proj", "w"),
    "self_attn.k_proj": ("attn/k_proj", "w"),
    "self_attn.v_proj": ("attn/v_proj", "w"),
    "self_attn.o_proj": ("attn/o_proj", "w"),
    "mlp.gate_proj": ("mlp/gate_proj", "kernel"),
    "mlp.up_proj": ("mlp/up_proj", "kernel"),
    "mlp.down_proj": ("mlp/down_proj", "kernel"),
}


def assert_merges(adapter, base, lora):
    for layer in range(2):
        for module, (place, kernel) in PLACES.items():
            name = f"model.layers.{layer}.{module}.weight"
            wanted = base.read(name) + expected_delta(lora, layer, place, kernel).T
            np.testing.assert_allclose(adapter.value(name), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_merges_to_the_trained_kernels(tmp_path, base, dtype):
    lora = lora_tree(base.config, rank=4, dtype=dtype)
    done = convert_checkpoint(write_orbax(tmp_path / "ckpt", lora), base, tmp_path / "out", lora_alpha=ALPHA)
    assert (done.kind, done.tensors) == ("adapter", 28)
    adapter = open_tuned(tmp_path / "out", base)
    assert_merges(adapter, base, lora)
    assert adapter.notes == base.notes  # the adapter names this base
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (4, ALPHA, {})
    assert config["target_modules"] == sorted(module.split(".")[1] for module in PLACES)


def test_the_adapter_that_tunix_wrote(real_data, tmp_path, base):
    checkpoint = real_data / "tunix" / "lora-rank4-alpha8"
    convert_checkpoint(checkpoint, base, tmp_path / "out", lora_alpha=ALPHA)
    lora = {}
    for path, leaf in open_orbax_tree(checkpoint).leaves.items():
        node = lora
        for part in path.split("/")[:-1]:
            node = node.setdefault(part, {})
        node[path.split("/")[-1]] = leaf.read()
    assert_merges(open_adapter(tmp_path / "out", base), base, lora)


def test_peft_computes_the_same_logits(tmp_path, base):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    from hcnr_jax.models import Decoder, spec_from_config

    lora = lora_tree(base.config, rank=3)
    convert_checkpoint(write_orbax(tmp_path / "ckpt", lora), base, tmp_path / "out", lora_alpha=ALPHA)
    tokens = np.arange(12)[None] % 60
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.folder), tmp_path / "out")
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(tokens)).logits.numpy()
    spec = spec_from_config(base.config, "base")
    params = load_params(open_adapter(tmp_path / "out", base), spec)
    found = Decoder(spec).apply({"params": params}, jnp.asarray(tokens, jnp.int32))
    np.testing.assert_allclose(found, wanted, atol=2e-4)


def test_ranks_and_layers_that_differ(tmp_path, base):
    lora = lora_tree(base.config, rank=4)
    lora["layers"]["1"]["attn"] = lora_tree(base.config, rank=2, seed=1)["layers"]["1"]["attn"]
    del lora["layers"]["0"]["mlp"]["up_proj"]
    convert_checkpoint(write_orbax(tmp_path / "ckpt", lora), base, tmp_path / "out", lora_alpha=ALPHA)
    adapter = open_adapter(tmp_path / "out", base)
    for layer, name in ((0, "q_proj"), (1, "q_proj"), (1, "o_proj")):
        full = f"model.layers.{layer}.self_attn.{name}.weight"
        wanted = base.read(full) + expected_delta(lora, layer, f"attn/{name}", "w").T
        np.testing.assert_allclose(adapter.value(full), wanted, rtol=1e-5, atol=1e-6)
    assert not adapter.changes("model.layers.0.mlp.up_proj.weight")
    assert adapter.changes("model.layers.1.mlp.up_proj.weight")


def test_a_whole_state_with_lora_leaves(tmp_path, base):
    lora, weights = lora_tree(base.config, rank=4), read_weights(base.folder)
    whole = merged(tunix_tree(weights, base.config), lora)
    convert_checkpoint(write_orbax(tmp_path / "ckpt", whole), base, tmp_path / "out", lora_alpha=ALPHA)
    assert_merges(open_adapter(tmp_path / "out", base), base, lora)
    weights["model.layers.1.mlp.up_proj.weight"] += 1
    other = write_orbax(tmp_path / "other", merged(tunix_tree(weights, base.config), lora))
    with pytest.raises(InputError, match=r"beside them model.layers.1.mlp.up_proj.weight differs from the base"):
        convert_checkpoint(other, base, tmp_path / "out2", lora_alpha=ALPHA)


def _misshape(tree):
    tree["layers"]["0"]["attn"]["o_proj"]["w_lora_a"]["value"] = np.ones((2, 16, 4), "f4")


def _spoil(tree):
    tree["layers"]["0"]["attn"]["o_proj"]["w_lora_a"]["value"][0, 0, 0] = np.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree["layers"]["0"]["mlp"]["up_proj"].pop("kernel_lora_b"), "up_proj/kernel_lora_b is missing"),
        (_misshape, r"o_proj/w_lora_a is \(2, 16, 4\), expected \(4, 8, 4\) for rank 4"),
        (
            lambda tree: tree.update(embedder={"input_embedding_lora_a": {"value": np.ones((64, 4), "f4")}}),
            "no linear weight of the base in --like fits the LoRA leaves embedder/input_embedding_lora_a",
        ),
        (_spoil, "has 1 NaN or infinite entries"),
    ],
)
def test_leaves_that_do_not_fit(tmp_path, base, change, message):
    lora = lora_tree(base.config, rank=4)
    change(lora)
    with pytest.raises(InputError, match=message):
        convert_checkpoint(write_orbax(tmp_path / "ckpt", lora), base, tmp_path / "out", lora_alpha=ALPHA)
    assert not (tmp_path / "out").exists()


def test_alpha_goes_with_lora(tmp_path, base):
    lora = write_orbax(tmp_path / "lora", lora_tree(base.config, rank=4))
    with pytest.raises(InputError, match="tunix does not store their alpha: give --lora-alpha"):
        convert_checkpoint(lora, base, tmp_path / "out")
    full = write_orbax(tmp_path / "full", tunix_tree(read_weights(base.folder), base.config))
    with pytest.raises(InputError, match=r"holds no LoRA leaves .*: leave out --lora-alpha"):
        convert_checkpoint(full, base, tmp_path / "out", lora_alpha=ALPHA)
    shutil.rmtree(lora / "3" / "model_params")
    with pytest.raises(InputError, match="is not an Orbax checkpoint"):
        convert_checkpoint(lora, base, tmp_path / "out", lora_alpha=ALPHA)
