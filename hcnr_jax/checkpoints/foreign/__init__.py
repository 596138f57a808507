"""Reads checkpoints that other JAX trainers wrote, and converts them to Hugging Face folders."""

from hcnr_jax.checkpoints.foreign.convert import Converted, convert_checkpoint
from hcnr_jax.checkpoints.foreign.orbax_leaves import OrbaxTree, open_orbax_tree

__all__ = ["Converted", "OrbaxTree", "convert_checkpoint", "open_orbax_tree"]
