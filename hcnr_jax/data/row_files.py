"""Reads the values of a data file: JSON Lines, a JSON array or Parquet, any of them also compressed with gzip."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hcnr_jax.data.json_lines import decode_text, parse_json_lines, read_bytes
from hcnr_jax.errors import InputError

_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
# The first bytes of files that are no text -> what to do about them.
_OTHER = {
    b"PK\x03\x04": "a ZIP archive; unpack it and name the file inside",
    b"\x28\xb5\x2f\xfd": "a file compressed with zstandard; unpack it first (zstd -d FILE)",
    b"ARROW1": "an Arrow file; write it as JSON Lines: datasets.Dataset.from_file(FILE).to_json(NEW_FILE)",
    b"\xff\xff\xff\xff": "an Arrow stream of the datasets library; write it as JSON Lines: "
    "datasets.load_from_disk(FOLDER).to_json(NEW_FILE)",
}


def read_values(path: str | Path) -> Iterator[tuple[int, Any]]:
    """Yield (1-based line or row number, decoded value) for every record of a file.

    Raises:
        InputError: the file cannot be read or is of no supported format; the message names the conversion.
    """
    raw = read_bytes(path)
    if raw.startswith(_GZIP):
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path}: the gzip file is damaged ({error}); compress it again") from error
    if raw.startswith(_PARQUET):
        yield from enumerate(_parquet_rows(path, raw), start=1)
        return
    for start, kind in _OTHER.items():
        if raw.startswith(start):
            raise InputError(f"{path}: expected JSON Lines, a JSON array or Parquet, found {kind}")
    text = decode_text(raw, path)
    if text.lstrip().startswith("["):
        yield from enumerate(_array(path, text), start=1)
        return
    first = text.lstrip().split("\n", 1)[0]
    if not first.lstrip().startswith("{") and Path(path).suffix.lower() in (".csv", ".tsv"):
        raise InputError(
            f"{path}: expected JSON Lines, a JSON array or Parquet, found a table of text; convert it with: "
            f"python -c \"import datasets; datasets.Dataset.from_csv('{path}').to_json('{Path(path).stem}.jsonl')\""
        )
    yield from parse_json_lines(text, str(path))


def _parquet_rows(path: str | Path, raw: bytes) -> list[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        return list(pyarrow.parquet.read_table(io.BytesIO(raw)).to_pylist())
    except (pyarrow.ArrowException, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: the Parquet file cannot be read ({reason}); write it again") from error


def _array(path: str | Path, text: str) -> list[Any]:
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        where = f"line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else "too deep"
        raise InputError(
            f"{path}: it begins like a JSON array and is none ({error.args[0] if error.args else error}: {where}); "
            "write one complete object per line, or one whole array"
        ) from error
    return list(value)
