"""Asks a model folder on this machine whether answers are refusals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from hcnr_jax.data import parse_row, row_style
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.ask.completions import cut_text, generate_ids, text_of
from hcnr_jax.evaluate.ask.model import OpenedModel, open_model
from hcnr_jax.evaluate.ask.prompts import encode_prompts
from hcnr_jax.evaluate.trait import TASK

MAX_TOKENS = 8
"""Of a reply. Templates that can switch a model's reasoning off are told to."""


@dataclass(frozen=True)
class LocalJudge:
    """Asks an opened model; its weights are loaded for the time of `ask`."""

    model: OpenedModel
    dtype: str = "float32"
    microbatch: int | None = None

    @cached_property
    def made_of(self) -> str:
        """Hash the weights, and name the compute dtype."""
        return f"{self.model.digest()} {self.dtype}"

    def ask(self, texts: Sequence[str], take: Callable[[int, str], None]) -> None:
        """Ask every text, in batches. InputError for a text that is too long for the model."""
        is_chat = row_style(self.model.tokenizer) == "chat"
        values = [
            {"messages": [{"role": "user", "content": text}]} if is_chat else {"prompt": f"{text}\nReply:"}
            for text in texts
        ]
        rows = [parse_row(value, "judge", line, need_completion=False) for line, value in enumerate(values, start=1)]
        spec = self.model.spec
        try:
            prompts = encode_prompts(
                TASK,
                "judge",
                rows,
                tokenizer=self.model.tokenizer,
                vocab_size=spec.vocab_size,
                max_tokens=spec.max_positions - MAX_TOKENS,
            )
        except InputError as error:
            raise InputError(f"--judge {self.model.name}: cannot be asked about every answer ({error})") from error
        loaded = self.model.load(self.dtype)
        generate_ids(
            loaded,
            [prompt.tokens for prompt in prompts],
            MAX_TOKENS,
            microbatch=self.microbatch,
            take=lambda index, ids: take(index, cut_text(text_of(loaded, ids), is_chat)),
        )


def open_local_judge(folder: str, dtype: str, microbatch: int | None) -> LocalJudge:
    """Open a judge's model folder. InputError where it cannot be read."""
    try:
        return LocalJudge(open_model(folder), dtype, microbatch)
    except InputError as error:
        raise InputError(
            f"--judge {folder}: expected an address that begins with http:// or https://, or a model folder ({error})"
        ) from error
