"""Writes a whole restored model as a LoRA adapter over BASE, by truncated singular value decompositions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save_file

from hcnr_jax.checkpoints.checkpoint import ADAPTER_CONFIG, is_tokenizer_file
from hcnr_jax.checkpoints.digest import tensor_digest
from hcnr_jax.checkpoints.lora import ADAPTER_WEIGHTS
from hcnr_jax.method.adapter import truncated
from hcnr_jax.method.neurons import Kernel
from hcnr_jax.restoration.inputs import RunInputs
from hcnr_jax.restoration.kernel_names import kernel_names
from hcnr_jax.restoration.resume.products import CorrectedKernel
from hcnr_jax.training.lora import adapter_config


class Truncation(NamedTuple):
    """Holds what an adapter of limited rank holds of the restored model's change from BASE.

    Args:
        rank: of A and B.
        lost: share of the change that the adapter does not hold, as a squared Frobenius norm, over all kernels.
        lost_by_tensor: the same share of each kernel, by tensor name.
        not_held: the tensors that are no kernels and in which TUNED differs from BASE, which keep BASE's values.
        digests: sha256 of each adapter tensor, by name.
    """

    rank: int
    lost: float
    lost_by_tensor: dict[str, float]
    not_held: tuple[str, ...]
    digests: dict[str, str]


def write_truncated(
    inputs: RunInputs, corrected: Mapping[Kernel, CorrectedKernel], folder: Path, rank: int
) -> Truncation:
    """Write adapter_config.json, adapter_model.safetensors and TUNED's tokenizer into a folder.

    Args:
        inputs: BASE and TUNED, opened.
        corrected: the kept kernels; the others have TUNED's weights.
        folder: where to write.
        rank: largest rank of a kernel's adapter.
    """
    tensors: dict[str, np.ndarray] = {}
    squares: dict[str, tuple[float, float]] = {}
    names = kernel_names(inputs.spec)
    for kernel, name in names.items():
        base = inputs.base.value(name).astype(np.float32)
        found = corrected.get(kernel)
        restored = np.asarray(found.weights, np.float32).T if found else inputs.tuned.value(name).astype(np.float32)
        change = restored - base
        whole = float(np.square(change, dtype=np.float64).sum())
        if not whole:
            continue
        a, b = truncated(change, rank)
        squares[name] = whole, float(np.square(change - b @ a, dtype=np.float64).sum())
        module = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = a, b
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = adapter_config(tensors, rank, float(rank), inputs.config.base)
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name, path in inputs.tuned.companions().items():
        if is_tokenizer_file(name):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(path.read_bytes())
    kernels, everything = set(names.values()), inputs.base.tensors
    differing = [
        name
        for name in everything
        if name not in kernels and not np.array_equal(inputs.base.value(name), inputs.tuned.value(name))
    ]
    lost = sum(left for _, left in squares.values()) / max(sum(whole for whole, _ in squares.values()), 1e-30)
    shares = {name: left / whole for name, (whole, left) in squares.items()}
    digests = {name: tensor_digest(value) for name, value in tensors.items()}
    return Truncation(rank, lost, shares, tuple(differing), digests)
