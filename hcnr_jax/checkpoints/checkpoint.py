"""Opens a Hugging Face checkpoint folder: reads its config, checks the headers of its shards, and reads tensors."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hcnr_jax.checkpoints.formats import is_orbax, orbax_advice
from hcnr_jax.checkpoints.safetensors_file import (
    FLOATS,
    ShardInfo,
    TensorInfo,
    encode_header,
    read_header,
    read_tensor,
)
from hcnr_jax.errors import InputError
from hcnr_jax.runtime.hub_errors import hub_failure, quiet_hub_log

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
PATCH = "hcnr.patch.safetensors"
CARD = "README.md"
PAGE = "report.html"
CARD_MARK = "<!-- hcnr_jax: the text below was written by hcnr restore -->"  # TUNED's own card stands above
RECORD = "hcnr.json"

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_TOKENIZER_FILES = re.compile(
    r"(tokenizer.*|special_tokens_map\.json|added_tokens\.json|vocab\..*|merges\.txt|chat_template\..*|.*\.tiktoken"
    r"|tekken\.json|(spiece|sentencepiece.*)\.model|additional_chat_templates/.*\.jinja)"
)
# Files of a model's folder other than its weights, its tokenizer and the index of its shards.
_MODEL_FILES = re.compile(
    r"(config\.json|generation_config\.json|README\.md|(LICEN[CS]E|NOTICE|USE_POLICY|COPYRIGHT)[^/]*|\.gitattributes)",
    re.IGNORECASE,
)
# Names of tensors that quantisers store beside or in place of a weight.
_QUANTISED = re.compile(r"(qweight|qzeros|scales?|weight_scale\w*|absmax|quant_map|quant_state\S*|weight_packed|SCB)$")
PREFIXES = re.compile(r"^(module\.)+|(?<![^.])_orig_mod\.")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class Checkpoint:
    """Holds an opened folder, whose headers are checked and whose weights are not yet read.

    Attributes:
        folder: the folder.
        config: content of config.json.
        shards: the weight files.
        tensors: maps a tensor name to the tensor's place in the files.
        notes: warnings for the user about the folder, such as a stale index.
    """

    folder: Path
    config: dict[str, Any] = field(repr=False)
    shards: tuple[ShardInfo, ...] = field(repr=False)
    tensors: dict[str, TensorInfo] = field(repr=False)
    notes: tuple[str, ...] = field(default=(), kw_only=True, repr=False)

    def read(self, name: str) -> np.ndarray:
        """Return one tensor as stored, (out, in) for linear weights, without copying.

        Raises:
            InputError: there is no tensor of this name.
        """
        if name not in self.tensors:
            raise InputError(f"{self.folder}: there is no tensor {name}; it has {len(self.tensors)} others")
        return read_tensor(self.tensors[name])

    def value(self, name: str) -> np.ndarray:
        """Return one tensor as models compute with it. For a folder this is the stored tensor."""
        return self.read(name)

    def value_dtype(self, name: str) -> np.dtype:
        """Return the dtype of `value`, without reading the tensor."""
        return self.tensors[name].numpy_dtype

    def changes(self, name: str) -> bool:
        """Return whether the tensor may differ from BASE's; an adapter over BASE changes only some tensors."""
        return name in self.tensors

    def companions(self) -> dict[str, Path]:
        """Return the files that belong to a model and are not weights, as a map from relative name to path.

        These are config, tokenizer, chat templates, generation config, licence, card and the index of the shards. Other
        files are left out: see `leftovers`. So is the card of a restored model, which describes no other model.
        """
        found = {name: path for name, path in folder_files(self.folder) if _belongs(name)}
        if CARD in found and is_restored_card(found[CARD]):
            del found[CARD]
        index = self.folder / INDEX
        own = index.is_file() and _index_files(self.folder) == {shard.name for shard in self.shards}
        if own and not self._renamed:
            found[INDEX] = index
        return dict(sorted(found.items()))

    def leftovers(self) -> tuple[str, ...]:
        """Return the names in the folder that are not copied: trainers' files, other weights, stale files.

        A subfolder is listed once, with a slash after its name. Hidden files and the record and patch of an earlier
        restoration are not listed.
        """
        kept, used = set(self.companions()), {shard.name for shard in self.shards}
        names = set()
        for path in self.folder.iterdir():
            if path.name.startswith(".") or path.name in (RECORD, PATCH, INDEX, CARD, PAGE) or path.name in kept | used:
                continue
            if path.is_dir() and not any(name.startswith(f"{path.name}/") for name in kept):
                names.add(f"{path.name}/")
            elif path.is_file():
                names.add(path.name)
        return tuple(sorted(names))

    @property
    def _renamed(self) -> bool:
        """Return whether any tensor's name differs from its name in the file."""
        return any(PREFIXES.search(name) for shard in self.shards for name in _header_names(shard))

    @property
    def sources(self) -> tuple[Path, ...]:
        """Return the folders that hold these weights, which no output may change."""
        return (self.folder,)

    @property
    def tokenizer_folder(self) -> Path:
        """Return the folder whose tokenizer goes with these weights."""
        return self.folder


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Open a model folder; a hub name such as `org/model` that is not a local folder is downloaded first.

    Every header is checked before any weight is read.

    Raises:
        InputError: the folder lacks config.json, or model.safetensors, or an index with all its shards; or a file is
            damaged. The message names the file.
    """
    path = local_folder(folder)
    config = _read_config(path)
    notes: list[str] = []
    expected = _shard_contents(path, notes)
    opened = tuple(_open_shard(path, name) for name in expected)
    shards = tuple(without_prefixes(shard) for shard in opened)
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
    """Return a local folder as it is; download the model of a hub name such as `org/model` and return its folder.

    Raises:
        InputError: `folder` is neither a folder nor a hub name, or the download failed.
    """
    path = Path(folder)
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(f"{folder} is a file; expected a model folder with config.json and model.safetensors")
    if not _HUB_NAME.fullmatch(str(folder)):
        raise InputError(f"{folder} does not exist; expected a model folder with config.json and model.safetensors")
    return _download(str(folder))


def is_adapter(folder: str | Path) -> bool:
    """Return whether a folder is a PEFT adapter, with an adapter's config and no whole model in the same folder."""
    path = Path(folder)
    return (path / ADAPTER_CONFIG).is_file() and not (path / WEIGHTS).exists() and not (path / INDEX).exists()


def is_tokenizer_file(name: str) -> bool:
    """Return whether a file name is one of a tokenizer's files; a chat template is one."""
    return _TOKENIZER_FILES.fullmatch(name) is not None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        InputError: the file cannot be read or is not a JSON object. The message names the file, and the line of a
            syntax error.
    """
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
    """Yield relative name and path of the files in a folder and in its folder of chat templates."""
    for path in folder.iterdir():
        if path.is_file():
            yield path.name, path
    templates = folder / "additional_chat_templates"
    if templates.is_dir():
        yield from ((f"{templates.name}/{path.name}", path) for path in templates.iterdir() if path.is_file())


def is_restored_card(card: Path) -> bool:
    """Return whether a model card was written by a restoration."""
    return CARD_MARK in card.read_text(encoding="utf-8", errors="replace")


def _belongs(name: str) -> bool:
    return is_tokenizer_file(name) or _MODEL_FILES.fullmatch(name) is not None


def _header_names(shard: ShardInfo) -> list[str]:
    return [info.file_name or info.name for info in shard.tensors]


def without_prefixes(shard: ShardInfo) -> ShardInfo:
    """Strip the prefixes of torch.compile (`_orig_mod.`) and DistributedDataParallel (`module.`) from tensor names."""
    if not any(PREFIXES.search(info.name) for info in shard.tensors):
        return shard
    tensors = tuple(replace(info, name=PREFIXES.sub("", info.name), file_name=info.name) for info in shard.tensors)
    layout = {info.name: (info.dtype, info.shape) for info in tensors}
    return replace(shard, tensors=tensors, header=encode_header(layout, shard.metadata))


def _check_quantised(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> None:
    """Refuse a `quantization_config` left over in the config of plain weights, with a message of its own.

    `spec_from_config` refuses models that really are quantised.
    """
    if config.get("quantization_config") is None:
        return
    odd = [name for name, info in tensors.items() if info.dtype not in FLOATS or _QUANTISED.search(name)]
    if not odd:
        kinds = " and ".join(sorted({info.dtype for info in tensors.values()}))
        found = config["quantization_config"]
        method = found.get("quant_method") if isinstance(found, Mapping) else found
        raise InputError(
            f"{folder / 'config.json'}: quantization_config (quant_method {method!r}) is left over: all {len(tensors)} "
            f"tensors are plain {kinds}; remove the key `quantization_config` (transformers would quantise again)"
        )


def _download(name: str) -> Path:
    """Download the hub's snapshot of `name` to the local cache, without pickled weights, and return its folder."""
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
    if is_orbax(folder):
        raise InputError(orbax_advice(folder))
    raise InputError(f"{folder}: no config.json; expected a model folder as save_pretrained writes it")


def _shard_contents(folder: Path, notes: list[str]) -> dict[str, set[str] | None]:
    """Return a map from weight file to the tensors that the index assigns to the file; None where there is no index.

    Files are in the order of the index. A warning is appended to `notes` if the index is stale: transformers then reads
    model.safetensors, which holds the whole model.
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
    """Return the names of the shards in the index; entries that are not text are left out."""
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
        raise InputError(f"{path} is not a file; expected a weight file in the safetensors format")
    return read_header(path)


def _check_contents(folder: Path, shard: ShardInfo, expected: set[str] | None) -> None:
    """Check that the index and the shard's own header list the same tensors."""
    if expected is None:
        return
    found = {info.name for info in shard.tensors}
    if expected - found:
        name = min(expected - found)
        raise InputError(f"{folder / INDEX} says {name} is in {shard.name}, which does not hold it")
    if found - expected:
        name = min(found - expected)
        raise InputError(f"{shard.path} holds tensor {name}, which {INDEX} does not send there")
