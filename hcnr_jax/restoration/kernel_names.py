"""Gives every kernel of a model its Hugging Face tensor name."""

from __future__ import annotations

from hcnr_jax.checkpoints.names import hf_name_of
from hcnr_jax.method.neurons import Kernel
from hcnr_jax.models import ModelSpec


def kernel_names(spec: ModelSpec) -> dict[Kernel, str]:
    """Return every kernel and its Hugging Face tensor name, in canonical order."""
    return {
        Kernel(path, (layer,)): hf_name_of(path, layer, spec.recipe)
        for layer in range(spec.num_layers)
        for path in spec.kernels
    }
