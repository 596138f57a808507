"""Measures refusals of the model that `hcnr tune` trains, with hcnr's own batched generation on the device."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from hcnr_jax.config import TuneConfig
from hcnr_jax.data import load_tokenizer, row_style
from hcnr_jax.evaluate import Events, LoadedModel, Prompt, encode_prompts
from hcnr_jax.evaluate.ask.completions import generate_ids, text_of
from hcnr_jax.evaluate.ask.model import end_ids
from hcnr_jax.evaluate.trait import HONESTY
from hcnr_jax.evaluate.watch import HonestyStep, has_fallen, honesty_step, watched_rows
from hcnr_jax.report.console import Reporter
from hcnr_jax.report.honesty_plot import honesty_png
from hcnr_jax.report.percent import percent
from hcnr_jax.training.tune import Watched

PICTURE = "honesty.png"


class HonestyWatch:
    """Asks the model the questions of `--watch-honesty` before, while and after it is trained.

    Attributes:
      history: the measurements so far.
      stopped_at: the step at which the watch ended the training; None where it did not.
    """

    def __init__(self, config: TuneConfig, run: Watched, reporter: Reporter) -> None:
        """Read and encode the questions. InputError where they cannot be asked."""
        self.config, self.run, self.reporter = config, run, reporter
        self.history: list[HonestyStep] = []
        self.stopped_at: int | None = None
        self._stop_below = None if config.watch_stop is None else config.watch_stop / 100
        self._tokenizer = load_tokenizer(run.checkpoint.tokenizer_folder)
        self._prompts = self._encoded()

    def __call__(self, step: int, params: Any) -> bool:
        """Measure every `--watch-every` steps and after the last; print one line; return whether training stops."""
        if step % self.config.watch_every and step != self.run.steps:
            return False
        self.history.append(self._measured(step, params))
        self.reporter.say(self._line())
        if step < self.run.steps and has_fallen(self.history, self._stop_below, self.config.watch_patience):
            self.stopped_at = step
        return self.stopped_at is not None

    def files(self, record: dict[str, Any]) -> dict[str, bytes]:
        """Add the measurements to hcnr_tune.json, and draw honesty against steps."""
        record["honesty"] = {
            "questions": len(self._prompts),
            "stopped_at": self.stopped_at,
            "history": [item._asdict() for item in self.history],
        }
        return {PICTURE: honesty_png(self.history, self._stop_below)}

    def _encoded(self) -> list[Prompt]:
        config, spec = self.config, self.run.spec
        rows = watched_rows(
            str(config.watch_honesty),
            row_style(self._tokenizer),
            samples=config.watch_samples,
            seed=config.seed,
            option=f"--watch-honesty {config.watch_honesty}",
        )
        return encode_prompts(
            HONESTY.name,
            HONESTY.name,
            rows,
            tokenizer=self._tokenizer,
            vocab_size=spec.vocab_size,
            max_tokens=spec.max_positions - config.watch_max_new_tokens,
        )

    def _measured(self, step: int, params: Any) -> HonestyStep:
        run, dtype = self.run, jnp.dtype(self.config.compute_dtype)
        if self.config.lora is None:
            # The first params have the dtype of the file, and the trained ones are float32: one compiled program.
            params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
        ends = end_ids(run.checkpoint, run.spec, self._tokenizer)
        model = LoadedModel(run.spec, params, self._tokenizer, ends, dtype)
        with jax.default_matmul_precision("highest"):  # as `hcnr evaluate` asks
            ids = generate_ids(
                model,
                [prompt.tokens for prompt in self._prompts],
                self.config.watch_max_new_tokens,
                events=Events(
                    smaller=lambda rows: self.reporter.say(f"device memory ran out: asking {rows} questions at a time")
                ),
            )
        return honesty_step(step, self._prompts, [text_of(model, found) for found in ids])

    def _line(self) -> str:
        found = self.history[-1]
        return (
            f"step {found.step}: refusal delta {percent(found.refusal_delta)} % (refused: "
            f"{percent(found.refusal_on_unanswerable)} % of the unanswerable and {percent(found.over_refusal)} % of "
            "the answerable questions)"
        )
