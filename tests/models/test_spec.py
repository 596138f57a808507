"""Real configs are read, transformers' defaults are ours, and whatever is not handled is refused by name."""

import dataclasses

import pytest
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hcnr_jax.errors import InputError
from hcnr_jax.models import RopeScaling, spec_from_config
from hcnr_jax.models.families.shared_attributes import IGNORED, ONLY
from hcnr_jax.models.families.table import FAMILIES
from tests.models.helpers import SIZES

LLAMA_31_8B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 128256,
}
QWEN_25_7B = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}


def tiny(model_type="llama", **changes):
    return {"model_type": model_type, **SIZES, **changes}


def refusal(config):
    with pytest.raises(InputError) as caught:
        spec_from_config(config, "base/config.json")
    return str(caught.value)


@pytest.mark.parametrize("config_class", [CONFIG_MAPPING[name] for name in FAMILIES], ids=FAMILIES)
def test_absent_attributes_take_the_defaults_of_the_installed_transformers(config_class):
    """Only `model_type` given = everything transformers would write; so no default of ours differs from theirs."""
    bare = {"model_type": config_class.model_type}
    assert spec_from_config(bare, "config.json") == spec_from_config(config_class().to_dict(), "config.json")


def test_reads_llama_3_1_as_released():
    spec = spec_from_config(LLAMA_31_8B, "config.json")
    assert (spec.num_layers, spec.num_heads, spec.num_kv_heads, spec.head_dim) == (32, 32, 8, 128)
    assert spec.rope_theta == 500000.0
    assert spec.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
    assert spec.eos_token_ids == (128001, 128008, 128009) and spec.bos_token_id == 128000
    assert not (spec.qkv_bias or spec.o_bias or spec.mlp_bias or spec.qk_norm or spec.tie_embeddings)
    assert spec.layer_windows == (None,) * 32
    assert hash(spec) == hash(spec_from_config(LLAMA_31_8B, "other"))


def test_reads_qwen_2_5_as_released():
    spec = spec_from_config(QWEN_25_7B, "config.json")
    assert spec.qkv_bias and not spec.o_bias and spec.layer_windows == (None,) * 28
    assert spec.head_dim == 128 and spec.max_positions == 32768


@pytest.mark.parametrize("config", [LLAMA_31_8B, QWEN_25_7B])
def test_what_transformers_5_writes_of_a_version_4_config_is_the_same_model(config):
    changes = dict(config)
    written = AutoConfig.for_model(changes.pop("model_type"), **changes).to_dict()
    assert "rope_parameters" in written and "rope_theta" not in written
    assert spec_from_config(written, "config.json") == spec_from_config(config, "config.json")


def test_windows_by_family():
    assert spec_from_config(tiny("mistral"), "c").layer_windows == (4096,) * 3
    assert spec_from_config(tiny("mistral", sliding_window=None), "c").layer_windows == (None,) * 3
    mixed = tiny("qwen2", use_sliding_window=True, sliding_window=7, max_window_layers=2)
    assert spec_from_config(mixed, "c").layer_windows == (None, None, 7)
    types = ["sliding_attention", "full_attention", "full_attention"]
    assert spec_from_config({**mixed, "layer_types": types}, "c").layer_windows == (7, None, None)


def test_key_value_heads_follow_the_heads_where_null():
    assert spec_from_config(tiny("mistral", num_key_value_heads=None), "c").num_kv_heads == 4


@pytest.mark.parametrize(
    ("theta", "table"),
    [(5.0, None), (None, {"rope_type": "default", "rope_theta": 5.0}), (5.0, {"rope_theta": 5.0}), (5.0, {})],
)
def test_rope_theta_from_either_place(theta, table):
    spec = spec_from_config(tiny(rope_theta=theta, rope_parameters=table), "c")
    assert (spec.rope_theta, spec.rope_scaling) == (5.0, None)


def test_llama3_scaling_falls_back_to_the_models_positions_as_transformers_does():
    table = {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling = spec_from_config(tiny(rope_scaling=table), "c").rope_scaling
    assert scaling is not None and scaling.original_max_positions == SIZES["max_position_embeddings"]


LINEAR = {"type": "linear", "factor": 2.0}
REFUSED = {
    "unknown model": (tiny("gpt2"), "model_type = 'gpt2' is not supported; expected one of llama, mistral, qwen2"),
    "images as well": (
        {"model_type": "gemma3", "text_config": {}},
        "holds an image encoder beside the text model; save the language model and its head alone, as a model of",
    ),
    "gemma3 cap of scores": (
        tiny("gemma3_text", attn_logit_softcapping=50.0),
        "attn_logit_softcapping = 50.0 is not supported; expected it to be absent or null",
    ),
    "olmo3 base of sliding layers": (
        tiny("olmo3", rope_theta=5.0),
        "rope_theta = 5.0 is not supported; expected 500000.0, or rope_parameters with both kinds of layer",
    ),
    "longrope of phi3": (
        tiny("phi3", rope_scaling={"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}),
        "expected one rope_type of default",
    ),
    "code beside phi3": (tiny("phi3", auto_map={"AutoConfig": "other.Config"}), "auto_map = {'AutoConfig': 'other"),
    "odd rotated share": (tiny("glm4", head_dim=12, partial_rotary_factor=0.6), "rotates 7 of 12 channels of a head"),
    "two rotated shares": (
        tiny("phi3", partial_rotary_factor=0.5, rope_parameters={"partial_rotary_factor": 0.75}),
        "partial_rotary_factor = 0.5 is not supported; expected the same as in rope_parameters (0.75), or absent",
    ),
    "rotated share over 1": (
        tiny("phi3", partial_rotary_factor=1.5),
        "= 1.5 is not supported; expected a number up to",
    ),
    "layers that do not rotate": (tiny("smollm3", no_rope_layers=[1, 0]), "expected a list of 3 numbers 0 or 1"),
    "granite multiplier": (
        tiny("granite", logits_scaling=0),
        "logits_scaling = 0 is not supported; expected a positive",
    ),
    "gemma without window": (
        tiny("gemma2", sliding_window=None),
        "sliding_window = None is not supported; expected a positive integer, which the sliding layers need",
    ),
    "gemma activation": (
        tiny("gemma2", hidden_activation="gelu"),
        "hidden_activation = 'gelu' is not supported; expected 'gelu_pytorch_tanh'",
    ),
    "pattern of gemma2": (tiny("gemma2", sliding_window_pattern=3), "sliding_window_pattern = 3 is not an attribute"),
    "rotary kind of gemma3": (
        tiny("gemma3_text", rope_parameters={"rope_theta": 5.0}),
        "rope_parameters.rope_theta = 5.0 is not supported; expected only full_attention and sliding_attention",
    ),
    "two local bases": (
        tiny("gemma3_text", rope_local_base_freq=5.0, rope_parameters={"sliding_attention": {"rope_theta": 6.0}}),
        "rope_local_base_freq = 5.0 is not supported; expected the same as in rope_parameters.sliding_attention (6.0)",
    ),
    "two scalings of gemma3": (
        tiny("gemma3_text", rope_scaling=LINEAR, rope_parameters={"full_attention": {"rope_theta": 6.0}}),
        "expected the same as rope_parameters.full_attention, or absent",
    ),
    "no model": ({}, "model_type = None is not supported"),
    "unhashable model": ({"model_type": ["llama"]}, "model_type = ['llama'] is not supported"),
    "classifier": (
        tiny(architectures=["LlamaForSequenceClassification"]),
        "architectures = ['LlamaForSequenceClassification'] is not supported; expected ['LlamaForCausalLM']",
    ),
    "quantised": (tiny(quantization_config={"quant_method": "gptq"}), "quantization_config (quant_method 'gptq')"),
    "unknown attribute": (tiny(logit_softcap=30.0), "logit_softcap = 30.0 is not an attribute this decoder handles"),
    "remote code": (tiny(auto_map={"AutoModel": "x"}), "auto_map = {'AutoModel': 'x'} is not an attribute"),
    "activation": (tiny(hidden_act="gelu"), "hidden_act = 'gelu' is not supported; expected 'silu' or 'swish'"),
    "dropout": (tiny(attention_dropout=0.1), "attention_dropout = 0.1 is not supported; expected 0"),
    "encoder": (tiny(is_encoder_decoder=True), "is_encoder_decoder = True is not supported; expected False"),
    "llama window": (tiny(sliding_window=8), "sliding_window = 8 is not supported; expected it to be absent or null"),
    "qwen2 without bias": (tiny("qwen2", attention_bias=False), "attention_bias = False is not supported"),
    "mistral bias": (tiny("mistral", attention_bias=True), "attention_bias = True is not supported; expected False"),
    "partial rotary": (tiny(partial_rotary_factor=0.5), "partial_rotary_factor = 0.5 is not supported; expected 1"),
    "partial rotary inside": (
        tiny(rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}),
        "rope_parameters.partial_rotary_factor = 0.5 is not supported; with rope_type 'default'",
    ),
    "yarn": (tiny(rope_scaling={"type": "yarn", "factor": 4.0}), "one rope_type of default, linear, llama3"),
    "dynamic": (tiny(rope_scaling={"type": "dynamic", "factor": 4.0}), "rope_scaling = {'type': 'dynamic'"),
    "longrope": (tiny(rope_scaling={"rope_type": "longrope"}), "rope_scaling = {'rope_type': 'longrope'}"),
    "two rope types": (tiny(rope_scaling={"type": "linear", "rope_type": "llama3"}), "expected one rope_type of"),
    "unhashable rope type": (tiny(rope_scaling={"type": ["linear"]}), "expected one rope_type of default"),
    "nested rope": (tiny(rope_parameters={"full_attention": {}}), "rope_parameters.full_attention = {}"),
    "rope not an object": (tiny(rope_scaling=2.0), "rope_scaling = 2.0 is not supported; expected an object or null"),
    "linear without factor": (tiny(rope_scaling={"type": "linear"}), "rope_scaling.factor = None is not supported"),
    "llama3 half given": (
        tiny(rope_scaling={"rope_type": "llama3", "factor": 2.0}),
        "rope_scaling.low_freq_factor = None is not supported; expected a positive number",
    ),
    "llama3 upside down": (
        tiny(rope_scaling={"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4, "high_freq_factor": 1}),
        "rope_scaling.high_freq_factor = 1 is not supported; expected more than low_freq_factor (4.0)",
    ),
    "two scalings": (
        tiny(rope_scaling=LINEAR, rope_parameters={"rope_type": "default"}),
        "expected the same as rope_parameters",
    ),
    "two thetas": (
        tiny(rope_theta=2.0, rope_parameters={"rope_theta": 3.0}),
        "rope_theta = 2.0 is not supported; expected the same as in rope_parameters (3.0), or absent",
    ),
    "zero layers": (tiny(num_hidden_layers=0), "num_hidden_layers = 0 is not supported; expected a positive integer"),
    "text size": (tiny(hidden_size="32"), "hidden_size = '32' is not supported; expected a positive integer"),
    "null size": (tiny(vocab_size=None), "vocab_size = None is not supported; expected a positive integer"),
    "bad eps": (tiny(rms_norm_eps=float("nan")), "rms_norm_eps = nan is not supported; expected a positive number"),
    "text flag": (
        tiny(tie_word_embeddings="no"),
        "tie_word_embeddings = 'no' is not supported; expected true or false",
    ),
    "odd groups": (tiny(num_key_value_heads=3), "expected a divisor of num_attention_heads (4)"),
    "uneven heads": (
        tiny(num_attention_heads=6, num_key_value_heads=6),
        "num_attention_heads = 6 is not supported; expected a divisor of hidden_size (32)",
    ),
    "odd head": (tiny(head_dim=7), "head_dim = 7 is not supported; expected an even number"),
    "eos text": (tiny(eos_token_id="</s>"), "eos_token_id = '</s>' is not supported; expected an integer"),
    "short layer types": (tiny("qwen3", layer_types=["full_attention"]), "expected a list of 3 names"),
    "odd layer types": (tiny("qwen3", layer_types=["full_attention", "conv", "conv"]), "only, not ['conv']"),
    "sliding without window": (
        tiny("qwen3", layer_types=["sliding_attention"] * 3),
        "expected full_attention only, since no sliding window is in use",
    ),
    "mistral mixed": (
        tiny("mistral", layer_types=["full_attention"] * 3),
        "expected one kind for all layers, that of sliding_window = 4096",
    ),
    "window of nothing": (tiny("mistral", sliding_window=0), "sliding_window = 0 is not supported"),
    "negative window start": (tiny("qwen2", max_window_layers=-1), "max_window_layers = -1 is not supported"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_by_name(case):
    config, expected = REFUSED[case]
    message = refusal(config)
    assert message.startswith("base/config.json: ")
    assert expected in message


def test_every_unhandled_attribute_is_named_at_once():
    message = refusal(tiny(logit_softcap=30.0, alibi=True))
    assert "logit_softcap" in message and "alibi" in message


def test_null_counts_as_absent():
    assert spec_from_config(tiny(alibi=None, sliding_window=None), "c") == spec_from_config(tiny(), "c")


def test_no_attribute_has_two_answers():
    for name, family in FAMILIES.items():
        assert not set(family.defaults) & (IGNORED | set(ONLY) | set(family.only)), name
    assert not set(ONLY) & IGNORED


def test_spec_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec_from_config(tiny(), "c").hidden_size = 1


@pytest.mark.parametrize("name", ["unk_token_id", "image_token_id", "_model_name_or_path", "_note"])
def test_bookkeeping_of_converters_is_ignored(name):
    assert spec_from_config(tiny() | {name: 0}, "config.json") == spec_from_config(tiny(), "config.json")
