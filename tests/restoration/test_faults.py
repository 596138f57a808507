"""Damaged files, bad outputs, wrong options through the command line: docs/faults.md 1 to 10 and 30."""

import errno
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest

import hcnr_jax.restoration as pipeline
from hcnr_jax.checkpoints import save
from tests.restoration.worlds import (
    World,
    call,
    copy_world,
    digests,
    edit_json,
    edit_weights,
    make_world,
    record_of,
    refused,
    restore,
    text_of,
    weights_of,
)

SHARD = "model-00002-of-00003.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("faults") / "in")


@pytest.fixture(scope="module")
def sharded_original(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("faults") / "in", shards=3)


@pytest.fixture()
def world(original, tmp_path) -> World:
    return copy_world(original, tmp_path / "in")


@pytest.fixture()
def sharded(sharded_original, tmp_path) -> World:
    return copy_world(sharded_original, tmp_path / "in")


def header_of(raw: bytes) -> tuple[dict, bytes]:
    """A safetensors file's header and body."""
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def with_header(header: dict | bytes, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def edited(change):
    """A damage that changes the second tensor's entry in the header."""

    def damage(raw: bytes) -> bytes:
        header, body = header_of(raw)
        change(header[[name for name in header if name != "__metadata__"][1]])
        return with_header(header, body)

    return damage


def last_bytes(entry: dict) -> None:
    entry["data_offsets"] = [0, entry["data_offsets"][1] - entry["data_offsets"][0]]


# docs/faults.md 1-4: what is done to the file's bytes, and words the message must hold beside the file's name.
DAMAGES = {
    "cut in its body": (lambda raw: raw[:-100], ["cut short", "100 missing", "download or save the file again"]),
    "cut in its header": (lambda raw: raw[:60], ["cut short"]),
    "empty": (lambda raw: b"", ["it is empty"]),
    "five bytes": (lambda raw: raw[:5], ["5 bytes"]),
    "a web page": (lambda raw: b"<!DOCTYPE html><html>404</html>", ["web page", "download it again"]),
    "a pointer": (lambda raw: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", ["git lfs pull"]),
    "a header beyond the file": (lambda raw: struct.pack("<Q", 10**6) + raw[8:], ["cut short"]),
    "a header over 100 MB": (lambda raw: struct.pack("<Q", 10**9) + raw[8:], ["100,000,000"]),
    "not JSON": (lambda raw: with_header(b"{oops", b""), ["header is not JSON"]),
    "not UTF-8": (lambda raw: with_header(b'{"\xff": 1}', b""), ["not UTF-8"]),
    "overlap": (edited(last_bytes), ["tensor "]),
    "out of range": (
        edited(lambda entry: entry.update(data_offsets=[entry["data_offsets"][0], 10**7])),
        ["tensor ", "cut short"],
    ),
    "shape against span": (edited(lambda entry: entry.update(shape=[3, 3])), ["tensor ", "needs 36 bytes"]),
    "unknown dtype": (edited(lambda entry: entry.update(dtype="F5")), ["tensor ", "unknown dtype 'F5'", "BF16"]),
    "trailing bytes": (lambda raw: raw + bytes(7), ["7 bytes trail"]),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("side", ["base", "tuned"])
def test_a_damaged_shard(sharded, side, damage) -> None:
    change, words = DAMAGES[damage]
    path = getattr(sharded, side) / SHARD
    path.write_bytes(change(path.read_bytes()))
    message = refused(sharded)
    assert all(word in message for word in [str(path), *words])


def test_a_flipped_bit_shows_in_the_digests(world, tmp_path) -> None:
    """docs/faults.md 5: a body whose every byte is legal. Its sha256 is in hcnr.json, and a patch refuses the model."""
    out = restore(world, tmp_path / "out", "--compensation", "none")
    for folder, side in ((world.tuned, "inputs"), (out, "outputs")):
        path = folder / "model.safetensors"
        raw = bytearray(path.read_bytes())
        raw[-3] ^= 1
        path.write_bytes(raw)
        record = record_of(out)[side]
        assert digests(folder)["model.safetensors"] != (record if side == "outputs" else record["tuned"])[path.name]
    for model, options in ((world.tuned, []), (out, ["--revert"])):
        ended = call("apply", out, model, "--out", tmp_path / "applied", *options)
        assert (
            ended.code == 2
            and "was made for another model: tensor " in ended.err
            and not (tmp_path / "applied").exists()
        )


def edit_index(folder: Path, change) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def test_an_absent_shard(sharded) -> None:
    (sharded.tuned / SHARD).unlink()
    assert all(word in refused(sharded) for word in [str(sharded.tuned / INDEX), SHARD, "absent", "download"])


def test_index_and_shards_disagree(sharded) -> None:
    first = next(iter(json.loads((sharded.base / INDEX).read_text())["weight_map"]))
    edit_index(sharded.base, lambda names: names.update({first: SHARD}))
    assert first in refused(sharded)
    edit_index(sharded.base, lambda names: names.update({first: "model-00001-of-00003.safetensors"}))
    name = "model.norm.weight"
    edit_index(sharded.tuned, lambda names: names.pop(name))
    assert all(word in refused(sharded) for word in [name, INDEX])


def test_one_tensor_in_two_shards(sharded) -> None:
    (sharded.tuned / "model-00003-of-00003.safetensors").write_bytes((sharded.tuned / SHARD).read_bytes())
    assert all(word in refused(sharded) for word in ["in two shards", SHARD, "keep one of them"])


@pytest.mark.parametrize("value", ["../base/model.safetensors", "/etc/passwd", "sub/model.safetensors", "..\\x"])
def test_an_index_that_leads_out_of_its_folder(sharded, value) -> None:
    edit_index(sharded.tuned, lambda names: names.update({"model.norm.weight": value}))
    assert all(word in refused(sharded) for word in [str(sharded.tuned / INDEX), "model.norm.weight", repr(value)])


def test_a_shard_that_is_a_link_is_followed(sharded, tmp_path) -> None:
    blob = tmp_path / "blob"
    (sharded.tuned / SHARD).rename(blob)
    (sharded.tuned / SHARD).symlink_to(blob)
    assert call(*sharded.arguments("--out", tmp_path / "out", "--dry-run")).code == 0


def test_pickles_alone(world) -> None:
    (world.tuned / "model.safetensors").rename(world.tuned / "pytorch_model.bin")
    message = refused(world)
    assert all(word in message for word in [str(world.tuned), "pytorch_model.bin", "save_pretrained", "python -c"])


@pytest.mark.parametrize("name", ["base", "tuned"])
def test_a_folder_that_is_none(world, name) -> None:
    (getattr(world, name) / "config.json").unlink()
    assert all(word in refused(world) for word in [str(getattr(world, name)), "no config.json"])
    assert f"{world.folder / 'nowhere'} does not exist" in refused(
        World(world.folder, world.folder / "nowhere", *_rest(world))
    )


def _rest(world: World) -> tuple[Path, Path, Path]:
    return world.tuned, world.honesty, world.task


# ---------------------------------------------------------------- outputs


@pytest.mark.parametrize("place", ["base", "tuned", "base/deeper", "tuned/a/b", "honesty.jsonl", "tuned/../base"])
def test_an_output_over_an_input(world, place) -> None:
    message = refused(world, "--out", world.folder / place)
    assert all(word in message for word in ["--out", "the input", "choose another folder"])


def test_a_filled_output_is_kept(world, tmp_path) -> None:
    out = tmp_path / "outputs2"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert "exists and is not empty; nothing is overwritten" in refused(world, "--out", out)
    assert (out / "notes.txt").read_text() == "mine"
    assert "is a file" in refused(world, "--out", out / "notes.txt")


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, "free some space or choose another disk"),
        (errno.EDQUOT, "raise the quota"),
        (errno.EROFS, "choose a place that can be written"),
    ],
)
def test_a_disk_that_fails_in_the_middle(world, monkeypatch, code, remedy) -> None:
    """docs/faults.md 10, after a few tensors of the output are written."""
    write, written = save._write_tensor, []

    def fail(file, tensor) -> None:
        if len(written) == 5:
            raise OSError(code, os.strerror(code), file.name)
        written.append(file.name)
        write(file, tensor)

    monkeypatch.setattr(save, "_write_tensor", fail)
    message = refused(world, "--compensation", "none")
    assert len(written) == 5
    assert all(word in message for word in ["--out", os.strerror(code), "nothing is left there", remedy])


def test_a_rename_that_fails(world, monkeypatch) -> None:
    def rename(self, target):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(Path, "rename", rename)
    assert all(word in refused(world, "--compensation", "none") for word in ["--out", "writing failed", "one disk"])


def test_a_place_that_cannot_be_written_is_seen_first(world, monkeypatch) -> None:
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    message = refused(world)
    assert "cannot be written to (no permission); choose another place" in message and "check weights" not in message


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="/proc is not mounted here")
@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_a_place_the_superuser_cannot_write_is_seen_first(world, tmp_path, dry) -> None:
    for options in (["--out", "/proc/x/y"], ["--out", tmp_path / "out", "--compilation-cache", "/proc/x"]):
        ended = call(*world.arguments(*options, *dry))
        assert ended.code == 2 and f"{options[-2]} {options[-1]}: /proc cannot be written to" in text_of(ended.err)
        assert "check weights" not in ended.err and not (tmp_path / "out").exists()


# ---------------------------------------------------------------- options

OPTIONS = {
    "in-weight 0": (["--in-weight", 0], ["--in-weight", "greater than 0", "0.0"]),
    "in-weight 1.5": (["--in-weight", 1.5], ["--in-weight", "less than or equal to 1", "1.5"]),
    "in-weight NaN": (["--in-weight", "nan"], ["--in-weight", "nan"]),
    "cross-weight -1": (["--cross-weight", -1], ["--cross-weight", "greater than 0"]),
    "cross-weight infinite": (["--cross-weight", "inf"], ["--cross-weight", "inf"]),
    "damping -0.1": (["--damping", -0.1], ["--damping", "greater than or equal to 0", "-0.1"]),
    "damping NaN": (["--damping", "nan"], ["--damping", "nan"]),
    "task-weight -1": (["--task-weight", -1], ["--task-weight", "greater than or equal to 0"]),
    "samples 0": (["--samples", 0], ["--samples", "greater than or equal to 1"]),
    "seed -1": (["--seed", -1], ["--seed", "greater than or equal to 0"]),
    "no neuron": (["--in-weight", 0.01], ["--in-weight 0.01", "of the 32 neurons", "rounds to 0", "more than 0.016"]),
    "no kernel": (["--cross-weight", 0.03], ["--cross-weight 0.03", "of the 14 kernels", "rounds to 0"]),
    "granularity": (["--granularity", "output"], ["--granularity output", "--compensation none"]),
    "paper": (["--compensation", "paper"], ["--compensation paper", "--inputs local"]),
    "a mesh": (["--mesh", "data=99"], ["--mesh data=99"]),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_an_option_out_of_range(original, case) -> None:
    options, words = OPTIONS[case]
    message = refused(original, *options)
    assert message.startswith("hcnr restore: ") and all(word in message for word in words)


# ---------------------------------------------------------------- what nobody foresaw


def test_an_unforeseen_error_is_one_line(original, monkeypatch) -> None:
    def broken(*arguments):
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr(pipeline.run, "make_plan", broken)
    monkeypatch.delenv("HCNR_TRACEBACK", raising=False)
    message = refused(original, code=1)
    assert "ZeroDivisionError at test_faults.py:" in message and "by zero" in message and "HCNR_TRACEBACK=1" in message
    monkeypatch.setenv("HCNR_TRACEBACK", "1")
    ended = call(*original.arguments("--out", original.folder.parent / "out"))
    assert ended.code == 1 and "Traceback (most recent call last)" in ended.err and "in broken" in ended.err


# ---------------------------------------------------------------- hcnr apply


def test_apply_refuses_what_it_cannot_trust(world, tmp_path) -> None:
    out = restore(world, tmp_path / "out", "--compensation", "none")
    patch = out / "hcnr.patch.safetensors"

    def applied(patch, model, *options) -> str:
        ended = call("apply", patch, model, "--out", tmp_path / "applied", *options)
        assert ended.code == 2 and ended.err.startswith("hcnr apply: ") and not (tmp_path / "applied").exists()
        return text_of(ended.err)

    assert "was made for another model: tensor model.layers." in applied(patch, world.base)
    assert "is already the restored model of" in applied(patch, out) and "--revert" in applied(patch, out)
    assert "is already TUNED" in applied(patch, world.tuned, "--revert")
    assert "hcnr.patch.safetensors: there is no such file" in applied(world.tuned, world.tuned)
    assert "is not a patch that `hcnr restore` wrote" in applied(world.tuned / "model.safetensors", world.tuned)
    assert "lies inside the input" in text_of(call("apply", patch, world.tuned, "--out", world.tuned / "x").err)
    raw = bytearray(patch.read_bytes())
    raw[-1] ^= 1
    patch.write_bytes(raw)
    assert "damaged" in applied(patch, world.tuned)
    edit_weights(world.tuned, lambda weights: weights.update({"lm_head.weight": np.zeros((64, 32), "f4")}))
    assert "lm_head.weight" in applied(patch, world.tuned)
    edit_json(world.tuned / "config.json", model_type="gpt9")
    assert weights_of(world.tuned) and "lm_head.weight" in applied(patch, world.tuned)
