"""Describes Granite 3, which is Llama with multipliers of embeddings, scores, residual branches and logits."""

from dataclasses import replace

from hcnr_jax.models.families.llama import LLAMA

GRANITE = replace(
    LLAMA,
    model_type="granite",
    architecture="GraniteForCausalLM",
    defaults={
        **LLAMA.defaults,
        "embedding_multiplier": 1.0,
        "attention_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
    },
    only={**LLAMA.only, "attention_dropout": (0, 0.1)},  # 0.1 in released files; dropout acts in training alone
)
