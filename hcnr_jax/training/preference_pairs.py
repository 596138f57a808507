"""Turns preference rows into `Pairs`, and finds an objective by its name."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from jaxtyping import PyTree

from hcnr_jax.data.encode import Example, pad_examples
from hcnr_jax.errors import InputError
from hcnr_jax.training.objectives import Logits, Pairs, dpo, log_likelihoods, orpo, sft
from hcnr_jax.training.trainer import Objective

PREFERENCES = {"dpo": dpo, "orpo": orpo}


def objective_of(name: str, beta: float = 0.1) -> Callable[[Logits], Objective]:
    """Return the function that makes an objective from a forward pass: `sft`, or an entry of `PREFERENCES`.

    `beta` is the beta of the preference objectives; `sft` ignores `beta`.

    Raises:
        InputError: there is no objective of this name.
    """
    if name != "sft" and name not in PREFERENCES:
        raise InputError(f"objective {name!r} is not known, expected one of sft, {', '.join(PREFERENCES)}")
    return sft if name == "sft" else partial(PREFERENCES[name], beta=beta)


def pad_pairs(chosen: Sequence[Example], rejected: Sequence[Example]) -> Pairs:
    """Pad all pairs into one batch with a reference of zero.

    Chosen and rejected rows are padded to the same multiple of 8 tokens, so that they share one compilation.
    """
    length = -(-max(len(example.tokens) for example in [*chosen, *rejected]) // 8) * 8
    zeros = np.zeros(len(chosen), np.float32)
    return Pairs(pad_examples(chosen, length), pad_examples(rejected, length), zeros, zeros)


def with_reference(pairs: Pairs, logits: Logits, params: PyTree, *, rows: int = 64) -> Pairs:
    """Compute the reference log-likelihoods of the pairs, and return the pairs with them.

    Args:
        pairs: pairs with any reference.
        logits: the forward pass.
        params: the parameters of the model before training.
        rows: rows per forward pass.
    """
    chosen, rejected = (log_likelihoods(logits, params, side, rows=rows) for side in (pairs.chosen, pairs.rejected))
    return pairs._replace(reference_chosen=chosen, reference_rejected=rejected)
