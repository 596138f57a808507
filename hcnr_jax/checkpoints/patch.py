"""The patch file: what turned TUNED into the restored model, small enough to pass on, and its own inverse.

Per changed kernel it holds the neuron indices and the XOR of tuned and restored bit patterns of those neurons only, so
that the same file applies and reverts. Its metadata hold the sha256 of every tensor of both sides: any other model is
refused by name. Two tensors per kernel, `NAME.neurons` (int32, or int64 where a flat position needs it) and `NAME.xor`
(uint16 or uint32, one row a neuron). A neuron is column k of the stored (out, in) tensor for input channels, row k for
output channels, and a flat position for single weights.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hcnr_jax.checkpoints.checkpoint import PATCH, Checkpoint, is_adapter, open_checkpoint
from hcnr_jax.checkpoints.digest import model_digest, tensor_digest, tensor_digests
from hcnr_jax.checkpoints.safetensors_file import DTYPE_NAMES, ShardInfo, encode_header, read_header, read_tensor
from hcnr_jax.checkpoints.save import save_like
from hcnr_jax.errors import InputError, RunError

Granularity = Literal["input", "output", "weight"]

_KEY = "hcnr_patch"
_VERSION = 1
_UNKNOWN = "0" * 64  # stands in the header until the digest is known; every sha256 is as long


def write_patch(
    path: str | Path,
    tuned: Checkpoint,
    restored: Mapping[str, Any],
    neurons: Mapping[str, np.ndarray],
    granularity: Granularity = "input",
    digests: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Write the patch from `tuned` to the model whose tensors are `restored` where named, and tuned's elsewhere.

    Args:
        path: the file to write, commonly inside a staged output folder.
        tuned: the model before.
        restored: HF name -> array in HF orientation and stored dtype; looked up one name at a time.
        neurons: HF name -> increasing indices of its restored neurons; the same names as `restored`.
        granularity: what an index counts.
        digests: `tensor_digests(tuned)`, where the caller has it already.

    Returns:
        Digests of the restored model: name -> sha256, all tensors.

    Raises:
        RunError: a tensor of `restored` differs from tuned outside its neurons, which a patch cannot express.
    """
    if set(restored) != set(neurons):
        raise InputError(
            f"restored tensors and neuron indices do not name the same kernels: {sorted(set(restored) ^ set(neurons))}"
        )
    before = dict(digests if digests is not None else tensor_digests(tuned))
    changed = dict.fromkeys(restored, _UNKNOWN)
    layout: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name in restored:
        index, info = _indices(neurons[name]), tuned.tensors[name]
        rows = (
            (index.size,) if granularity == "weight" else (index.size, info.shape[0 if granularity == "input" else 1])
        )
        layout[f"{name}.neurons"] = (DTYPE_NAMES[index.dtype], (index.size,))
        layout[f"{name}.xor"] = (DTYPE_NAMES[_bits(info.numpy_dtype)], rows)
    with Path(path).open("wb") as file:
        header = encode_header(layout, _metadata(granularity, before, changed))
        file.write(header)
        for name in restored:
            index, tensor = _indices(neurons[name]), restored[name]
            file.write(index.data)
            file.write(_difference(name, tuned.read(name), tensor, index, granularity).data)
            changed[name] = tensor_digest(tensor)
        file.seek(0)
        final = encode_header(layout, _metadata(granularity, before, changed))
        if len(final) != len(header):
            raise RunError(f"{path}: the header changed its length while it was written")
        file.write(final)
    return before | changed


def apply_patch(patch: str | Path, model: str | Path | Checkpoint, out: str | Path, revert: bool = False) -> Path:
    """Write `out`: the restored model made from TUNED, or with `revert` TUNED made from the restored model.

    Raises InputError when `patch` is not a whole patch file, when `model` is not the one it was made for (naming the
    first tensor that differs), or when `out` cannot be used; nothing is left behind. Returns the resolved `out`.
    """
    opened = _open_patch(Path(patch))
    if not isinstance(model, Checkpoint) and is_adapter(model):
        raise InputError(
            f"MODEL {model} is a LoRA adapter; the patch was made for a whole model. The restored folder is whole as "
            "it is, and --revert on it gives the adapter merged into its base"
        )
    source = model if isinstance(model, Checkpoint) else open_checkpoint(model)
    expected, target = (opened.restored, opened.tuned) if revert else (opened.tuned, opened.restored)
    _check_model(opened, source, expected, target, revert)
    return save_like(source, out, _Patched(opened, source, target), inputs=[patch])


@dataclass(frozen=True)
class _Patch:
    """An opened patch file: kernel names, and sha256 of every tensor on both sides."""

    shard: ShardInfo
    granularity: Granularity
    tuned: dict[str, str]
    restored: dict[str, str]

    @property
    def kernels(self) -> list[str]:
        return [info.name.removesuffix(".xor") for info in self.shard.tensors if info.name.endswith(".xor")]

    def read(self, name: str, part: str) -> np.ndarray:
        return read_tensor(next(info for info in self.shard.tensors if info.name == f"{name}.{part}"))


class _Patched(Mapping[str, np.ndarray]):
    """The changed tensors, each made when it is looked up and held against its digest."""

    def __init__(self, patch: _Patch, source: Checkpoint, target: Mapping[str, str]) -> None:
        self._patch, self._source, self._target = patch, source, target

    def __iter__(self) -> Iterator[str]:
        return iter(self._patch.kernels)

    def __len__(self) -> int:
        return len(self._patch.kernels)

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._source.read(name).copy()
        view = tensor.view(_bits(tensor.dtype))
        index, xor = self._patch.read(name, "neurons"), self._patch.read(name, "xor")
        try:
            _put(view, index, _take(view, index, self._patch.granularity) ^ xor, self._patch.granularity)
        except (IndexError, ValueError) as error:
            raise InputError(
                f"{self._patch.shard.path}: the rows for {name} do not fit {list(tensor.shape)}"
            ) from error
        if tensor_digest(tensor) != self._target[name]:
            raise InputError(
                f"{self._patch.shard.path}: the rows for {name} are damaged (sha256 of the result is wrong)"
            )
        return tensor


def _check_model(
    patch: _Patch, source: Checkpoint, expected: Mapping[str, str], target: Mapping[str, str], revert: bool
) -> None:
    """The model must be, tensor by tensor, the side of the patch that is to be changed."""
    found = tensor_digests(source)
    if found == expected:
        return
    if found == target:
        state, remedy = ("TUNED", "without --revert") if revert else ("the restored model", "with --revert")
        raise InputError(
            f"{source.folder} is already {state} of {patch.shard.path}; {remedy} the patch goes the other way"
        )
    names = sorted(set(found) ^ set(expected))
    if names:
        side = "lacks" if names[0] in expected else "has in excess"
        raise InputError(f"{patch.shard.path} was made for another model: {source.folder} {side} tensor {names[0]}")
    first = next(name for name in found if found[name] != expected[name])
    count = sum(found[name] != expected[name] for name in found)
    raise InputError(
        f"{patch.shard.path} was made for another model: tensor {first} of {source.folder} has sha256 "
        f"{found[first][:16]}..., expected {expected[first][:16]}... ({count} of {len(found)} tensors differ)"
    )


def _open_patch(path: Path) -> _Patch:
    if not path.is_file():
        raise InputError(f"PATCH {path}: there is no such file; expected {PATCH}, or the folder that holds it")
    shard = read_header(path)
    try:
        table: dict[str, Any] = json.loads(shard.metadata[_KEY])
        version, granularity = table["version"], table["granularity"]
        tuned = dict(table["tuned"]["tensors"])
        restored = tuned | dict(table["restored"]["tensors"])
        digests = table["tuned"]["digest"], table["restored"]["digest"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a patch that `hcnr restore` wrote (no readable {_KEY} metadata)") from error
    if version != _VERSION or granularity not in ("input", "output", "weight"):
        raise InputError(f"{path}: patch version {version!r}, granularity {granularity!r} is not known to this release")
    if digests != (model_digest(tuned), model_digest(restored)):
        raise InputError(f"{path}: its metadata are damaged (the digest of the tensor list is wrong)")
    patch = _Patch(shard, granularity, tuned, restored)
    names = {info.name for info in shard.tensors}
    for name in patch.kernels:
        if f"{name}.neurons" not in names or name not in tuned:
            raise InputError(f"{path}: the entry for {name} is incomplete")
    return patch


def _metadata(granularity: str, before: dict[str, str], changed: dict[str, str]) -> dict[str, str]:
    """The restored side lists the changed tensors only: the others are tuned's."""
    table = {
        "version": _VERSION,
        "granularity": granularity,
        "tuned": {"digest": model_digest(before), "tensors": before},
        "restored": {"digest": model_digest(before | changed), "tensors": changed},
    }
    return {"format": "pt", _KEY: json.dumps(table, separators=(",", ":"))}


def _difference(
    name: str, tuned: np.ndarray, restored: np.ndarray, index: np.ndarray, granularity: Granularity
) -> np.ndarray:
    """XOR of the two sides at the neurons (one row each), after checking that they are equal everywhere else."""
    if tuned.dtype != restored.dtype or tuned.shape != restored.shape:
        raise RunError(
            f"tensor {name}: restored is {restored.dtype} {restored.shape}, tuned {tuned.dtype} {tuned.shape}"
        )
    bits = _bits(tuned.dtype)
    xor = tuned.view(bits) ^ np.ascontiguousarray(restored).view(bits)
    rows = _take(xor, index, granularity)
    if np.count_nonzero(xor) != np.count_nonzero(rows):
        raise RunError(f"tensor {name} differs from TUNED outside its restored neurons, which a patch cannot express")
    return np.ascontiguousarray(rows)


def _take(bits: np.ndarray, index: np.ndarray, granularity: Granularity) -> np.ndarray:
    """The neurons' entries, one row a neuron."""
    if granularity == "input":
        return bits[:, index].T
    return bits[index] if granularity == "output" else bits.reshape(-1)[index]


def _put(bits: np.ndarray, index: np.ndarray, rows: np.ndarray, granularity: Granularity) -> None:
    """The inverse of `_take`, in place."""
    if granularity == "input":
        bits[:, index] = rows.T
    elif granularity == "output":
        bits[index] = rows
    else:
        bits.reshape(-1)[index] = rows


def _bits(dtype: np.dtype) -> np.dtype:
    return np.dtype(f"u{dtype.itemsize}")


def _indices(index: Iterable[int] | np.ndarray) -> np.ndarray:
    values = np.asarray(index)
    small = values.size == 0 or int(values.max()) <= np.iinfo(np.int32).max
    return np.ascontiguousarray(values, np.int32 if small else np.int64)
