"""Checks that BASE and TUNED are a pair, and measures how much of their difference was lost to rounding."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from hcnr_jax.checkpoints.checkpoint import Checkpoint
from hcnr_jax.checkpoints.lora import MergedCheckpoint
from hcnr_jax.checkpoints.names import tensor_names
from hcnr_jax.checkpoints.tensor_checks import check_tensors, chunks
from hcnr_jax.errors import InputError
from hcnr_jax.models.spec import ModelSpec, spec_from_config

# Attention windows matter only for rows longer than the window: see `check_windows`.
_MAY_DIFFER = {"max_positions", "bos_token_id", "eos_token_ids", "layer_windows"}
_CONFIG_NAMES = {
    "family": "model_type",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "tie_embeddings": "tie_word_embeddings",
}
_HINTS = {
    "vocab_size": "; were tokens added, or the embedding padded? Resize one to the other",
    "tie_embeddings": "; save both tied or both untied",
}


def check_pair(base: Checkpoint, tuned: Checkpoint) -> ModelSpec:
    """Check that `tuned` can be a fine-tuned version of `base`, and return the spec of `tuned`.

    Config attributes that decide the parameters or the arithmetic must be equal. Positions, bos, eos and attention
    windows may differ. Tensors must fit the spec, and none may be float16 in one model and bfloat16 in the other.
    Kernels are read until the first difference.

    Raises:
        InputError: an attribute or tensor does not fit, or all kernels are identical. The message names the attribute
            or tensor and both values.
    """
    base_spec = spec_from_config(base.config, str(base.folder / "config.json"))
    tuned_spec = spec_from_config(tuned.config, str(tuned.folder / "config.json"))
    for field in fields(ModelSpec):
        ours, theirs = getattr(base_spec, field.name), getattr(tuned_spec, field.name)
        if field.name not in _MAY_DIFFER and ours != theirs:
            name = _CONFIG_NAMES.get(field.name, field.name)
            raise InputError(
                f"BASE and TUNED are not a pair: {name} is {ours} in {base.folder} and {theirs} in {tuned.folder}"
                f"{_HINTS.get(field.name, '')}"
            )
    check_tensors(base, base_spec)
    check_tensors(tuned, tuned_spec)
    for name in tensor_names(base_spec):
        _check_dtypes(base, tuned, name)
    _check_differs(base, tuned, base_spec)
    return tuned_spec


def check_windows(base: Checkpoint, tuned: Checkpoint, longest: int) -> list[str]:
    """Accept attention windows that differ where no row reaches them; return a warning that says so.

    Args:
        base: BASE.
        tuned: TUNED, whose windows are used for both models.
        longest: number of tokens in the longest row.

    Raises:
        InputError: a row is longer than the shortest window on which the two models differ.
    """
    specs = [spec_from_config(model.config, str(model.folder / "config.json")) for model in (base, tuned)]
    pairs = zip(*(spec.layer_windows for spec in specs), strict=True)
    windows = [window for pair in pairs if pair[0] != pair[1] for window in pair if window is not None]
    if not windows:
        return []
    described = " and ".join(f"{model.config.get('sliding_window')} in {model.folder}" for model in (base, tuned))
    if longest > min(windows):
        raise InputError(
            f"BASE and TUNED are not a pair: sliding_window (with use_sliding_window and layer_types) is {described}, "
            f"and a row has {longest} tokens, more than {min(windows)}; make them equal in config.json, or shorten "
            "--max-length"
        )
    return [
        f"sliding_window differs ({described}); no row is longer than {min(windows)} tokens, so that it has no effect"
    ]


class DeltaLoss(NamedTuple):
    """Says how much of tuned - base was lost to rounding in 16-bit storage.

    Only kernels that were trained and are stored in 16 bits count.

    Attributes:
        share: lost / entries; 0 where there are no entries.
        lost: number of entries that training changed and storage shows unchanged.
        entries: for a merged adapter, number of entries that training changed; for whole models, of all entries.
        worst: name of the tensor with the largest share; empty when no tensor lost entries.
    """

    share: float
    lost: int
    entries: int
    worst: str


@dataclass
class _LossCount:
    """Counts lost entries: call `add` once per tensor and `result` at the end."""

    lost: int = 0
    entries: int = 0
    worst: str = ""
    worst_share: float = 0.0

    def add(self, name: str, lost: int, entries: int) -> None:
        self.lost, self.entries = self.lost + lost, self.entries + entries
        if entries and lost / entries > self.worst_share:
            self.worst, self.worst_share = name, lost / entries

    def result(self) -> DeltaLoss:
        return DeltaLoss(self.lost / self.entries if self.entries else 0.0, self.lost, self.entries, self.worst)


def delta_lost(base: Checkpoint, tuned: Checkpoint, names: Iterable[str]) -> DeltaLoss:
    """Count the entries of the kernels `names` that training changed but 16-bit storage shows unchanged.

    For a merged adapter the exact delta is known: an entry is lost where its delta is not zero and the stored value is
    BASE's. For two whole models the delta is inferred. In a 16-bit kernel that differs at all, every entry equal to
    BASE's counts as lost. This overstates the loss where an entry truly had no gradient. Kernels stored in float32 and
    kernels that are equal in every entry are left out.
    """
    count = _LossCount()
    for name in names:
        if tuned.tensors[name].numpy_dtype.itemsize > 2:
            continue
        if isinstance(tuned, MergedCheckpoint):
            count.add(name, *tuned.lost_entries(name))
            continue
        equal = sum(int(np.count_nonzero(a == b)) for a, b in _both(base, tuned, name))
        entries = int(np.prod(tuned.tensors[name].shape))
        if equal < entries:
            count.add(name, equal, entries)
    return count.result()


def _check_dtypes(base: Checkpoint, tuned: Checkpoint, name: str) -> None:
    ours, theirs = base.tensors[name], tuned.tensors[name]
    if {ours.dtype, theirs.dtype} == {"F16", "BF16"}:
        raise InputError(
            f"{name} is {ours.dtype} in {base.folder} and {theirs.dtype} in {tuned.folder}: neither holds the other's "
            "values, so their difference would be mostly rounding; save both in the same dtype, or one in float32"
        )


def _check_differs(base: Checkpoint, tuned: Checkpoint, spec: ModelSpec) -> None:
    kernels = [name for name, place in tensor_names(spec).items() if place.transpose and place.layer is not None]
    others = [name for name in tensor_names(spec) if name not in set(kernels)]
    if any(_differs(base, tuned, name) for name in kernels):
        return
    moved = next((name for name in others if _differs(base, tuned, name)), None)
    if moved is None:
        raise InputError(
            f"BASE ({base.folder}) and TUNED ({tuned.folder}) are identical in every weight: there is nothing to "
            "restore; give the model before and the model after fine-tuning"
        )
    raise InputError(
        f"the kernels of BASE ({base.folder}) and TUNED ({tuned.folder}) are identical, only others differ (first: "
        f"{moved}); restoration works on the q, k, v, o, gate, up and down kernels alone"
    )


def _differs(base: Checkpoint, tuned: Checkpoint, name: str) -> bool:
    return any(not np.array_equal(a, b) for a, b in _both(base, tuned, name))


def _both(base: Checkpoint, tuned: Checkpoint, name: str) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Yield pieces of a tensor of both models to compare by entry: bits where the dtypes agree, else float32 values."""
    ours, theirs = base.value(name), tuned.value(name)
    pairs = zip(chunks(ours), chunks(theirs), strict=True)
    if ours.dtype == theirs.dtype:
        bits = {2: np.uint16, 4: np.uint32}[ours.dtype.itemsize]
        return ((a.view(bits), b.view(bits)) for a, b in pairs)
    return ((a.astype(np.float32), b.astype(np.float32)) for a, b in pairs)
