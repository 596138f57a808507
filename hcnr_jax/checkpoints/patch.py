"""Writes and applies patch files. A patch turns TUNED into the restored model, and the restored model into TUNED.

For each changed kernel a patch holds the neuron indices, and the XOR of the bits of tuned and restored for those
neurons only. XOR is its own inverse, so that the same file applies and reverts. The metadata hold the sha256 of every
tensor of both models, and a patch refuses any other model.

A patch has two tensors per kernel. `NAME.neurons` is int32, or int64 where a flat position needs 64 bits. `NAME.xor` is
uint16 or uint32, with one row per neuron. An index counts columns of the stored (out, in) tensor for input channels,
rows for output channels, and flat positions for single weights.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hcnr_jax.checkpoints.checkpoint import PATCH, Checkpoint, is_adapter, open_checkpoint
from hcnr_jax.checkpoints.digest import model_digest, tensor_digest, tensor_digests
from hcnr_jax.checkpoints.lora import open_adapter_files
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
    """Write the patch from `tuned` to the restored model, which has the tensors of `restored` in place of tuned's.

    Args:
        path: the file to write, usually in a temporary folder that becomes the output (`staged_folder`).
        tuned: the tuned model.
        restored: maps a Hugging Face name to an array in Hugging Face orientation and stored dtype. Names are looked up
            one at a time.
        neurons: maps the same names to the increasing indices of the restored neurons.
        granularity: what one index stands for: an input channel, an output channel or a single weight.
        digests: `tensor_digests(tuned)`, if the caller has computed these already.

    Returns:
        A map from the name of every tensor of the restored model to its sha256.

    Raises:
        InputError: `restored` and `neurons` do not have the same names.
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
    """Apply or revert a patch, and write the resulting model to `out`; the result is bit-identical.

    Args:
        patch: the patch file.
        model: TUNED, or with `revert` the restored model: a folder, a hub name or an opened checkpoint.
        out: the folder to write, which does not exist yet or is empty.
        revert: write TUNED from the restored model, instead of the restored model from TUNED.

    Returns:
        The resolved output path.

    Raises:
        InputError: `patch` is not a complete patch file, `model` is not the patch's model, or `out` cannot be used. The
            message names the first tensor that differs. Nothing is left behind.
    """
    opened = _open_patch(Path(patch))
    source = model if isinstance(model, Checkpoint) else _open_source(model, opened)
    expected, target = (opened.restored, opened.tuned) if revert else (opened.tuned, opened.restored)
    _check_model(opened, source, expected, target, revert)
    return save_like(source, out, _Patched(opened, source, target), inputs=[patch])


def _open_source(model: str | Path, patch: "_Patch") -> Checkpoint:
    """Open MODEL as what the patch was made for, which is an adapter or a whole model."""
    for_adapter = any(".lora_" in name for name in patch.tuned)
    if is_adapter(model) and not for_adapter:
        raise InputError(
            f"MODEL {model} is a LoRA adapter; the patch was made for a whole model. The restored folder is whole as "
            "it is, and --revert on it gives the adapter merged into its base"
        )
    if for_adapter and not is_adapter(model):
        raise InputError(f"MODEL {model} is a whole model; the patch was made for a LoRA adapter: give that adapter")
    return open_adapter_files(model) if for_adapter else open_checkpoint(model)


@dataclass(frozen=True)
class _Patch:
    """Holds an opened patch file, and the sha256 of every tensor of both models."""

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
    """Maps names to the changed tensors; a tensor is computed at look-up and compared with its digest."""

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
    """Check that every tensor of the model has the expected digest; `target` are the digests after the change."""
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
    """Make the metadata. The restored model lists only its changed tensors, because the others are tuned's."""
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
    """Return the XOR of both tensors at the neurons, one row each; check that both are equal everywhere else."""
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
    """Return the neurons' entries, one row per neuron."""
    if granularity == "input":
        return bits[:, index].T
    return bits[index] if granularity == "output" else bits.reshape(-1)[index]


def _put(bits: np.ndarray, index: np.ndarray, rows: np.ndarray, granularity: Granularity) -> None:
    """Write one row per neuron into `bits`, in place, as the inverse of `_take`."""
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
