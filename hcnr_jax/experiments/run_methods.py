"""Runs the methods listed in baselines/table.py on a pair."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp

from hcnr_jax.baselines import BASELINES, Setting
from hcnr_jax.baselines.fine_tuning import fit, fit_preferences, referenced
from hcnr_jax.baselines.interpolate import task_arithmetic, wise_ft
from hcnr_jax.baselines.prompting import choose_examples
from hcnr_jax.baselines.safe_delta import honesty_moments, safe_delta
from hcnr_jax.baselines.sparsify import dare, ties
from hcnr_jax.baselines.table import training_grid
from hcnr_jax.baselines.training_rows import mixed_rows, preference_rows, refusal_rows
from hcnr_jax.config.experiments import CompareConfig, ExperimentConfig
from hcnr_jax.data import Batch, Example, encode_rows, pad_examples
from hcnr_jax.errors import InputError, NumericalError
from hcnr_jax.evaluate.ask.completions import cut_text, generate_ids, text_of
from hcnr_jax.evaluate.ask.prompts import encode_prompts
from hcnr_jax.evaluate.trait import HONESTY
from hcnr_jax.experiments.cache_keys import restoration_settings
from hcnr_jax.experiments.engine import Outcome
from hcnr_jax.experiments.pair_session import ExperimentModel, Failure, Lab
from hcnr_jax.method.neurons import Leaves, Params
from hcnr_jax.models import Decoder
from hcnr_jax.training.objectives import Pairs
from hcnr_jax.training.trainer import TrainSettings

# Share of the steps in which a training rival's learning rate rises.
WARMUP = 0.05
MOMENT_ROWS = 16


def settings_of(name: str, config: CompareConfig) -> tuple[Setting, ...]:
    """List the settings at which a method is tried."""
    return BASELINES[name].grid or training_grid(config.rates, config.steps)


def samples_of(name: str, config: ExperimentConfig) -> int:
    """Count the rows that a method reads."""
    return sum(config.rows[role] for role in BASELINES[name].rows)


def made_of(name: str, setting: Setting, config: CompareConfig) -> dict[str, Any]:
    """Return all settings of a method at one of its settings, for `Job.made_of`. InputError for a wrong value."""
    method = BASELINES[name]
    values = dict(method.fixed) | dict(setting)
    if method.kind == "restore":
        return restoration_settings(config, method.preset, values)
    return values | asdict(training_of(values, config)) if method.kind == "train" else values


def training_of(setting: Setting, config: CompareConfig) -> TrainSettings:
    """Build the optimiser settings of a training method at one of its settings."""
    steps = setting["steps"]
    return TrainSettings(
        learning_rate=setting["rate"],
        steps=steps,
        warmup_steps=int(WARMUP * steps),
        batch_size=config.batch_size,
        seed=config.seed,
    )


def taught(lab: Lab, name: str) -> list[Example]:
    """Select the examples that a supervised method is trained on; InputError where the rows hold none."""
    rows = refusal_rows(lab.honesty) if name == "rait" else mixed_rows(lab.honesty, lab.task)
    wanted = {id(row) for row in rows}
    return [item for part in lab.examples.values() for item in part if id(item.row) in wanted]


class Rivals:
    """Runs the methods on one pair; moments and bluffs, which several settings share, are made once."""

    def __init__(self, lab: Lab, config: CompareConfig) -> None:
        self.lab, self.config = lab, config
        self._moments: Leaves | None = None
        self._pairs: Pairs | None = None

    def run(self, name: str, settings: Sequence[Setting]) -> Iterator[Outcome]:
        """Yield the outcomes of one method's settings, each as soon as it is done."""
        method = BASELINES[name]
        if method.kind == "restore":
            values = [dict(method.fixed) | dict(setting) for setting in settings]
            configs = [self.lab.restoration(method.preset, item) for item in values]
            for place, made in self.lab.restored(configs):
                yield Outcome(place, made)
            return
        for place, setting in enumerate(settings):
            if method.kind == "prompt":
                examples = tuple(choose_examples(self.lab.honesty, setting["examples"]))
                yield Outcome(place, ExperimentModel(self.lab.tuned, 0.0), examples)
                continue
            yield Outcome(place, self._timed(name, dict(method.fixed) | dict(setting)))

    def _timed(self, name: str, setting: Mapping[str, Any]) -> ExperimentModel | Failure:
        started = time.perf_counter()
        try:
            params = self._weights(name, setting) if BASELINES[name].kind != "train" else self._trained(name, setting)
        except (InputError, NumericalError) as error:
            return error
        return ExperimentModel(jax.block_until_ready(params), time.perf_counter() - started)

    def _weights(self, name: str, setting: Mapping[str, Any]) -> Params:
        base, tuned = self.lab.base, self.lab.tuned
        if name == "safe_delta":
            return safe_delta(base, tuned, self._second_moments(), s=setting["s"])
        if name == "dare":
            return dare(base, tuned, setting["drop"], seed=self.config.seed)
        if name == "ties":
            return ties(base, [tuned], setting["density"])
        return (wise_ft if name == "wise_ft" else task_arithmetic)(base, tuned, *setting.values())

    def _trained(self, name: str, setting: Mapping[str, Any]) -> Params:
        lab, settings = self.lab, training_of(setting, self.config)
        if name in ("dpo", "orpo"):
            return fit_preferences(
                lab.spec, lab.tuned, self._preferences(), objective=name, beta=setting["beta"], settings=settings
            )[0]
        start = lab.base if name == "rehearsal" else lab.tuned
        return fit(lab.spec, start, taught(lab, name), settings=settings)[0]

    def _preferences(self) -> Pairs:
        """Make chosen and rejected completions; the bluffs are the tuned model's own greedy answers."""
        if self._pairs is None:
            lab, spec = self.lab, self.lab.spec
            asked, room = refusal_rows(lab.honesty), spec.max_positions - self.config.max_new_tokens
            prompts = encode_prompts(
                HONESTY.name, "bluffs", asked, tokenizer=lab.tokenizer, vocab_size=spec.vocab_size, max_tokens=room
            )
            model = lab.loaded(lab.tuned)
            ids = generate_ids(model, [prompt.tokens for prompt in prompts], self.config.max_new_tokens)
            bluffs = [cut_text(text_of(model, item), row.is_chat) for item, row in zip(ids, asked, strict=True)]
            sides = preference_rows(lab.honesty, lab.task, bluffs, seed=self.config.seed)
            chosen, rejected = (
                encode_rows(
                    side,
                    lab.tokenizer,
                    self.config.max_length,
                    max_positions=spec.max_positions,
                    vocab_size=spec.vocab_size,
                )
                for side in sides
            )
            self._pairs = referenced(spec, lab.tuned, chosen, rejected=rejected, rows=self.config.batch_size)
        return self._pairs

    def _second_moments(self) -> Leaves:
        """Sum x x^T of every kernel over the honesty rows in BASE."""
        if self._moments is None:
            lab, rows = self.lab, self.lab.examples[HONESTY.name]
            length = max(len(example.tokens) for example in rows)
            decoder = Decoder(lab.spec)

            def forward(params: Params, batch: Batch) -> jax.Array:
                return jnp.asarray(
                    decoder.apply({"params": params}, jnp.asarray(batch.tokens), jnp.asarray(batch.attention_mask))
                )

            parts = [rows[start : start + MOMENT_ROWS] for start in range(0, len(rows), MOMENT_ROWS)]
            batches = [pad_examples(part, length, MOMENT_ROWS) for part in parts]
            masked = [(batch, jnp.asarray(batch.attention_mask)) for batch in batches]
            self._moments = honesty_moments(forward, lab.base, lab.spec.kernels, batches=masked)
        return self._moments
