"""Computes the likelihood of given completions: the choices of a question, and refusing it.

P(refuse) needs the likelihood of answers too, the model's own. They come from *branches*: the likeliest first tokens of
a completion, each continued greedily. Branches differ in their first token, so that they are disjoint events, as
`calibration.refusal_probability` asks; those that refuse count for refusing, beside the fixed wordings.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from hcnr_jax.data import REFUSALS, Batch, Example, encode_rows, pad_examples
from hcnr_jax.evaluate.ask.batches import Events, rows_at_once, run_batches
from hcnr_jax.evaluate.ask.completions import Ids, LoadedModel, cut_text, generate_ids, kept_ids, text_of
from hcnr_jax.evaluate.ask.hidden_states import last_states, left_padded
from hcnr_jax.evaluate.ask.prompts import Prompt, with_completion
from hcnr_jax.evaluate.judge.refusal import Verdict
from hcnr_jax.evaluate.score.calibration import refusal_probability
from hcnr_jax.evaluate.trait import HONESTY, Detector
from hcnr_jax.models import Decoder, ModelSpec, apply_head, completion_nll
from hcnr_jax.models.decoder import Params

# First tokens tried for each question; four reach most of the mass of a model that answers in a word or refuses.
BRANCHES = 4


@dataclass(frozen=True)
class Likelihood:
    """Holds the log-likelihood (nats, summed) of a completion with its end token, and its number of tokens."""

    log_likelihood: float
    tokens: int


@dataclass(frozen=True)
class Branch:
    """Holds one of the model's own completions, by its first token, with its log-likelihood in nats."""

    text: str
    log_likelihood: float


@partial(jax.jit, static_argnums=(0, 3))
def _log_likelihoods(spec: ModelSpec, params: Params, batch: Batch, dtype: DTypeLike) -> Float[Array, " b"]:
    logits: Any = Decoder(spec, dtype, remat=False).apply({"params": params}, batch.tokens, batch.attention_mask)
    return -completion_nll(logits, jnp.asarray(batch.tokens), jnp.asarray(batch.completion_mask), "sum")


def log_likelihoods(
    model: LoadedModel, examples: Sequence[Example], microbatch: int | None = None, *, events: Events | None = None
) -> list[Likelihood]:
    """Compute the likelihood of each example's completion, in order.

    Args:
        model: loaded.
        examples: prompts with completions.
        microbatch: rows a step; None chooses from the sizes.
        events: callbacks for progress.
    """
    if not examples:
        return []
    found: dict[int, Likelihood] = {}
    lengths = [len(example.tokens) for example in examples]
    rows = microbatch or rows_at_once(model.spec, max(lengths), len(examples))

    def run(indices: list[int], length: int, count: int) -> list[float]:
        batch = pad_examples([examples[i] for i in indices], length, count)
        values = _log_likelihoods(model.spec, model.params, batch, jnp.dtype(model.dtype))
        return [float(value) for value in np.asarray(values, np.float64)[: len(indices)]]

    def take(indices: list[int], values: Sequence[float]) -> None:
        for index, value in zip(indices, values, strict=True):
            example = examples[index]
            # Rounding of a sure completion can leave a hair above 0.
            found[index] = Likelihood(min(value, 0.0), len(example.tokens) - example.completion_start)

    run_batches(lengths, rows, run, take=take, smaller=(events or Events()).smaller)
    return [found[index] for index in range(len(examples))]


def choice_likelihoods(
    model: LoadedModel,
    prompts: Sequence[Prompt],
    microbatch: int | None = None,
    *,
    events: Events | None = None,
    take: Callable[[int, list[Likelihood]], None] = lambda index, found: None,
) -> list[list[Likelihood]]:
    """Compute, for each prompt, the likelihood of each of its choices as the completion.

    Args:
        model: loaded.
        prompts: questions with choices.
        microbatch: rows a step; None chooses from the sizes.
        events: callbacks for progress.
        take: called with (index, likelihoods) as questions are done.
    """
    events, found = events or Events(), []
    width = max((len(prompt.row.choices) for prompt in prompts), default=1)
    size = microbatch or rows_at_once(model.spec, _longest(prompts) + _longest_choice(prompts), width * len(prompts))
    for start in range(0, len(prompts), 4 * size):
        part = prompts[start : start + 4 * size]
        rows = [with_completion(prompt.row, choice) for prompt in part for choice in prompt.row.choices]
        examples = encode_rows(
            rows, model.tokenizer, model.spec.max_positions, max_positions=None, vocab_size=model.spec.vocab_size
        )
        values = iter(log_likelihoods(model, examples, size, events=events))
        for place, prompt in enumerate(part):
            found.append([next(values) for _ in prompt.row.choices])
            take(start + place, found[-1])
        events.advance("choices", len(part))
    return found


def _longest(prompts: Sequence[Prompt]) -> int:
    return max((len(prompt.tokens) for prompt in prompts), default=1)


def _longest_choice(prompts: Sequence[Prompt]) -> int:
    """Bound the tokens of a choice by its letters, to choose how many rows fit."""
    return max((len(choice) for prompt in prompts for choice in prompt.row.choices), default=1)


@partial(jax.jit, static_argnums=(0, 4, 5))
def _first_tokens(
    spec: ModelSpec,
    params: Params,
    tokens: Int[Array, "b t"],
    attention_mask: Bool[Array, "b t"],
    count: int,
    dtype: DTypeLike,
) -> Int[Array, "b k"]:
    hidden = last_states(spec, params, tokens, attention_mask, dtype)[-1].astype(dtype)
    logits = apply_head(spec, params, hidden[:, None], dtype)[:, 0]
    return jax.lax.top_k(logits, count)[1].astype(jnp.int32)


def branch_ids(
    model: LoadedModel,
    prompts: Sequence[Ids],
    max_new_tokens: int,
    *,
    count: int = BRANCHES,
    microbatch: int | None = None,
    events: Events | None = None,
) -> list[list[Ids]]:
    """Generate, for each prompt, its `count` likeliest first tokens, each with its greedy continuation.

    Args:
        model: loaded.
        prompts: token ids, unpadded.
        max_new_tokens: of a branch, its first token included.
        count: branches of a prompt.
        microbatch: rows a step; None chooses from the sizes.
        events: callbacks for progress.
    """
    firsts: dict[int, Ids] = {}
    lengths = [len(prompt) for prompt in prompts]
    rows = microbatch or rows_at_once(model.spec, max(lengths), len(prompts))
    quiet = Events(smaller=(events or Events()).smaller)

    def run(indices: list[int], length: int, size: int) -> list[Ids]:
        tokens, mask = left_padded([prompts[i] for i in indices], length, size)
        found = _first_tokens(
            model.spec, model.params, tokens, mask, min(count, model.spec.vocab_size), jnp.dtype(model.dtype)
        )
        return [tuple(row) for row in np.asarray(found)[: len(indices)].tolist()]

    def take(indices: list[int], found: Sequence[Ids]) -> None:
        firsts.update(zip(indices, found, strict=True))

    run_batches(lengths, rows, run, take=take, smaller=quiet.smaller)
    starts = [(index, token) for index in range(len(prompts)) for token in firsts[index]]
    going = [(index, token) for index, token in starts if token not in model.eos_ids and max_new_tokens > 1]
    grown = generate_ids(
        model,
        [(*prompts[index], token) for index, token in going],
        max(max_new_tokens - 1, 1),
        microbatch=microbatch,
        events=quiet,
    )
    continued = dict(zip(going, grown, strict=True))
    return [[(token, *continued.get((index, token), ())) for token in firsts[index]] for index in range(len(prompts))]


def own_branches(
    model: LoadedModel,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    *,
    microbatch: int | None = None,
    events: Events | None = None,
) -> list[list[Branch]]:
    """Generate the branches of each prompt, cut to the answer, with the likelihood of the kept tokens.

    Args:
        model: loaded.
        prompts: the questions.
        max_new_tokens: of a branch.
        microbatch: rows a step; None chooses from the sizes.
        events: callbacks for progress.
    """
    grown = branch_ids(
        model,
        [prompt.tokens for prompt in prompts],
        max_new_tokens,
        count=BRANCHES,
        microbatch=microbatch,
        events=events,
    )
    kept = [
        (prompt, kept_ids(model, ids, prompt.row.is_chat))
        for prompt, branches in zip(prompts, grown, strict=True)
        for ids in branches
    ]
    examples = [Example(prompt.tokens + ids, len(prompt.tokens), prompt.row) for prompt, ids in kept]
    found = log_likelihoods(model, examples, microbatch, events=events)
    branches = iter(
        Branch(cut_text(text_of(model, ids), prompt.row.is_chat), value.log_likelihood)
        for (prompt, ids), value in zip(kept, found, strict=True)
    )
    return [[next(branches) for _ in ids] for ids in grown]


@dataclass(frozen=True)
class Refusing:
    """Holds what P(refuse) is computed from: a model's branches, and log-likelihoods (nats) of the fixed wordings."""

    branches: list[Branch]
    wordings: list[float]


def refusing(
    model: LoadedModel,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    *,
    microbatch: int | None = None,
    events: Events | None = None,
    take: Callable[[int, Refusing], None] = lambda index, found: None,
) -> list[Refusing]:
    """Compute branches and the likelihood of the wordings (`data.REFUSALS`) for every prompt, in order.

    Args:
        model: loaded.
        prompts: the questions.
        max_new_tokens: of a branch.
        microbatch: rows a step; None chooses from the sizes.
        events: callbacks for progress.
        take: called with (index, result) as questions are done.
    """
    events, found = events or Events(), []
    # One number of rows for every portion, the last one too, so that all share their compilations.
    size = microbatch or rows_at_once(model.spec, _longest(prompts) + max_new_tokens, BRANCHES * len(prompts))
    for start in range(0, len(prompts), 4 * size):
        part = prompts[start : start + 4 * size]
        branches = own_branches(model, part, max_new_tokens, microbatch=size, events=events)
        rows = [with_completion(prompt.row, wording) for prompt in part for wording in REFUSALS]
        examples = encode_rows(
            rows, model.tokenizer, model.spec.max_positions, max_positions=None, vocab_size=model.spec.vocab_size
        )
        values = iter(log_likelihoods(model, examples, size, events=events))
        for place, own in enumerate(branches):
            found.append(Refusing(own, [next(values).log_likelihood for _ in REFUSALS]))
            take(start + place, found[-1])
        events.advance("refusals", len(part))
    return found


def probability_of_refusing(
    found: Sequence[Refusing], questions: Sequence[str], detect: Detector = HONESTY.detect
) -> list[float]:
    """Compute P(refuse) of each question: refusing branches and wordings against the branches that answer.

    A wording that is also a branch counts once, as the branch. detect: the detector of the questions' trait.
    """
    width = max(len(item.branches) for item in found)
    answers = np.full((len(found), width), -np.inf)
    refuses = np.zeros((len(found), width), bool)
    wordings = np.array([item.wordings for item in found], np.float64)
    for row, (item, question) in enumerate(zip(found, questions, strict=True)):
        texts = [branch.text for branch in item.branches]
        for column, branch in enumerate(item.branches):
            answers[row, column] = branch.log_likelihood
            refuses[row, column] = detect(branch.text, question).verdict is Verdict.REFUSED
        wordings[row] = [
            -np.inf if wording in texts else value for wording, value in zip(REFUSALS, item.wordings, strict=True)
        ]
    probabilities: list[float] = refusal_probability(wordings, answers, answer_refuses=refuses).tolist()
    return probabilities
