"""Attributes and sizes as released files have them are accepted, and mean the same as transformers writes them back."""

from typing import Any

import pytest
from transformers import AutoConfig

from hcnr_jax.models import RopeScaling, spec_from_config
from hcnr_jax.models.rope import Rope

SHARED = {"attention_bias": False, "attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": True}

CONFIGS: dict[str, dict[str, Any]] = {
    "gemma-3-1b": {
        **SHARED,
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "attn_logit_softcapping": None,
        "bos_token_id": 2,
        "cache_implementation": "hybrid",
        "eos_token_id": [1, 106],
        "final_logit_softcapping": None,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "max_position_embeddings": 32768,
        "num_attention_heads": 4,
        "num_hidden_layers": 26,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "torch_dtype": "bfloat16",
        "vocab_size": 262144,
    },
    "olmo-3-7b": {
        **SHARED,
        "architectures": ["Olmo3ForCausalLM"],
        "model_type": "olmo3",
        "eos_token_id": 100257,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "layer_types": [*["sliding_attention"] * 3, "full_attention"] * 8,
        "max_position_embeddings": 65536,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "pad_token_id": 100277,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "attention_factor": 1.2079441541679836,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 8.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "yarn",
        },
        "rope_theta": 500000,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "vocab_size": 100278,
    },
    "smollm3-3b": {
        **SHARED,
        "architectures": ["SmolLM3ForCausalLM"],
        "model_type": "smollm3",
        "hidden_size": 2048,
        "layer_types": ["full_attention"] * 36,
        "max_position_embeddings": 65536,
        "max_window_layers": 28,
        "mlp_bias": False,
        "no_rope_layer_interval": 4,
        "no_rope_layers": [1, 1, 1, 0] * 9,
        "pretraining_tp": 2,
        "rope_scaling": None,
        "rope_theta": 5000000.0,
        "sliding_window": None,
        "use_sliding_window": False,
    },
    "granite-3-2b": {
        **SHARED,
        "architectures": ["GraniteForCausalLM"],
        "model_type": "granite",
        "attention_dropout": 0.1,
        "attention_multiplier": 0.015625,
        "embedding_multiplier": 12.0,
        "hidden_size": 2048,
        "logits_scaling": 8.0,
        "mlp_bias": False,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "residual_multiplier": 0.22,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    },
    "phi-3-mini": {
        **SHARED,
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "auto_map": {
            "AutoConfig": "configuration_phi3.Phi3Config",
            "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
        },
        "embd_pdrop": 0.0,
        "original_max_position_embeddings": 4096,
        "resid_pdrop": 0.0,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "sliding_window": 2047,
    },
    "glm-4-9b": {
        **SHARED,
        "architectures": ["Glm4ForCausalLM"],
        "model_type": "glm4",
        "eos_token_id": [151329, 151336, 151338],
        "head_dim": 128,
        "num_key_value_heads": 2,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_is_read_as_transformers_writes_it_back(name):
    changes = dict(CONFIGS[name])
    written = AutoConfig.for_model(changes.pop("model_type"), **changes).to_dict()
    assert spec_from_config(written, "config.json") == spec_from_config(CONFIGS[name], "config.json")


def test_gemma3_has_five_local_layers_to_one():
    spec = spec_from_config(CONFIGS["gemma-3-1b"], "config.json")
    assert spec.layer_windows[:7] == (512, 512, 512, 512, 512, None, 512)
    assert spec.layer_rotary[:7] == (1, 1, 1, 1, 1, 0, 1)
    assert (spec.rope_theta, spec.other_ropes) == (1e6, (Rope(1e4),))
    assert spec.tie_embeddings and spec.query_scale == 1 / 16 and spec.embedding_multiplier == 1152**0.5


def test_olmo3_scales_its_full_layers_alone():
    spec = spec_from_config(CONFIGS["olmo-3-7b"], "config.json")
    assert spec.rope_scaling == RopeScaling("yarn", 8.0, None, None, 8192, 32.0, 1.0, 1.2079441541679836)
    assert spec.other_ropes == (Rope(5e5),) and spec.layer_rotary[:4] == (1, 1, 1, 0)


def test_smollm3_rotates_three_of_four_layers():
    spec = spec_from_config(CONFIGS["smollm3-3b"], "config.json")
    assert spec.other_ropes == (None,) and spec.layer_rotary == (0, 0, 0, 1) * 9
    assert spec.layer_windows == (None,) * 36


def test_glm4_rotates_half_of_each_head_and_has_no_bias_on_o():
    spec = spec_from_config({**CONFIGS["glm-4-9b"], "attention_bias": True}, "config.json")
    assert spec.rotary_width == 64 and spec.qkv_bias and not spec.o_bias
