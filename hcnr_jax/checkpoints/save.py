"""Writes Hugging Face folders: `save_like` in the layout of an existing checkpoint, `save_new` from Flax parameters.

`save_like` keeps the template's shards, order, dtypes and metadata, so that a file whose tensors did not change is
identical byte for byte. Tensors are copied one at a time from the mapped input to the output, without decoding.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from hcnr_jax.checkpoints.checkpoint import INDEX, WEIGHTS, Checkpoint, is_tokenizer_file
from hcnr_jax.checkpoints.load import transpose_into
from hcnr_jax.checkpoints.lora import AdapterFiles
from hcnr_jax.checkpoints.names import Placement, leaf_shapes, tensor_names
from hcnr_jax.checkpoints.safetensors_file import DTYPE_NAMES, ShardInfo, encode_header
from hcnr_jax.errors import InputError
from hcnr_jax.models.spec import ModelSpec
from hcnr_jax.runtime.files import staged_folder

_WRITE_BYTES = 1 << 26


def save_like(
    template: Checkpoint,
    out: str | Path,
    changed: Mapping[str, Any],
    extra_files: Mapping[str, bytes] | None = None,
    inputs: Iterable[str | Path] = (),
) -> Path:
    """Write the model of `template` to `out`, with the tensors of `changed` in place of the template's.

    Args:
        template: the checkpoint that gives shards, order, dtypes, metadata and all files that are not weights.
        out: the folder to write, which does not exist yet or is empty.
        changed: maps a Hugging Face name to an array in Hugging Face orientation and in the stored dtype. Names are
            looked up one at a time, so that a lazy mapping never holds two tensors.
        extra_files: maps the name of each further file to its content, such as a record of the run.
        inputs: more folders or files that must not be written to. The template's own folders are always protected.

    Returns:
        The resolved output path.

    Raises:
        InputError: `out` cannot be used, the template lacks a name, a dtype or shape is wrong, or the disk failed or is
            full. Nothing is left behind.
    """
    size = sum(info.nbytes for info in template.tensors.values())
    with staged_folder(out, [*template.sources, *inputs], needed_bytes=size) as stage:
        write_like(template, stage, changed)
        for name, content in (extra_files or {}).items():
            (stage / name).write_bytes(content)
    return Path(out).expanduser().resolve()


def write_like(template: Checkpoint, stage: Path, changed: Mapping[str, Any]) -> None:
    """Write the files of `save_like` into a temporary folder, which the caller renames when all is written."""
    write_companions(template, stage)
    write_shards(template, stage, changed, [shard.name for shard in template.shards])


def write_companions(template: Checkpoint, stage: Path) -> None:
    """Write every file that belongs to the template's model and is not weights, and the index of the shards."""
    for name, path in template.companions().items():
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, stage / name)
    if not (stage / INDEX).exists() and not isinstance(template, AdapterFiles):
        _write_index(stage, {info.name: shard.name for shard in template.shards for info in shard.tensors}, template)


def write_shards(
    template: Checkpoint, stage: Path, changed: Mapping[str, Any], names: Collection[str]
) -> dict[str, str]:
    """Write some of the weight files, with the tensors of `changed` in place of the template's.

    The files are written side by side, a thread each. Several processes may each write a part of the files.

    Args:
        template: the checkpoint that gives shards, order, dtypes and metadata.
        stage: the folder to write into.
        changed: as in `save_like`.
        names: names of the weight files to write.

    Returns:
        The sha256 of each written file, by name, from the bytes as they were written.

    Raises:
        InputError: the template lacks a name of `changed`, or a dtype or shape is wrong.
    """
    replaced = set(changed)  # `name in changed` would compute the tensor where the mapping is lazy
    unknown = sorted(replaced - set(template.tensors))
    if unknown:
        raise InputError(f"{template.folder} has no tensor {unknown[0]}, which was to be replaced")

    def write(shard: ShardInfo) -> str:
        with (stage / shard.name).open("wb") as file:
            hashed = _HashingFile(file)
            _write_shard(hashed, template, shard, changed, replaced)
        return hashed.digest.hexdigest()

    chosen = [shard for shard in template.shards if shard.name in names]
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 4)) as pool:
        return dict(zip((shard.name for shard in chosen), pool.map(write, chosen), strict=True))


def divide_shards(template: Checkpoint, count: int) -> list[list[str]]:
    """Divide the names of the weight files into `count` lists of about equal size in bytes, largest files first."""
    parts: list[list[str]] = [[] for _ in range(count)]
    filled = [0] * count
    sizes = {shard.name: sum(info.nbytes for info in shard.tensors) for shard in template.shards}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        place = filled.index(min(filled))
        parts[place].append(name)
        filled[place] += sizes[name]
    return parts


def save_new(
    out: str | Path,
    params: Mapping[str, Any],
    spec: ModelSpec,
    config: Mapping[str, Any],
    tokenizer_folder: str | Path | None,
    dtype: str = "bfloat16",
    max_shard_bytes: int = 5_000_000_000,
    extra_files: Mapping[str, bytes] | None = None,
) -> Path:
    """Write the parameters of a model as a new Hugging Face folder, one tensor in memory at a time.

    Args:
        out: the folder to write, which does not exist yet or is empty.
        params: the parameter tree of `spec`.
        spec: the model, which gives the names and shapes of the tensors.
        config: content of config.json. The dtype is filled in, and the architecture where absent.
        tokenizer_folder: folder whose tokenizer, chat template and generation config are copied; None to copy none.
        dtype: float32, float16 or bfloat16, for every tensor.
        max_shard_bytes: largest size of a weight file in bytes. A larger tensor gets a file of its own.
        extra_files: maps the name of each further file to its content.

    Returns:
        The resolved output path.

    Raises:
        InputError: `out`, the dtype or the parameter tree cannot be used, a value overflows the dtype, or the disk
            failed or is full. Nothing is left behind.
    """
    stored = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}.get(dtype)
    if stored is None:
        raise InputError(f"dtype {dtype!r} is not one of float32, float16, bfloat16")
    names, shapes = tensor_names(spec), {name: place.shape for name, place in tensor_names(spec).items()}
    tensors = HFTensors(params, spec, dict.fromkeys(names, stored))
    width = 4 if stored == "F32" else 2
    parts = _parts(shapes, width, max_shard_bytes)
    keep = [tokenizer_folder] if tokenizer_folder else []
    total = sum(math.prod(shape) for shape in shapes.values()) * width
    with staged_folder(out, keep, needed_bytes=total) as stage:
        weight_map: dict[str, str] = {}
        for number, part in enumerate(parts, start=1):
            file = WEIGHTS if len(parts) == 1 else f"model-{number:05d}-of-{len(parts):05d}.safetensors"
            with (stage / file).open("wb") as handle:
                handle.write(encode_header({name: (stored, shapes[name]) for name in part}, {"format": "pt"}))
                for name in part:
                    _write_tensor(handle, tensors[name])
            weight_map |= dict.fromkeys(part, file)
        if len(parts) > 1:
            _write_json(stage / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        _write_json(stage / "config.json", _finished_config(config, spec, dtype))
        _copy_tokenizer(tokenizer_folder, stage)
        for name, content in (extra_files or {}).items():
            (stage / name).write_bytes(content)
    return Path(out).expanduser().resolve()


class HFTensors(Mapping[str, np.ndarray]):
    """Presents a parameter tree as a lazy mapping from Hugging Face names to tensors.

    A tensor is sliced, fetched from the device, transposed and cast when its name is looked up. Casting rounds to
    nearest even.

    Args:
        params: the parameter tree of `spec`.
        spec: the model.
        stored: maps the Hugging Face names to present to safetensors dtype names: all names, or for `save_like` the
            changed ones.

    Raises:
        InputError: the tree is not one of `spec`, or, when a tensor is looked up, a value overflows its dtype.
    """

    def __init__(self, params: Mapping[str, Any], spec: ModelSpec, stored: Mapping[str, str]) -> None:
        self._leaves = _leaves_of(params, spec)
        self._places, self._family = tensor_names(spec), spec.recipe
        self._stored = dict(stored)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def __getitem__(self, name: str) -> np.ndarray:
        place, dtype = self._places[name], self._stored[name]
        return to_hf(self._leaves[place.path], place, dtype, name)


def to_hf(leaf: Any, place: Placement, dtype: str, name: str) -> np.ndarray:
    """Convert a leaf, or one layer of a stacked leaf, to a Hugging Face tensor.

    Args:
        leaf: the leaf, with a leading layer axis where `place` has a layer.
        place: the tensor's place in the parameter tree.
        dtype: safetensors dtype name: "F32", "F16" or "BF16".
        name: the tensor's name, for messages.

    Raises:
        InputError: a finite value overflows the dtype.
    """
    part = leaf if place.layer is None else _layer_of(leaf, place.layer)
    array = np.asarray(part)
    target = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(jnp.bfloat16)}[dtype]
    if array.dtype != target:
        with np.errstate(over="ignore"):
            cast = array.astype(target)
        if not np.array_equal(np.isfinite(cast), np.isfinite(array)):
            raise InputError(f"tensor {name} has values that overflow {dtype} (largest {np.abs(array).max():.3g})")
        array = cast
    if not place.transpose:
        return np.ascontiguousarray(array)
    turned = np.empty(array.shape[::-1], array.dtype)
    transpose_into(turned, array)
    return turned


def _layer_of(leaf: Any, layer: int) -> Any:
    """Take one layer of a stacked leaf. On a device the index is traced, so that all layers share one small program."""
    if isinstance(leaf, jax.Array):
        return jax.lax.dynamic_index_in_dim(leaf, jnp.int32(layer), keepdims=False)
    return leaf[layer]


def _leaves_of(params: Mapping[str, Any], spec: ModelSpec) -> dict[str, Any]:
    """Return a map from leaf path to array; raise InputError where leaves or shapes are not those of the spec."""
    flat = {"/".join(str(key.key) for key in keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(params)}
    expected = leaf_shapes(spec)
    if set(flat) != set(expected):
        missing, extra = sorted(set(expected) - set(flat)), sorted(set(flat) - set(expected))
        raise InputError(f"the parameters are not those of the spec: missing {missing[:5]}, unexpected {extra[:5]}")
    for path, leaf in flat.items():
        if tuple(leaf.shape) != expected[path]:
            raise InputError(f"parameter {path} has shape {tuple(leaf.shape)}, expected {expected[path]}")
    return flat


class _HashingFile:
    """Writes to a file, and hashes what is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.name = file.name
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> None:
        self._file.write(data)
        self.digest.update(data)


def _write_shard(
    file: BinaryIO | _HashingFile,
    template: Checkpoint,
    shard: ShardInfo,
    changed: Mapping[str, Any],
    replaced: set[str],
) -> None:
    if shard.metadata.get("format") == "pt":
        file.write(shard.header)
    else:  # without `format`, or with another framework's name, transformers refuses the file or transposes kernels
        layout = {info.name: (info.dtype, info.shape) for info in shard.tensors}
        file.write(encode_header(layout, {**shard.metadata, "format": "pt"}))
    for info in shard.tensors:
        if info.name not in replaced:
            _write_tensor(file, template.read(info.name))
            continue
        tensor = changed[info.name]
        if tensor.dtype != info.numpy_dtype or tensor.shape != info.shape:
            raise InputError(
                f"tensor {info.name}: expected {info.dtype} {list(info.shape)} as in {shard.path}, found "
                f"{DTYPE_NAMES.get(tensor.dtype, tensor.dtype)} {list(tensor.shape)}; cast and orient it before saving"
            )
        _write_tensor(file, tensor)


def _write_tensor(file: BinaryIO | _HashingFile, tensor: np.ndarray) -> None:
    """Write the tensor's bytes in pieces, because some systems write no more than 2 GB at once."""
    data = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
    for start in range(0, data.size, _WRITE_BYTES):
        file.write(data[start : start + _WRITE_BYTES].data)


def _write_index(stage: Path, weight_map: Mapping[str, str], template: Checkpoint) -> None:
    total = sum(info.nbytes for info in template.tensors.values())
    _write_json(stage / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _parts(shapes: Mapping[str, tuple[int, ...]], width: int, limit: int) -> list[list[str]]:
    """Cut the names into consecutive runs of at most `limit` bytes, with at least one tensor each."""
    parts: list[list[str]] = [[]]
    used = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * width
        if parts[-1] and used + size > limit:
            parts.append([])
            used = 0
        parts[-1].append(name)
        used += size
    return parts


def _finished_config(config: Mapping[str, Any], spec: ModelSpec, dtype: str) -> dict[str, Any]:
    """Fill in architecture, model type and dtype, the dtype under the key that the config already uses.

    The key is `torch_dtype` in transformers 4 and `dtype` in 5. Both versions read `torch_dtype`, the default here.
    """
    key = "dtype" if "dtype" in config and "torch_dtype" not in config else "torch_dtype"
    named = {"architectures": [spec.recipe.architecture], "model_type": spec.family}
    return {**named, **config, key: dtype}


def _copy_tokenizer(folder: str | Path | None, stage: Path) -> None:
    if folder is None:
        return
    for path in sorted(Path(folder).iterdir()):
        if path.is_file() and (is_tokenizer_file(path.name) or path.name == "generation_config.json"):
            shutil.copyfile(path, stage / path.name)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
