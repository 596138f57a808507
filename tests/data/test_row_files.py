"""Rows out of JSON Lines, JSON arrays, Parquet and gzip; other formats are refused with the conversion."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from hcnr_jax.data import read_rows
from hcnr_jax.errors import InputError

ROWS = [
    {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}], "answerable": True},
    {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}], "answerable": False},
]


def lines() -> bytes:
    return "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def parquet(folder) -> bytes:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "made")
    return (folder / "made").read_bytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", lambda folder: lines()),
        ("rows.jsonl.gz", lambda folder: gzip.compress(lines())),
        ("rows.json", lambda folder: json.dumps(ROWS, indent=1).encode()),
        ("rows.parquet", parquet),
        ("rows", lambda folder: gzip.compress(parquet(folder))),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path, name, content) -> None:
    (tmp_path / name).write_bytes(content(tmp_path))
    rows = read_rows(tmp_path / name)
    assert [[dict(m) for m in row.messages] for row in rows] == [row["messages"] for row in ROWS]
    assert [row.answerable for row in rows] == [True, False] and [row.line for row in rows] == [1, 2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", b"prompt,completion\nWho?,Me.\n", r"found a table of text; convert it with: python -c"),
        ("rows.zip", b"PK\x03\x04xx", "found a ZIP archive; unpack it"),
        ("rows.jsonl.zst", b"\x28\xb5\x2f\xfdxx", "compressed with zstandard; unpack it first"),
        ("data.arrow", b"ARROW1\x00\x00", "found an Arrow file; write it as JSON Lines"),
        ("rows.jsonl.gz", gzip.compress(lines(), mtime=0)[:40], "the gzip file is damaged"),
        ("rows.parquet", b"PAR1 nothing PAR1", "the Parquet file cannot be read"),
        ("rows.json", b'[{"prompt": "a"', "begins like a JSON array and is none"),
        ("rows.jsonl", b"\x00\xff\xfe", "expected UTF-8 text, found byte 0xff"),
    ],
)
def test_other_formats_are_refused_with_what_to_do(tmp_path, name, content, message) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_rows(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
