"""Rules for attributes of `config.json` that hold in every family: allowed at one value, or ignored.

An attribute that neither these tables nor its family knows is refused by name. It may change what the model computes,
and then scores and corrections would be wrong without a visible sign.
"""

from collections.abc import Mapping
from typing import Any

DEFAULT_ROPE_THETA = 10000.0

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
