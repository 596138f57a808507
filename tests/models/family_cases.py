"""Configs of the families beyond Llama's shape, as `helpers.CASES` holds those of Llama's; one head layout a case."""

from typing import Any

GEMMA = {"hidden_activation": "gelu_pytorch_tanh", "head_dim": 12, "query_pre_attn_scalar": 10, "sliding_window": 5}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}
GROWTH = {"original_max_position_embeddings": 16, "llama_4_scaling_beta": 0.4}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.6,
    "logits_scaling": 0.7,
}

FAMILY_CASES: dict[str, dict[str, Any]] = {
    "gemma3-tied-v4": {
        "model_type": "gemma3_text",
        **GEMMA,
        "sliding_window_pattern": 2,
        "rope_theta": 1000.0,
        "rope_local_base_freq": 50.0,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    },
    "gemma3-untied-v5": {
        "model_type": "gemma3_text",
        **GEMMA,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
        "attention_bias": True,
        "final_logit_softcapping": 3.0,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    },
    "gemma2": {"model_type": "gemma2", **GEMMA, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 3.0},
    "gemma2-mqa-untied": {
        "model_type": "gemma2",
        **GEMMA,
        "num_key_value_heads": 1,
        "tie_word_embeddings": False,
        "attn_logit_softcapping": None,
        "rope_theta": 500.0,
    },
    "olmo2": {"model_type": "olmo2", "head_dim": 12, "rope_theta": 500.0},
    "olmo2-mha-tied": {
        "model_type": "olmo2",
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "attention_bias": True,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    },
    "olmo3-yarn-v4": {
        "model_type": "olmo3",
        "head_dim": 16,
        "num_hidden_layers": 4,
        "sliding_window": 6,
        "rope_theta": 500000,
        "rope_scaling": YARN,
        "length": 70,
    },
    "olmo3-yarn-v5": {
        "model_type": "olmo3",
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
        "sliding_window": 6,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": {**YARN, "rope_theta": 100.0, "beta_fast": 4, "beta_slow": 0.5, "attention_factor": 1.3},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
        },
        "length": 70,
    },
    "olmo3-plain": {"model_type": "olmo3", "sliding_window": 5, "layer_types": ["sliding_attention"] * 3},
    "smollm3": {"model_type": "smollm3", "no_rope_layer_interval": 2, "rope_theta": 500.0},
    "smollm3-windows-untied": {
        "model_type": "smollm3",
        "num_key_value_heads": 1,
        "tie_word_embeddings": False,
        "attention_bias": True,
        "mlp_bias": True,
        "no_rope_layers": [0, 1, 0],
        "use_sliding_window": True,
        "sliding_window": 5,
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, **LLAMA3},
    },
    "granite": {"model_type": "granite", "head_dim": 12, "attention_bias": True, **MULTIPLIERS},
    "granite-tied": {
        "model_type": "granite",
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "attention_multiplier": 0.3,
    },
    "phi3": {"model_type": "phi3", "sliding_window": 5, "rope_theta": 500.0},
    "phi3-partial-tied": {
        "model_type": "phi3",
        "num_key_value_heads": 4,
        "hidden_size": 64,
        "tie_word_embeddings": True,
        "partial_rotary_factor": 0.75,
    },
    "glm4": {"model_type": "glm4", "head_dim": 12, "partial_rotary_factor": 0.67, "rope_theta": 500.0},
    "glm4-whole-heads-tied": {
        "model_type": "glm4",
        "head_dim": 8,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0, "partial_rotary_factor": 1.0},
    },
    "ministral3": {
        "model_type": "ministral3",
        "head_dim": 12,
        "rope_parameters": {**YARN, **GROWTH, "rope_theta": 500.0, "mscale": 1.0, "mscale_all_dim": 0.5},
        "length": 70,
    },
    "ministral3-window-tied": {
        "model_type": "ministral3",
        "head_dim": 16,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "sliding_window": 6,
        "rope_parameters": {**YARN, **GROWTH, "rope_theta": 500.0, "max_position_embeddings": 64},
    },
}
"""Maps a case to its config; `length` is the number of tokens where 24 is too few."""

PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3: local base": ("gemma3-tied-v4", {"rope_local_base_freq": 1000.0}),
    "gemma3: scaling of full layers": ("gemma3-tied-v4", {"rope_scaling": None}),
    "gemma3: pattern": ("gemma3-tied-v4", {"sliding_window_pattern": 3}),
    "gemma3: window": ("gemma3-tied-v4", {"sliding_window": 24}),
    "gemma3: score scale": ("gemma3-tied-v4", {"query_pre_attn_scalar": 12}),
    "gemma3: logit cap": ("gemma3-untied-v5", {"final_logit_softcapping": None}),
    "olmo2: scaling": ("olmo2-mha-tied", {"rope_scaling": None}),
    "olmo3: yarn": ("olmo3-yarn-v4", {"rope_scaling": None}),
    "olmo3: attention factor": ("olmo3-yarn-v4", {"rope_scaling": {**YARN, "attention_factor": 1.0}}),
    "olmo3: windows": ("olmo3-plain", {"layer_types": ["full_attention"] * 3}),
    "smollm3: layers that do not rotate": ("smollm3", {"no_rope_layer_interval": 3}),
    "smollm3: windows": ("smollm3-windows-untied", {"use_sliding_window": False}),
    **{f"granite: {name}": ("granite", {name: 1.0}) for name in MULTIPLIERS},
    "phi3: window": ("phi3", {"sliding_window": None}),
    "phi3: rotated share": ("phi3-partial-tied", {"partial_rotary_factor": 0.5}),
    "glm4: rotated share": ("glm4", {"partial_rotary_factor": 1.0}),
    "ministral3: growing queries": (
        "ministral3",
        {"rope_parameters": {**FAMILY_CASES["ministral3"]["rope_parameters"], "llama_4_scaling_beta": 0.0}},
    ),
    "gemma2: score cap": ("gemma2", {"attn_logit_softcapping": None}),
    "gemma2: logit cap": ("gemma2", {"final_logit_softcapping": None}),
    "gemma2: alternating windows": ("gemma2", {"layer_types": ["sliding_attention"] * 3}),
}
"""Maps a name to a case and a change of its config that must change the logits."""

PADDED = (
    "gemma3-tied-v4",
    "gemma2",
    "olmo2",
    "olmo3-yarn-v5",
    "smollm3-windows-untied",
    "granite",
    "phi3",
    "glm4",
    "ministral3",
)
"""Lists the cases, one a family or more, for tests that need not run every case."""
