"""A tiny model on disk, in memory and as PyTorch's: what tests of asking hold against each other."""

import functools
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp

from hcnr_jax.checkpoints import load_params, open_checkpoint
from hcnr_jax.data import load_tokenizer, parse_row
from hcnr_jax.evaluate import LoadedModel, encode_prompts
from hcnr_jax.models import spec_from_config
from tests.tiny import CHAT_TEMPLATE, honesty_rows, task_rows, write_tiny_model


class Tiny(NamedTuple):
    folder: Path
    model: LoadedModel


def load_tiny(folder: Path, family: str = "llama", **settings) -> Tiny:
    """A tiny model whose weights are large enough that its completions differ from prompt to prompt."""
    write_tiny_model(folder, family, scale=3.0, chat_template=CHAT_TEMPLATE, **settings)
    checkpoint = open_checkpoint(folder)
    spec = spec_from_config(checkpoint.config, str(folder))
    params = load_params(checkpoint, spec)
    return Tiny(folder, LoadedModel(spec, params, load_tokenizer(folder), (2,), jnp.float32))


@functools.cache
def torch_model(folder: Path):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def rows_of(values, file="q.jsonl"):
    return [parse_row(value, file, line, need_completion=False) for line, value in enumerate(values, start=1)]


def honesty_values(count: int) -> list[dict]:
    """Honesty rows, every other one answerable with a known answer."""
    answers = [{"answerable": True, "answers": ["city"], "completion": " the city ."}, {}]
    return [row | answers[i % 2] for i, row in enumerate(honesty_rows(count))]


def choice_values(count: int) -> list[dict]:
    choices = ["red", "green cat", "blue city Paris"]
    return [row | {"choices": choices, "correct": i % 3} for i, row in enumerate(task_rows(count))]


def prompts_of(model: LoadedModel, honesty: int = 6, task: int = 5, choices: int = 4):
    sets = (
        ("honesty", "kuq", honesty_values(honesty)),
        ("task", "nq", task_rows(task)),
        ("task", "mcq", choice_values(choices)),
    )
    return [
        prompt
        for role, name, values in sets
        if values
        for prompt in encode_prompts(
            role, name, rows_of(values), tokenizer=model.tokenizer, vocab_size=model.spec.vocab_size, max_tokens=100
        )
    ]
