"""Qwen3: Qwen2 with a norm on each head's queries and keys, and biases only where `attention_bias` says so."""

from dataclasses import replace

from hcnr_jax.models.families.qwen2 import QWEN2, QWEN_SIZES

QWEN3 = replace(
    QWEN2,
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    defaults={**QWEN_SIZES, "head_dim": 128, "attention_bias": False},
    only={"mlp_bias": (False,)},
    qk_norm=True,
    qkv_bias=None,
)
