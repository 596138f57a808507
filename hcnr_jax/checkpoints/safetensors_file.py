"""Parses and checks the header of a safetensors file, and reads its tensors as zero-copy views of the mapped file.

The safetensors library refuses most broken files too, but its errors do not name the file, the tensor or the remedy.
That library also hides the byte span of each tensor, which byte-exact saving needs.

A file begins with 8 bytes that hold the length n of the header (little-endian). Then come n bytes of JSON,
`{name: {dtype, shape, data_offsets}}`, and the tensors' bytes without gaps. The bytes of one tensor are its body.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from hcnr_jax.errors import InputError

MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit

DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "F32": np.dtype(np.float32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F64": np.dtype(np.float64),
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
FLOATS = ("F32", "BF16", "F16")
"""Lists the dtypes in which a weight may be stored."""


@dataclass(frozen=True)
class TensorInfo:
    """Holds where one tensor lies in its file.

    Attributes:
        name: the tensor's name in the model.
        file: path of the file.
        dtype: safetensors dtype name, such as "BF16".
        shape: the tensor's shape.
        start: first byte of the body within the file.
        end: byte after the body.
        file_name: the tensor's name in the file if `name` leaves out a wrapper's prefix; None if the two are equal.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    file_name: str | None = None

    @property
    def numpy_dtype(self) -> np.dtype:
        """Return the numpy (or ml_dtypes) dtype of the body."""
        return DTYPES[self.dtype]

    @property
    def nbytes(self) -> int:
        """Return the length of the body in bytes."""
        return self.end - self.start


@dataclass(frozen=True)
class ShardInfo:
    """Describes one file whose header was checked.

    Attributes:
        name: the file's name within its checkpoint.
        path: path of the file.
        metadata: the file's own key-value text.
        tensors: the tensors in the order of their bodies.
        header: the file's bytes before the first body, which a byte-exact copy needs.
    """

    name: str
    path: Path
    metadata: Mapping[str, str]
    tensors: tuple[TensorInfo, ...]
    header: bytes = field(repr=False, compare=False)


def read_header(path: Path, name: str | None = None) -> ShardInfo:
    """Parse and check the header of one safetensors file without reading its bodies.

    Args:
        path: the file.
        name: the file's name within its checkpoint; None for the last part of `path`.

    Raises:
        InputError: the file is not a complete safetensors file without gaps. The message names the file, and the tensor
            if one is at fault.
    """
    path = Path(path)
    size, header = _header_bytes(path)
    body_start = 8 + len(header)
    entries = _parse_json(path, header)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _broken(path, "its __metadata__ is not a map from text to text", "save the file again")
    tensors = sorted(
        (_tensor_info(path, tensor, entry, body_start, size) for tensor, entry in entries.items()),
        key=lambda info: (info.start, info.end),
    )
    _check_spans(path, tensors, body_start, size)
    raw = len(header).to_bytes(8, "little") + header
    return ShardInfo(name or path.name, path, metadata, tuple(tensors), raw)


def read_tensor(info: TensorInfo) -> np.ndarray:
    """Return a read-only view of one tensor in the mapped file; the system reads each page at its first use.

    Raises:
        InputError: the file cannot be mapped, for example because it was changed.
    """
    if info.nbytes == 0:
        return np.empty(info.shape, info.numpy_dtype)
    try:
        mapped = np.memmap(info.file, np.uint8, "r", offset=info.start, shape=(info.nbytes,))
    except (OSError, ValueError) as error:
        raise InputError(f"{info.file}: cannot read tensor {info.name}: {error}; was the file changed?") from error
    return np.asarray(mapped).view(info.numpy_dtype).reshape(info.shape)


def encode_header(tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """Return the first bytes of a file (length and JSON) for bodies that follow in the order of `tensors`.

    The JSON is padded with blanks, so that the bodies start at a multiple of 8 bytes. `tensors` maps each name to
    (safetensors dtype name, shape).
    """
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        end = offset + math.prod(shape) * DTYPES[dtype].itemsize
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _header_bytes(path: Path) -> tuple[int, bytes]:
    """Return the file's size in bytes and the raw JSON bytes of its header."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(512)
            _check_start(path, start, size)
            length = int.from_bytes(start[:8], "little")
            if length > MAX_HEADER_BYTES:
                raise _broken(path, f"its header would be {length:,} bytes, over the limit of {MAX_HEADER_BYTES:,}")
            if 8 + length > size:
                raise _broken(path, f"it is cut short: the header needs {8 + length:,} bytes, the file has {size:,}")
            file.seek(8)
            return size, file.read(length)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _check_start(path: Path, start: bytes, size: int) -> None:
    """Refuse files that are recognisably of another format."""
    text = start.lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        raise _broken(path, "it is a Git-LFS pointer, not the weights", "run `git lfs pull` in its repository")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise _broken(path, "it is a web page, not weights: the download failed", "download it again (check access)")
    if start.startswith((b"PK\x03\x04", b"\x80\x02")):
        raise _broken(path, "it is a pickled PyTorch file under another name", "convert it with save_pretrained")
    if start.startswith(b"GGUF"):
        raise _broken(path, "it is a GGUF file under another name", "give the safetensors release of the model")
    if size < 8:
        what = "it is empty" if size == 0 else f"it has {size} bytes, a header needs at least 8"
        raise _broken(path, what)


def _parse_json(path: Path, header: bytes) -> dict[str, Any]:
    try:
        entries = json.loads(header.decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise _broken(path, f"its header is not UTF-8 (byte {error.start})") from error
    except _DuplicateKeyError as error:
        raise _broken(path, f"its header lists {error.args[0]!r} twice") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise _broken(path, f"its header is not JSON ({error})") from error
    if not isinstance(entries, dict):
        raise _broken(path, "its header is not a JSON object")
    return entries


class _DuplicateKeyError(Exception):
    """Says that a JSON object of the header has one key twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _DuplicateKeyError(next(key for key in keys if keys.count(key) > 1))
    return result


def _tensor_info(path: Path, name: str, entry: Any, body_start: int, size: int) -> TensorInfo:
    """Check one entry of the header, and make its offsets absolute."""

    def refuse(what: str) -> InputError:
        return _broken(path, f"tensor {name}: {what}")

    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
        raise refuse("expected dtype, shape and data_offsets in the header")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise refuse(f"unknown dtype {dtype!r}, expected one of {', '.join(DTYPES)}")
    if not _is_naturals(shape):
        raise refuse(f"shape {shape!r} is not a list of whole numbers >= 0")
    if not _is_naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refuse(f"data_offsets {offsets!r} are not [start, end] with 0 <= start <= end")
    start, end = body_start + offsets[0], body_start + offsets[1]
    if end > size:
        raise refuse(
            f"the file is cut short: the tensor ends at byte {end:,}, the file has {size:,} ({end - size:,} missing)"
        )
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if expected != end - start:
        raise refuse(f"shape {shape} of {dtype} needs {expected:,} bytes, its offsets span {end - start:,}")
    return TensorInfo(name, path, dtype, tuple(shape), start, end)


def _is_naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_spans(path: Path, tensors: list[TensorInfo], body_start: int, size: int) -> None:
    """Check that the bodies follow each other without gap or overlap, and fill the file to its end."""
    position, before = body_start, "the header"
    for info in tensors:
        if info.start != position:
            kind = "overlaps" if info.start < position else "leaves a hole of"
            raise _broken(path, f"tensor {info.name} {kind} {abs(info.start - position):,} bytes after {before}")
        position, before = info.end, info.name
    if position != size:
        raise _broken(path, f"{size - position:,} bytes trail after the last tensor ({before})")


def _broken(path: Path, what: str, remedy: str = "download or save the file again") -> InputError:
    return InputError(f"{path} is not a usable safetensors file: {what}; {remedy}")
