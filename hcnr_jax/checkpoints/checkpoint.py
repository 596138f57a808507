"""A Hugging Face checkpoint folder: its config, its checked shards, and one tensor at a time on request."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hcnr_jax.checkpoints.safetensors_file import (
    FLOATS,
    ShardInfo,
    TensorInfo,
    encode_header,
    read_header,
    read_tensor,
)
from hcnr_jax.errors import InputError
from hcnr_jax.runtime.hub import hub_failure, quiet_hub_log

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
PATCH = "hcnr.patch.safetensors"
RECORD = "hcnr.json"

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_TOKENIZER_FILES = re.compile(
    r"(tokenizer.*|special_tokens_map\.json|added_tokens\.json|vocab\..*|merges\.txt|chat_template\..*|.*\.tiktoken"
    r"|tekken\.json|(spiece|sentencepiece.*)\.model|additional_chat_templates/.*\.jinja)"
)
# What belongs to a model's folder beside its weights, its tokenizer and the index of its shards.
_MODEL_FILES = re.compile(
    r"(config\.json|generation_config\.json|README\.md|(LICEN[CS]E|NOTICE|USE_POLICY|COPYRIGHT)[^/]*|\.gitattributes)",
    re.IGNORECASE,
)
# What quantisers store beside or in place of a weight.
_QUANTISED = re.compile(r"(qweight|qzeros|scales?|weight_scale\w*|absmax|quant_map|quant_state\S*|weight_packed|SCB)$")
_PREFIXES = re.compile(r"^(module\.)+|(?<![^.])_orig_mod\.")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class Checkpoint:
    """An opened folder. Headers are checked, bodies untouched; `tensors` maps names to their place in the files."""

    folder: Path
    config: dict[str, Any] = field(repr=False)
    shards: tuple[ShardInfo, ...] = field(repr=False)
    tensors: dict[str, TensorInfo] = field(repr=False)
    notes: tuple[str, ...] = field(default=(), kw_only=True, repr=False)

    def read(self, name: str) -> np.ndarray:
        """One tensor as stored, (out, in) for linear weights, without copying; InputError for a name it lacks."""
        if name not in self.tensors:
            raise InputError(f"{self.folder}: there is no tensor {name}; it has {len(self.tensors)} others")
        return read_tensor(self.tensors[name])

    def companions(self) -> dict[str, Path]:
        """Return the files that belong to a model and are no weights, relative name -> path to read.

        These are config, tokenizer, chat templates, generation config, licence and the index of the shards. Everything
        else is left out: see `leftovers`.
        """
        found = {name: path for name, path in folder_files(self.folder) if _belongs(name)}
        index = self.folder / INDEX
        own = index.is_file() and _index_files(self.folder) == {shard.name for shard in self.shards}
        if own and not self._renamed:
            found[INDEX] = index
        return dict(sorted(found.items()))

    def leftovers(self) -> tuple[str, ...]:
        """Return the names in the folder that no output takes over: what trainers leave, other weights, stale files.

        A folder counts once, with a slash behind its name. Hidden files and the record and patch of an earlier
        restoration are not named.
        """
        kept, used = set(self.companions()), {shard.name for shard in self.shards}
        names = set()
        for path in self.folder.iterdir():
            if path.name.startswith(".") or path.name in (RECORD, PATCH, INDEX) or path.name in kept | used:
                continue
            if path.is_dir() and not any(name.startswith(f"{path.name}/") for name in kept):
                names.add(f"{path.name}/")
            elif path.is_file():
                names.add(path.name)
        return tuple(sorted(names))

    @property
    def _renamed(self) -> bool:
        """Return whether tensors have other names than in their files."""
        return any(_PREFIXES.search(name) for shard in self.shards for name in _header_names(shard))

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
    notes: list[str] = []
    expected = _shard_contents(path, notes)
    opened = tuple(_open_shard(path, name) for name in expected)
    shards = tuple(_without_prefixes(shard) for shard in opened)
    if shards != opened:
        notes.append(
            f"{path}: the prefixes `module.` and `_orig_mod.` of training wrappers are left out of tensor names"
        )
    if (path / ADAPTER_CONFIG).is_file():
        notes.append(
            f"{path}: {ADAPTER_CONFIG} beside whole weights is left over from a merge; the whole weights are used, and "
            "the file is not copied (transformers would load the adapter's base instead: delete the file)"
        )
    tensors: dict[str, TensorInfo] = {}
    for info in (info for shard in shards for info in shard.tensors):
        if info.name in tensors:
            first = tensors[info.name].file.name
            raise InputError(
                f"{path}: tensor {info.name} is in two shards, {first} and {info.file.name}; keep one of them"
            )
        tensors[info.name] = info
    for shard in opened:
        _check_contents(path, shard, expected[shard.name])
    if not tensors:
        raise InputError(f"{path}: its safetensors files hold no tensor")
    _check_quantised(path, config, tensors)
    return Checkpoint(path, config, shards, tensors, notes=tuple(notes))


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


def folder_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the files of a folder and of its chat templates, by relative name."""
    for path in folder.iterdir():
        if path.is_file():
            yield path.name, path
    templates = folder / "additional_chat_templates"
    if templates.is_dir():
        yield from ((f"{templates.name}/{path.name}", path) for path in templates.iterdir() if path.is_file())


def _belongs(name: str) -> bool:
    return is_tokenizer_file(name) or _MODEL_FILES.fullmatch(name) is not None


def _header_names(shard: ShardInfo) -> list[str]:
    return [info.file_name or info.name for info in shard.tensors]


def _without_prefixes(shard: ShardInfo) -> ShardInfo:
    """Strip from tensor names what torch.compile (`_orig_mod.`) and DistributedDataParallel (`module.`) add."""
    if not any(_PREFIXES.search(info.name) for info in shard.tensors):
        return shard
    tensors = tuple(replace(info, name=_PREFIXES.sub("", info.name), file_name=info.name) for info in shard.tensors)
    layout = {info.name: (info.dtype, info.shape) for info in tensors}
    return replace(shard, tensors=tensors, header=encode_header(layout, shard.metadata))


def _check_quantised(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> None:
    """Tell a `quantization_config` that was left over plain weights from that of a quantised model."""
    if config.get("quantization_config") is None:
        return
    odd = [name for name, info in tensors.items() if info.dtype not in FLOATS or _QUANTISED.search(name)]
    if not odd:
        kinds = " and ".join(sorted({info.dtype for info in tensors.values()}))
        raise InputError(
            f"{folder / 'config.json'}: quantization_config is left over: all {len(tensors)} tensors are plain "
            f"{kinds}; remove the key `quantization_config` (transformers would quantise the weights again)"
        )


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


def _shard_contents(folder: Path, notes: list[str]) -> dict[str, set[str] | None]:
    """Return file name -> the tensors the index says it holds (None where there is no index), in the index's order.

    notes: what is said of an index that is left over beside one whole file, which transformers reads.
    """
    if (folder / WEIGHTS).is_file() and (folder / INDEX).is_file():
        files = _index_files(folder)
        if files == {WEIGHTS}:
            return _read_index(folder)
        _check_left_index(folder, files)
        notes.append(
            f"{folder}: {INDEX} is stale: {WEIGHTS} is whole and is used, as transformers does; delete the index"
            + (f" and {', '.join(sorted(files)[:3])}" if any((folder / name).exists() for name in files) else "")
        )
        return {WEIGHTS: None}
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


def _index_files(folder: Path) -> set[str]:
    """Return the names of the shards in the index, as far as it can be read."""
    weight_map = read_json(folder / INDEX).get("weight_map")
    return {name for name in weight_map.values() if isinstance(name, str)} if isinstance(weight_map, dict) else set()


def _check_left_index(folder: Path, files: set[str]) -> None:
    """Refuse a folder with two sets of weights that differ: one whole file, and the shards of an index."""
    there = [name for name in sorted(files) if "/" not in name and (folder / name).is_file()]
    if len(there) < len(files):
        return  # the shards are gone, or some of them
    whole = {info.name: info for info in read_header(folder / WEIGHTS).tensors}
    for info in (info for name in there for info in read_header(folder / name).tensors):
        other = whole.get(info.name)
        if (
            other is None
            or other.shape != info.shape
            or not np.array_equal(read_tensor(other).view(np.uint8), read_tensor(info).view(np.uint8))
        ):
            raise InputError(
                f"{folder} holds two models: {WEIGHTS} and the shards of {INDEX} differ at {info.name}; transformers "
                f"reads {WEIGHTS}: delete the one that is not wanted"
            )


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
            f"{index} names {len(contents)} shards, {len(missing)} of them absent: {', '.join(missing[:5])}; copy them "
            "from where the model was saved or downloaded, or save the model again"
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
