"""Provides causal language models in Flax Linen: configuration, decoder, likelihood, greedy generation.

`spec_from_config` reads the Hugging Face config of a family of `families/table.py`, or refuses it and says why.
`Decoder` runs the model on a plain parameter tree whose layers are stacked. `embed_tokens`, `apply_block` and
`apply_head` run the model one block at a time. Greedy generation is `hcnr_jax.models.generate.generate`. This package
does not re-export that function, because the function has the name of its module.
"""

from hcnr_jax.models.decoder import (
    LOGICAL_AXES,
    Decoder,
    abstract_params,
    apply_block,
    apply_head,
    block_kinds,
    block_windows,
    embed_tokens,
    init_params,
    logical_axes,
)
from hcnr_jax.models.likelihood import completion_nll, completion_window, token_log_probs
from hcnr_jax.models.rope import RopeScaling
from hcnr_jax.models.spec import ModelSpec, spec_from_config

__all__ = [
    "LOGICAL_AXES",
    "Decoder",
    "ModelSpec",
    "RopeScaling",
    "abstract_params",
    "apply_block",
    "apply_head",
    "block_kinds",
    "block_windows",
    "completion_nll",
    "completion_window",
    "embed_tokens",
    "init_params",
    "logical_axes",
    "spec_from_config",
    "token_log_probs",
]
