"""Lines that are only added to: what any text comes back as, and what a kill leaves of them."""

import json
from pathlib import Path

import pytest

from hcnr_jax.runtime.append_log import AppendLog

# Each ends a line to `str.splitlines`, and none is escaped by json.dumps(ensure_ascii=False).
SEPARATORS = "a\u0085b\u2028c\u2029d"


def filled(path: Path) -> Path:
    lines = AppendLog(path)
    lines.open()
    for value in (SEPARATORS, float("inf")):
        lines.add({"text": value})
    lines.close()
    return path


def test_values_come_back_whatever_their_text(tmp_path: Path) -> None:
    found = AppendLog(filled(tmp_path / "deep" / "f.jsonl")).found
    assert found == [{"text": SEPARATORS}, {"text": float("inf")}]


def test_what_a_kill_cut_off_goes_when_the_file_is_opened(tmp_path: Path) -> None:
    path = filled(tmp_path / "f.jsonl")
    path.write_bytes(path.read_bytes()[:-3])
    before = path.read_bytes()
    lines = AppendLog(path)
    assert lines.found == [{"text": SEPARATORS}] and path.read_bytes() == before
    lines.open()
    lines.add({"text": "again"})
    lines.close()
    assert [json.loads(line)["text"] for line in path.read_text("utf-8").split("\n")[:-1]] == [SEPARATORS, "again"]


def test_numbers_that_json_has_not_can_be_refused(tmp_path: Path) -> None:
    lines = AppendLog(tmp_path / "f.jsonl")
    with pytest.raises(ValueError, match="inside its owner's `with` block"):
        lines.add({})
    lines.open()
    with pytest.raises(ValueError, match="JSON compliant"):
        lines.add({"value": float("nan")}, allow_nan=False)
    lines.close()
    assert (tmp_path / "f.jsonl").read_text() == ""


@pytest.mark.parametrize("raw", [b"no json\n", b'{"a": "\xe9"}\n'])
def test_other_files_are_left_alone(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "f").write_bytes(raw)
    with pytest.raises(ValueError):
        AppendLog(tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == raw
