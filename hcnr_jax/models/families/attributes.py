"""Which attributes of a Hugging Face `config.json` are handled, allowed only at one value, or ignored, per family.

An attribute in none of the three tables is refused by name: it may change what the model computes, and a model that
computes something else gives scores and corrections that are wrong without looking wrong.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """One `model_type`: its architecture and the defaults its transformers config class gives to absent attributes.

    Attributes:
        architecture: the only class name accepted in `architectures`.
        defaults: handled attributes with the class's defaults.
        only: attributes that HF's model of this family does not read, so that only what it does anyway is accepted.
        qk_norm: RMSNorm on each head's queries and keys.
        qkv_bias: None where `attention_bias` decides.
    """

    architecture: str
    defaults: Mapping[str, Any]
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    qk_norm: bool = False
    qkv_bias: bool | None = None


_SIZES = {
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
}
_QWEN = {
    **_SIZES,
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

DEFAULT_ROPE_THETA = 10000.0

FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        architecture="LlamaForCausalLM",
        defaults={
            **_SIZES,
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
    ),
    "mistral": Family(
        architecture="MistralForCausalLM",
        defaults={
            **_SIZES,
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
    ),
    "qwen2": Family(
        architecture="Qwen2ForCausalLM",
        defaults=_QWEN,
        only={"attention_bias": (True,), "mlp_bias": (False,)},
        qkv_bias=True,
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        defaults={**_QWEN, "head_dim": 128, "attention_bias": False},
        only={"mlp_bias": (False,)},
        qk_norm=True,
    ),
}

ONLY: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),  # two names of one function
    "attention_dropout": (0,),
    "add_cross_attention": (False,),
    "chunk_size_feed_forward": (0,),
    "cross_attention_hidden_size": (),
    "is_encoder_decoder": (False,),
    "partial_rotary_factor": (1,),
    "pruned_heads": ({},),
    "rope_interleaved": (False,),
    "tie_encoder_decoder": (False,),
    "use_mrope": (False,),
}
"""Attributes accepted at these values alone (null counts as absent), whatever the family."""

_BOOKKEEPING = """
    _attn_implementation _attn_implementation_autoset _commit_hash _flash_attn_2_enabled _name_or_path
    architectures attn_implementation dtype finetuning_task id2label initializer_range is_decoder is_llama_config
    label2id model_max_length model_type name_or_path num_labels output_attentions output_hidden_states pad_token_id
    pretraining_tp problem_type return_dict sep_token_id task_specific_params tf_legacy_loss tokenizer_class torch_dtype
    torchscript transformers.js_config transformers_version unsloth_fixed unsloth_version use_bfloat16 use_cache
"""
# Left in config.json by older writers; they say how to sample, never what the model computes.
_GENERATION = """
    bad_words_ids begin_suppress_tokens decoder_start_token_id diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty
    max_length max_new_tokens min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    output_scores prefix remove_invalid_values repetition_penalty return_dict_in_generate suppress_tokens temperature
    top_k top_p typical_p
"""
IGNORED: frozenset[str] = frozenset((_BOOKKEEPING + _GENERATION).split())
"""Attributes without influence on the logits. `dtype` is here because every tensor carries its own, `pretraining_tp`
because it only splits a product into slices that are added again."""
