"""Runs `hcnr chat`, which asks several models the same questions and prints the answers side by side."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import jax
from rich.console import Console

from hcnr_jax.config import ChatConfig
from hcnr_jax.data import parse_row, row_style
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate import LoadedModel
from hcnr_jax.evaluate.ask.completions import cut_text, generate_ids, text_of
from hcnr_jax.evaluate.ask.model import open_model
from hcnr_jax.evaluate.ask.prompts import encode_prompts
from hcnr_jax.evaluate.trait import TASK
from hcnr_jax.report.console import Reporter
from hcnr_jax.report.terminal_tables import side_by_side

ENDINGS = ("exit", "quit")


def chat(config: ChatConfig, reporter: Reporter | None = None) -> list[list[str]]:
    """Run `hcnr chat` and return the answers: one list a question, with one answer a model.

    Raises:
        InputError: a model cannot be opened, or a question cannot be asked.
    """
    reporter = reporter or Reporter()
    if config.prompt is not None and not config.prompt.strip():
        raise InputError("--prompt is empty; give a question")
    names, found = _names(config.models), []
    with jax.default_matmul_precision("highest"):
        models = {}
        with reporter.stage("load", len(names), "models") as stage:
            for name, folder in zip(names, config.models, strict=True):
                models[name] = open_model(folder).load()
                stage.advance()
        for text in _questions(config, reporter):
            answers = {name: answer_of(model, text, config) for name, model in models.items()}
            Console().print(side_by_side(text, answers))
            found.append(list(answers.values()))
    return found


def answer_of(model: LoadedModel, text: str, config: ChatConfig) -> str:
    """Return a model's greedy answer to one question.

    Raises:
        InputError: the question is too long for the model, or needs a chat template that it lacks.
    """
    style = row_style(model.tokenizer) if config.template == "auto" else config.template
    content = {"messages": [{"role": "user", "content": text}]} if style == "chat" else {"prompt": text}
    row = parse_row(content, "question", 1, need_completion=False)
    positions = model.spec.max_positions
    (prompt,) = encode_prompts(
        TASK, "chat", [row], tokenizer=model.tokenizer, vocab_size=model.spec.vocab_size, max_tokens=positions - 1
    )
    (ids,) = generate_ids(model, [prompt.tokens], min(config.max_new_tokens, positions - len(prompt.tokens)))
    return cut_text(text_of(model, ids), row.is_chat)


def _questions(config: ChatConfig, reporter: Reporter) -> Iterator[str]:
    """Yield the question of --prompt, or the lines that are typed until `exit` or the end of the input."""
    if config.prompt is not None:
        yield config.prompt
        return
    reporter.say(f"type a question; {ENDINGS[0]} or Ctrl-D ends")
    for line in sys.stdin:
        text = line.strip()
        if text.lower() in ENDINGS:
            return
        if text:
            yield text


def _names(folders: tuple[str, ...]) -> list[str]:
    """Return a short name of each model: the last part of its folder, or the whole where two are alike."""
    short = [Path(folder).name or folder for folder in folders]
    if len(set(folders)) < len(folders):
        raise InputError("a model is named twice; name every model once")
    return list(folders) if len(set(short)) < len(short) else short
