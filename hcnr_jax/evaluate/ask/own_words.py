"""Asks a model questions with and without an answer, and keeps what it says right in its own words.

A model's own refusals and answers are the honesty that a restoration can give back. A completion is kept where the
model declines a question without an answer, or answers one that has an answer correctly.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hcnr_jax.data import Question, Row, asking_rows, parse_row, to_rows
from hcnr_jax.data.splits import in_turn
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.ask.batches import Events, rows_at_once
from hcnr_jax.evaluate.ask.completions import LoadedModel, cut_text, generate_ids, is_complete, text_of
from hcnr_jax.evaluate.ask.prompts import Prompt, encode_prompts
from hcnr_jax.evaluate.judge.refusal import Verdict
from hcnr_jax.evaluate.score.metrics import contains_match
from hcnr_jax.evaluate.trait import HONESTY

LEAST_KEPT = 64
"""Completions of each label below which nothing is made: half of the 128 rows that a restoration reads by default."""

# The first round expects that two of three completions are kept; later rounds go by the rounds before.
_EXPECTED = (2, 3)
_SMALLEST_ROUND = 16
# Kept completions that are added in BASE's favour before its questions are given up as hopeless.
_BENEFIT = 5
_SENTENCES = re.compile(r"(.*[.!?][\"')\]]*)(?:\s|$)", re.DOTALL)


@dataclass(frozen=True)
class KindCount:
    """Counts the questions of one kind: asked, declined by the model, kept (marked right), and used in the rows."""

    kind: str
    answerable: bool
    asked: int
    declined: int
    kept: int
    used: int

    @property
    def left_out(self) -> int:
        """The questions that the model declined although they have an answer, answered although they have none, or
        answered wrongly."""
        return self.asked - self.kept


@dataclass(frozen=True)
class OwnWords:
    """Holds row values with the model's own completions, half of each label, and the counts of every kind.

    `values` are in a shape that `read_rows` reads. `missing` counts the rows that were wanted and could not be made.
    """

    values: tuple[dict[str, Any], ...]
    counts: tuple[KindCount, ...]
    missing: int = 0

    def rows(self, file: str = "built-in questions") -> list[Row]:
        """Parse the values as rows of `file`, for callers that need no file."""
        return [parse_row(value, file, line) for line, value in enumerate(self.values, start=1)]


@dataclass(frozen=True)
class _Said:
    """Holds one question's completion and its mark."""

    question: Question
    completion: str
    declined: bool
    kept: bool


def answer_in_own_words(
    model: LoadedModel,
    questions: Sequence[Question],
    samples: int,
    *,
    style: Literal["plain", "chat"],
    system: str | None = None,
    seed: int = 0,
    max_new_tokens: int = 64,
    microbatch: int | None = None,
    least: int = LEAST_KEPT,
    events: Events | None = None,
    expect: Callable[[int], None] = lambda total: None,
) -> OwnWords:
    """Ask questions in rounds until enough completions are kept, and return these as rows, half of each label.

    Questions are drawn evenly over the kinds of each label. Where the questions run out, there are fewer rows, still
    half of each label, and `missing` counts the rest.

    Args:
        model: the aligned model (BASE), loaded.
        questions: with an `id` of their own, and `answers` where answerable.
        samples: number of rows wanted; an odd number has one more unanswerable.
        style: format of the rows and hence of the prompts.
        system: text of a system message; None writes none.
        seed: seed of the draw and of the rows' order.
        max_new_tokens: of a completion. A longer completion is cut after its last whole sentence.
        microbatch: questions asked at once; None chooses from the sizes.
        least: completions of each label that are needed, or half of `samples` if that is less.
        events: callbacks for progress.
        expect: called before each round with the number of questions asked at its end.

    Raises:
        InputError: the model declines, or answers correctly, fewer than `least` questions; or a prompt is too long.
        ValueError: two questions have one id.
    """
    if len({item.id for item in questions}) < len(questions):
        raise ValueError("questions: expected an id of its own for each, found one id twice")
    wanted = {False: samples - samples // 2, True: samples // 2}
    prompts = _prompts(model, questions, style, system, max_new_tokens)
    order = np.random.default_rng(seed).permutation(len(questions))
    shuffled = in_turn([questions[index] for index in order])
    waiting = {label: [item for item in shuffled if item.answerable == label] for label in (False, True)}
    said: dict[bool, list[_Said]] = {False: [], True: []}
    rows = microbatch
    while True:
        asked = [
            item
            for label in (False, True)
            for item in waiting[label][: _round_size(said[label], wanted[label], len(waiting[label]))]
        ]
        if not asked:
            break
        taken = {item.id for item in asked}
        waiting = {label: [item for item in left if item.id not in taken] for label, left in waiting.items()}
        expect(sum(map(len, said.values())) + len(asked))
        chosen = [prompts[item.id] for item in asked]
        # One size for all rounds: the program is compiled for it once.
        rows = rows or rows_at_once(model.spec, max(len(p.tokens) for p in chosen) + max_new_tokens, len(chosen))
        texts = own_texts(model, chosen, max_new_tokens, microbatch=rows, events=events)
        for item, text in zip(asked, texts, strict=True):
            said[item.answerable].append(_mark(item, text))
        if any(_is_hopeless(said[label], min(least, wanted[label]), len(waiting[label])) for label in said):
            break
    _check_enough(said, wanted, least)
    return _collect(said, wanted, style=style, system=system, seed=seed)


def own_texts(
    model: LoadedModel,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    *,
    microbatch: int | None = None,
    events: Events | None = None,
) -> list[str]:
    """Generate the greedy completion of each prompt, without reasoning, in whole sentences where it was cut off.

    Args:
        model: loaded.
        prompts: the questions as they are asked.
        max_new_tokens: of a completion.
        microbatch: prompts asked at once; None chooses from the sizes.
        events: callbacks for progress.
    """
    found = generate_ids(
        model, [prompt.tokens for prompt in prompts], max_new_tokens, microbatch=microbatch, events=events
    )
    texts = []
    for prompt, ids in zip(prompts, found, strict=True):
        text = cut_text(text_of(model, ids), prompt.row.is_chat)
        texts.append(text if is_complete(model, ids, prompt.row.is_chat) else whole_sentences(text))
    return texts


def whole_sentences(text: str) -> str:
    """Return a text up to its last whole sentence; empty where it has none.

    >>> whole_sentences("I don't know. There is no such coun")
    "I don't know."
    """
    found = _SENTENCES.match(text)
    return found[1] if found else ""


def _prompts(
    model: LoadedModel,
    questions: Sequence[Question],
    style: Literal["plain", "chat"],
    system: str | None,
    max_new_tokens: int,
) -> Mapping[str, Prompt]:
    """Encode every question as a prompt, by the question's id."""
    prompts = encode_prompts(
        HONESTY.name,
        "own words",
        asking_rows(questions, style, system=system),
        tokenizer=model.tokenizer,
        vocab_size=model.spec.vocab_size,
        max_tokens=model.spec.max_positions - max_new_tokens,
    )
    return {item.id: prompt for item, prompt in zip(questions, prompts, strict=True)}


def _round_size(said: Sequence[_Said], wanted: int, left: int) -> int:
    """Return how many questions to ask next, by the share of completions that was kept so far."""
    kept = sum(item.kept for item in said)
    if kept >= wanted:
        return 0
    share = (kept + _EXPECTED[0]) / (len(said) + _EXPECTED[1])
    return min(left, max(_SMALLEST_ROUND, math.ceil((wanted - kept) / share)))


def _is_hopeless(said: Sequence[_Said], needed: int, left: int) -> bool:
    """Return whether the questions that are left cannot give the rows needed, at a far larger share than so far."""
    kept = sum(item.kept for item in said)
    return kept + left * (kept + _BENEFIT) / (len(said) + _BENEFIT) < needed


def _mark(question: Question, completion: str) -> _Said:
    """Mark a completion as `hcnr evaluate` does, with an answer anywhere in the text."""
    verdict = HONESTY.detect(completion, question.question).verdict
    declined = verdict is Verdict.REFUSED
    right = verdict is Verdict.ANSWERED and contains_match(completion, question.answers)
    return _Said(question, completion, declined, right if question.answerable else declined)


def _check_enough(said: Mapping[bool, Sequence[_Said]], wanted: Mapping[bool, int], least: int) -> None:
    """Raise InputError where the kept completions of a label are too few."""
    kept = {label: sum(item.kept for item in items) for label, items in said.items()}
    needed = {label: min(least, wanted[label]) for label in wanted}
    if kept[False] < needed[False]:
        raise InputError(
            f"BASE declines {kept[False]} of {len(said[False])} questions that have no answer; {needed[False]} are "
            "needed. There is little honesty to restore in BASE, because its own refusals are too few. Use a BASE "
            "that declines such questions (often the instruct version), or honesty rows of your own with refusals. "
            f"Declined of each kind: {_shares(said[False])}"
        )
    if kept[True] < needed[True]:
        declined = sum(item.declined for item in said[True])
        raise InputError(
            f"BASE answers {kept[True]} of {len(said[True])} questions that have an answer correctly and declines "
            f"{declined}; {needed[True]} correct answers are needed. Use a BASE that knows more, or honesty rows of "
            f"your own with answers. Correct of each kind: {_shares(said[True])}"
        )


def _shares(said: Sequence[_Said]) -> str:
    """Write the kept questions of each kind: "future 3 of 54, ..."."""
    asked = Counter(str(item.question.kind) for item in said)
    kept = Counter(str(item.question.kind) for item in said if item.kept)
    return ", ".join(f"{kind} {kept[kind]} of {asked[kind]}" for kind in sorted(asked))


def _collect(
    said: Mapping[bool, Sequence[_Said]],
    wanted: Mapping[bool, int],
    *,
    style: Literal["plain", "chat"],
    system: str | None,
    seed: int,
) -> OwnWords:
    """Take as many kept completions of each label as balance allows, the kinds in turn, and shuffle them."""
    completions = {item.question.id: item.completion for items in said.values() for item in items}
    kept = {label: [item.question for item in items if item.kept] for label, items in said.items()}
    counts = {label: min(wanted[label], len(kept[label])) for label in kept}
    if any(counts[label] < wanted[label] for label in counts):
        counts = dict.fromkeys(counts, min(counts.values()))
    used = [item for label, items in kept.items() for item in in_turn(items)[: counts[label]]]
    shuffled = [used[index] for index in np.random.default_rng(seed).permutation(len(used))]
    values = to_rows(shuffled, style, system=system, completions=False)
    return OwnWords(
        tuple(_with_completion(value, completions[item.id]) for value, item in zip(values, shuffled, strict=True)),
        _counts(said, used),
        sum(wanted.values()) - len(used),
    )


def _with_completion(value: Mapping[str, Any], completion: str) -> dict[str, Any]:
    """Add a completion to a row that only asks: behind its prompt after a blank, or as the assistant's message."""
    if "messages" in value:
        answer = {"role": "assistant", "content": completion.strip()}
        return {**value, "messages": [*value["messages"], answer]}
    return {"prompt": value["prompt"], "completion": f" {completion.strip()}", **value}


def _counts(said: Mapping[bool, Sequence[_Said]], used: Sequence[Question]) -> tuple[KindCount, ...]:
    """Count every kind, the unanswerable ones first, in alphabetical order."""
    in_rows = Counter(item.kind for item in used)
    counts = []
    for label, items in said.items():
        for kind in sorted({str(item.question.kind) for item in items}):
            of_kind = [item for item in items if str(item.question.kind) == kind]
            declined, kept = sum(item.declined for item in of_kind), sum(item.kept for item in of_kind)
            counts.append(KindCount(kind, label, len(of_kind), declined, kept, in_rows[kind]))
    return tuple(counts)
