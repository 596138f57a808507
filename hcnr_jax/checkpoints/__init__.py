"""Reads, checks, compares, writes and patches Hugging Face and Orbax checkpoints, and merges adapters."""

from hcnr_jax.checkpoints.checkpoint import Checkpoint, is_adapter, open_checkpoint
from hcnr_jax.checkpoints.digest import model_digest, sha256_file, sha256_files, tensor_digest, tensor_digests
from hcnr_jax.checkpoints.load import describe_params, load_params, read_leaf
from hcnr_jax.checkpoints.lora import MergedCheckpoint, open_adapter, open_tuned
from hcnr_jax.checkpoints.names import Placement, hf_name_of, leaf_shapes, tensor_names
from hcnr_jax.checkpoints.orbax import load_params as load_orbax
from hcnr_jax.checkpoints.orbax import save_params as save_orbax
from hcnr_jax.checkpoints.pair_checks import DeltaLoss, check_pair, check_windows, delta_lost
from hcnr_jax.checkpoints.patch import apply_patch, write_patch
from hcnr_jax.checkpoints.save import (
    HFTensors,
    divide_shards,
    save_like,
    save_new,
    to_hf,
    write_companions,
    write_like,
    write_shards,
)
from hcnr_jax.checkpoints.stream import StreamedParams
from hcnr_jax.checkpoints.tensor_checks import check_finite, check_tensors
from hcnr_jax.runtime.files import check_output, output_lock, staged_folder

__all__ = [
    "Checkpoint",
    "DeltaLoss",
    "HFTensors",
    "MergedCheckpoint",
    "Placement",
    "StreamedParams",
    "apply_patch",
    "check_finite",
    "check_output",
    "check_pair",
    "check_tensors",
    "check_windows",
    "delta_lost",
    "describe_params",
    "divide_shards",
    "hf_name_of",
    "is_adapter",
    "leaf_shapes",
    "load_orbax",
    "load_params",
    "model_digest",
    "open_adapter",
    "open_checkpoint",
    "open_tuned",
    "output_lock",
    "read_leaf",
    "save_like",
    "save_new",
    "save_orbax",
    "sha256_file",
    "sha256_files",
    "staged_folder",
    "tensor_digest",
    "tensor_digests",
    "tensor_names",
    "to_hf",
    "write_companions",
    "write_like",
    "write_patch",
    "write_shards",
]
