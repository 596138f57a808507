"""Describes SmolLM3, which is Llama with layers that do not rotate queries and keys.

Those layers have a sliding window if the config sets `use_sliding_window`.
"""

from dataclasses import replace

from hcnr_jax.models.families.llama import LLAMA

SMOLLM3 = replace(
    LLAMA,
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    defaults={
        **LLAMA.defaults,
        "vocab_size": 128256,
        "hidden_size": 2048,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": None,  # in the released file, and without influence
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    },
    only={},
    windows="unrotated",
    default_theta=2_000_000.0,
)
