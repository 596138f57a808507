"""Describes Gemma 2: four norms in a block, scaled embeddings, soft caps, and a window in every second layer."""

from dataclasses import replace

from hcnr_jax.models.families.llama import BLOCK_NAMES, LLAMA, SIZES

GEMMA_NAMES = {
    **BLOCK_NAMES,
    "post_attention_norm/scale": "post_attention_layernorm.weight",
    "mlp_norm/scale": "pre_feedforward_layernorm.weight",
    "post_mlp_norm/scale": "post_feedforward_layernorm.weight",
}
"""Maps a leaf of a block of Gemma 2 or 3 to the tensor name within its layer."""

GEMMA_SIZES = {
    **SIZES,
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
"""Holds the attributes that Gemma 2 and 3 read, with transformers' defaults of Gemma 2."""

GEMMA_ONLY = {
    "hidden_activation": ("gelu_pytorch_tanh",),
    "hidden_act": ("gelu_pytorch_tanh",),
    "mlp_bias": (False,),
    "use_bidirectional_attention": (False,),
}

GEMMA2 = replace(
    LLAMA,
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    defaults={**GEMMA_SIZES, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    only={**GEMMA_ONLY, "sliding_window_size": (4096,)},  # written beside sliding_window in Google's files
    block_names=GEMMA_NAMES,
    norm_offset=1.0,
    activation="gelu_tanh",
    scale_embedding=True,
    windows="pattern",
    full_every=2,
)
