"""Describes Llama 2, 3, 3.1 and 3.2. The other families share Llama's names, groups and sizes."""

from hcnr_jax.models.families.family import Family

GROUPS = (
    ("attention/q/kernel", "attention/k/kernel", "attention/v/kernel"),
    ("attention/o/kernel",),
    ("mlp/gate/kernel", "mlp/up/kernel"),
    ("mlp/down/kernel",),
)
"""Lists the groups of kernels in a Llama-shaped block; the kernels of a group read the same input."""

BLOCK_NAMES = {
    "attention_norm/scale": "input_layernorm.weight",
    "attention/q/kernel": "self_attn.q_proj.weight",
    "attention/q/bias": "self_attn.q_proj.bias",
    "attention/k/kernel": "self_attn.k_proj.weight",
    "attention/k/bias": "self_attn.k_proj.bias",
    "attention/v/kernel": "self_attn.v_proj.weight",
    "attention/v/bias": "self_attn.v_proj.bias",
    "attention/o/kernel": "self_attn.o_proj.weight",
    "attention/o/bias": "self_attn.o_proj.bias",
    "attention/q_norm/scale": "self_attn.q_norm.weight",
    "attention/k_norm/scale": "self_attn.k_norm.weight",
    "mlp_norm/scale": "post_attention_layernorm.weight",
    "mlp/gate/kernel": "mlp.gate_proj.weight",
    "mlp/gate/bias": "mlp.gate_proj.bias",
    "mlp/up/kernel": "mlp.up_proj.weight",
    "mlp/up/bias": "mlp.up_proj.bias",
    "mlp/down/kernel": "mlp.down_proj.weight",
    "mlp/down/bias": "mlp.down_proj.bias",
}
"""Maps a leaf of a block to the tensor name within its layer, in the order of the forward pass."""

OUTER_NAMES = {
    "embed/embedding": "model.embed_tokens.weight",
    "final_norm/scale": "model.norm.weight",
    "lm_head/kernel": "lm_head.weight",
}
"""Maps a leaf outside the blocks to its tensor name."""

SIZES = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": None,
    "rope_scaling": None,
    "rope_parameters": None,
    "layer_types": None,
    "head_dim": None,
    "partial_rotary_factor": None,
}
"""Holds the attributes that every Llama-shaped family reads, with transformers' defaults."""

LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    groups=GROUPS,
    block_names=BLOCK_NAMES,
    outer_names=OUTER_NAMES,
    defaults={
        **SIZES,
        "vocab_size": 32000,
        "intermediate_size": 11008,
        "num_key_value_heads": None,
        "max_position_embeddings": 2048,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    only={"sliding_window": (), "use_sliding_window": (False,)},
)
