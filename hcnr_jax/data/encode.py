"""Encodes rows as tokens with a completion mask, and pads them into batches.

A prompt/completion row becomes `tokenizer(prompt + completion)` with the tokenizer's default special tokens, then the
end token; the completion starts at position `len(tokenizer(prompt))` and takes in the end token. A chat row is
rendered with the tokenizer's chat template (see `chat`) and tokenised without further special tokens. Its completion
starts where the prompt that the model is asked ends. An end token is added only if the template left the last turn
open.

Special tokens are never doubled. An end token that the tokenizer adds itself is not counted as part of the prompt and
not added again. An end token written at the end of the completion is not added again. A begin token written at the
start of the prompt replaces the one that the tokenizer would add.

The last letters of the prompt and the first letters of the completion may join in one token. The prompt's tokens are
then no prefix of the whole row, and no position separates the two exactly. The rule above still holds, the example is
marked `merged`, and `example_warnings` reports it. A completion that starts with a space, after a prompt that does not
end with one, avoids such tokens. Masks come from lengths, never from ids, so that a pad token may equal the end token.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import jax
import numpy as np

from hcnr_jax.data.chat import chat_text
from hcnr_jax.data.rows import Row, read_rows
from hcnr_jax.data.sample import choose_rows
from hcnr_jax.data.tokenizer import (
    Added,
    Tokenizer,
    added_tokens,
    load_tokenizer,
    special_ids,
    token_ids,
    tokenizer_name,
)
from hcnr_jax.errors import InputError

__all__ = [
    "Batch",
    "Example",
    "Row",
    "check_tokenizers",
    "choose_rows",
    "encode_rows",
    "example_warnings",
    "load_tokenizer",
    "pad_examples",
    "read_rows",
]

LongRows = Literal["refuse", "drop", "cut"]
"""What happens to rows over the limit of tokens, see `fit_rows`."""

# Padded positions are masked. 0 is an id of every vocabulary; a tokenizer's pad id may lie outside the model's.
_PAD = 0


@dataclass(frozen=True)
class Example:
    """One row as tokens: the completion is `tokens[completion_start:]`; `cut` tokens over the limit were dropped.

    Args:
        tokens: ids of prompt, completion and end.
        completion_start: position of the first completion token.
        row: where they come from.
        merged: whether the prompt's tokens are not the first tokens of the whole row.
        cut: tokens over the limit that were dropped.
        header_in_completion: as in `chat.ChatText`.
        open_thinking: as in `chat.ChatText`.
    """

    tokens: tuple[int, ...]
    completion_start: int
    row: Row
    merged: bool = False
    cut: int = 0
    header_in_completion: bool = False
    open_thinking: bool = False


class Batch(NamedTuple):
    """A pytree of right-padded examples; both masks are False in a padding row.

    tokens: int32 [B, T]; attention_mask: bool [B, T]; completion_mask: bool [B, T], True where the token at t belongs
    to the completion.
    """

    tokens: np.ndarray | jax.Array
    attention_mask: np.ndarray | jax.Array
    completion_mask: np.ndarray | jax.Array


def encode_rows(
    rows: Sequence[Row],
    tokenizer: Tokenizer,
    max_length: int,
    *,
    max_positions: int | None = None,
    vocab_size: int | None = None,
) -> list[Example]:
    """Encode every row and cut it at the end to min(max_length, max_positions) tokens.

    Args:
        rows: the rows.
        tokenizer: the tokenizer, whose chat template renders chat rows.
        max_length: largest number of tokens of a row, from `--max-length`.
        max_positions: largest number of positions of the model; None is no limit.
        vocab_size: number of ids that the model embeds; None skips the check.

    Raises:
        InputError: a row has no completion token within the limit or an id without an embedding, or it needs a chat
            template or an end token that the tokenizer lacks. The message names the row.
    """
    limit = max_length if max_positions is None else min(max_length, max_positions)
    source = "--max-length" if limit == max_length else "the model's positions"
    added = added_tokens(tokenizer)
    return [_within(_encode(row, tokenizer, added), limit, source, vocab_size, tokenizer) for row in rows]


def _within(example: Example, limit: int, source: str, vocab_size: int | None, tokenizer: Tokenizer) -> Example:
    """Cut an example to the limit; InputError where no completion token is left, or an id has no embedding."""
    if example.completion_start >= limit:
        raise InputError(
            f"{example.row.where}: the prompt takes {example.completion_start} tokens and the limit is {limit} "
            f"({source}), so no completion token is left; shorten the prompt, raise --max-length where the model "
            "has the positions, remove the row, or give --long-rows drop"
        )
    _check_vocabulary(example, vocab_size, tokenizer)
    return _cut(example, limit)


def fit_rows(
    groups: Iterable[Sequence[Row]],
    tokenizer: Tokenizer,
    max_length: int,
    *,
    long_rows: LongRows = "refuse",
    count: int | None = None,
    max_positions: int | None = None,
    vocab_size: int | None = None,
) -> tuple[list[tuple[Example, ...]], list[str]]:
    """Encode rows as `encode_rows` does, and decide about rows that are longer than the limit.

    Args:
        groups: rows in order; those of one group, such as the two sides of a preference, stay or go together.
        tokenizer: the tokenizer, whose chat template renders chat rows.
        max_length: largest number of tokens of a row, from `--max-length`.
        long_rows: `refuse` cuts completions and refuses a row whose prompt fills the limit; `drop` leaves out every row
            over the limit; `cut` cuts completions and leaves out rows whose prompt fills the limit.
        count: stop at this number of groups; None encodes all.
        max_positions: largest number of positions of the model; None is no limit.
        vocab_size: number of ids that the model embeds; None skips the check.

    Returns:
        The examples of each kept group, and warnings that count what was left out.

    Raises:
        InputError: as `encode_rows`, or no group is left.
    """
    limit = max_length if max_positions is None else min(max_length, max_positions)
    source = "--max-length" if limit == max_length else "the model's positions"
    added = added_tokens(tokenizer)
    kept: list[tuple[Example, ...]] = []
    left_out: list[Row] = []
    for group in groups:
        if count is not None and len(kept) == count:
            break
        found = [_encode(row, tokenizer, added) for row in group]
        sizes = [len(example.tokens) if long_rows == "drop" else example.completion_start + 1 for example in found]
        if max(sizes) > limit and long_rows != "refuse":
            left_out.append(group[sizes.index(max(sizes))])
            continue
        kept.append(tuple(_within(example, limit, source, vocab_size, tokenizer) for example in found))
    if not left_out:
        return kept, []
    what = "are longer than" if long_rows == "drop" else "have a prompt that fills"
    counted = (
        f"{left_out[0].where}: {len(left_out)} of {len(kept) + len(left_out)} rows {what} the limit of {limit} tokens "
        f"and are left out (--long-rows {long_rows}; this is the first)"
    )
    if not kept:
        raise InputError(f"{counted}; no row is left: raise --max-length, where the model has the positions")
    return kept, [counted]


def _cut(example: Example, limit: int) -> Example:
    return replace(example, tokens=example.tokens[:limit], cut=max(len(example.tokens) - limit, 0))


def _encode(row: Row, tokenizer: Tokenizer, added: Added) -> Example:
    """Encode the whole row, without a cut."""
    if row.is_chat:
        return _encode_chat(row, tokenizer)
    if not row.completion:
        raise InputError(f"{row.where}: field `completion` is missing; add it or remove the row")
    end = _end_token(row, tokenizer)
    prompt = token_ids(tokenizer, row.prompt)
    prompt = prompt[: len(prompt) - len(added.after)]
    tokens = token_ids(tokenizer, row.prompt + row.completion)
    tokens = tokens if tokens[-1:] == (end,) else (*tokens, end)
    prompt, tokens = _single_begin(prompt, tokenizer), _single_begin(tokens, tokenizer)
    return Example(tokens, len(prompt), row, merged=tokens[: len(prompt)] != prompt)


def _encode_chat(row: Row, tokenizer: Tokenizer) -> Example:
    chat = chat_text(row, tokenizer)
    prompt, tokens = (token_ids(tokenizer, part, special=False) for part in (chat.prompt, chat.text))
    # The turn is closed where the last token, white space aside, is special. The end of a turn may differ from the
    # tokenizer's end token, as in Llama 3's base tokenizers.
    closing = token_ids(tokenizer, chat.text.rstrip(), special=False)
    if not closing or closing[-1] not in special_ids(tokenizer):
        tokens = (*tokens, _end_token(row, tokenizer))
    if len(tokens) <= len(prompt):
        raise InputError(
            f"{row.where}: the chat template of {tokenizer_name(tokenizer)} leaves no completion token behind the "
            f"prompt's {len(prompt)}; use a template that renders the assistant's answer"
        )
    return Example(
        tokens,
        len(prompt),
        row,
        merged=tokens[: len(prompt)] != prompt,
        header_in_completion=chat.header_in_completion,
        open_thinking=chat.open_thinking,
    )


def _end_token(row: Row, tokenizer: Tokenizer) -> int:
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"{row.where}: the completion must end with an end token, and the tokenizer in "
            f"{tokenizer_name(tokenizer)} names none; set eos_token in its tokenizer_config.json"
        )
    return int(tokenizer.eos_token_id)


def _single_begin(tokens: tuple[int, ...], tokenizer: Tokenizer) -> tuple[int, ...]:
    begin = tokenizer.bos_token_id
    return tokens[1:] if begin is not None and tokens[:2] == (begin, begin) else tokens


def _check_vocabulary(example: Example, vocab_size: int | None, tokenizer: Tokenizer) -> None:
    if vocab_size is not None and max(example.tokens) >= vocab_size:
        raise InputError(
            f"{example.row.where}: the tokenizer in {tokenizer_name(tokenizer)} gives id {max(example.tokens)}, the "
            f"model embeds {vocab_size} ids (0 to {vocab_size - 1}); use the tokenizer that belongs to the model"
        )


def pad_examples(examples: Sequence[Example], length: int | None = None, rows: int | None = None) -> Batch:
    """Pad the examples on the right into a NumPy batch of `rows` rows and `length` tokens (default: the longest).

    Batches of one shape share one compilation. Both masks are False in the rows that padding adds, so that any number
    of examples divides into microbatches and devices.

    Raises:
        ValueError: an example is longer than `length`, or there are more examples than `rows`, or no examples.
    """
    longest = max((len(example.tokens) for example in examples), default=0)
    length = longest if length is None else length
    rows = len(examples) if rows is None else rows
    if not examples:
        raise ValueError("pad_examples needs at least one example, got none")
    if longest > length or len(examples) > rows:
        raise ValueError(
            f"pad_examples got {len(examples)} examples of up to {longest} tokens, which do not fit {rows} rows of "
            f"{length}"
        )
    tokens = np.full((rows, length), _PAD, np.int32)
    sizes, starts = np.zeros((rows, 1), np.int32), np.zeros((rows, 1), np.int32)
    for index, example in enumerate(examples):
        tokens[index, : len(example.tokens)] = example.tokens
        sizes[index], starts[index] = len(example.tokens), example.completion_start
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    attention_mask = positions < sizes
    return Batch(tokens, attention_mask, attention_mask & (positions >= starts))


def example_warnings(examples: Sequence[Example]) -> list[str]:
    """Warn of tokens that join prompt and completion, and of cut rows; each warning names the first such row."""
    warnings = []
    merged = [example for example in examples if example.merged]
    if merged:
        warnings.append(
            f"{merged[0].row.where}: the prompt's tokens are not the first tokens of the whole row (so in "
            f"{len(merged)} of {len(examples)} rows), usually because letters on both sides of the boundary join in "
            "one token; the completion is counted from the prompt's length alone: end the prompt without a space "
            "and start the completion with one"
        )
    header = [example for example in examples if example.header_in_completion]
    if header:
        warnings.append(
            f"{header[0].row.where}: the chat template has no generation prompt, so that the header before the "
            f"assistant's answer counts as completion (in {len(header)} of {len(examples)} rows), and models are asked "
            "without it; use a template that writes the header where add_generation_prompt is true"
        )
    thinking = [example for example in examples if example.open_thinking]
    if thinking:
        warnings.append(
            f"{thinking[0].row.where}: the chat template's generation prompt opens <think> and the answer has no "
            f"</think> (so in {len(thinking)} of {len(examples)} rows): the answer counts as reasoning; write the "
            "answer behind </think>, or switch reasoning off with `chat_template_kwargs`"
        )
    cut = [example for example in examples if example.cut]
    if cut:
        warnings.append(
            f"{cut[0].row.where}: cut by {cut[0].cut} tokens at --max-length or the model's positions (so are "
            f"{len(cut)} of {len(examples)} rows); the end of the completion is not used"
        )
    return warnings


def check_vocabularies(tuned: Tokenizer, base: Tokenizer, rows: Sequence[Row]) -> list[str]:
    """Check that BASE's tokenizer gives the texts of all rows the same ids; chat template and end token may differ.

    The rows are rendered and closed as TUNED's tokenizer does it, for both models. Return a warning where BASE's would
    do it otherwise.

    Raises:
        InputError: a text has other ids; the message names the row.
    """
    tuned_added, base_added = added_tokens(tuned), added_tokens(base)
    differing: list[Row] = []
    for row in rows:
        text = chat_text(row, tuned).text if row.is_chat else row.prompt + row.completion
        ours, theirs = (token_ids(tokenizer, text, special=False) for tokenizer in (tuned, base))
        if ours != theirs:
            raise InputError(
                f"{row.where}: the tokenizer of the adapter ({tokenizer_name(tuned)}) gives its text {len(ours)} "
                f"tokens, BASE's ({tokenizer_name(base)}) {len(theirs)} or others; an adapter and its base must share "
                "the vocabulary: is it the right BASE?"
            )
        try:
            same = _encode(row, tuned, tuned_added).tokens == _encode(row, base, base_added).tokens
        except InputError:  # BASE has no template, or its template refuses the row
            same = False
        if not same:
            differing.append(row)
    if not differing:
        return []
    return [
        f"{differing[0].where}: the adapter's tokenizer ({tokenizer_name(tuned)}) has another chat template or end "
        f"token than BASE's ({tokenizer_name(base)}), which changes {len(differing)} of {len(rows)} rows; both models "
        "read the rows as the adapter's gives them"
    ]


def check_tokenizers(tuned: Tokenizer, base: Tokenizer, rows: Sequence[Row]) -> None:
    """Raise InputError at the first row to which BASE's tokenizer or chat template gives other ids than TUNED's."""
    tuned_added, base_added = added_tokens(tuned), added_tokens(base)
    for row in rows:
        ours, theirs = _encode(row, tuned, tuned_added), _encode(row, base, base_added)
        if (ours.tokens, ours.completion_start) == (theirs.tokens, theirs.completion_start):
            continue
        pairs = zip(ours.tokens, theirs.tokens, strict=False)
        shorter = min(len(ours.tokens), len(theirs.tokens))
        at = next((index for index, (one, other) in enumerate(pairs) if one != other), shorter)
        raise InputError(
            f"{row.where}: the tokenizer of TUNED ({tokenizer_name(tuned)}) gives {len(ours.tokens)} tokens with the "
            f"completion from {ours.completion_start}, BASE's ({tokenizer_name(base)}) {len(theirs.tokens)} from "
            f"{theirs.completion_start}, the first difference at position {at}; base and tuned must share tokenizer, "
            "special tokens and chat template: copy TUNED's tokenizer files into BASE if the vocabulary is the same"
        )
