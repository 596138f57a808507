"""Finds the rows of a data file that a restoration does not read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hcnr_jax.data import (
    Example,
    Row,
    Tokenizer,
    choose_rows,
    encode_rows,
    fit_rows,
    load_tokenizer,
    normalise_question,
    read_rows,
)
from hcnr_jax.evaluate.ask.prompts import Prompt, encode_prompts, is_answerable, question_of
from hcnr_jax.restoration.inputs import RunInputs

# Least number of held-out rows of each file: with fewer rows, chance decides.
LEAST = 16
# Rows of each file that judge the steps of --refine.
JUDGES = 64
# Tokens that a completion may be longer than the longest completion of the scored rows.
SPARE = 4


def held_out(rows: Sequence[Row], scored: Sequence[Row], seed: int | None) -> list[Row]:
    """Return the rows that are not scored, without repeated questions, in the order of the shuffle of `--samples`."""
    seen = {normalise_question(question_of(row)) for row in scored}
    found = []
    for row in choose_rows(rows, None, seed):
        text = normalise_question(question_of(row))
        if text not in seen:
            seen.add(text)
            found.append(row)
    return found


def judging_examples(inputs: RunInputs, role: str) -> list[Example]:
    """Return rows of one file that are not scored and no longer than the longest scored row.

    They are at most `JUDGES` and at most half of the rows that are not scored, so that the other half can measure the
    result. There is none if that is fewer than `LEAST`.

    Args:
        inputs: the opened models and the scored rows.
        role: `honesty` or `task`.
    """
    config, scored = inputs.config, [*inputs.honesty, *inputs.task]
    path = config.honesty if role == "honesty" else config.task
    rows = held_out(read_rows(path), [example.row for example in scored], config.seed)
    count = min(JUDGES, len(rows) // 2)
    if count < LEAST:
        return []
    kept, _ = fit_rows(
        [(row,) for row in rows],
        load_tokenizer(inputs.tuned.tokenizer_folder),
        max(len(example.tokens) for example in scored),
        long_rows="drop",
        count=count,
        max_positions=inputs.spec.max_positions,
        vocab_size=inputs.spec.vocab_size,
    )
    return [example for (example,) in kept] if len(kept) >= LEAST else []


def held_out_prompts(inputs: RunInputs, role: str, *, avoid: Sequence[Row] = ()) -> list[Prompt]:
    """Return the questions of one file that are not scored, in the order of the shuffle of `--samples`.

    Args:
        inputs: the opened models and the scored rows.
        role: `honesty` or `task`.
        avoid: further rows whose questions are left out.
    """
    config, spec = inputs.config, inputs.spec
    tokenizer = load_tokenizer(inputs.tuned.tokenizer_folder)
    room = spec.max_positions - longest_answer(inputs)
    path, label = (config.honesty, _honesty) if role == "honesty" else (config.task, _task)
    scored = [example.row for example in [*inputs.honesty, *inputs.task]]
    rows = held_out(read_rows(path), [*scored, *avoid], config.seed)
    examples = encode_rows(rows, tokenizer, spec.max_positions, max_positions=None, vocab_size=spec.vocab_size)
    labelled = [label(item.row) for item in examples if item.completion_start <= room]
    return encode_prompts(role, role, labelled, tokenizer=tokenizer, vocab_size=spec.vocab_size, max_tokens=room)


def examples_of(inputs: RunInputs, prompts: Sequence[Prompt], tokenizer: Tokenizer) -> list[Example]:
    """Encode the rows of prompts with their completions, as far as they are no longer than the longest scored row."""
    rows, spec = [prompt.row for prompt in prompts], inputs.spec
    examples = encode_rows(rows, tokenizer, spec.max_positions, max_positions=None, vocab_size=spec.vocab_size)
    longest = max(len(example.tokens) for example in [*inputs.honesty, *inputs.task])
    return [example for example in examples if len(example.tokens) <= longest]


def longest_answer(inputs: RunInputs) -> int:
    """Return the number of tokens that a completion may have: a few more than the longest completion scored."""
    return max(len(item.tokens) - item.completion_start for item in [*inputs.honesty, *inputs.task]) + SPARE


def _honesty(row: Row) -> Row:
    return replace(row, answerable=is_answerable(row))


def _task(row: Row) -> Row:
    """Use a row's completion as its gold answer where the row has no gold answers."""
    return row if row.answers or row.correct is not None else replace(row, answers=(_said(row).strip(),))


def _said(row: Row) -> str:
    return str(row.messages[-1]["content"]) if row.is_chat else row.completion
