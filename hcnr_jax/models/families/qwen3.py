"""Describes Qwen3, which is Qwen2 with a norm on each head's queries and keys.

Its q, k, v and o have biases only if `attention_bias` is true.
"""

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
