"""Rows are checked against each other: duplicates, rows in both sets, one file for both."""

from pathlib import Path

import pytest

from hcnr_jax.data import Row, duplicate_warnings, overlap_warnings, refuse_same_file
from hcnr_jax.errors import InputError
from tests.tiny import honesty_rows, task_rows, write_rows

ROWS = [Row("h.jsonl", line, f"q{line}", f" a{line}") for line in range(1, 11)]


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
