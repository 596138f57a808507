"""Divides rows of many lengths into microbatches of few shapes.

Padding costs arithmetic, and every shape costs a compilation. Honesty and task rows share the shapes, so that one
compiled program scores both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from hcnr_jax.data import Batch, Example, pad_examples
from hcnr_jax.models import ModelSpec

# Rows are padded to a multiple of this number, so that runs with similar rows compile the same programs.
LENGTH_STEP = 8
# Largest number of shapes.
MAX_SHAPES = 4
# Compilation of one more shape, as the arithmetic a device could do meanwhile: about 5 s at a host's 1e11 FLOP/s, 10 s
# at an accelerator's 2e14. These are constants, because the same rows must give the same microbatches.
SHAPE_FLOPS = {"cpu": 5e11}
ACCELERATOR_SHAPE_FLOPS = 2e15
# Tokens of one microbatch on a host: enough to keep its cores busy with matrix products, few enough to stay in cache.
HOST_TOKENS = 1024
# Share of an accelerator's free memory that one microbatch may take.
MEMORY_SHARE = 0.5


class Shape(NamedTuple):
    """Holds the shape of a microbatch: `rows` rows padded to `length` tokens."""

    length: int
    rows: int


class Part(NamedTuple):
    """Holds one microbatch, and the indices of the examples that are its first rows; all later rows are padding."""

    batch: Batch
    places: np.ndarray

    @property
    def weights(self) -> np.ndarray:
        """Return 1 for a row and 0 for padding, float32 (b,)."""
        return (np.arange(self.batch.tokens.shape[0]) < len(self.places)).astype(np.float32)


def choose_shapes(
    spec: ModelSpec, examples: Sequence[Example], flops_per_token: float, *, microbatch: int | None = None
) -> tuple[Shape, ...]:
    """Choose the shapes for these rows, shortest first. Every shape saves more arithmetic than it costs to compile.

    Args:
        spec: description of the model.
        examples: the rows, honesty and task rows together.
        flops_per_token: arithmetic of the run for one more token.
        microbatch: rows of a microbatch; None chooses the number from memory and lengths.
    """
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
    """Return how many positions hold the longest completion and the token before it. The head is needed only there.

    The number is a multiple of 8, so that runs with similar rows compile the same programs.
    """
    longest = max(len(example.tokens) - example.completion_start + 1 for example in examples)
    return -(-longest // LENGTH_STEP) * LENGTH_STEP


def count_rows(examples: Sequence[Example], shapes: Sequence[Shape]) -> tuple[int, ...]:
    """Count the rows that go into each shape."""
    bounds = zip((0, *(length for length, _ in shapes[:-1])), shapes, strict=True)
    lengths = [len(example.tokens) for example in examples]
    return tuple(sum(low < length <= shape.length for length in lengths) for low, shape in bounds)


def choose_lengths(lengths: Sequence[int], worth: float) -> tuple[int, ...]:
    """Choose increasing padded lengths that minimise padded tokens + `worth` tokens for each length.

    The minimum is exact, by dynamic programming over the distinct lengths u_1 < u_2 < ... and the number k of shapes:

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
    """Choose the rows of a microbatch: few enough for a host's cache, or for half of an accelerator's free memory.

    Args:
        spec: description of the model.
        length: padded tokens of a row.
        rows: number of rows of this length.
        window: positions whose logits are computed.
    """
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
        return max(1, min(rows, int(MEMORY_SHARE * free / row_bytes(spec, length, window))))
    return max(1, min(rows, HOST_TOKENS // length))


def row_bytes(spec: ModelSpec, length: int, window: int, *, streamed: bool = False) -> int:
    """Estimate the float32 bytes that one row needs in a rematerialised backward pass.

    They hold the inputs of every block, one block's activations, and the logits in `window`.

    Args:
        spec: description of the model.
        length: padded tokens of the row.
        window: positions whose logits are computed.
        streamed: whether block inputs are offloaded to the disk.
    """
    width = 8 * spec.hidden_size + 4 * spec.intermediate_size + 2 * spec.num_heads * length
    kept = 1 if streamed else spec.num_layers
    return 4 * (length * (kept * spec.hidden_size + width) + 3 * min(window, length) * spec.vocab_size)


def halved(shapes: Sequence[Shape], multiple: int = 1) -> tuple[Shape, ...]:
    """Return the shapes with half the rows, at least one row, rounded up to a multiple."""
    return rounded_up([Shape(length, -(-rows // 2)) for length, rows in shapes], multiple)


def rounded_up(shapes: Sequence[Shape], multiple: int) -> tuple[Shape, ...]:
    """Round the rows up to a multiple, because a mesh gives each of its row groups the same number of rows."""
    return tuple(Shape(length, -(-rows // multiple) * multiple) for length, rows in shapes)


def microbatches(examples: Sequence[Example], shapes: Sequence[Shape]) -> list[Part]:
    """Put every row into the shortest shape that holds it. Padding rows fill the last microbatch of a shape."""
    lower, parts = 0, []
    for length, rows in shapes:
        places = [i for i, example in enumerate(examples) if lower < len(example.tokens) <= length]
        for start in range(0, len(places), rows):
            chosen = places[start : start + rows]
            parts.append(Part(pad_examples([examples[i] for i in chosen], length, rows), np.asarray(chosen)))
        lower = length
    return parts


def padded_tokens(examples: Sequence[Example], shapes: Sequence[Shape]) -> int:
    """Count the tokens of all microbatches, padding included."""
    return sum(part.batch.tokens.size for part in microbatches(examples, shapes))
