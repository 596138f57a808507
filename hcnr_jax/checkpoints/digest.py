"""Computes sha256 of files and tensors in threads; hashlib releases the interpreter lock while hashing."""

import hashlib
import os
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np

from hcnr_jax.checkpoints.checkpoint import Checkpoint
from hcnr_jax.checkpoints.lora import MergedCheckpoint
from hcnr_jax.checkpoints.safetensors_file import ShardInfo
from hcnr_jax.errors import InputError

_THREADS = min(os.cpu_count() or 1, 8)
_PIECE = 1 << 22  # bytes read and hashed at once; they stay in the cache for the second hash


def sha256_file(path: str | Path) -> str:
    """Return the hexadecimal sha256 of a file's bytes, which are read in pieces.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def sha256_files(paths: Iterable[Path]) -> dict[str, str]:
    """Return a map from file name to sha256, for files with different names, such as a checkpoint's shards."""
    listed = list(paths)
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip((path.name for path in listed), pool.map(sha256_file, listed), strict=True))


def tensor_digest(tensor: np.ndarray) -> str:
    """Return the hexadecimal sha256 of a tensor's bytes in row-major order; dtype and shape do not enter the hash."""
    return hashlib.sha256(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data).hexdigest()


def tensor_digests(checkpoint: Checkpoint, names: Iterable[str] | None = None) -> dict[str, str]:
    """Return a map from tensor name to sha256 of the tensor's bytes, for `names` in their order, or all tensors."""
    chosen = list(checkpoint.tensors if names is None else names)
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(chosen, pool.map(lambda name: tensor_digest(checkpoint.read(name)), chosen), strict=True))


def model_digest(tensors: Mapping[str, str]) -> str:
    """Return one sha256 over a model's tensor digests, which does not depend on their order or on the sharding.

    `tensors` maps tensor name to sha256, as `tensor_digests` returns.
    """
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(tensors.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


class BackgroundDigests:
    """Hashes the files and tensors of models in background threads, while a run computes.

    Each file is read once. A weight file's bytes enter the hash of the file and the hash of the tensor that they belong
    to. The threads end when the `with` block ends, finished or not.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="digest")
        self._stop = threading.Event()
        self._files: dict[Path, Future[str]] = {}
        self._shards: dict[Path, Future[tuple[str, dict[str, str]]]] = {}

    def __enter__(self) -> "BackgroundDigests":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def start(self, shards: Iterable[ShardInfo], files: Iterable[Path]) -> None:
        """Start to hash weight files with their tensors, and other files, each file once."""
        for shard in shards:
            if shard.path not in self._shards:
                self._shards[shard.path] = self._pool.submit(self._shard, shard)
        for path in files:
            if path not in self._shards and path not in self._files:
                self._files[path] = self._pool.submit(sha256_file, path)

    def file(self, path: Path) -> str:
        """Return the sha256 of a file that was started.

        Raises:
            InputError: the file cannot be read.
        """
        return self._shards[path].result()[0] if path in self._shards else self._files[path].result()

    def tensors(self, checkpoint: Checkpoint) -> dict[str, str]:
        """Return `tensor_digests(checkpoint)`, from the hashes of its weight files where these hold the tensors."""
        merged = isinstance(checkpoint, MergedCheckpoint)
        if merged or not all(shard.path in self._shards for shard in checkpoint.shards):
            return tensor_digests(checkpoint)
        found: dict[str, str] = {}
        for shard in checkpoint.shards:
            found |= self._shards[shard.path].result()[1]
        return {name: found[name] for name in checkpoint.tensors}

    def _shard(self, shard: ShardInfo) -> tuple[str, dict[str, str]]:
        """Hash one weight file and its tensors in one reading."""
        whole, tensors = hashlib.sha256(), {}
        buffer = bytearray(_PIECE)
        try:
            with shard.path.open("rb", buffering=0) as file:
                whole.update(file.read(shard.tensors[0].start) if shard.tensors else file.read())
                for info in shard.tensors:
                    own, left = hashlib.sha256(), info.nbytes
                    while left and not self._stop.is_set():
                        count = file.readinto(memoryview(buffer)[: min(left, _PIECE)])
                        if not count:
                            raise InputError(f"{shard.path}: ends within tensor {info.name}; was the file changed?")
                        piece = memoryview(buffer)[:count]
                        own.update(piece)
                        whole.update(piece)
                        left -= count
                    tensors[info.name] = own.hexdigest()
        except OSError as error:
            raise InputError(f"{shard.path}: cannot be read: {error.strerror or error}") from error
        return whole.hexdigest(), tensors
