"""The PyTorch side of the race reads the rows that ours reads."""

import pytest

from tests.examples.load import load_example
from tests.tiny import task_rows, write_rows, write_tiny_model


def test_a_separator_inside_a_row_ends_no_line(tmp_path) -> None:
    pytest.importorskip("torch")
    rows = [row | {"completion": f"{row['completion']} sky\u2028sky\u0085"} for row in task_rows(3)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    found = load_example("plain_pytorch").read_rows(write_tiny_model(tmp_path / "model"), path, 2)
    assert len(found) == 2 and all(len(ids) > start for ids, start in found)
