"""Describes Mistral, which has Llama's shape with a sliding window in every layer and no biases."""

from dataclasses import replace

from hcnr_jax.models.families.llama import LLAMA, SIZES

MISTRAL = replace(
    LLAMA,
    model_type="mistral",
    architecture="MistralForCausalLM",
    defaults={
        **SIZES,
        "vocab_size": 32000,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    only={"attention_bias": (False,), "mlp_bias": (False,)},
    qkv_bias=False,
)
