"""The model shapes of `hcnr bench --shape`: config.json of well-known models, and of two that fit a laptop."""

from __future__ import annotations

from typing import Any

from hcnr_jax.models import ModelSpec, spec_from_config

_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "mlp_bias": False,
    "initializer_range": 0.02,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _llama3_rope(factor: float) -> dict[str, Any]:
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return {"rope_theta": 500000.0, "rope_scaling": scaling | {"original_max_position_embeddings": 8192}}


def _sizes(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, head_dim: int, vocab: int) -> dict:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocab,
    }


SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        **_LLAMA,
        **_sizes(4096, 14336, 32, 32, 8, 128, 128256),
        **_llama3_rope(8.0),
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
    },
    "llama-3.2-1b": {
        **_LLAMA,
        **_sizes(2048, 8192, 16, 32, 8, 64, 128256),
        **_llama3_rope(32.0),
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    },
    "qwen3-4b": {
        **{key: value for key, value in _LLAMA.items() if key != "mlp_bias"},
        **_sizes(2560, 9728, 36, 32, 8, 128, 151936),
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
    },
    # 100,092,672 parameters: Llama 3's proportions (grouped queries, inner = 8/3 of hidden) with a small vocabulary.
    "100m": {
        **_LLAMA,
        **_sizes(768, 2048, 12, 12, 4, 64, 32000),
        "rope_theta": 10000.0,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
    "tiny": {
        **_LLAMA,
        **_sizes(64, 160, 2, 4, 2, 16, 256),
        "rope_theta": 10000.0,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    },
}
"""Name -> config.json. The ids of begin and end token are those of the benchmark's tokenizer, not of the families."""


def spec_of(shape: str) -> ModelSpec:
    """Return the ModelSpec of a named shape."""
    return spec_from_config(SHAPES[shape], f"shape {shape}")
