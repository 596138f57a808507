"""Digests of files and tensors: one reading, the same values as hashlib of the bytes."""

import hashlib

import pytest

from hcnr_jax.checkpoints import open_checkpoint, tensor_digests
from hcnr_jax.checkpoints.digest import BackgroundDigests
from hcnr_jax.checkpoints.save import write_shards
from hcnr_jax.errors import InputError
from tests.tiny import write_tiny_model


def test_background_digests_are_those_of_files_and_tensors(tmp_path):
    folder = write_tiny_model(tmp_path / "model", shards=2)
    checkpoint = open_checkpoint(folder)
    with BackgroundDigests() as digests:
        digests.start(checkpoint.shards, [shard.path for shard in checkpoint.shards])
        digests.start(checkpoint.shards, [folder / "config.json"])
        assert digests.tensors(checkpoint) == tensor_digests(checkpoint)
        for path in [*(shard.path for shard in checkpoint.shards), folder / "config.json"]:
            assert digests.file(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_that_became_shorter_is_told(tmp_path):
    checkpoint = open_checkpoint(write_tiny_model(tmp_path / "model"))
    path = checkpoint.shards[0].path
    path.write_bytes(path.read_bytes()[:-8])
    with BackgroundDigests() as digests:
        digests.start(checkpoint.shards, [])
        with pytest.raises(InputError, match="was the file changed"):
            digests.file(path)


def test_written_files_are_hashed_as_they_are_written(tmp_path):
    checkpoint = open_checkpoint(write_tiny_model(tmp_path / "model", shards=2))
    (tmp_path / "out").mkdir()
    names = [shard.name for shard in checkpoint.shards]
    found = write_shards(checkpoint, tmp_path / "out", {}, names)
    assert found == {name: hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() for name in names}
