"""Describes Qwen2 and Qwen2.5, which have Llama's shape with biases on q, k and v.

Their upper layers have sliding windows if the config sets `use_sliding_window`.
"""

from dataclasses import replace

from hcnr_jax.models.families.llama import LLAMA, SIZES

QWEN_SIZES = {
    **SIZES,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "bos_token_id": None,
    "eos_token_id": None,
}
"""Holds the attributes that both Qwen families read, with transformers' defaults."""

QWEN2 = replace(
    LLAMA,
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    defaults=QWEN_SIZES,
    only={"attention_bias": (True,), "mlp_bias": (False,)},
    qkv_bias=True,
    windows="upper",
)
