"""Read honesty and task data as batches: pytrees of arrays, whose examples are stacked along the first axis."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from hcnr_jax.errors import InputError

Batch = Any


def is_one_batch(data: Any) -> bool:
    """Return whether data is one batch; a list, a generator or another iterable holds several.

    >>> is_one_batch({"x": np.ones((2, 3))}), is_one_batch([np.ones((2, 3))]), is_one_batch(iter([]))
    (True, False, False)
    """

    def is_iterable(node: Any) -> bool:
        return isinstance(node, Iterable) and not (isinstance(node, tuple | Mapping) or hasattr(node, "shape"))

    return not isinstance(data, list) and all(hasattr(x, "shape") for x in jax.tree.leaves(data, is_leaf=is_iterable))


def read_batches(data: Any, name: str) -> Iterator[Batch]:
    """Yield every batch, checked.

    Args:
        data: one batch, or a list or another iterable of batches.
        name: of the argument, for messages.

    Raises:
        InputError: there is no batch, or a batch is not a pytree of arrays with one number of examples.

    >>> [batch["x"].shape for batch in read_batches({"x": np.ones((2, 3))}, "honesty")]
    [(2, 3)]
    """
    if not is_one_batch(data) and not isinstance(data, Iterable):
        raise InputError(f"{name}: expected a batch (a pytree of arrays) or an iterable of batches, got {type(data)}")
    empty = True
    for place, batch in enumerate([data] if is_one_batch(data) else data):
        check_batch(batch, f"{name}, batch {place}")
        empty = False
        yield batch
    if empty:
        raise InputError(f"{name}: expected at least one batch, found none. An iterator that was read before is empty")


def check_batch(batch: Batch, name: str) -> None:
    """Refuse a batch whose leaves are no arrays or differ in their number of examples.

    >>> check_batch({"x": np.ones((2, 3)), "y": np.ones(3)}, "honesty")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    hcnr_jax.errors.InputError: honesty: the arrays have 2 and 3 examples along their first axis...
    """
    leaves = jax.tree.leaves(batch)
    if not leaves or any(not hasattr(leaf, "shape") or leaf.ndim == 0 for leaf in leaves):
        found = ", ".join(sorted({str(getattr(leaf, "shape", type(leaf).__name__)) for leaf in leaves})) or "no leaf"
        raise InputError(f"{name}: expected arrays with examples along their first axis, found {found}")
    counts = sorted({int(leaf.shape[0]) for leaf in leaves})
    if len(counts) > 1 or counts[0] == 0:
        raise InputError(
            f"{name}: the arrays have {' and '.join(map(str, counts))} examples along their first axis, expected one "
            "number above 0. `loss` gets one example: stack examples, and wrap constants into the loss instead"
        )


def check_losses(losses: list[Any], name: str, model: str) -> np.ndarray:
    """Return the losses of all examples, and refuse losses that are not finite.

    Args:
        losses: (b,) of every batch.
        name: of the data.
        model: the name of the params.
    """
    found = np.concatenate([np.asarray(part, np.float64) for part in losses])
    bad = np.flatnonzero(~np.isfinite(found))
    if bad.size:
        raise InputError(
            f"{name}: the loss of example {bad[0]} at `{model}` is {found[bad[0]]} ({bad.size} of {found.size} "
            "examples are not finite); expected finite numbers. Check the example, its mask and the dtype"
        )
    return found
