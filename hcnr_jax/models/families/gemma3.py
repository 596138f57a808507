"""Describes the text models of Gemma 3, which are Gemma 2 with q/k norms, two rotary bases and no attention cap.

Five of six layers have a window and rotate with a smaller base.
"""

from dataclasses import replace

from hcnr_jax.models.families.gemma2 import GEMMA2, GEMMA_ONLY, GEMMA_SIZES

GEMMA3 = replace(
    GEMMA2,
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    defaults={
        **GEMMA_SIZES,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "sliding_window_pattern": None,
        "rope_local_base_freq": None,
        "final_logit_softcapping": None,
    },
    only={**GEMMA_ONLY, "attn_logit_softcapping": ()},
    qk_norm=True,
    full_every=6,
    default_theta=1_000_000.0,
    local_theta=10_000.0,
)
