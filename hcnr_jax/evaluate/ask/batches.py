"""Batches questions of many lengths in few shapes, so that a model compiles once a shape."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import jax

from hcnr_jax.errors import RunError
from hcnr_jax.models import ModelSpec

# Padded lengths: 1.5 apart, so that padding costs at most half as much again and a set needs three or four shapes.
_SHORTEST = 16
# Rows a host takes at once: enough to share the reading of the weights between rows, few enough to stay in cache.
_HOST_ROWS = 64
_DEVICE_ROWS = 256
_HOST_BYTES = 4e9
_MEMORY_SHARE = 0.5

Result = TypeVar("Result")


@dataclass(frozen=True)
class Events:
    """Holds the callbacks of a run; nothing in this package logs.

    advance: so many more questions of this part are done. output: one raw output, to be kept for a later run.
    smaller: device memory ran out, and batches now have so many rows.
    """

    advance: Callable[[str, int], None] = lambda part, count: None
    output: Callable[[str, str, object], None] = lambda part, key, value: None
    smaller: Callable[[int], None] = lambda rows: None


def padded_length(length: int) -> int:
    """Return the shortest padded length that holds `length` tokens: 16, 24, 32, 48, 64, 96, ..."""
    power = _SHORTEST
    while power < length:
        if power + power // 2 >= length:
            return power + power // 2
        power *= 2
    return power


def buckets(lengths: Sequence[int], rows: int) -> list[tuple[int, list[int]]]:
    """Group indices by padded length, in rising order; a group smaller than one batch joins the next longer one."""
    groups: dict[int, list[int]] = {}
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        groups.setdefault(padded_length(lengths[index]), []).append(index)
    merged: list[tuple[int, list[int]]] = []
    waiting: list[int] = []
    for place, (length, members) in enumerate(sorted(groups.items())):
        waiting += members
        if len(waiting) >= rows or place == len(groups) - 1:
            merged.append((length, waiting))
            waiting = []
    return merged


def rows_at_once(spec: ModelSpec, length: int, count: int) -> int:
    """Return the rows of a batch that fit into half of the free memory, within a fixed limit."""
    device = jax.devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    free = stats["bytes_limit"] - stats.get("bytes_in_use", 0) if stats and "bytes_limit" in stats else _HOST_BYTES
    limit = _HOST_ROWS if device.platform == "cpu" else _DEVICE_ROWS
    cache = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim
    work = 8 * spec.hidden_size + 4 * spec.intermediate_size + 2 * spec.num_heads * length + 3 * spec.vocab_size
    return max(1, min(limit, int(_MEMORY_SHARE * free / (4 * length * (cache + work))), count))


def run_batches(
    lengths: Sequence[int],
    rows: int,
    run: Callable[[list[int], int, int], Sequence[Result]],
    *,
    take: Callable[[list[int], Sequence[Result]], None],
    smaller: Callable[[int], None] = lambda rows: None,
) -> None:
    """Call `run(indices, padded length, rows)` on every batch and hand its results to `take`.

    `run` gives one result an index and pads its arrays to `rows` rows. Where device memory runs out the batches are
    halved, `smaller` is called, and the run goes on.

    Raises:
        RunError: memory does not hold one row, or the device failed in another way.
    """
    for length, members in buckets(lengths, rows):
        start = 0
        while start < len(members):
            part = members[start : start + rows]
            try:
                results = run(part, length, rows)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise RunError(f"the device failed: {' '.join(str(error).split())[:500]}") from error
                if rows == 1:
                    raise RunError(
                        f"device memory does not hold one prompt of {length} tokens: shorten the prompts, lower "
                        "--max-new-tokens, or use a larger device"
                    ) from error
                rows = -(-rows // 2)
                smaller(rows)
                continue
            take(part, results)
            start += len(part)
