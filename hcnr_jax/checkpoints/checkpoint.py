"""A Hugging Face checkpoint folder: its config, its checked shards, and one tensor at a time on request."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hcnr_jax.checkpoints.safetensors_file import ShardInfo, TensorInfo, read_header, read_tensor
from hcnr_jax.errors import InputError
from hcnr_jax.runtime.hub import hub_failure, quiet_hub_log

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
PATCH = "hcnr.patch.safetensors"
RECORD = "hcnr.json"

_WEIGHT_SUFFIXES = {
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".h5",
    ".msgpack",
    ".gguf",
    ".ckpt",
    ".onnx",
    ".npz",
    ".pkl",
}
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_TOKENIZER_FILES = re.compile(
    r"(tokenizer.*|special_tokens_map\.json|added_tokens\.json|vocab\..*|merges\.txt|chat_template\..*|.*\.tiktoken)"
)
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class Checkpoint:
    """An opened folder. Headers are checked, bodies untouched; `tensors` maps names to their place in the files."""

    folder: Path
    config: dict[str, Any] = field(repr=False)
    shards: tuple[ShardInfo, ...] = field(repr=False)
    tensors: dict[str, TensorInfo] = field(repr=False)

    def read(self, name: str) -> np.ndarray:
        """One tensor as stored, (out, in) for linear weights, without copying; InputError for a name it lacks."""
        if name not in self.tensors:
            raise InputError(f"{self.folder}: there is no tensor {name}; it has {len(self.tensors)} others")
        return read_tensor(self.tensors[name])

    def companions(self) -> dict[str, Path]:
        """Every file that is not weights (config, tokenizer, shard index, ...), relative name -> path to read.

        Left out: hidden folders, training snapshots (`checkpoint-100/`), and the record and patch of an earlier run,
        which would speak of other weights.
        """
        index = [self.folder / INDEX] if (self.folder / INDEX).is_file() else []
        return {str(path.relative_to(self.folder)): path for path in sorted([*_companions(self.folder), *index])}

    @property
    def sources(self) -> tuple[Path, ...]:
        """The folders these weights are read from, which no output may touch."""
        return (self.folder,)

    @property
    def tokenizer_folder(self) -> Path:
        """The folder whose tokenizer goes with these weights."""
        return self.folder


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Open a local folder, or a hub name such as `org/model` that is not a folder here, which is then downloaded.

    Raises InputError for anything but one config.json with model.safetensors or an index and all its shards; every
    header is checked before any weight is read.
    """
    path = local_folder(folder)
    config = _read_config(path)
    expected = _shard_contents(path)
    shards = tuple(_open_shard(path, name) for name in expected)
    tensors: dict[str, TensorInfo] = {}
    for info in (info for shard in shards for info in shard.tensors):
        if info.name in tensors:
            first = tensors[info.name].file.name
            raise InputError(
                f"{path}: tensor {info.name} is in two shards, {first} and {info.file.name}; keep one of them"
            )
        tensors[info.name] = info
    for shard in shards:
        _check_contents(path, shard, expected[shard.name])
    if not tensors:
        raise InputError(f"{path}: its safetensors files hold no tensor")
    return Checkpoint(path, config, shards, tensors)


def local_folder(folder: str | Path) -> Path:
    """A folder as it is, or the local snapshot of a hub name such as `org/model`; InputError for anything else."""
    path = Path(folder)
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(f"{folder} is a file; expected a model folder with config.json and model.safetensors")
    if not _HUB_NAME.fullmatch(str(folder)):
        raise InputError(f"{folder} does not exist; expected a model folder with config.json and model.safetensors")
    return _download(str(folder))


def is_adapter(folder: str | Path) -> bool:
    """True for a PEFT adapter folder, which `open_adapter` reads: an adapter's config and no whole model beside it."""
    path = Path(folder)
    return (path / ADAPTER_CONFIG).is_file() and not (path / WEIGHTS).exists() and not (path / INDEX).exists()


def is_tokenizer_file(name: str) -> bool:
    """True for the files a tokenizer is saved as, the chat template included."""
    return _TOKENIZER_FILES.fullmatch(name) is not None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; InputError naming the file and line when it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: is not JSON (line {error.lineno}: {error.msg})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _companions(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        name = path.name
        if path.is_dir():
            if not name.startswith(".") and not re.fullmatch(r"checkpoint-\d+", name):
                yield from _companions(path)
        elif path.is_file() and name != RECORD and not _is_weights(name):
            yield path


def _is_weights(name: str) -> bool:
    """True for weight files of any framework and for their indices."""
    return Path(name.removesuffix(".index.json")).suffix.lower() in _WEIGHT_SUFFIXES


def _download(name: str) -> Path:
    """The hub's snapshot of `name` in the local cache, without pickled weights."""
    from huggingface_hub import snapshot_download  # slow to import, and only needed here

    kinds = [*_PICKLED, "*.h5", "*.msgpack", "*.gguf", "original/*"]
    try:
        with quiet_hub_log():
            return Path(snapshot_download(name, ignore_patterns=kinds))
    except Exception as error:  # the hub client raises its own, httpx's and OS errors
        raise InputError(
            f"{name} is not a folder here, and {hub_failure(error)}; give a local folder, or check the name"
        ) from error


def _read_config(folder: Path) -> dict[str, Any]:
    if (folder / "config.json").is_file():
        return read_json(folder / "config.json")
    if is_adapter(folder):
        raise InputError(f"{folder} is a LoRA adapter ({ADAPTER_CONFIG}), not a whole model; only TUNED may be one")
    raise InputError(f"{folder}: no config.json; expected a model folder as save_pretrained writes it")


def _shard_contents(folder: Path) -> dict[str, set[str] | None]:
    """File name -> the tensors the index says it holds (None where there is no index), in the index's order."""
    if (folder / INDEX).is_file():
        return _read_index(folder)
    if (folder / WEIGHTS).is_file():
        return {WEIGHTS: None}
    found = sorted(path.name for path in folder.glob("*.safetensors") if path.name != PATCH)
    if found:
        raise InputError(
            f"{folder}: expected {WEIGHTS}, or {INDEX} beside numbered shards; found only {', '.join(found[:5])}"
        )
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled:
        raise InputError(
            f"{folder} has only pickled weights ({pickled[0]}), which can run code when read and are refused; convert "
            'with: python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{folder}', dtype='auto').save_pretrained('{folder}')\""
        )
    raise InputError(f"{folder}: no weights; expected {WEIGHTS} or {INDEX}")


def _read_index(folder: Path) -> dict[str, set[str] | None]:
    index = folder / INDEX
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: expected a non-empty object under 'weight_map'")
    contents: dict[str, set[str] | None] = {}
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or re.search(r"[/\\]", file) or not file.endswith(".safetensors"):
            raise InputError(
                f"{index}: weight_map sends {tensor} to {file!r}; expected the plain name of a .safetensors file "
                "beside the index (paths are refused, since they could lead out of the folder)"
            )
        names = contents.setdefault(file, set())
        if names is not None:
            names.add(tensor)
    missing = [file for file in contents if not (folder / file).exists()]
    if missing:
        raise InputError(
            f"{index} names {len(contents)} shards, {len(missing)} of them absent: {', '.join(missing[:5])}; "
            "download the folder again"
        )
    return contents


def _open_shard(folder: Path, name: str) -> ShardInfo:
    path = folder / name
    if not path.is_file():
        raise InputError(f"{path}: expected a file")
    return read_header(path)


def _check_contents(folder: Path, shard: ShardInfo, expected: set[str] | None) -> None:
    """The index and the shard's own header must list the same tensors."""
    if expected is None:
        return
    found = {info.name for info in shard.tensors}
    if expected - found:
        name = min(expected - found)
        raise InputError(f"{folder / INDEX} says {name} is in {shard.name}, which does not hold it")
    if found - expected:
        name = min(found - expected)
        raise InputError(f"{shard.path} holds tensor {name}, which {INDEX} does not send there")
