"""Describes OLMo 2, whose norms follow attention and MLP, with one norm over the queries (and keys) of all heads."""

from dataclasses import replace

from hcnr_jax.models.families.llama import BLOCK_NAMES, LLAMA, SIZES

OLMO_NAMES = {
    **{path: name for path, name in BLOCK_NAMES.items() if path not in ("attention_norm/scale", "mlp_norm/scale")},
    "post_attention_norm/scale": "post_attention_layernorm.weight",
    "post_mlp_norm/scale": "post_feedforward_layernorm.weight",
}
"""Maps a leaf of a block of OLMo 2 or 3 to the tensor name within its layer."""

OLMO_SIZES = {
    **SIZES,
    "vocab_size": 50304,
    "intermediate_size": 11008,
    "num_key_value_heads": None,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "bos_token_id": None,
    "eos_token_id": 50279,
}
"""Holds the attributes that OLMo 2 and 3 read, with transformers' defaults."""

OLMO2 = replace(
    LLAMA,
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    defaults=OLMO_SIZES,
    only={"mlp_bias": (False,)},
    block_names=OLMO_NAMES,
    qk_norm=True,
    qk_norm_joint=True,
)
