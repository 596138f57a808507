"""Checks a checkpoint against its own spec: no tensor is missing or unexpected, shapes fit, and values are finite."""

import math
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from hcnr_jax.checkpoints.checkpoint import Checkpoint
from hcnr_jax.checkpoints.names import tensor_names
from hcnr_jax.checkpoints.safetensors_file import FLOATS
from hcnr_jax.errors import InputError
from hcnr_jax.models.spec import ModelSpec

_CHUNK = 1 << 22  # entries checked together, so that a check holds a few MB and not a second tensor
_EXPONENT = {"F32": (np.uint32, 0x7F800000), "BF16": (np.uint16, 0x7F80), "F16": (np.uint16, 0x7C00)}
_BUFFERS = (".rotary_emb.inv_freq", ".rotary_emb.original_inv_freq")  # derived numbers that some files store


def check_tensors(checkpoint: Checkpoint, spec: ModelSpec) -> None:
    """Compare the tensors in a checkpoint's headers with its spec.

    Rotary `inv_freq` buffers are accepted as well. With tied embeddings so is an `lm_head.weight` whose values equal
    the embedding's.

    Raises:
        InputError: names of up to five tensors that are missing, unexpected, misshapen or of a dtype not handled.
    """
    names, tensors, head = tensor_names(spec), checkpoint.tensors, spec.recipe.lm_head
    missing = [name for name in names if name not in tensors]
    unexpected = [name for name in tensors if name not in names and not name.endswith(_BUFFERS)]
    if spec.tie_embeddings and head in unexpected and spec.recipe.embedding in tensors:
        unexpected.remove(head)
        _check_tied_head(checkpoint, spec)
    if missing == [head]:
        raise InputError(
            f"{checkpoint.folder}: config.json says tie_word_embeddings is false, but there is no {head}; set it to "
            "true if the head shares the embedding"
        )
    if missing or unexpected:
        found = [f"missing {_few(missing)}"] if missing else []
        found += [f"unexpected {_few(unexpected)}"] if unexpected else []
        raise InputError(
            f"{checkpoint.folder}: the tensors are not those config.json describes: {'; '.join(found)}; weights are "
            "never made up or dropped here"
        )
    _check_shapes(checkpoint, spec)
    wrong = [f"{name} ({tensors[name].dtype})" for name in names if tensors[name].dtype not in FLOATS]
    if wrong:
        raise InputError(
            f"{checkpoint.folder}: stored in a dtype that is not handled (quantised?): {_few(wrong)}; expected "
            f"{', '.join(FLOATS)}: save the model in float32, bfloat16 or float16"
        )


def check_finite(checkpoint: Checkpoint, names: Iterable[str] | None = None) -> None:
    """Read every weight, or those called `names`, and check that all values are finite.

    Raises:
        InputError: a tensor has NaN or infinite values. The message names the first such tensor in file order.
    """
    chosen = [
        name for name in (checkpoint.tensors if names is None else names) if checkpoint.tensors[name].dtype in _EXPONENT
    ]
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        counts = pool.map(lambda name: count_nonfinite(checkpoint.read(name)), chosen)
        for name, count in zip(chosen, counts, strict=True):
            if count:
                size = math.prod(checkpoint.tensors[name].shape)
                raise InputError(
                    f"{checkpoint.folder}: tensor {name} has {count:,} NaN or infinite entries of {size:,}; "
                    "the checkpoint is damaged or its training diverged"
                )


def count_nonfinite(tensor: np.ndarray) -> int:
    """Count the NaN or infinite entries of a float32, bfloat16 or float16 array by their exponent bits."""
    kind = {2: "F16" if tensor.dtype == np.float16 else "BF16", 4: "F32"}[tensor.dtype.itemsize]
    dtype, mask = _EXPONENT[kind]
    exponent = dtype(mask)
    return sum(int(np.count_nonzero((part.view(dtype) & exponent) == exponent)) for part in chunks(tensor))


def chunks(tensor: np.ndarray) -> Iterator[np.ndarray]:
    """Yield flat pieces of a contiguous array, so small that temporary arrays of a piece's size cost little memory."""
    flat = tensor.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        yield flat[start : start + _CHUNK]


def _check_shapes(checkpoint: Checkpoint, spec: ModelSpec) -> None:
    wrong = []
    for name, placement in tensor_names(spec).items():
        found = checkpoint.tensors[name].shape
        if found == placement.shape:
            continue
        if name in (spec.recipe.embedding, spec.recipe.lm_head) and found[1:] == placement.shape[1:]:
            raise InputError(
                f"{checkpoint.folder}: {name} has {found[0]:,} rows, config.json says vocab_size {spec.vocab_size:,} "
                "(a padded or resized vocabulary); set vocab_size to the number of rows, which changes no weight"
            )
        wrong.append(f"{name} (expected {_shape(placement.shape)}, found {_shape(found)})")
    if wrong:
        raise InputError(f"{checkpoint.folder}: shapes are not those config.json describes: {_few(wrong)}")


def _check_tied_head(checkpoint: Checkpoint, spec: ModelSpec) -> None:
    names = spec.recipe.lm_head, spec.recipe.embedding
    head, embedding = (checkpoint.tensors[name] for name in names)
    same = head.shape == embedding.shape and all(
        np.array_equal(a.astype(np.float32), b.astype(np.float32))
        for a, b in zip(*(chunks(checkpoint.read(name)) for name in names), strict=True)
    )
    if not same:
        raise InputError(
            f"{checkpoint.folder}: config.json says tie_word_embeddings is true, but {names[0]} is stored and differs "
            f"from {names[1]}; set tie_word_embeddings to false if the head was trained apart, or delete the tensor"
        )


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a scalar"
