"""Rows of many lengths as microbatches of few shapes: padding is paid for in arithmetic, every shape in compilation.

Honesty and task rows share the shapes, so that one compiled program scores both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from hcnr_jax.data import Batch, Example, pad_examples
from hcnr_jax.models import ModelSpec

# Rows are padded to a multiple of this, so that runs of like data compile alike.
LENGTH_STEP = 8
# Shapes at most, whatever they would save.
MAX_SHAPES = 4
# What one more shape costs in compilation, as the arithmetic a device does meanwhile: about 5 s of a host's 1e11
# FLOP/s, 10 s of an accelerator's 2e14. Constants, not measurements: the same rows must give the same batches.
SHAPE_FLOPS = {"cpu": 5e11}
ACCELERATOR_SHAPE_FLOPS = 2e15
# Tokens of one microbatch on a host: enough to keep its cores in matrix products, few enough to stay in cache.
HOST_TOKENS = 1024
# Share of an accelerator's free memory that one microbatch may take.
MEMORY_SHARE = 0.5


class Shape(NamedTuple):
    """A microbatch: `rows` rows padded to `length` tokens."""

    length: int
    rows: int


class Part(NamedTuple):
    """One microbatch and which examples its first rows are; the rows after those are padding."""

    batch: Batch
    places: np.ndarray

    @property
    def weights(self) -> np.ndarray:
        """1 for a row, 0 for padding; float32 (b,)."""
        return (np.arange(self.batch.tokens.shape[0]) < len(self.places)).astype(np.float32)


def choose_shapes(
    spec: ModelSpec, examples: Sequence[Example], flops_per_token: float, *, microbatch: int | None = None
) -> tuple[Shape, ...]:
    """The shapes for these rows, shortest first: as many as save more arithmetic than they cost to compile."""
    lengths = [len(example.tokens) for example in examples]
    platform = jax.default_backend()
    worth = SHAPE_FLOPS.get(platform, ACCELERATOR_SHAPE_FLOPS) / flops_per_token
    window = loss_window(examples)
    shapes = tuple(Shape(length, 0) for length in choose_lengths(lengths, worth))
    return tuple(
        Shape(length, microbatch or choose_microbatch(spec, length, count, window=window))
        for (length, _), count in zip(shapes, count_rows(examples, shapes), strict=True)
    )


def loss_window(examples: Sequence[Example]) -> int:
    """Positions that hold any row's completion and the token before it: where the head is needed. A multiple of 8, so
    that like data compile alike."""
    longest = max(len(example.tokens) - example.completion_start + 1 for example in examples)
    return -(-longest // LENGTH_STEP) * LENGTH_STEP


def count_rows(examples: Sequence[Example], shapes: Sequence[Shape]) -> tuple[int, ...]:
    """How many rows go into each shape."""
    bounds = zip((0, *(length for length, _ in shapes[:-1])), shapes, strict=True)
    lengths = [len(example.tokens) for example in examples]
    return tuple(sum(low < length <= shape.length for length in lengths) for low, shape in bounds)


def choose_lengths(lengths: Sequence[int], worth: float) -> tuple[int, ...]:
    """Padded lengths, rising, that minimise padded tokens + `worth` tokens for each length; exact, by recurrence.

    best(j, k) = min over i < j of best(i, k - 1) + u_j * (rows with u_i < length <= u_j) + worth
    """
    counts = Counter(-(-length // LENGTH_STEP) * LENGTH_STEP for length in lengths)
    distinct = sorted(counts)
    total = np.concatenate([[0], np.cumsum([counts[length] for length in distinct])])
    best: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {(0, 0): (0.0, ())}
    for k in range(1, min(MAX_SHAPES, len(distinct)) + 1):
        for j in range(1, len(distinct) + 1):
            options = [
                (best[i, k - 1][0] + distinct[j - 1] * float(total[j] - total[i]) + worth, best[i, k - 1][1])
                for i in range(j)
                if (i, k - 1) in best
            ]
            if options:
                cost, cuts = min(options)
                best[j, k] = cost, (*cuts, distinct[j - 1])
    return min(value for (j, _), value in best.items() if j == len(distinct))[1]


def choose_microbatch(spec: ModelSpec, length: int, rows: int, *, window: int) -> int:
    """Rows per step: on a host a few cache-friendly ones, on an accelerator what half its free memory takes."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
        return max(1, min(rows, int(MEMORY_SHARE * free / row_bytes(spec, length, window))))
    return max(1, min(rows, HOST_TOKENS // length))


def row_bytes(spec: ModelSpec, length: int, window: int, *, streamed: bool = False) -> int:
    """Float32 bytes one row needs in a rematerialised backward pass: block inputs (on the disk where streamed), one
    block's activations, logits where the loss reads them."""
    width = 8 * spec.hidden_size + 4 * spec.intermediate_size + 2 * spec.num_heads * length
    kept = 1 if streamed else spec.num_layers
    return 4 * (length * (kept * spec.hidden_size + width) + 3 * min(window, length) * spec.vocab_size)


def halved(shapes: Sequence[Shape], multiple: int = 1) -> tuple[Shape, ...]:
    """The same with half the rows, at least one."""
    return rounded_up([Shape(length, -(-rows // 2)) for length, rows in shapes], multiple)


def rounded_up(shapes: Sequence[Shape], multiple: int) -> tuple[Shape, ...]:
    """Rows raised to a multiple: a mesh gives each of its row groups as many."""
    return tuple(Shape(length, -(-rows // multiple) * multiple) for length, rows in shapes)


def microbatches(examples: Sequence[Example], shapes: Sequence[Shape]) -> list[Part]:
    """The rows in the shortest shape that holds them; the last microbatch of a shape is filled with padding rows."""
    lower, parts = 0, []
    for length, rows in shapes:
        places = [i for i, example in enumerate(examples) if lower < len(example.tokens) <= length]
        for start in range(0, len(places), rows):
            chosen = places[start : start + rows]
            parts.append(Part(pad_examples([examples[i] for i in chosen], length, rows), np.asarray(chosen)))
        lower = length
    return parts


def padded_tokens(examples: Sequence[Example], shapes: Sequence[Shape]) -> int:
    """Tokens of all microbatches, padding included."""
    return sum(part.batch.tokens.size for part in microbatches(examples, shapes))
