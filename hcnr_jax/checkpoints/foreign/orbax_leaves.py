"""Opens the leaves of an Orbax folder one by one, without the program that wrote it and without loading the tree.

Orbax's own restore reads a whole tree at once. Here the folder's `_METADATA` names the leaves, and tensorstore, which
Orbax itself uses, opens each leaf's header. A leaf is read when it is asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

from hcnr_jax.checkpoints.checkpoint import read_json
from hcnr_jax.checkpoints.orbax import item_folder
from hcnr_jax.checkpoints.safetensors_file import DTYPE_NAMES, FLOATS
from hcnr_jax.errors import InputError

_METADATA = "_METADATA"
_ARRAYS = ("jax.Array", "np.ndarray")
# Parts of the path of a leaf that qwix (tunix) or AQT (MaxText) stores in place of a plain weight.
_QUANTISED = {"qvalue", "qrhs", "qlhs", "qtensor"}


@dataclass(frozen=True)
class OrbaxLeaf:
    """Holds one opened leaf.

    Attributes:
        shape: the leaf's shape.
        dtype: the leaf's dtype.
        store: the tensorstore that reads the leaf.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    store: Any

    def read(self) -> np.ndarray:
        """Return the whole leaf."""
        return np.asarray(self.store.read().result())


@dataclass(frozen=True)
class OrbaxTree:
    """Holds the opened leaves of an Orbax folder.

    Attributes:
        folder: the folder of the tree, which is an item of a step.
        leaves: maps a path with slashes to the leaf. The last part `value`, which Flax NNX appends, is left out.
    """

    folder: Path
    leaves: Mapping[str, OrbaxLeaf]


def open_orbax_tree(folder: str | Path) -> OrbaxTree:
    """Open the parameters of an Orbax folder: a tree, a step, or a CheckpointManager's root, whose last step counts.

    Raises:
        InputError: the folder is not an Orbax checkpoint, holds no parameters, or they are quantised. The message names
            the folder or the leaf.
    """
    path = Path(folder)
    if path.parts[:1] == ("gs:",):
        raise InputError(
            f"{folder} is in a bucket; copy one step here first (gcloud storage cp -r gs://BUCKET/STEP .), and give "
            "the copy"
        )
    if not path.is_dir():
        raise InputError(f"{folder} is not a folder; expected an Orbax checkpoint of tunix or MaxText")
    tree = item_folder(path)
    if tree.name == "optimizer_state":
        raise InputError(f"{tree.parent} holds optimizer_state alone, and no model_params; give a step with both")
    if not (tree / _METADATA).is_file():
        raise InputError(
            f"{folder} is not an Orbax checkpoint (no {_METADATA} in {tree}); give the folder of the steps, or one step"
        )
    metadata = read_json(tree / _METADATA)
    names = _array_names(tree, metadata)
    if quantised := [name for name in names if _QUANTISED & set(name)]:
        raise InputError(
            f"{tree}: {'/'.join(quantised[0])} is a quantised weight, and {len(quantised) - 1} more are; neurons are "
            "restored in plain weights: train over a base in bfloat16, or give the LoRA leaves alone"
        )
    leaves = {_plain(name): _open(tree, name, metadata) for name in names}
    for name, leaf in leaves.items():
        if DTYPE_NAMES.get(leaf.dtype) not in FLOATS:
            raise InputError(f"{tree}: {name} is stored as {leaf.dtype} (quantised?); expected {', '.join(FLOATS)}")
    return OrbaxTree(tree, leaves)


def _array_names(tree: Path, metadata: Mapping[str, Any]) -> list[tuple[str, ...]]:
    entries = metadata.get("tree_metadata")
    if not isinstance(entries, dict) or not entries:
        raise InputError(f"{tree / _METADATA}: expected an object under tree_metadata; was the save interrupted?")
    names = []
    for entry in entries.values():
        if entry["value_metadata"].get("value_type") in _ARRAYS:
            names.append(tuple(str(key["key"]) for key in entry["key_metadata"]))
    # MaxText's whole training state has optimiser and step beside the weights; NNX models may hold random keys.
    parameters = [name for name in names if name[0] not in ("opt_state", "step") and "rngs" not in name]
    if not parameters:
        raise InputError(f"{tree}: the Orbax tree holds no array")
    return parameters


def _plain(name: tuple[str, ...]) -> str:
    return "/".join(name[:-1] if name[-1] == "value" else name)


def _open(tree: Path, name: tuple[str, ...], metadata: Mapping[str, Any]) -> OrbaxLeaf:
    root, leaf = f"file://{tree.resolve()}/", f"{'.'.join(name)}/"
    ocdbt = metadata.get("use_ocdbt", (tree / "manifest.ocdbt").exists())
    place = {"driver": "ocdbt", "base": root, "path": leaf} if ocdbt else f"{root}{leaf}"
    driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
    try:
        store = tensorstore.open({"driver": driver, "kvstore": place}, open=True, read=True).result()
    except (ValueError, OSError, KeyError) as error:
        cause = " ".join(str(error).split())[:200]
        raise InputError(f"{tree}: leaf {'/'.join(name)} cannot be opened ({cause}); copy the folder again") from error
    return OrbaxLeaf(tuple(store.shape), store.dtype.numpy_dtype, store)
