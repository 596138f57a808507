"""Converts the LoRA leaves that qwix puts beside tunix's kernels into a PEFT adapter.

A kernel W with contracted axes `in` and further axes `out` has A (in, r) and B (r, out):

    y += x A B alpha / r

The rank r is read from the shapes. alpha is not in the checkpoint: the user gives it.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from hcnr_jax.checkpoints.checkpoint import ADAPTER_CONFIG, Checkpoint
from hcnr_jax.checkpoints.foreign.axes import Source, axis_sizes, fits, leaf_shape, take
from hcnr_jax.checkpoints.foreign.orbax_leaves import OrbaxTree
from hcnr_jax.checkpoints.foreign.tensors import ForeignTensors, few
from hcnr_jax.checkpoints.lora import ADAPTER_WEIGHTS, open_adapter
from hcnr_jax.checkpoints.safetensors_file import DTYPES
from hcnr_jax.errors import InputError
from hcnr_jax.models.spec import ModelSpec
from hcnr_jax.runtime.files import staged_folder

_A, _B = "_lora_a", "_lora_b"
_PREFIX = "base_model.model."


def is_lora(tree: OrbaxTree) -> bool:
    """Return whether a tree has LoRA leaves."""
    return any(path.endswith((_A, _B)) for path in tree.leaves)


def lora_tensors(tree: OrbaxTree, spec: ModelSpec, sources: Mapping[str, Source]) -> dict[str, np.ndarray]:
    """Return the adapter's tensors by PEFT's names: A as (r, in) and B as (out, r).

    Args:
        tree: the opened leaves; those that are no LoRA leaves are not looked at.
        spec: BASE's description, which gives the sizes.
        sources: maps a Hugging Face name to the tensor's place in the tree.

    Raises:
        InputError: a LoRA leaf belongs to no linear weight of BASE, lacks its other half, or has another shape.
    """
    tensors, used = {}, set()
    for name, source in sources.items():
        halves = source.path + _A, source.path + _B
        if "," not in source.stored or name == spec.recipe.embedding or not set(halves) & set(tree.leaves):
            continue
        if missing := [path for path in halves if path not in tree.leaves]:
            raise InputError(f"{tree.folder}: {missing[0]} is missing; A and B go together")
        rank = tree.leaves[halves[1]].shape[0]
        sizes = axis_sizes(spec) | {"r": rank}
        for part, half in zip(("lora_A", "lora_B"), lora_halves(source), strict=True):
            found = tree.leaves[half.path]
            if not fits(half, found.shape, sizes):
                raise InputError(
                    f"{tree.folder}: {half.path} is {found.shape}, expected {leaf_shape(half, sizes)} for rank {rank} "
                    "on the base in --like; is it another base's?"
                )
            tensors[f"{_PREFIX}{name.removesuffix('.weight')}.{part}.weight"] = take(found.read(), half, sizes)
        used |= set(halves)
    if extra := sorted({path for path in tree.leaves if path.endswith((_A, _B))} - used):
        raise InputError(
            f"{tree.folder}: no linear weight of the base in --like fits the LoRA leaves {few(extra)}; a PEFT adapter "
            "over linear weights does not hold them"
        )
    return tensors


def lora_halves(source: Source) -> tuple[Source, Source]:
    """Return the places of A and B beside a kernel's leaf."""
    out, into = source.stored.split(",")
    contracted = "".join(letter for letter in source.axes if letter in into)
    others = "".join(letter for letter in source.axes if letter not in into)
    a = Source(source.path + _A, f"{contracted}r", f"r,{into}")
    return a, replace(source, path=source.path + _B, axes=f"r{others}", stored=f"{out},r")


def check_frozen(tree: OrbaxTree, spec: ModelSpec, sources: Mapping[str, Source], base: Checkpoint) -> None:
    """Check that the weights beside LoRA leaves are BASE's, where the tree holds the whole model.

    Args:
        tree: the opened leaves.
        spec: BASE's description.
        sources: maps a Hugging Face name to the tensor's place in the tree.
        base: BASE.

    Raises:
        InputError: a weight differs from BASE's, which an adapter would lose.
    """
    frozen = {path: leaf for path, leaf in tree.leaves.items() if not path.endswith((_A, _B))}
    if not frozen:
        return
    tensors = ForeignTensors(replace(tree, leaves=frozen), spec, sources)
    for name in tensors:
        own = base.read(name).astype(DTYPES[tensors.dtype(name)])
        if not np.array_equal(tensors[name], own):
            raise InputError(
                f"{tree.folder}: it has LoRA leaves, and beside them {name} differs from the base in --like; give the "
                "base that the LoRA was trained on"
            )


def write_adapter(
    base: Checkpoint, tensors: dict[str, np.ndarray], alpha: float, out: str | Path, source: Path
) -> Path:
    """Write a PEFT adapter folder.

    Args:
        base: BASE, which the adapter's config names.
        tensors: the adapter's tensors by PEFT's names.
        alpha: LoRA's alpha, of the scale alpha / r.
        out: the folder to write, which does not exist yet or is empty.
        source: the folder that the tensors are read from, which must not be written to.

    Raises:
        InputError: `out` cannot be used, a tensor has NaN or infinite values, or the disk failed or is full. Nothing is
            left behind.
    """
    size = sum(tensor.nbytes for tensor in tensors.values())
    with staged_folder(out, [*base.sources, source], needed_bytes=size) as stage:
        save_file(tensors, stage / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        text = json.dumps(_config(base, tensors, alpha), indent=2, ensure_ascii=False)
        (stage / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")
        open_adapter(stage, base)  # checks all values
    return Path(out).expanduser().resolve()


def _config(base: Checkpoint, tensors: Mapping[str, np.ndarray], alpha: float) -> dict[str, object]:
    ranks = {
        name.removeprefix(_PREFIX).removesuffix(".lora_A.weight"): tensor.shape[0]
        for name, tensor in tensors.items()
        if name.endswith(".lora_A.weight")
    }
    most = max(set(ranks.values()), key=list(ranks.values()).count)
    kinds = {module.rpartition(".")[2] for module in ranks}
    weights = [name.removesuffix(".weight") for name in base.tensors]
    all_of = {module for module in weights if module.rpartition(".")[2] in kinds}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base.folder),
        "r": most,
        "lora_alpha": alpha,
        "rank_pattern": {module: rank for module, rank in ranks.items() if rank != most},
        "lora_dropout": 0.0,
        # Names of kinds reach all layers: where a layer has no LoRA, every module is named in full.
        "target_modules": sorted(kinds if all_of == set(ranks) else ranks),
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }
