"""The choice of rows: seeded, counted, and warned about."""

from pathlib import Path

import numpy as np
import pytest

from hcnr_jax.data import Row, choose_rows, duplicate_warnings, overlap_warnings, refuse_same_file
from hcnr_jax.errors import InputError
from tests.tiny import honesty_rows, task_rows, write_rows

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
        choose_rows(ROWS, 11, 0, option)
    with pytest.raises(InputError, match=f"{option}: expected at least 1 row, got 0"):
        choose_rows(ROWS, 0, 0, option)


def test_duplicates_and_overlap_are_warnings_naming_lines() -> None:
    again = Row("t.jsonl", 20, "q2", " a2")
    messages = ({"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"})
    chat = [Row("h.jsonl", line, messages=messages) for line in (30, 31)]
    assert duplicate_warnings(ROWS) == [] and overlap_warnings(ROWS, [Row("t.jsonl", 1, "q2", " other")]) == []
    (warning,) = duplicate_warnings([*ROWS, again, *chat])
    assert warning.startswith("h.jsonl: 2 duplicate rows (line 20 repeats line 2; line 31 repeats line 30)")
    (warning,) = overlap_warnings(ROWS, [again])
    assert "h.jsonl and t.jsonl: 1 shared row (line 2 of the honesty data is line 20 of the task data)" in warning


def test_many_duplicates_are_counted_not_listed() -> None:
    (warning,) = duplicate_warnings([Row("h.jsonl", line, "q", "a") for line in range(1, 12)])
    assert "10 duplicate rows" in warning and "and 5 more" in warning


def test_one_file_for_both_is_refused_by_path_link_and_bytes(tmp_path: Path) -> None:
    honesty = write_rows(tmp_path / "h.jsonl", honesty_rows(3))
    task = write_rows(tmp_path / "t.jsonl", task_rows(3))
    refuse_same_file(honesty, task)
    link = tmp_path / "link.jsonl"
    link.symlink_to(honesty)
    copy = write_rows(tmp_path / "copy.jsonl", honesty_rows(3))
    for other, message in ((honesty, "both name"), (link, "both name"), (copy, "the same bytes")):
        with pytest.raises(InputError, match=message):
            refuse_same_file(honesty, other)
    refuse_same_file(honesty, tmp_path / "absent.jsonl")
