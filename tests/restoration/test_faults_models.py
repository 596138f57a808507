"""Models that do not fit, are not whole or are not finite, through the command line: docs/faults.md 13 to 21."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.restoration.worlds import (
    World,
    call,
    copy_world,
    edit_json,
    edit_weights,
    kernels_of,
    make_world,
    refused,
    restore,
    text_of,
    weights_of,
)
from tests.tiny import is_kernel, write_tiny_model

HEAD = "lm_head.weight"
Q0 = "model.layers.0.self_attn.q_proj.weight"
PLAIN = ("--compensation", "none")


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("models") / "in")


@pytest.fixture()
def world(original, tmp_path) -> World:
    return copy_world(original, tmp_path / "in")


def dry(world: World) -> str:
    """What a run that is only planned says; it must not refuse."""
    ended = call(*world.arguments("--out", world.folder.parent / "out", "--dry-run"))
    assert ended.code == 0, ended.err
    return text_of(ended.err)


# ---------------------------------------------------------------- 13 to 15: a pair?

OTHER_MODELS = {
    "architecture": ("mistral", {}, ["model_type is llama", "mistral"]),
    "layers": ("llama", {"num_hidden_layers": 3}, ["num_hidden_layers is 2", "and 3 in"]),
    "width": ("llama", {"intermediate_size": 40}, ["intermediate_size is 48", "40"]),
    "GQA": ("llama", {"num_key_value_heads": 4}, ["num_key_value_heads is 2", "4"]),
    "RoPE": ("llama", {"rope_theta": 5e5}, ["rope_theta is 10000.0", "500000.0"]),
    "RoPE scaling": (
        "llama",
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        ["rope_scaling is None", "2.0"],
    ),
    "vocabulary": ("llama", {"vocab_size": 72}, ["vocab_size is 64", "72", "embedding padded? Resize"]),
    "tied head": ("llama", {"tie_word_embeddings": True}, ["tie_word_embeddings is False", "save both tied or both"]),
}


@pytest.mark.parametrize("case", OTHER_MODELS)
def test_not_a_pair(world, case) -> None:
    family, config, words = OTHER_MODELS[case]
    shutil.rmtree(world.tuned)
    write_tiny_model(world.tuned, family, seed=3, **config)
    message = refused(world)
    assert all(word in message for word in ["not a pair", str(world.base), str(world.tuned), *words])


def test_identical_models(world) -> None:
    shutil.copytree(world.base, world.tuned, dirs_exist_ok=True)
    message = refused(world)
    assert all(word in message for word in ["identical in every weight", str(world.base), "before and the model after"])
    edit_weights(world.tuned, lambda weights: weights.update({"model.norm.weight": weights["model.norm.weight"] * 2}))
    assert all(word in refused(world) for word in ["identical", "model.norm.weight"])


def test_more_embedding_rows_than_tokens_are_fine_fewer_are_not(tmp_path) -> None:
    """docs/faults.md 14: the tiny tokenizer has 64 ids."""
    assert "6 of 14 kept" in dry(make_world(tmp_path / "padded" / "in", vocab_size=72))
    message = refused(make_world(tmp_path / "short" / "in", vocab_size=40))
    assert all(word in message for word in ["honesty.jsonl, line ", "gives id ", "the model embeds 40 ids", "tuned"])


def test_rows_that_the_config_does_not_count(world) -> None:
    edit_json(world.tuned / "config.json", vocab_size=60)
    edit_json(world.base / "config.json", vocab_size=60)
    message = refused(world)
    assert all(word in message for word in ["model.embed_tokens.weight has 64 rows", "vocab_size 60"])


def test_heads_beside_tied_embeddings(tmp_path) -> None:
    """docs/faults.md 15: an equal copy is taken, another one and an absent one are refused."""
    world = make_world(tmp_path / "in", tie_word_embeddings=True)

    def add_head(factor: float):
        return lambda weights: weights.update(
            {"lm_head.weight": weights["model.embed_tokens.weight"] * np.float32(factor)}
        )

    edit_weights(world.tuned, add_head(1))
    assert "6 of 14 kept" in dry(world)
    edit_weights(world.tuned, add_head(2))
    assert all(word in refused(world) for word in [str(world.tuned), "tie_word_embeddings is true", HEAD])
    for side in (world.base, world.tuned):
        edit_json(side / "config.json", tie_word_embeddings=False)
    assert all(word in refused(world) for word in [str(world.base), "tie_word_embeddings is false", f"no {HEAD}"])


# ---------------------------------------------------------------- 16 and 17: dtypes


def test_mixed_dtypes_in_one_file_are_kept(world, tmp_path) -> None:
    def mix(weights: dict) -> None:
        for name in weights:
            if "mlp" in name or "layers.1" in name:
                weights[name] = weights[name].astype(ml_dtypes.bfloat16)

    edit_weights(world.base, mix)
    edit_weights(world.tuned, mix)
    out = restore(world, tmp_path / "out", *PLAIN)
    tuned, found = weights_of(world.tuned), weights_of(out)
    assert {name: w.dtype for name, w in found.items()} == {name: w.dtype for name, w in tuned.items()}
    assert sum(not np.array_equal(found[name], tuned[name]) for name in found) == 6


def test_float16_against_bfloat16(world) -> None:
    for side, dtype in ((world.base, np.float16), (world.tuned, ml_dtypes.bfloat16)):
        edit_weights(
            side, lambda weights, dtype=dtype: weights.update({n: w.astype(dtype) for n, w in weights.items()})
        )
    assert all(word in refused(world) for word in ["is F16 in", "and BF16 in", "same dtype, or one in float32"])


def test_quantised_models(world) -> None:
    edit_json(world.tuned / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    assert all(word in refused(world) for word in ["tuned/config.json", "quantization_config", "'gptq'"])
    edit_json(world.tuned / "config.json", quantization_config=None)
    edit_weights(world.tuned, lambda weights: weights.update({Q0: weights[Q0].astype(np.int8)}))
    assert all(word in refused(world) for word in [Q0, "I8", "quantised?", "bfloat16 or float16"])


def test_a_delta_that_was_rounded_away_is_warned_about(tmp_path) -> None:
    world = make_world(tmp_path / "in", dtype="bfloat16")
    shutil.rmtree(world.tuned)
    write_tiny_model(world.tuned, seed=7, base=world.base, delta=0.003)
    words = dry(world)
    assert "warning: " in words and "% of the kernel entries" in words and "Save TUNED in float32" in words


# ---------------------------------------------------------------- 18: adapters


@pytest.fixture()
def adapted(world, tmp_path) -> World:
    """TUNED is an adapter of rank 2 on every q_proj."""
    rng, pairs = np.random.default_rng(0), {}
    for layer in (0, 1):
        module = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        pairs[f"{module}.lora_A.weight"] = rng.standard_normal((2, 32)).astype(np.float32)
        pairs[f"{module}.lora_B.weight"] = rng.standard_normal((32, 2)).astype(np.float32) / 8
    shutil.rmtree(world.tuned)
    world.tuned.mkdir()
    save_file(pairs, world.tuned / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (world.tuned / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "org/model"}))
    return world


def edit_adapter(folder: Path, change) -> None:
    pairs = load_file(folder / "adapter_model.safetensors")
    change(pairs)
    save_file(pairs, folder / "adapter_model.safetensors")


def test_adapters_of_other_kinds(adapted, tmp_path) -> None:
    edit_json(adapted.tuned / "adapter_config.json", use_rslora=True)
    assert "6 of 14 kept" in dry(adapted)
    norms = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_magnitude_vector": 2 * np.ones(32, "f4")
        for layer in (0, 1)
    }
    edit_adapter(adapted.tuned, lambda pairs: pairs.update(norms))
    assert "use_dora is false" in refused(adapted)
    edit_json(adapted.tuned / "adapter_config.json", use_dora=True)
    assert "6 of 14 kept" in dry(adapted)
    scale = {"base_model.model.model.norm.weight": np.ones(32, "f4")}
    edit_adapter(adapted.tuned, lambda pairs: pairs.update(scale))
    assert all(word in refused(adapted) for word in [str(adapted.tuned), "model.norm.weight", "merge the adapter"])
    edit_json(adapted.tuned / "adapter_config.json", modules_to_save=["norm"])
    assert "6 of 14 kept" in dry(adapted)
    edit_json(adapted.tuned / "adapter_config.json", peft_type="LOHA")
    assert all(word in refused(adapted) for word in ["adapter_config.json", "peft_type 'LOHA'", "expected 'LORA'"])


def test_a_wrong_base(adapted) -> None:
    shutil.rmtree(adapted.base)
    write_tiny_model(adapted.base, hidden_size=24)
    message = refused(adapted)
    assert all(word in message for word in ["q_proj", "wrong base? The adapter was made for org/model"])


def test_a_target_the_model_has_not(adapted) -> None:
    pair = {f"base_model.model.model.layers.0.mlp.router.lora_{x}.weight": np.ones((2, 2), "f4") for x in "AB"}
    edit_adapter(adapted.tuned, lambda pairs: pairs.update(pair))
    message = refused(adapted)
    assert all(word in message for word in ["targets model.layers.0.mlp.router", str(adapted.base), "has not"])


def test_an_adapter_as_base(adapted) -> None:
    assert "is a LoRA adapter" in refused(replace(adapted, base=adapted.tuned, tuned=adapted.base))


# ---------------------------------------------------------------- 19 to 21: values, tensors, attributes


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("side", ["base", "tuned"])
def test_not_finite(world, side, value) -> None:
    def spoil(weights: dict) -> None:
        weights["model.layers.1.mlp.up_proj.weight"][3, 4] = value

    edit_weights(getattr(world, side), spoil)
    message = refused(world)
    name = "tensor model.layers.1.mlp.up_proj.weight has 1 NaN or infinite entries of 1,536"
    assert all(word in message for word in [str(getattr(world, side)), name, "diverged"])


def test_an_adapter_that_is_not_finite(adapted) -> None:
    def spoil(pairs: dict) -> None:
        next(iter(pairs.values()))[0, 0] = np.nan

    edit_adapter(adapted.tuned, spoil)
    assert all(word in refused(adapted) for word in ["adapter_model.safetensors", "q_proj.lora_A", "1 NaN"])


def test_a_kernel_of_zeros(world, tmp_path) -> None:
    """docs/faults.md 19: 0/0 counts as 0, x/0 is refused by the tensor's name."""

    def clear(weights: dict) -> None:
        weights[Q0] = np.zeros_like(weights[Q0])

    edit_weights(world.base, clear)
    message = refused(world)
    assert all(word in message for word in [Q0, "all zero in BASE but not in TUNED", "x/0", "Is BASE the model"])
    edit_weights(world.tuned, clear)
    line = kernels_of(restore(world, tmp_path / "out", "--compensation", "exact", "--inputs", "local"))[Q0]
    assert line["perturbation"] == 0 and not line["kept"]
    everything = ("--cross-weight", 1, "--compensation", "exact", "--inputs", "local")
    line = kernels_of(restore(world, tmp_path / "all", *everything))[Q0]
    assert line["kept"] and line["d_hon"] == {"tuned": 0, "uncompensated": 0, "restored": 0} and line["residual"] == 0


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_missing_and_unexpected_tensors(world, side) -> None:
    folder = getattr(world, side)
    edit_weights(folder, lambda weights: weights.pop(Q0))
    assert all(word in refused(world) for word in [str(folder), f"missing {Q0}", "never made up or dropped"])
    edit_weights(
        folder, lambda weights: weights.update({Q0: np.ones((32, 32), "f4"), "extra.weight": np.ones(2, "f4")})
    )
    assert all(word in refused(world) for word in [str(folder), "unexpected extra.weight"])
    edit_weights(folder, lambda weights: (weights.pop("extra.weight"), weights.update({Q0: np.ones((16, 32), "f4")})))
    assert all(word in refused(world) for word in [str(folder), f"{Q0} (expected 32 x 32, found 16 x 32)"])


def test_rotary_buffers_are_copied_through(world, tmp_path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(world.tuned, lambda weights: weights.update({name: np.arange(4, dtype=np.float32)}))
    out = restore(world, tmp_path / "out", *PLAIN)
    np.testing.assert_array_equal(weights_of(out)[name], np.arange(4))
    assert sum(is_kernel(name) for name in weights_of(out)) == 14


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gpt9"}, ["model_type = 'gpt9'", "expected one of", "llama"]),
        ({"architectures": ["LlamaForSequenceClassification"]}, ["architectures", "LlamaForCausalLM"]),
        ({"attention_sinks": 4}, ["attention_sinks = 4", "is not an attribute this decoder handles"]),
        ({"hidden_act": "relu"}, ["hidden_act = 'relu'", "silu"]),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, ["rope_scaling", "yarn", "llama3"]),
    ],
)
@pytest.mark.parametrize("side", ["base", "tuned"])
def test_unknown_architectures_and_attributes(world, side, changes, words) -> None:
    path = getattr(world, side) / "config.json"
    edit_json(path, **changes)
    message = refused(world)
    assert all(word in message for word in [str(path), *words]) and "check weights" not in message
