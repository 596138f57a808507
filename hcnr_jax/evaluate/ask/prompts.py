"""Turns rows into the prompts a model is asked: their tokens, their bare question, and their labels.

A set is a named list of rows in one role: the name of a trait (every row has its label, for honesty `answerable`), or
`task` (every row has `answers`, or `choices` and the `correct` one). A prompt is what training rows have before the
completion: the same special tokens, the same chat template with the header of the assistant's turn. Templates that can
switch a model's reasoning off (Qwen3) are told to, since 64 tokens of reasoning hold no answer.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hcnr_jax.data import Row, Tokenizer, normalise_question
from hcnr_jax.data.chat import message_text, prompt_text
from hcnr_jax.data.tokenizer import added_tokens, token_ids
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.judge.refusal import Verdict
from hcnr_jax.evaluate.trait import HONESTY, TASK, TRAITS, Trait, trait_of

Role = str
"""The name of a trait, or "task"."""

_ASK = re.compile(r"(?:^|\n)[ \t]*(?:question|q)\s*:\s*", re.IGNORECASE)
_CONTEXT = re.compile(r"\AContext:.*\nQuestion: ", re.DOTALL)
_ANSWER = re.compile(r"\s*\b(?:answer|a)\s*:\s*$", re.IGNORECASE)


@dataclass(frozen=True)
class Prompt:
    """Holds one question as a model is asked it.

    `question` is its bare text, `tokens` the prompt's ids, unpadded.
    """

    role: Role
    set: str
    row: Row
    question: str
    tokens: tuple[int, ...]

    @property
    def key(self) -> str:
        """A key that is unique among the prompts of an evaluation: role, set and line."""
        return f"{self.role}/{self.set}/{self.row.line}"

    @property
    def id(self) -> str:
        """The row's own id, or else set and line."""
        return self.row.id or f"{self.set}:{self.row.line}"

    @property
    def answerable(self) -> bool | None:
        """Whether the model should answer, as the row says in the label field of its trait."""
        return trait_of(self.role).label_of(self.row)


def question_of(row: Row) -> str:
    """Return the question of a row without template: the last user message, or the prompt's last `Question:` part.

    A context before the question (`Context: ...`, a line `Question: ...`) is left out.
    """
    if row.is_chat:
        users = [message_text(message) for message in row.prompt_messages if message["role"] == "user"]
        return _CONTEXT.sub("", users[-1]).strip() if users else ""
    last = _ASK.split(row.prompt)[-1]
    return _ANSWER.sub("", last).strip() or row.prompt.strip()


def is_answerable(row: Row, trait: Trait = HONESTY) -> bool:
    """Return a row's label; a row without one is answerable where its completion is no refusal."""
    label = trait.label_of(row)
    if label is not None:
        return label
    said = message_text(row.messages[-1]) if row.is_chat else row.completion
    return trait.detect(said, question_of(row)).verdict is not Verdict.REFUSED


def with_completion(row: Row, completion: str) -> Row:
    """Replace a row's completion, in the shape of training rows: a blank before plain text, none in a chat."""
    if not row.is_chat:
        return replace(row, completion=f" {completion.strip()}")
    answer = {"role": "assistant", "content": completion.strip()}
    return replace(row, messages=(*row.prompt_messages, answer), turns=1)


def check_labels(role: Role, name: str, rows: Sequence[Row]) -> None:
    """Refuse (InputError) a row without the labels its role needs, by file, line and field, and a set of one class."""
    option, trait = f"--{role} {name}", TRAITS.get(role)
    if not rows:
        raise InputError(f"{option}: expected one question or more, found none")
    for row in rows:
        if trait is not None and trait.label_of(row) is None:
            raise InputError(
                f"{row.where}: field `{trait.label}` is missing; every row of {option} needs true or false there"
            )
        if role == TASK and row.correct is None and not row.answers:
            missing = "`correct` (the index of the right choice)" if row.choices else "`answers` or `choices`"
            raise InputError(f"{row.where}: field {missing} is missing; every row of {option} needs its right answer")
        if row.correct is not None and len(row.choices) < 2:
            raise InputError(f"{row.where}: field `choices`: expected 2 choices or more, found {len(row.choices)}")
    if trait is None:
        return
    answerable = sum(bool(trait.label_of(row)) for row in rows)
    if answerable in (0, len(rows)):
        raise InputError(
            f"{option}: expected {trait.label} and {trait.contrary} questions, found {answerable} {trait.label} of "
            f"{len(rows)} "
            f"in {rows[0].file}; F1 and the refusal delta mean nothing there: add questions of the missing class"
        )


def sample_rows(rows: Sequence[Row], samples: int | None, seed: int | None, *, trait: Trait = HONESTY) -> list[Row]:
    """Draw at most `samples` rows, in file order, so that each label keeps its share.

    A label that is present keeps at least one row, so that a small sample of an honesty set still has both.

    Args:
        rows: of one set.
        samples: rows at most; None keeps all.
        seed: of the draw; None takes the first rows.
        trait: whose label is balanced.
    """
    if samples is None or samples >= len(rows):
        return list(rows)
    order = np.arange(len(rows)) if seed is None else np.random.default_rng(seed).permutation(len(rows))
    labels = np.array([trait.label_of(row) is not False for row in rows])
    yes, no = (order[labels[order] == label] for label in (True, False))
    wanted = round(samples * len(yes) / len(rows))
    wanted = max(min(wanted, samples - bool(len(no))), int(bool(len(yes))))
    return [rows[index] for index in sorted([*yes[:wanted], *no[: samples - wanted]])]


def encode_prompts(
    role: Role, name: str, rows: Sequence[Row], *, tokenizer: Tokenizer, vocab_size: int, max_tokens: int
) -> list[Prompt]:
    """Encode the rows of one set as prompts.

    Args:
        role: of the set.
        name: of the set.
        rows: its questions.
        tokenizer: of the model.
        vocab_size: of the model.
        max_tokens: of a prompt: the model's positions less the tokens it may generate.

    Raises:
        InputError: a prompt that is too long, holds an id the model has no embedding for, or needs a chat template that
            the tokenizer lacks; the row is named.
    """
    prompts = [Prompt(role, name, row, question_of(row), tokens) for row, tokens in _prompt_tokens(rows, tokenizer)]
    for prompt in prompts:
        if len(prompt.tokens) > max_tokens:
            raise InputError(
                f"{prompt.row.where}: the prompt takes {len(prompt.tokens)} tokens, and the model's positions less "
                f"--max-new-tokens leave {max_tokens}; shorten it, remove the row, or lower --max-new-tokens"
            )
        if not prompt.tokens or max(prompt.tokens) >= vocab_size:
            raise InputError(
                f"{prompt.row.where}: the tokenizer gives ids up to {max(prompt.tokens, default='none')}, the model "
                f"embeds {vocab_size} (0 to {vocab_size - 1}); use the tokenizer that belongs to the model"
            )
    return prompts


def _prompt_tokens(rows: Sequence[Row], tokenizer: Tokenizer) -> Iterable[tuple[Row, tuple[int, ...]]]:
    added, begin = added_tokens(tokenizer), tokenizer.bos_token_id
    for row in rows:
        if row.is_chat:
            yield row, token_ids(tokenizer, prompt_text(row, tokenizer), special=False)
            continue
        tokens = token_ids(tokenizer, row.prompt)
        tokens = tokens[: len(tokens) - len(added.after)]
        yield row, tokens[1:] if begin is not None and tokens[:2] == (begin, begin) else tokens


def split_halves(prompts: Sequence[Prompt], seed: int) -> tuple[list[int], list[int]]:
    """Split the prompts into two halves, each set and label in half by `seed`; no question's text is in both.

    The first half is the larger where counts are odd.
    """
    groups: dict[tuple[str, bool | None], dict[str, list[int]]] = {}
    for index, prompt in enumerate(prompts):
        same = groups.setdefault((prompt.set, prompt.answerable), {})
        same.setdefault(normalise_question(prompt.question), []).append(index)
    side: dict[str, int] = {}
    halves: tuple[list[int], list[int]] = ([], [])
    generator = np.random.default_rng(seed)
    for texts in groups.values():
        listed = list(texts)
        for place, text in enumerate(listed[i] for i in generator.permutation(len(listed))):
            # A text met in an earlier set or under the other label goes where it went there.
            half = side.setdefault(text, int(place >= (len(listed) + 1) // 2))
            halves[half].extend(texts[text])
    return sorted(halves[0]), sorted(halves[1])


def unique_names(sets: Mapping[str, object] | Sequence[str], option: str) -> None:
    """Refuse (InputError) a set name given twice."""
    names = list(sets)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"{option}: the name {repeated[0]!r} is given twice; name every set differently (NAME=FILE)")
