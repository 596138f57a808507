"""Lists the attributes of `config.json` that every family accepts at certain values only, or ignores.

An attribute that neither these tables nor the model's family lists is refused by name. Such an attribute may change
what the model computes, and then scores and corrections would be wrong without a visible sign.
"""

from collections.abc import Mapping
from typing import Any

ONLY: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),  # two names of one function
    "attention_dropout": (0,),
    "add_cross_attention": (False,),
    "chunk_size_feed_forward": (0,),
    "cross_attention_hidden_size": (),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "rope_interleaved": (False,),
    "tie_encoder_decoder": (False,),
    "use_mrope": (False,),
}
"""Maps an attribute to the only values accepted, whatever the family. Null counts as absent."""

_BOOKKEEPING = """
    _attn_implementation _attn_implementation_autoset _commit_hash _flash_attn_2_enabled _name_or_path architectures
    attn_implementation cache_implementation dtype finetuning_task id2label initializer_range is_decoder
    is_llama_config label2id model_max_length model_type name_or_path num_labels output_attentions
    output_hidden_states pad_token_id pretraining_tp problem_type return_dict sep_token_id task_specific_params
    tf_legacy_loss tokenizer_class torch_dtype torchscript transformers.js_config transformers_version unsloth_fixed
    unsloth_version use_bfloat16 use_cache
"""
# Older versions of transformers left these in config.json. They say how to sample, never what the model computes.
_GENERATION = """
    bad_words_ids begin_suppress_tokens decoder_start_token_id diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty
    max_length max_new_tokens min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    output_scores prefix remove_invalid_values repetition_penalty return_dict_in_generate suppress_tokens temperature
    top_k top_p typical_p
"""
IGNORED: frozenset[str] = frozenset((_BOOKKEEPING + _GENERATION).split())
"""Lists the attributes without influence on the logits.

`dtype` is here because every tensor in a file has its own dtype. `pretraining_tp` is here because it only splits a
product into slices and adds them again.
"""
