"""The seeded choice of the rows that a run uses."""

from collections.abc import Sequence

import numpy as np

from hcnr_jax.data.rows import Row
from hcnr_jax.errors import InputError


def choose_rows(rows: Sequence[Row], samples: int | None, seed: int | None, *, option: str = "--samples") -> list[Row]:
    """Choose the first `samples` rows after a seeded shuffle by NumPy's default generator.

    Args:
        rows: all rows, in file order.
        samples: how many rows to choose; None chooses all.
        seed: seed of the shuffle; None keeps file order.
        option: name of the option that asked for the rows, for messages.

    Raises:
        InputError: `samples` is not positive, or larger than the number of rows.
    """
    if samples is not None and samples < 1:
        raise InputError(f"{option}: expected at least 1 row, got {samples}")
    wanted = len(rows) if samples is None else samples
    if len(rows) < wanted:
        file = rows[0].file if rows else "the data"
        raise InputError(
            f"{file}: {option} asks for {wanted} rows, the file has {len(rows)}; "
            f"give it more rows or pass {option} {len(rows)}"
        )
    if seed is None:
        return list(rows[:wanted])
    order = np.random.default_rng(seed).permutation(len(rows))
    return [rows[index] for index in order[:wanted]]
