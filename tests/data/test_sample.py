"""The seeded choice of rows, and the refusal of too few."""

import numpy as np
import pytest

from hcnr_jax.data import Row, choose_rows
from hcnr_jax.errors import InputError

ROWS = [Row("h.jsonl", line, f"q{line}", f" a{line}") for line in range(1, 11)]


def test_no_seed_keeps_file_order_and_a_seed_shuffles() -> None:
    assert choose_rows(ROWS, 4, None) == ROWS[:4]
    order = np.random.default_rng(3).permutation(10)
    assert choose_rows(ROWS, 4, 3) == [ROWS[i] for i in order[:4]]
    assert choose_rows(ROWS, 4, 3) == choose_rows(ROWS, 10, 3)[:4]
    assert choose_rows(ROWS, 10, 0) != choose_rows(ROWS, 10, 1)
    assert sorted(choose_rows(ROWS, None, 0), key=lambda row: row.line) == ROWS


@pytest.mark.parametrize("option", ["--samples", "--honesty-samples", "--task-samples"])
def test_too_few_rows_are_refused_with_counts_and_option(option: str) -> None:
    with pytest.raises(InputError, match=rf"^h.jsonl: {option} asks for 11 rows, the file has 10; .* {option} 10$"):
        choose_rows(ROWS, 11, 0, option=option)
    with pytest.raises(InputError, match=f"{option}: expected at least 1 row, got 0"):
        choose_rows(ROWS, 0, 0, option=option)
