"""Adapters merged here against PEFT's own float32 merge, and every adapter that must be refused."""

import json
from pathlib import Path

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from hcnr_jax.checkpoints import (
    check_pair,
    delta_lost,
    load_params,
    open_adapter,
    open_checkpoint,
    open_tuned,
    save_like,
)
from hcnr_jax.errors import InputError
from hcnr_jax.models import spec_from_config
from tests.tiny import is_kernel, read_weights, write_tiny_model, write_tiny_tokenizer

WEIGHTS = "adapter_model.safetensors"
ATTENTION = ["q_proj", "v_proj"]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def write_adapter(base: Path, folder: Path, seed: int = 0, scale: float = 0.2, **options) -> dict[str, np.ndarray]:
    """An adapter of random weights saved by PEFT; returns the tensors of PEFT's own merge, in float32."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = {"r": 4, "lora_alpha": 6, "target_modules": ATTENTION, "task_type": "CAUSAL_LM", **options}
    model = peft.get_peft_model(model, peft.LoraConfig(**config))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.requires_grad and "magnitude" not in name:
                value.add_(scale * torch.randn_like(value))
            elif "magnitude" in name:
                value.mul_(1 + 0.1 * torch.rand_like(value))
    model.save_pretrained(folder)
    merged = model.merge_and_unload()
    return {name: value.detach().numpy().copy() for name, value in merged.state_dict().items()}


def edit_config(folder: Path, **changes) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, change) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


CASES = {
    "plain": ("llama", {}),
    "every kernel": ("llama", {"target_modules": ALL}),
    "rsLoRA": ("llama", {"use_rslora": True}),
    "DoRA": ("llama", {"use_dora": True, "target_modules": ALL}),
    "DoRA and rsLoRA": ("mistral", {"use_dora": True, "use_rslora": True}),
    "patterns": (
        "llama",
        {
            "rank_pattern": {"q_proj": 2, r"layers\.1\.self_attn\.v_proj": 8},
            "alpha_pattern": {"layers.0.self_attn.q_proj": 3, "v_proj": 16},
        },
    ),
    "patterns and rsLoRA": ("llama", {"rank_pattern": {"v_proj": 2}, "use_rslora": True}),
    "a regular expression": ("llama", {"target_modules": r".*layers\.1\..*(q|up)_proj"}),
    "one layer": ("llama", {"layers_to_transform": [1]}),
    "the first layer": ("llama", {"layers_to_transform": 0}),
    "modules_to_save": ("llama", {"modules_to_save": ["lm_head", "embed_tokens"]}),
    "a norm saved": ("qwen3", {"modules_to_save": ["input_layernorm"], "target_modules": ALL}),
    "the head": ("llama", {"target_modules": ["lm_head", "q_proj"]}),
    "biases": ("qwen2", {"bias": "all"}),
    "biases of the targets": ("qwen2", {"bias": "lora_only", "target_modules": ALL}),
    "lora_bias": ("qwen2", {"lora_bias": True}),
    "every kernel of gemma2": ("gemma2", {"target_modules": ALL}),
    "every kernel of olmo2": ("olmo2", {"target_modules": ALL}),
    "a joint norm of olmo3 saved": ("olmo3", {"modules_to_save": ["k_norm"]}),
    "smollm3": ("smollm3", {"target_modules": ALL}),
    "ministral3": ("ministral3", {"target_modules": ALL}),
    "granite": ("granite", {"use_rslora": True}),
    "fused kernels of phi3": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj", "down_proj"]}),
    "a fused kernel of glm4, with DoRA": ("glm4", {"use_dora": True, "target_modules": ["q_proj", "gate_up_proj"]}),
    "a norm of gemma3 saved": ("gemma3_text", {"modules_to_save": ["post_feedforward_layernorm"]}),
}


@pytest.mark.parametrize("case", CASES)
def test_merged_as_peft_merges(tmp_path, case):
    family, options = CASES[case]
    base = write_tiny_model(tmp_path / "base", family, shards=2)
    expected = write_adapter(base, tmp_path / "adapter", **options)
    before, merged = read_weights(base), open_adapter(tmp_path / "adapter", open_checkpoint(base))
    assert set(merged.tensors) == set(before)
    changed = 0
    for name, value in before.items():
        found = merged.read(name)
        assert found.dtype == value.dtype and found.shape == value.shape
        np.testing.assert_allclose(found, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
        changed += not np.array_equal(found, value)
        if np.array_equal(expected[name], value):
            np.testing.assert_array_equal(found, value)
    assert changed == sum(not np.array_equal(expected[name], value) for name, value in before.items()) > 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_merged_in_float32_then_cast(tmp_path, dtype):
    base = write_tiny_model(tmp_path / "base", dtype=dtype)
    expected = write_adapter(base, tmp_path / "adapter", scale=0.02)
    merged = open_adapter(tmp_path / "adapter", open_checkpoint(base))
    for name, value in read_weights(base).items():
        found, wanted = merged.read(name), expected[name].astype(value.dtype)
        assert found.dtype == value.dtype
        # The two float32 products may differ in their last bit, and then round to neighbours; never more, and rarely.
        gap = np.abs(found.view(np.int16).astype(int) - wanted.view(np.int16).astype(int))
        assert gap.max() <= 1 and (gap > 0).mean() < 0.01


def test_saved_as_a_whole_model(tmp_path):
    base = write_tiny_model(tmp_path / "base", shards=2)
    (base / "LICENSE").write_text("base")
    expected = write_adapter(base, tmp_path / "adapter", target_modules=ALL)
    merged = open_tuned(tmp_path / "adapter", open_checkpoint(base))
    out = save_like(merged, tmp_path / "out", {})
    assert {path.name for path in out.iterdir()} == {path.name for path in base.iterdir()}
    for name, value in read_weights(out).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6)
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    adapted = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter"
    )
    tokens = torch.tensor([[1, 5, 9, 20]])
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, adapted(tokens).logits, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="the input"):
        save_like(merged, tmp_path / "adapter" / "out", {})
    with pytest.raises(InputError, match="the input"):
        save_like(merged, base / "out", {})


def test_the_adapters_tokenizer_comes_first(tmp_path):
    base = write_tiny_model(tmp_path / "base")
    (base / "special_tokens_map.json").write_text("{}")
    write_adapter(base, tmp_path / "adapter")
    merged = open_adapter(tmp_path / "adapter", open_checkpoint(base))
    assert merged.tokenizer_folder == base
    write_tiny_tokenizer(tmp_path / "adapter", chat_template="{{ messages }}")
    assert merged.tokenizer_folder == tmp_path / "adapter"
    files = merged.companions()
    assert files["tokenizer_config.json"].parent == tmp_path / "adapter" and files["config.json"].parent == base
    assert "special_tokens_map.json" not in files and "adapter_config.json" not in files


def test_it_is_a_pair_and_loads(tmp_path):
    base = open_checkpoint(write_tiny_model(tmp_path / "base"))
    expected = write_adapter(base.folder, tmp_path / "adapter")
    merged = open_adapter(tmp_path / "adapter", base)
    params = load_params(merged, check_pair(base, merged))
    kernel = params["blocks"]["attention"]["v"]["kernel"][1]
    name = "model.layers.1.self_attn.v_proj.weight"
    np.testing.assert_allclose(kernel, expected[name].T, rtol=1e-5, atol=1e-6)


def test_an_untrained_adapter_is_identical(tmp_path):
    base = open_checkpoint(write_tiny_model(tmp_path / "base"))
    write_adapter(base.folder, tmp_path / "adapter", scale=0.0)
    with pytest.raises(InputError, match="identical in every weight"):
        check_pair(base, open_adapter(tmp_path / "adapter", base))


def test_lost_share_is_exact(tmp_path):
    base = open_checkpoint(write_tiny_model(tmp_path / "base", dtype="bfloat16"))
    write_adapter(base.folder, tmp_path / "adapter", scale=0.02)
    merged = open_adapter(tmp_path / "adapter", base)
    names = [name for name in base.tensors if is_kernel(name)]
    adapter, lost, entries = load_file(tmp_path / "adapter" / WEIGHTS), 0, 0
    for layer in (0, 1):
        for target in ATTENTION:
            module = f"model.layers.{layer}.self_attn.{target}"
            a, b = (adapter[f"base_model.model.{module}.lora_{x}.weight"].astype(np.float64) for x in "AB")
            delta, weight = 6 / 4 * (b @ a), base.read(f"{module}.weight")
            lost += int(((weight.astype(np.float64) + delta).astype(weight.dtype) == weight).sum())
            entries += weight.size
    loss = delta_lost(base, merged, names)
    # Entries whose delta vanishes in float32 already are not counted as moved; a handful at most.
    assert abs(loss.lost - lost) <= 3 and abs(loss.entries - entries) <= 3 and 0.02 < loss.share < 0.98


REFUSED_OPTIONS = [
    ({"peft_type": "LOHA"}, "peft_type 'LOHA' is not handled; expected 'LORA'"),
    ({"peft_type": None}, "peft_type None"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out is true"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4' changes the base weights"),
    ({"layer_replication": [[0, 1]]}, "option layer_replication = .* is not handled; merge the adapter with PEFT"),
    ({"trainable_token_indices": [3]}, "option trainable_token_indices"),
    ({"some_option_of_the_future": 3}, "option some_option_of_the_future = 3 is not handled"),
    ({"r": 0}, "r is 0; expected a number above 0"),
    ({"lora_alpha": "x"}, "lora_alpha is 'x'"),
    ({"r": 8}, r"q_proj.lora_A is \[4, 32\], expected \[8, 32\] for rank 8"),
    ({"use_dora": True}, "has no lora_magnitude_vector tensor; the adapter is incomplete"),
    ({"target_modules": ["q_proj", "v_proj", "w_proj"]}, "target_modules names 'w_proj', which .* has not"),
    (
        {"target_modules": ["q_proj", "v_proj", "o_proj"]},
        r"no tensors for model.layers.0.self_attn.o_proj \(nor for 1 more modules\)",
    ),
]


@pytest.mark.parametrize(("options", "message"), REFUSED_OPTIONS)
def test_options_that_are_not_handled(tmp_path, options, message):
    base = write_tiny_model(tmp_path / "base")
    write_adapter(base, tmp_path / "adapter")
    edit_config(tmp_path / "adapter", **options)
    with pytest.raises(InputError, match=message) as caught:
        open_adapter(tmp_path / "adapter", open_checkpoint(base))
    assert str(tmp_path / "adapter") in str(caught.value)


KEY = "base_model.model.model.layers.1.self_attn.q_proj."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(KEY + "lora_B.weight"), "q_proj has no lora_B tensor; the adapter is incomplete"),
        (lambda w: w.update({KEY + "lora_magnitude_vector": np.ones(32, "f4")}), "use_dora is false"),
        (lambda w: w.update({KEY + "lora_A.bias": np.ones(4, "f4")}), "q_proj.lora_A.bias is not handled"),
        (lambda w: w.update({KEY + "lora_B.bias": np.ones(32, "f4")}), "has a LoRA bias, but .* has no"),
        (lambda w: w.update({KEY + "oft_r": np.ones(4, "f4")}), "oft_r is none of a LoRA pair"),
        (lambda w: w.update({"base_model.model.model.norm.weight": np.ones(32, "f4")}), "norm.weight is none of"),
        (lambda w: w.update({KEY + "lora_A.weight": np.ones((4, 32), "i4")}), "is stored as I32; expected one of"),
        (lambda w: w.clear(), "holds no tensor"),
        (
            lambda w: w.update({"base_model.model.lm_head.weight": np.ones((64, 30), "f4")}),
            r"lm_head.weight is \[64, 30\], in .* \[64, 32\]; wrong base",
        ),
        (
            lambda w: w.update({KEY + "lora_A.weight": np.ones((0,), "f4")}),
            r"q_proj.lora_A.weight is empty \(shape \[0\]\): .* ZeRO-3 or FSDP.* gather the weights before saving",
        ),
        (
            lambda w: w.update({"base_model.model.model.layers.7.mlp.up_proj.lora_A.weight": np.ones((4, 32), "f4")}),
            "the adapter targets model.layers.7.mlp.up_proj, which .* has not; wrong base",
        ),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, change, message):
    base = write_tiny_model(tmp_path / "base")
    write_adapter(base, tmp_path / "adapter")
    edit_weights(tmp_path / "adapter", change)
    with pytest.raises(InputError, match=message):
        open_adapter(tmp_path / "adapter", open_checkpoint(base))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite(tmp_path, value):
    base = write_tiny_model(tmp_path / "base")
    write_adapter(base, tmp_path / "adapter")

    def change(weights):
        weights[KEY + "lora_A.weight"][1, 2] = value

    edit_weights(tmp_path / "adapter", change)
    with pytest.raises(InputError, match=r"layers.1.self_attn.q_proj.lora_A.weight has 1 NaN or infinite entries"):
        open_adapter(tmp_path / "adapter", open_checkpoint(base))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"hidden_size": 24},
            r"q_proj.lora_A is \[4, 32\], expected \[4, 24\].*; wrong base\? The adapter was made for",
        ),
        ({"num_hidden_layers": 1}, r"targets model.layers.1.self_attn.(q|v)_proj, which .* has not; wrong base\?"),
        ({"num_hidden_layers": 3}, r"has no tensors for model.layers.2.self_attn.q_proj .*; wrong base\?"),
        ({"num_key_value_heads": 4}, r"v_proj.lora_B is \[16, 4\], expected \[32, 4\]"),
    ],
)
def test_wrong_base(tmp_path, other, message):
    write_adapter(write_tiny_model(tmp_path / "base"), tmp_path / "adapter")
    wrong = open_checkpoint(write_tiny_model(tmp_path / "wrong", **other))
    with pytest.raises(InputError, match=message):
        open_adapter(tmp_path / "adapter", wrong)


def test_a_trained_embedding_over_a_tied_base(tmp_path):
    base = open_checkpoint(write_tiny_model(tmp_path / "base", tie_word_embeddings=True))
    write_adapter(base.folder, tmp_path / "adapter")
    key = "base_model.model.model.embed_tokens.weight"
    own = base.read("model.embed_tokens.weight")
    edit_weights(tmp_path / "adapter", lambda w: w.update({key: own.copy()}))
    assert open_adapter(tmp_path / "adapter", base).replaced == {}
    edit_weights(tmp_path / "adapter", lambda w: w.update({key: own + np.float32(1)}))
    with pytest.raises(InputError, match=r"trains an embedding or head that .* ties to the other"):
        open_adapter(tmp_path / "adapter", base)


def test_overflow_in_float16(tmp_path):
    base = write_tiny_model(tmp_path / "base", dtype="float16")
    write_adapter(base, tmp_path / "adapter", scale=300.0)
    merged = open_adapter(tmp_path / "adapter", open_checkpoint(base))
    with pytest.raises(InputError, match="gives values that float16 cannot hold"):
        merged.read("model.layers.0.self_attn.q_proj.weight")


def test_folders_without_weights(tmp_path):
    base = open_checkpoint(write_tiny_model(tmp_path / "base"))
    write_adapter(base.folder, tmp_path / "adapter")
    (tmp_path / "adapter" / WEIGHTS).rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(InputError, match=r"no adapter_model.safetensors; adapter_model.bin is pickled and refused"):
        open_adapter(tmp_path / "adapter", base)
    with pytest.raises(InputError, match=r"adapter_config.json: cannot be read"):
        open_adapter(base.folder, base)
    assert open_tuned(base.folder, base).folder == base.folder


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
@pytest.mark.parametrize("outside", [True, False], ids=["around PEFT", "inside PEFT"])
def test_prefixes_of_training_wrappers_are_stripped(tmp_path, prefix, outside):
    base = write_tiny_model(tmp_path / "base")
    expected = write_adapter(base, tmp_path / "adapter", target_modules=ALL)
    inner = "base_model.model."

    def change(weights):
        for name in list(weights):
            new = prefix + name if outside else inner + prefix + name.removeprefix(inner)
            weights[new] = weights.pop(name)

    edit_weights(tmp_path / "adapter", change)
    merged = open_adapter(tmp_path / "adapter", open_checkpoint(base))
    for name in expected:
        np.testing.assert_allclose(merged.read(name), expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("rows", [70, 60])
def test_an_adapter_over_a_resized_embedding_goes_on_and_says_how_to_resize(tmp_path, rows):
    base = write_tiny_model(tmp_path / "base")
    write_adapter(base, tmp_path / "adapter")
    own = read_weights(base)["lm_head.weight"]
    resized = np.resize(own, (rows, 32)) + 1

    def change(weights):
        weights["base_model.model.lm_head.weight"] = resized.astype("f4")

    edit_weights(tmp_path / "adapter", change)
    merged = open_adapter(tmp_path / "adapter", open_checkpoint(base))
    (note,) = [note for note in merged.notes if "resized" in note]
    assert f"embedding of {rows} rows (lm_head.weight)" in note and f"model.resize_token_embeddings({rows})" in note
    shared = min(rows, 64)
    np.testing.assert_array_equal(merged.read("lm_head.weight")[:shared], resized[:shared].astype("f4"))
    np.testing.assert_array_equal(merged.read("lm_head.weight")[shared:], own[shared:])


def test_a_tied_base_has_no_head_to_adapt(tmp_path):
    untied = write_tiny_model(tmp_path / "untied")
    write_adapter(untied, tmp_path / "adapter", target_modules=["lm_head", "q_proj"])
    tied = write_tiny_model(tmp_path / "base", tie_word_embeddings=True)
    with pytest.raises(
        InputError, match=r"targets lm_head, and .*base ties its head to the embedding.* merge"
    ) as error:
        open_adapter(tmp_path / "adapter", open_checkpoint(tied))
    assert "wrong base" not in str(error.value)


def test_an_adapter_made_for_another_model_is_told(tmp_path):
    base = write_tiny_model(tmp_path / "base")
    write_adapter(base, tmp_path / "adapter")
    assert open_adapter(tmp_path / "adapter", open_checkpoint(base)).notes == ()
    for name, told in (("org/base", False), ("org/other-7B", True), (None, False)):
        edit_config(tmp_path / "adapter", base_model_name_or_path=name)
        notes = open_adapter(tmp_path / "adapter", open_checkpoint(base)).notes
        assert [f"the adapter was trained on {name}" in note for note in notes] == [True] * told


def test_leaves_that_an_adapter_does_not_change_are_loaded_once(tmp_path) -> None:
    base = write_tiny_model(tmp_path / "base")
    write_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    opened = open_checkpoint(base)
    adapter = open_adapter(tmp_path / "adapter", opened)
    spec = spec_from_config(opened.config, "config.json")
    first = load_params(opened, spec)
    shared, whole = load_params(adapter, spec, base=first), load_params(adapter, spec)
    assert jax.tree.all(jax.tree.map(lambda left, right: bool((left == right).all()), shared, whole))
    same = jax.tree.leaves(jax.tree.map(lambda left, right: left is right, first, shared))
    assert same.count(False) == 1  # q, of all layers
