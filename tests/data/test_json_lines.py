"""Text files in and out: what is refused, with which words, and that a write is whole or absent."""

import json
from pathlib import Path

import pytest

from hcnr_jax.data.json_lines import describe, parse_json_lines, read_text, to_json_lines
from hcnr_jax.errors import InputError
from hcnr_jax.runtime.files import write_new_text


def test_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": "\xe2\x80\xa8"}\r\n\r\n')
    assert list(parse_json_lines(read_text(path), "rows.jsonl")) == [(1, {"a": 1}), (3, {"a": "\u2028"})]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "expected data, found an empty file"),
        (b"\xef\xbb\xbf \r\n\n", "expected data, found an empty file"),
        (b'{"a": 1}\n{"a": "\xe9"}\n', "line 2: expected UTF-8 text, found byte 0xe9 at offset 16"),
        (b"\xff\xfe{\x00", "line 1: expected UTF-8 text, found byte 0xff at offset 0"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "found a Git-LFS pointer"),
    ],
)
def test_unreadable_text_is_refused_by_name(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(raw)
    with pytest.raises(InputError) as error:
        read_text(path)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file; check the path"):
        read_text(tmp_path / "absent.jsonl")
    with pytest.raises(InputError, match="found a folder"):
        read_text(tmp_path)


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ('{"a": 1}\n\n{"a": \n', 3, "column"),
        ('{"a": 1} {"a": 2}\n', 1, "Extra data at column 10"),
        ("[" * 200_000, 1, ""),
    ],
)
def test_malformed_line_is_numbered(text: str, line: int, reason: str) -> None:
    with pytest.raises(InputError, match=f"^x.jsonl, line {line}: expected one JSON object") as error:
        list(parse_json_lines(text, "x.jsonl"))
    assert reason in str(error.value)


def test_rows_written_as_json_lines_are_read_back(tmp_path: Path) -> None:
    rows = [{"prompt": "Où ?\u2028", "completion": " ici"}, {"prompt": "b", "completion": "c"}]
    path = tmp_path / "rows.jsonl"
    write_new_text(path, to_json_lines(rows))
    assert [value for _, value in parse_json_lines(read_text(path), "x")] == rows
    assert json.loads(path.read_text(encoding="utf-8").split("\n")[1]) == rows[1]


def test_describe_names_the_type_and_cuts_long_text() -> None:
    assert describe(None) == "null"
    assert describe(True) == "a boolean true"
    assert describe(3) == "an integer 3"
    assert describe("é") == 'text "é"'
    assert describe("x" * 500).endswith("...") and len(describe("x" * 500)) < 80
