"""Data: rows and their tokens, and the official benchmark files as questions."""

from hcnr_jax.data.choose import choose_rows, duplicate_warnings, overlap_warnings, refuse_same_file
from hcnr_jax.data.examples import Batch, Example, check_tokenizers, encode_rows, example_warnings, pad_examples
from hcnr_jax.data.rows import Row, parse_row, read_rows
from hcnr_jax.data.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "Batch",
    "Example",
    "Row",
    "Tokenizer",
    "check_tokenizers",
    "choose_rows",
    "duplicate_warnings",
    "encode_rows",
    "example_warnings",
    "load_tokenizer",
    "overlap_warnings",
    "pad_examples",
    "parse_row",
    "read_rows",
    "refuse_same_file",
]
