"""The safetensors reader against the safetensors library, and every way a file can be broken."""

import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from hcnr_jax.checkpoints.safetensors_file import DTYPES, encode_header, read_header, read_tensor
from hcnr_jax.errors import InputError


def write(path: Path, header: object, body: bytes = b"") -> Path:
    """A file of the given header (bytes as they are, else JSON) and body."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + body)
    return path


def entry(dtype: str = "F32", shape: tuple[int, ...] = (2,), span: tuple[int, int] = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(span)}


def test_reads_what_the_library_wrote(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "half": rng.standard_normal((3, 5)).astype(np.float16),
        "brain": rng.standard_normal((4, 3)).astype(ml_dtypes.bfloat16),
        "single": rng.standard_normal((2, 3, 4)).astype(np.float32),
        "scalar": np.array(3.5, np.float32),
        "none": np.zeros((0, 4), np.float32),
        "whole": np.arange(7, dtype=np.int64),
        "flag": np.array([True, False]),
    }
    path = tmp_path / "a.safetensors"
    save_file(arrays, path, metadata={"format": "pt", "note": "héllo"})
    shard = read_header(path)
    assert shard.metadata == {"format": "pt", "note": "héllo"}
    assert {info.name for info in shard.tensors} == set(arrays)
    for info in shard.tensors:
        found = read_tensor(info)
        assert found.dtype == arrays[info.name].dtype and found.shape == arrays[info.name].shape
        assert found.tobytes() == arrays[info.name].tobytes()
    assert shard.header == path.read_bytes()[: len(shard.header)]
    assert shard.tensors[0].start == len(shard.header)


def test_views_are_read_only_and_not_copies(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": np.arange(6, dtype=np.float32)}, path)
    view = read_tensor(read_header(path).tensors[0])
    assert not view.flags.owndata and not view.flags.writeable


def test_header_of_ours_is_read_by_the_library(tmp_path):
    from safetensors.numpy import load_file

    body = np.arange(6, dtype=np.float16)
    path = tmp_path / "a.safetensors"
    path.write_bytes(encode_header({"é": ("F16", (2, 3))}, {"format": "pt"}) + body.tobytes())
    np.testing.assert_array_equal(load_file(path)["é"], body.reshape(2, 3))
    assert read_header(path).tensors[0].start % 8 == 0


def test_unaligned_bodies_are_read(tmp_path):
    raw = json.dumps({"a": entry()}).encode()
    raw += b" " * ((1 - len(raw)) % 8)
    path = write(tmp_path / "a.safetensors", raw, np.array([1.5, -2], np.float32).tobytes())
    info = read_header(path).tensors[0]
    assert info.start % 4 and read_tensor(info).tolist() == [1.5, -2]


GOOD = {"a": entry()}
BODY = bytes(8)
BROKEN = {
    "cut in the body": (lambda p: write(p, GOOD, bytes(5)), r"tensor a: the file is cut short.*\(3 missing\)"),
    "cut in the header": (
        lambda p: p.write_bytes(struct.pack("<Q", 500) + b"{"),
        r"cut short: the header needs 508 bytes",
    ),
    "empty": (lambda p: p.write_bytes(b""), "it is empty"),
    "short": (lambda p: p.write_bytes(b"12345"), "it has 5 bytes"),
    "web page": (lambda p: p.write_bytes(b"<!DOCTYPE html><html>Not found"), "it is a web page"),
    "web page, indented": (lambda p: p.write_bytes(b"\n  <html lang='en'>"), "it is a web page"),
    "lfs": (lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0"), "git lfs pull"),
    "pickle": (lambda p: p.write_bytes(b"PK\x03\x04" + bytes(80)), "pickled PyTorch file"),
    "gguf": (lambda p: p.write_bytes(b"GGUF" + bytes(80)), "GGUF file"),
    "huge header": (
        lambda p: p.write_bytes(struct.pack("<Q", 10**9) + bytes(64)),
        "header would be 1,000,000,000 bytes",
    ),
    "not JSON": (lambda p: write(p, b'{"a": '), "header is not JSON"),
    "deep JSON": (lambda p: write(p, b"[" * 100_000), "header is not JSON"),
    "not UTF-8": (lambda p: write(p, b'{"\xff": 1}'), r"not UTF-8 \(byte 2\)"),
    "a list": (lambda p: write(p, [1]), "not a JSON object"),
    "metadata": (lambda p: write(p, {"__metadata__": {"a": 1}}), "__metadata__ is not a map"),
    "twice": (lambda p: write(p, b'{"a": 1, "a": 2}'), "lists 'a' twice"),
    "no dtype": (lambda p: write(p, {"a": {"shape": []}}), "tensor a: expected dtype, shape and data_offsets"),
    "dtype": (lambda p: write(p, {"a": entry("F5")}, BODY), "tensor a: unknown dtype 'F5'"),
    "shape": (lambda p: write(p, {"a": entry(shape=(-2,))}, BODY), r"tensor a: shape \[-2\]"),
    "shape kind": (lambda p: write(p, {"a": entry(shape=(2.0,))}, BODY), r"tensor a: shape \[2.0\]"),
    "offsets": (lambda p: write(p, {"a": entry(span=(8, 0))}, BODY), r"data_offsets \[8, 0\]"),
    "three offsets": (lambda p: write(p, {"a": entry(span=(0, 8, 9))}, BODY), "data_offsets"),
    "span": (lambda p: write(p, {"a": entry(shape=(3,))}, BODY), "needs 12 bytes, its offsets span 8"),
    "overlap": (
        lambda p: write(p, {"a": entry(), "b": entry(span=(4, 12))}, bytes(12)),
        "tensor b overlaps 4 bytes after a",
    ),
    "hole": (lambda p: write(p, {"a": entry(), "b": entry(span=(12, 20))}, bytes(20)), "tensor b leaves a hole of 4"),
    "hole at the start": (
        lambda p: write(p, {"a": entry(span=(8, 16))}, bytes(16)),
        "hole of 8 bytes after the header",
    ),
    "trailing": (lambda p: write(p, GOOD, bytes(11)), "3 bytes trail after the last tensor"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_files_are_refused_by_name(tmp_path, fault):
    make, message = BROKEN[fault]
    path = tmp_path / "model-00002-of-00003.safetensors"
    make(path)
    with pytest.raises(InputError, match=message) as caught:
        read_header(path)
    assert str(path) in str(caught.value)


def test_absent_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_header(tmp_path / "none.safetensors")


def test_file_that_shrinks_after_its_header_was_read(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": np.zeros(64, np.float32)}, path)
    info = read_header(path).tensors[0]
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot read tensor a: .*was the file changed\?"):
        read_tensor(info)


def test_every_dtype_has_its_width():
    widths = {name: int("".join(c for c in name.split("_")[0] if c.isdigit()) or 8) for name in DTYPES}
    assert {name: dtype.itemsize * 8 for name, dtype in DTYPES.items()} == widths
