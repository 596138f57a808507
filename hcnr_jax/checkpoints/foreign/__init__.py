"""Reads checkpoints that other JAX trainers wrote, and converts them to Hugging Face folders and back."""

from hcnr_jax.checkpoints.foreign.convert import Converted, convert_checkpoint
from hcnr_jax.checkpoints.foreign.orbax_leaves import OrbaxTree, open_orbax_tree
from hcnr_jax.checkpoints.foreign.write_tunix import write_tunix

__all__ = ["Converted", "OrbaxTree", "convert_checkpoint", "open_orbax_tree", "write_tunix"]
