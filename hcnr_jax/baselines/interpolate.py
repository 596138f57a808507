"""Mixes the weights of base and tuned, or extrapolates; these methods need no data and one pass over the
checkpoints.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from hcnr_jax.method.neurons import Params, wide


def wise_ft(base: Params, tuned: Params, alpha: float) -> Params:
    """Compute `W = (1 - alpha) W_base + alpha W_tuned` for every parameter (WiSE-FT, arXiv 2109.01903, eq. 1).

    alpha 0 gives base, 1 gives tuned. Norms, biases and embeddings are mixed too, as there.
    """
    return task_arithmetic(base, tuned, alpha)


def task_arithmetic(base: Params, tuned: Params, scale: float) -> Params:
    """Compute `W = W_base + scale (W_tuned - W_base)` (task vectors, arXiv 2212.04089, section 2).

    With a single task vector and a scale in [0, 1] this equals WiSE-FT; scales above 1 and below 0 are allowed too. The
    result is computed in float32 and returned in tuned's dtypes.
    """

    def mix(old: Array, new: Array) -> Array:
        dtype = wide(new.dtype)
        start = old.astype(dtype)
        return (start + jnp.asarray(scale, dtype) * (new.astype(dtype) - start)).astype(new.dtype)

    return jax.tree.map(mix, base, tuned)
