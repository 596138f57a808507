"""Rows of honesty and task data, their tokens, and the official benchmark files as questions."""

from hcnr_jax.data.benchmarks import BENCHMARKS, read_dataset
from hcnr_jax.data.encode import (
    Batch,
    Example,
    LongRows,
    check_tokenizers,
    check_vocabularies,
    encode_rows,
    example_warnings,
    fit_rows,
    pad_examples,
)
from hcnr_jax.data.preferences import parse_preference, read_preferences
from hcnr_jax.data.question_rows import REFUSALS, asking_rows, plain_prompt, question_text, to_rows, write_rows
from hcnr_jax.data.questions import Dataset, Question, Report, normalise_question
from hcnr_jax.data.row_checks import duplicate_warnings, overlap_warnings, refuse_same_file
from hcnr_jax.data.rows import Row, parse_row, read_rows
from hcnr_jax.data.sample import choose_rows
from hcnr_jax.data.splits import Split, split_questions
from hcnr_jax.data.tokenizer import Tokenizer, load_tokenizer, row_style

__all__ = [
    "BENCHMARKS",
    "REFUSALS",
    "Batch",
    "Dataset",
    "Example",
    "LongRows",
    "Question",
    "Report",
    "Row",
    "Split",
    "Tokenizer",
    "asking_rows",
    "check_tokenizers",
    "check_vocabularies",
    "choose_rows",
    "duplicate_warnings",
    "encode_rows",
    "example_warnings",
    "fit_rows",
    "load_tokenizer",
    "normalise_question",
    "overlap_warnings",
    "pad_examples",
    "parse_preference",
    "parse_row",
    "plain_prompt",
    "question_text",
    "read_dataset",
    "read_preferences",
    "read_rows",
    "refuse_same_file",
    "row_style",
    "split_questions",
    "to_rows",
    "write_rows",
]
