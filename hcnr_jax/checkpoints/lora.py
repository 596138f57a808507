"""Presents a PEFT LoRA adapter over BASE as a whole checkpoint, whose tensors are merged in float32 when read.

    plain, rsLoRA   W' = W + s B A,                        s = alpha / r, or alpha / sqrt(r)
    DoRA            W' = m * (W + s B A) / ||W + s B A||,  norms over each output's row

with W (out, in), A (r, in), B (out, r), m (out,). TUNED is this result in float32 (`value`). It is cast to BASE's dtype
only where a whole model is written (`read`): 16 bits round away most of a small change.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hcnr_jax.checkpoints.checkpoint import (
    ADAPTER_CONFIG,
    CARD,
    PREFIXES,
    Checkpoint,
    folder_files,
    is_adapter,
    is_restored_card,
    is_tokenizer_file,
    local_folder,
    open_checkpoint,
    read_json,
    without_prefixes,
)
from hcnr_jax.checkpoints.formats import is_orbax, orbax_advice
from hcnr_jax.checkpoints.safetensors_file import FLOATS, ShardInfo, TensorInfo, read_header, read_tensor
from hcnr_jax.checkpoints.tensor_checks import count_nonfinite
from hcnr_jax.errors import InputError
from hcnr_jax.models.families.family import Family
from hcnr_jax.models.spec import spec_from_config

ADAPTER_WEIGHTS = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_PARTS = re.compile(r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector)(\.(?P<kind>weight|bias))?")
_USED = {
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "bias",
    "lora_bias",
    "modules_to_save",
    "target_modules",
    "layers_to_transform",
    "exclude_modules",
    "init_lora_weights",
    "base_model_name_or_path",
}
_IGNORED = {
    "task_type",
    "auto_mapping",
    "peft_version",
    "revision",
    "inference_mode",
    "lora_dropout",
    "layers_pattern",
    "megatron_core",
    "loftq_config",
    "eva_config",
    "qalora_group_size",
}


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_pattern(value: Any) -> bool:
    """Return whether a value maps regular expressions to positive numbers."""
    if not isinstance(value, dict):
        return False
    for pattern, number in value.items():
        try:
            re.compile(pattern)
        except re.error:
            return False
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < math.inf:
            return False
    return True


def _is_layers(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, list) and all(isinstance(item, int) for item in value))


# Option -> whether a value that is not null fits, and what fits.
_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "target_modules": (lambda value: isinstance(value, str) or _is_names(value), "a list of names, or one pattern"),
    "exclude_modules": (lambda value: isinstance(value, str) or _is_names(value), "a list of names, or one pattern"),
    "modules_to_save": (_is_names, "a list of names"),
    "rank_pattern": (_is_pattern, "an object of patterns and numbers above 0"),
    "alpha_pattern": (_is_pattern, "an object of patterns and numbers above 0"),
    "layers_to_transform": (_is_layers, "a whole number or a list of them"),
    "bias": (lambda value: value in ("none", "all", "lora_only"), "none, all or lora_only"),
    **{
        name: (lambda value: isinstance(value, bool), "true or false")
        for name in ("use_rslora", "use_dora", "lora_bias", "fan_in_fan_out")
    },
}
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class _Update:
    """Holds the adapter's update of one weight: A, B, the scale s, and DoRA's magnitudes m (None for plain LoRA)."""

    a: TensorInfo
    b: TensorInfo
    scale: float
    magnitude: TensorInfo | None


@dataclass(frozen=True)
class MergedCheckpoint(Checkpoint):
    """Presents BASE with an adapter merged in; interface, layout, dtypes and metadata are those of BASE's checkpoint.

    Attributes:
        base: BASE.
        updates: maps a Hugging Face tensor name to the adapter's low-rank update of that weight.
        biases: maps the name of a bias to the tensor that is added to the bias and the scale of that tensor.
        replaced: maps the name of a tensor to the adapter's whole tensor in its place.
    """

    base: Checkpoint
    updates: dict[str, _Update] = field(repr=False)
    biases: dict[str, tuple[TensorInfo, float]] = field(repr=False)
    replaced: dict[str, TensorInfo] = field(repr=False)

    def value(self, name: str) -> np.ndarray:
        """Return one tensor of the merged model, in float32 if the adapter changes it.

        In 16 bits most of a small change is rounded away: in a 135M model in bfloat16, 97 % of the entries that two
        steps of training moved.
        """
        return self._merged(name) if self.changes(name) else self.base.value(name)

    def value_dtype(self, name: str) -> np.dtype:
        """Return the dtype of `value`: float32 if the adapter changes the tensor, else BASE's."""
        return np.dtype(np.float32) if self.changes(name) else self.base.value_dtype(name)

    def changes(self, name: str) -> bool:
        """Return whether the adapter changes a tensor of BASE."""
        return name in self.updates or name in self.biases or name in self.replaced

    def read(self, name: str) -> np.ndarray:
        """Return one tensor of the merged model in BASE's dtype, or BASE's own view if the adapter does not change it.

        Raises:
            InputError: a merged value is NaN, or overflows BASE's dtype.
        """
        if not self.changes(name):
            return self.base.read(name)
        merged, dtype = self._merged(name), self.base.tensors[name].numpy_dtype
        with np.errstate(over="ignore"):
            stored = merged.astype(dtype)
        if count_nonfinite(stored):
            raise InputError(
                f"{self.folder}: merging into {name} of {self.base.folder} gives values that {dtype} cannot hold "
                f"(largest {np.abs(merged).max():.3g}); use a base in float32 or bfloat16"
            )
        return stored

    def companions(self) -> dict[str, Path]:
        """Return BASE's files that are not weights, with the adapter's tokenizer in place of BASE's if it has one."""
        files = self.base.companions()
        if self.tokenizer_folder == self.base.tokenizer_folder:
            return files
        kept = {name: path for name, path in files.items() if not is_tokenizer_file(name)}
        own = sorted(folder_files(self.folder))
        return kept | {name: path for name, path in own if is_tokenizer_file(name)}

    def leftovers(self) -> tuple[str, ...]:
        """Return the names in BASE's folder that are not copied; of the adapter's folder only a tokenizer is copied."""
        return self.base.leftovers()

    @property
    def sources(self) -> tuple[Path, ...]:
        """Return the adapter's folder and BASE's."""
        return (self.folder, *self.base.sources)

    @property
    def tokenizer_folder(self) -> Path:
        """Return the adapter's folder if a tokenizer is in there, else BASE's tokenizer folder."""
        has_own = any((self.folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
        return self.folder if has_own else self.base.tokenizer_folder

    def low_rank(self, name: str) -> tuple[np.ndarray, np.ndarray, float] | None:
        """Return A (r, in), B (out, r) and the scale c of a weight's update in float32, None for a weight without one.

        A DoRA update is returned without its norms, which no low-rank product holds.
        """
        return self._factors(self.updates[name]) if name in self.updates else None

    @staticmethod
    def _factors(update: _Update) -> tuple[np.ndarray, np.ndarray, float]:
        a, b = (read_tensor(info).astype(np.float32) for info in (update.a, update.b))
        return a, b, update.scale

    def files(self) -> "AdapterFiles":
        """Return the adapter's own tensors and files, which an adapter like this one is written from."""
        return open_adapter_files(self.folder)

    def lost_entries(self, name: str) -> tuple[int, int]:
        """Count a kernel's entries that the adapter changes.

        Returns:
            The number of those entries whose stored value is still BASE's, and the number of all those entries.
        """
        if name not in self.updates and name not in self.replaced:
            return 0, 0
        base = self.base.read(name)
        moved = self._merged(name) != base.astype(np.float32)
        return int(np.count_nonzero(moved & (self.read(name) == base))), int(np.count_nonzero(moved))

    def _merged(self, name: str) -> np.ndarray:
        """Return the merged tensor in float32."""
        if name in self.replaced:
            return self._replaced(name)
        weight = self.base.read(name).astype(np.float32)
        if name in self.biases:
            info, scale = self.biases[name]
            return weight + np.float32(scale) * read_tensor(info).astype(np.float32)
        update = self.updates[name]
        a, b, scale = self._factors(update)
        weight += (b @ a) * np.float32(scale)
        if update.magnitude is not None:
            magnitude = read_tensor(update.magnitude).astype(np.float32).reshape(-1)
            weight *= (magnitude / np.linalg.norm(weight, axis=1))[:, None]
        return weight

    def _replaced(self, name: str) -> np.ndarray:
        """Return the adapter's whole tensor; a resized embedding is cut to BASE's size, or completed from BASE."""
        found, own = read_tensor(self.replaced[name]).astype(np.float32), self.base.tensors[name].shape
        if found.shape == own:
            return found
        rows = self.base.read(name).astype(np.float32)
        shared = min(len(rows), len(found))
        rows[:shared] = found[:shared]
        return rows


@dataclass(frozen=True)
class AdapterFiles(Checkpoint):
    """Presents the tensors that an adapter stores, A and B apart, under the names that PEFT gave them."""

    def companions(self) -> dict[str, Path]:
        """Return adapter_config.json, the tokenizer and the model card, as a map from relative name to path."""
        found = [(name, path) for name, path in folder_files(self.folder) if name != CARD or not is_restored_card(path)]
        kept = {ADAPTER_CONFIG, CARD}
        return dict(sorted((name, path) for name, path in found if name in kept or is_tokenizer_file(name)))


def open_adapter_files(folder: str | Path) -> AdapterFiles:
    """Open an adapter's own tensors without its base.

    Raises:
        InputError: the folder has no readable adapter_model.safetensors.
    """
    path = local_folder(folder)
    weights = path / ADAPTER_WEIGHTS
    if not weights.is_file():
        other = "adapter_model.bin is pickled and refused: save" if (path / "adapter_model.bin").is_file() else "save"
        raise InputError(f"{path}: no {ADAPTER_WEIGHTS}; {other} the adapter with safetensors (save_pretrained does)")
    shard = without_prefixes(read_header(weights))
    return AdapterFiles(path, read_json(path / ADAPTER_CONFIG), (shard,), _by_name(shard))


def _by_name(shard: ShardInfo) -> dict[str, TensorInfo]:
    return {info.name: info for info in shard.tensors}


def open_adapter(folder: str | Path, base: Checkpoint) -> MergedCheckpoint:
    """Open a PEFT LoRA folder over `base`.

    Rank and alpha patterns, rsLoRA, DoRA, lora_bias, trained biases and modules_to_save are handled. All checks run
    before any tensor is merged.

    Raises:
        InputError: the adapter is of another kind, its tensors do not fit `base` (a wrong base), or it has NaN or
            infinite values. The message names the option or the tensor.
    """
    path = local_folder(folder)
    config = read_json(path / ADAPTER_CONFIG)
    _check_config(path, config)
    weights = path / ADAPTER_WEIGHTS
    tensors = {_plain_name(name): info for name, info in open_adapter_files(path).tensors.items()}
    if not tensors:
        raise InputError(f"{weights} holds no tensor")
    _check_values(weights, tensors)
    modules, whole = _sort(tensors)
    updates, biases = {}, {}
    for module, parts in modules.items():
        name = f"{module}.weight"
        scale = _check_module(path, config, base, module, parts)
        updates[name] = _Update(parts["lora_A"], parts["lora_B"], scale, parts.get("lora_magnitude_vector"))
        if "lora_B.bias" in parts:
            biases[f"{module}.bias"] = (parts["lora_B.bias"], scale)
    replaced = _replacements(path, config, base, whole)
    _check_targets(path, config, base, set(modules))
    ends = {_family_of(base).embedding, _family_of(base).lm_head}
    notes = (*base.notes, *_base_note(path, config, base), *_resize_notes(path, base, whole, ends))
    return MergedCheckpoint(path, base.config, base.shards, base.tensors, base, updates, biases, replaced, notes=notes)


def open_tuned(folder: str | Path, base: Checkpoint) -> Checkpoint:
    """Open TUNED, which is a whole model or an adapter over `base`, in a local folder or on the hub."""
    path = local_folder(folder)
    if is_orbax(path) and not (path / "config.json").is_file():
        raise InputError(orbax_advice(path, base.folder))
    return open_adapter(path, base) if is_adapter(path) else open_checkpoint(path)


def _plain_name(name: str) -> str:
    """Strip from PEFT's name of a tensor all that PEFT and other wrappers add to the model's own name."""
    plain = PREFIXES.sub("", name)
    return PREFIXES.sub("", plain.removeprefix(_PREFIX)).replace(".base_layer.", ".")


def _check_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse every option of the adapter's config that would change the merge and is not handled here."""
    where = folder / ADAPTER_CONFIG
    if config.get("peft_type") != "LORA":
        raise InputError(f"{where}: peft_type {config.get('peft_type')!r} is not handled; expected 'LORA'")
    if config.get("fan_in_fan_out"):
        raise InputError(f"{where}: fan_in_fan_out is true, which is for Conv1D models; expected false")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_CHANGES_BASE):
        raise InputError(
            f"{where}: init_lora_weights {init!r} changes the base weights, so the adapter does not fit BASE as it is; "
            "convert it to a plain LoRA (save_pretrained with path_initial_model_for_weight_conversion)"
        )
    for name, (fits, expected) in _TYPES.items():
        if config.get(name) is not None and not fits(config[name]):
            raise InputError(f"{where}: {name} is {config[name]!r}; expected {expected}")
    for name, value in config.items():
        if value and name not in _USED | _IGNORED:
            raise InputError(f"{where}: option {name} = {value!r} is not handled; merge the adapter with PEFT first")
    for name in ("r", "lora_alpha"):
        value = config.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise InputError(f"{where}: {name} is {value!r}; expected a number above 0")


def _check_values(path: Path, tensors: Mapping[str, TensorInfo]) -> None:
    for name, info in tensors.items():
        if 0 in info.shape:
            raise InputError(
                f"{path}: tensor {name} is empty (shape {list(info.shape)}): it was saved from one process of "
                "DeepSpeed ZeRO-3 or FSDP, which holds none of it; gather the weights before saving (accelerate's "
                "get_state_dict, or stage3_gather_16bit_weights_on_model_save), and save the adapter again"
            )
        if info.dtype not in FLOATS:
            raise InputError(f"{path}: tensor {name} is stored as {info.dtype}; expected one of {', '.join(FLOATS)}")
        if count := count_nonfinite(read_tensor(info)):
            raise InputError(f"{path}: tensor {name} has {count:,} NaN or infinite entries; its training diverged")


def _sort(tensors: Mapping[str, TensorInfo]) -> tuple[dict[str, dict[str, TensorInfo]], dict[str, TensorInfo]]:
    """Sort adapter tensors by module and part (lora_A, lora_B, lora_B.bias, ...); return whole tensors separately."""
    modules: dict[str, dict[str, TensorInfo]] = {}
    whole = {}
    for name, info in tensors.items():
        match = _PARTS.fullmatch(name)
        if match:
            part = match["part"] + (".bias" if match["kind"] == "bias" else "")
            modules.setdefault(match["module"], {})[part] = info
        else:
            whole[name] = info
    return modules, whole


def _check_module(
    folder: Path, config: Mapping[str, Any], base: Checkpoint, module: str, parts: Mapping[str, TensorInfo]
) -> float:
    """Check one module's tensors against BASE's weight and the config; return the scale s."""
    target = base.tensors.get(f"{module}.weight")
    ends = _family_of(base)
    if target is None and module == ends.lm_head.removesuffix(".weight"):
        raise InputError(
            f"{folder}: the adapter targets {module}, and {base.folder} ties its head to the embedding, so that there "
            "is no head of its own to adapt; merge the adapter with PEFT into a model saved with "
            "tie_word_embeddings false"
        )
    if target is None:
        raise InputError(f"{folder}: the adapter targets {module}, which {base.folder} has not{_made_for(config)}")
    if odd := set(parts) - {"lora_A", "lora_B", "lora_B.bias", "lora_magnitude_vector"}:
        raise InputError(f"{folder}: tensor {module}.{min(odd)} is not handled; merge the adapter with PEFT first")
    missing = {"lora_A", "lora_B", *(["lora_magnitude_vector"] if config.get("use_dora") else [])} - set(parts)
    if missing:
        raise InputError(f"{folder}: {module} has no {min(missing)} tensor; the adapter is incomplete: save it again")
    if "lora_magnitude_vector" in parts and not config.get("use_dora"):
        raise InputError(f"{folder}: {module} has a lora_magnitude_vector, but {ADAPTER_CONFIG} says use_dora is false")
    rank = _pattern(config, "rank_pattern", module, config["r"])
    alpha = _pattern(config, "alpha_pattern", module, config["lora_alpha"])
    out, into = (*target.shape, 0)[:2]
    expected = {"lora_A": (rank, into), "lora_B": (out, rank), "lora_B.bias": (out,)}
    for part, shape in expected.items():
        if part in parts and parts[part].shape != shape:
            raise InputError(
                f"{folder}: {module}.{part} is {list(parts[part].shape)}, expected {list(shape)} for rank {rank} on "
                f"{module}.weight {list(target.shape)} of {base.folder}{_made_for(config)}"
            )
    if "lora_magnitude_vector" in parts and math.prod(parts["lora_magnitude_vector"].shape) != out:
        found = list(parts["lora_magnitude_vector"].shape)
        raise InputError(f"{folder}: {module}.lora_magnitude_vector is {found}, expected [{out}]{_made_for(config)}")
    if "lora_B.bias" in parts and f"{module}.bias" not in base.tensors:
        raise InputError(f"{folder}: {module} has a LoRA bias, but {base.folder} has no {module}.bias to add it to")
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _pattern(config: Mapping[str, Any], key: str, module: str, default: Any) -> Any:
    """Return the value of the first pattern that matches the last components of the module's name, as PEFT does."""
    for pattern, value in (config.get(key) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _replacements(
    folder: Path, config: Mapping[str, Any], base: Checkpoint, whole: Mapping[str, TensorInfo]
) -> dict[str, TensorInfo]:
    """Return the adapter's whole tensors: modules_to_save, trained biases, and embeddings that PEFT saved as well.

    Embeddings and heads equal to BASE's are left out.
    """
    spec = spec_from_config(base.config, str(base.folder / "config.json"))
    ends = {spec.recipe.embedding, spec.recipe.lm_head}
    saved = tuple(config.get("modules_to_save") or ())
    for name, info in whole.items():
        module = name.rpartition(".")[0]
        named = any(module == entry or module.endswith(f".{entry}") for entry in saved)
        bias = name.endswith(".bias") and config.get("bias", "none") != "none"
        if not (named or bias or name in ends):
            raise InputError(
                f"{folder}: tensor {name} is none of a LoRA pair, a module of modules_to_save or a trained bias; merge "
                "the adapter with PEFT first"
            )
        if name not in base.tensors:
            raise InputError(f"{folder}: the adapter holds {name}, which {base.folder} has not{_made_for(config)}")
        rows, own = info.shape, base.tensors[name].shape
        if rows != own and name in ends and rows[1:] == own[1:]:
            continue  # a resized vocabulary: see `_resize_notes`
        if rows != own:
            raise InputError(f"{folder}: {name} is {list(rows)}, in {base.folder} {list(own)}{_made_for(config)}")
    # PEFT may save an embedding or head that was not trained.
    untrained = {name for name in ends & set(whole) if _is_untrained(whole[name], base.read(name))}
    whole = {name: info for name, info in whole.items() if name not in untrained}
    if spec.tie_embeddings and ends & set(whole):
        raise InputError(
            f"{folder}: the adapter trains an embedding or head that {base.folder} ties to the other; merge it with "
            "PEFT into an untied model first"
        )
    return whole


def _is_untrained(info: TensorInfo, own: np.ndarray) -> bool:
    """Return whether a whole tensor equals BASE's on the rows that both have."""
    shared = min(len(own), info.shape[0])
    return np.array_equal(read_tensor(info)[:shared], own[:shared])


def _resize_notes(folder: Path, base: Checkpoint, whole: Mapping[str, TensorInfo], ends: Collection[str]) -> list[str]:
    """Warn if the adapter was trained over an embedding of another size than BASE's, and say how to resize BASE."""
    for name in sorted(set(ends) & set(whole)):
        rows, own = whole[name].shape[0], base.tensors[name].shape[0] if name in base.tensors else 0
        if own and rows != own:
            use = f"the first {min(rows, own)} rows are used, and rows of data with other ids are refused"
            return [
                f"{folder}: the adapter was trained over an embedding of {rows} rows ({name}), and {base.folder} has "
                f"{own}: the vocabulary was resized; {use}. To keep all of them resize BASE first: "
                f"model.resize_token_embeddings({rows}); model.save_pretrained(NEW_BASE)"
            ]
    return []


def _base_note(folder: Path, config: Mapping[str, Any], base: Checkpoint) -> list[str]:
    """Warn if the adapter's config names a model other than BASE as the model on which the adapter was trained."""
    name = config.get("base_model_name_or_path")
    if not isinstance(name, str) or not name.strip():
        return []
    last = Path(name.rstrip("/")).name.lower()
    own = {part.lower() for part in (base.folder.name, base.folder.resolve().name)}
    hub = f"models--{name.strip('/').replace('/', '--')}".lower() in str(base.folder.resolve()).lower()
    listed = str(base.config.get("_name_or_path") or "").rstrip("/").lower()
    if last in own or hub or (listed and listed == name.rstrip("/").lower()):
        return []
    if Path(name).is_dir() and Path(name).resolve() == base.folder.resolve():
        return []
    return [
        f"{folder}: the adapter was trained on {name}, and BASE is {base.folder}: if these are two models, the result "
        "is of no use; give the one the adapter was trained on"
    ]


def _family_of(base: Checkpoint) -> Family:
    return spec_from_config(base.config, str(base.folder / "config.json")).recipe


def _check_targets(folder: Path, config: Mapping[str, Any], base: Checkpoint, found: set[str]) -> None:
    """Check that every module of BASE that target_modules names has its A and B; a base with more layers fails here."""
    targets = config.get("target_modules")
    restricted = config.get("layers_to_transform") is not None or config.get("exclude_modules")
    if not isinstance(targets, list) or restricted:
        return
    modules = [name.removesuffix(".weight") for name in base.tensors if name.endswith(".weight")]
    lacking = []
    for target in sorted(targets):  # PEFT writes a set, in an order that changes from run to run
        hits = [module for module in modules if module == target or module.endswith(f".{target}")]
        if not hits:
            hint = _made_for(config)
            raise InputError(f"{folder}: target_modules names {target!r}, which {base.folder} has not{hint}")
        lacking += [module for module in hits if module not in found]
    if lacking:
        raise InputError(
            f"{folder}: the adapter has no tensors for {lacking[0]} (nor for {len(lacking) - 1} more modules), which "
            f"target_modules names and {base.folder} has{_made_for(config)}"
        )


def _made_for(config: Mapping[str, Any]) -> str:
    name = config.get("base_model_name_or_path")
    return f"; wrong base? The adapter was made for {name}" if name else "; wrong base?"
