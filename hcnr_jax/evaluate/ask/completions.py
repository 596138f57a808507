"""Generates greedy completions of prompts in batches, and cuts the answer out of each."""

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from hcnr_jax.data import Tokenizer
from hcnr_jax.evaluate.ask.batches import Events, rows_at_once, run_batches
from hcnr_jax.evaluate.ask.hidden_states import left_padded
from hcnr_jax.evaluate.judge.reasoning import TAGS, answer_of
from hcnr_jax.models import ModelSpec
from hcnr_jax.models.generate import generate

# Where a model goes on to ask itself the next question, its answer to this one is over.
STOPS = ("\nQuestion:", "\nQ:")

_MARK = "\u2400"  # a letter no model writes

Ids = tuple[int, ...]


@dataclass(frozen=True)
class LoadedModel:
    """Holds a model ready to be asked. Models of one spec, tokenizer vocabulary and dtype share every compilation.

    eos_ids: ids that end a completion. dtype: compute dtype.
    """

    spec: ModelSpec
    params: Any
    tokenizer: Tokenizer
    eos_ids: Ids
    dtype: DTypeLike = jnp.float32


def cut_text(text: str, is_chat: bool) -> str:
    """Cut a generated text to its answer: up to the next question, and one line unless the row is a chat.

    Finished reasoning before the answer is left out; unfinished reasoning is kept as it is.
    """
    answer = answer_of(text)
    if answer is None:
        return text.strip()
    text = answer
    for stop in STOPS:
        text = text.split(stop, 1)[0]
    text = text.strip()
    return text if is_chat else text.split("\n", 1)[0].strip()


def generate_ids(
    model: LoadedModel,
    prompts: Sequence[Ids],
    max_new_tokens: int,
    *,
    microbatch: int | None = None,
    take: Callable[[int, Ids], None] = lambda index, ids: None,
    events: Events | None = None,
) -> list[Ids]:
    """Generate the greedy continuation of each prompt, in prompt order, up to and with the end token.

    Args:
        model: loaded.
        prompts: token ids, unpadded.
        max_new_tokens: of a continuation.
        microbatch: rows a step; None chooses from the sizes.
        take: called with (index, ids) for every continuation when it is made, by rising prompt length.
        events: callbacks for progress.
    """
    events = events or Events()
    if not prompts:
        return []
    found: dict[int, Ids] = {}
    lengths = [len(prompt) for prompt in prompts]
    rows = microbatch or rows_at_once(model.spec, max(lengths) + max_new_tokens, len(prompts))

    def run(indices: list[int], length: int, count: int) -> list[Ids]:
        tokens, mask = left_padded([prompts[i] for i in indices], length, count)
        out = np.asarray(
            generate(
                model.spec,
                model.params,
                jnp.asarray(tokens),
                jnp.asarray(mask),
                max_new_tokens,
                model.eos_ids,
                0,
                model.dtype,
            )
        )
        return [up_to_end(row, model.eos_ids) for row in out[: len(indices)].tolist()]

    def accept(indices: list[int], rows_found: Sequence[Ids]) -> None:
        for index, ids in zip(indices, rows_found, strict=True):
            found[index] = ids
            take(index, ids)
        events.advance("completions", len(indices))

    run_batches(lengths, rows, run, take=accept, smaller=events.smaller)
    return [found[index] for index in range(len(prompts))]


def text_of(model: LoadedModel, ids: Ids) -> str:
    """Decode generated ids, without the end token and other special tokens except the tags of reasoning."""
    return decoded(model.tokenizer, model.eos_ids, ids)


def decoded(tokenizer: Tokenizer, eos_ids: Ids, ids: Ids) -> str:
    """Do what `text_of` does, without a loaded model."""
    kept = [i for i in ids if i not in eos_ids]
    tags = {number: tag for tag, number in tokenizer.get_added_vocab().items() if tag in TAGS}
    text, part = "", []
    for number in kept:
        if number not in tags:
            part.append(number)
            continue
        text, part = text + str(tokenizer.decode(part, skip_special_tokens=True)) + tags[number], []
    return text + str(tokenizer.decode(part, skip_special_tokens=True))


def kept_ids(model: LoadedModel, ids: Ids, is_chat: bool) -> Ids:
    """Cut generated ids after the token that completes the text that `cut_text` keeps."""
    whole = cut_text(text_of(model, ids), is_chat)

    def over(count: int) -> bool:
        """Tell whether the first `count` ids complete the kept text, so that a further letter would not change it."""
        return cut_text(text_of(model, ids[:count]) + _MARK, is_chat) == whole

    if not over(len(ids)):
        return ids
    return ids[: bisect.bisect_left(range(len(ids) + 1), True, key=over)]


def is_complete(model: LoadedModel, ids: Ids, is_chat: bool) -> bool:
    """Tell whether generated ids hold the whole answer: an end token, or more text than `cut_text` keeps."""
    if any(i in model.eos_ids for i in ids):
        return True
    text = text_of(model, ids)
    return cut_text(text + _MARK, is_chat) == cut_text(text, is_chat)


def up_to_end(row: Sequence[int], eos_ids: Ids) -> Ids:
    """Cut generated ids after the first end token."""
    ends = [place for place, token in enumerate(row) if token in eos_ids]
    return tuple(row[: ends[0] + 1] if ends else row)
