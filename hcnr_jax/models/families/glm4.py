"""Describes GLM-4: four norms in a block, a fused gate and up, and half of each head rotated in neighbouring pairs."""

from dataclasses import replace

from hcnr_jax.models.families.llama import BLOCK_NAMES, GROUPS, LLAMA, SIZES
from hcnr_jax.models.families.phi3 import GATE_UP

GLM4 = replace(
    LLAMA,
    model_type="glm4",
    architecture="Glm4ForCausalLM",
    defaults={
        **SIZES,
        "vocab_size": 151552,
        "intermediate_size": 13696,
        "num_hidden_layers": 40,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1.5625e-7,
        "attention_bias": True,
        "bos_token_id": None,
        "eos_token_id": (151329, 151336, 151338),
    },
    only={"mlp_bias": (False,)},
    groups=(*GROUPS[:2], ("mlp/gate_up/kernel",), ("mlp/down/kernel",)),
    block_names={
        **{path: name for path, name in BLOCK_NAMES.items() if path.startswith("attention")},
        "post_attention_norm/scale": "post_self_attn_layernorm.weight",
        "mlp_norm/scale": "post_attention_layernorm.weight",
        **GATE_UP,
        "post_mlp_norm/scale": "post_mlp_layernorm.weight",
    },
    o_bias=False,
    partial_rotary=0.5,
    rotary_interleaved=True,
)
