"""Writes a Hugging Face model, or an adapter's A and B, as an Orbax folder in the layout of tunix's own checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from hcnr_jax.checkpoints.checkpoint import Checkpoint
from hcnr_jax.checkpoints.foreign.axes import Source, axis_sizes, leaf_shape, put
from hcnr_jax.checkpoints.foreign.lora import lora_halves
from hcnr_jax.checkpoints.foreign.tunix import tunix_sources
from hcnr_jax.checkpoints.lora import MergedCheckpoint
from hcnr_jax.checkpoints.safetensors_file import read_tensor
from hcnr_jax.checkpoints.tensor_checks import check_tensors
from hcnr_jax.errors import InputError
from hcnr_jax.models.spec import ModelSpec, spec_from_config
from hcnr_jax.runtime.files import staged_folder

STEP, ITEM = 1, "model_params"


def write_tunix(model: Checkpoint, out: str | Path) -> tuple[Path, int, float | None]:
    """Write a model's weights, or of an adapter its A and B, as step 1 of a tunix checkpoint.

    The leaves have the dtypes of the files. The whole tree is in memory while it is written.

    Args:
        model: a whole model, or an adapter over BASE.
        out: the folder to write, which does not exist yet or is empty.

    Returns:
        The written folder, the number of leaves, and an adapter's alpha (None for a whole model).

    Raises:
        InputError: tunix has no such model, or cannot hold the adapter; or `out` cannot be used.
    """
    spec = spec_from_config(model.config, str(model.folder / "config.json"))
    check_tensors(model, spec)
    fused = ("layers/0/attn/qkv_einsum/w",) if spec.num_heads == spec.num_kv_heads else ()
    sources = tunix_sources(spec, fused)
    alpha = None
    if isinstance(model, MergedCheckpoint):
        leaves, alpha = _lora_leaves(model, spec, sources)
    else:
        leaves = {}
        for name, source in sources.items():
            _fill(leaves, model.read(name), source, axis_sizes(spec))
    needed = sum(leaf.nbytes for leaf in leaves.values())
    with staged_folder(out, model.sources, needed_bytes=needed) as stage, ocp.CheckpointManager(stage) as manager:
        manager.save(STEP, args=ocp.args.Composite(**{ITEM: ocp.args.PyTreeSave(_nested(leaves))}))
        manager.wait_until_finished()
    return Path(out).expanduser().resolve(), len(leaves), alpha


def _fill(leaves: dict[str, np.ndarray], tensor: np.ndarray, source: Source, sizes: Mapping[str, int]) -> None:
    if source.path not in leaves:
        leaves[source.path] = np.zeros(leaf_shape(source, sizes), tensor.dtype)  # 0 where an adapter has no B
    put(leaves[source.path], tensor, source, sizes)


def _lora_leaves(
    adapter: MergedCheckpoint, spec: ModelSpec, sources: Mapping[str, Source]
) -> tuple[dict[str, np.ndarray], float]:
    """Return the LoRA leaves of an adapter, and its alpha."""
    where, leaves, alphas = adapter.folder, dict[str, np.ndarray](), set()
    if adapter.biases or adapter.replaced:
        raise InputError(
            f"{where}: tunix holds A and B alone, and the adapter has {min(adapter.biases | adapter.replaced)}"
        )
    for name, update in adapter.updates.items():
        if update.magnitude is not None:
            raise InputError(f"{where}: a DoRA adapter ({name}) has no form in tunix; merge it and convert the model")
        a, b, scale = (read_tensor(update.a), read_tensor(update.b), update.scale)
        alphas.add(round(scale * len(a), 6))
        sizes = axis_sizes(spec) | {"r": len(a)}
        for half, tensor in zip(lora_halves(sources[name]), (a, b), strict=True):
            before = leaves[half.path].copy() if half.path in leaves else None
            _fill(leaves, tensor, half, sizes)
            if before is not None and not half.picks and not np.array_equal(before, leaves[half.path]):
                raise InputError(f"{where}: tunix has one A for keys and values, and those of {name} differ")
    if len(alphas) != 1:
        raise InputError(f"{where}: tunix has one alpha for all modules, and the adapter has {sorted(alphas)}")
    return leaves, alphas.pop()


def _nested(leaves: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return nested dicts whose last key is `value`, as the state of an NNX model has it."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        for part in path.split("/"):
            node = node.setdefault(part, {})
        node["value"] = leaf
    return tree
