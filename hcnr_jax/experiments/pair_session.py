"""Holds one pair in memory for experiments: weights and questions are loaded once, and rows scored once a kind of
scores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from hcnr_jax.checkpoints import describe_params
from hcnr_jax.config import RestoreConfig
from hcnr_jax.config.experiments import ExperimentConfig
from hcnr_jax.data import Row, Tokenizer, load_tokenizer, read_rows
from hcnr_jax.errors import InputError, NumericalError
from hcnr_jax.evaluate import AnswerSettings, LoadedModel, Prompt, encode_prompts
from hcnr_jax.evaluate.ask.model import end_ids
from hcnr_jax.evaluate.ask.prompts import check_labels
from hcnr_jax.evaluate.ask.runner import Answer, answer
from hcnr_jax.experiments.cache_keys import restoration
from hcnr_jax.experiments.kernel_map import KernelMap, kernel_map
from hcnr_jax.experiments.pairs import ROLES, Pair
from hcnr_jax.method.neurons import Params
from hcnr_jax.models import ModelSpec
from hcnr_jax.report.console import Reporter
from hcnr_jax.restoration.correct import restored_params
from hcnr_jax.restoration.grid import FREE, GridFailure, try_grid
from hcnr_jax.restoration.inputs import open_inputs
from hcnr_jax.restoration.load import load_run
from hcnr_jax.restoration.plan import make_plan
from hcnr_jax.restoration.run_context import Models, Run
from hcnr_jax.restoration.score import Scores, prepare_scoring
from hcnr_jax.restoration.score_pair import score_pair, scoring_of


class ExperimentModel(NamedTuple):
    """Holds a model that an experiment made.

    Args:
        params: of the model.
        seconds: it took, with a share of the work that settings have in common.
        kernels: what a restoration did to every kernel; None for other methods.
    """

    params: Params
    seconds: float
    kernels: KernelMap | None = None


Failure = InputError | NumericalError
"""Why a setting has no model; the experiment goes on without it."""


class _ScoredRun(NamedTuple):
    run: Run
    scores: dict[str, Scores]
    seconds: float


class Lab:
    """Opens a pair: `restored` makes restorations, `ask` puts the pair's questions to any params of its shape."""

    def __init__(self, pair: Pair, config: ExperimentConfig, reporter: Reporter) -> None:
        self.pair, self.config, self.reporter = pair, config, reporter
        self._scored: dict[str, _ScoredRun] = {}
        self._opened: dict[str, Run] = {}
        self._prompts: dict[tuple[str, int], list[Prompt]] = {}
        first = self.restoration("recommended", {})
        inputs = open_inputs(first, reporter)
        self.spec = inputs.spec
        self.honesty = [example.row for example in inputs.honesty]
        self.task = [example.row for example in inputs.task]
        self.examples = dict(zip(ROLES, (inputs.honesty, inputs.task), strict=True))
        self.tokenizer: Tokenizer = load_tokenizer(inputs.tuned.tokenizer_folder)
        self._eos = end_ids(inputs.tuned, self.spec, self.tokenizer)
        # Rows are scored when a restoration asks for it: experiments that only train never do.
        run = load_run(inputs, make_plan(inputs), reporter, scoring=False)
        self.base, self.tuned = run.models
        self._opened[_scores_key(first)] = run

    def restoration(self, name: str, values: Mapping[str, Any]) -> RestoreConfig:
        """Build the settings of a restoration: a preset on this pair's rows, with some settings changed."""
        return restoration(self.config, self.pair, name, values=values)

    def restored(self, configs: Sequence[RestoreConfig]) -> Iterator[tuple[int, ExperimentModel | InputError]]:
        """Yield (place, the restored model, or why that setting has none), grouped by settings of equal scores."""
        groups: dict[str, list[int]] = {}
        for place, config in enumerate(configs):
            groups.setdefault(_scores_key(config), []).append(place)
        for places in groups.values():
            try:
                scored = self._score(configs[places[0]])
            except InputError as error:
                yield from ((place, error) for place in places)
                continue
            share = scored.seconds / len(places)
            for number, made in self._grid(scored, [configs[place] for place in places]):
                yield (
                    places[number],
                    made if isinstance(made, InputError) else made._replace(seconds=made.seconds + share),
                )

    def _grid(
        self, scored: _ScoredRun, configs: Sequence[RestoreConfig]
    ) -> Iterator[tuple[int, ExperimentModel | InputError]]:
        """Restore all settings that share their scores, in one walk."""
        started = time.perf_counter()
        for item in try_grid(scored.run, configs, scored.scores):
            if isinstance(item, GridFailure):
                yield item.place, item.error
                continue
            made = jax.block_until_ready(restored_params(self.tuned, item.corrected))
            yield (
                item.place,
                ExperimentModel(made, time.perf_counter() - started, kernel_map(item.selection, self.spec.kernels)),
            )
            started = time.perf_counter()

    def _score(self, config: RestoreConfig) -> _ScoredRun:
        key = _scores_key(config)
        if key not in self._scored:
            if key not in self._opened:
                inputs = open_inputs(config, self.reporter)
                self._opened[key] = Run(inputs, make_plan(inputs), Models(self.base, self.tuned), self.reporter)
            run = self._opened.pop(key)
            started = time.perf_counter()
            scored = run.inputs.tuned if config.scores_at == "tuned" else run.inputs.base
            prepare_scoring(scoring_of(run.inputs, run.plan), run.plan.shapes, describe_params(scored, self.spec))
            self._scored[key] = _ScoredRun(run, score_pair(run), time.perf_counter() - started)
        return self._scored[key]

    def loaded(self, params: Params) -> LoadedModel:
        """Wrap params as a model ready to be asked."""
        return LoadedModel(self.spec, params, self.tokenizer, self._eos)

    def ask(self, params: Params, split: str, change: Callable[[Row], Row] | None = None, tag: int = 0) -> list[Answer]:
        """Ask the pair's questions of a split.

        Args:
            params: of the model.
            split: train, validation or test.
            change: applied to every row before it is asked.
            tag: tells apart the changes, for the cache of prompts.

        Raises:
            InputError: a question that does not fit into the model's positions.
        """
        settings = AnswerSettings(self.config.max_new_tokens, self.config.microbatch, self.config.match)
        return answer(self.loaded(params), self._questions(split, change, tag), settings)

    def _questions(self, split: str, change: Callable[[Row], Row] | None, tag: int) -> list[Prompt]:
        if (split, tag) not in self._prompts:
            tokens = self.config.max_new_tokens
            self._prompts[split, tag] = questions_of(
                self.pair, split, self.spec, tokenizer=self.tokenizer, max_new_tokens=tokens, change=change
            )
        return self._prompts[split, tag]

    def touched(self, params: Params) -> float:
        """Compute the share of all parameters whose value differs from TUNED's."""
        moved = [int((np.asarray(x) != np.asarray(y)).sum()) for x, y in _leaves(params, self.tuned)]
        return sum(moved) / sum(leaf.size for leaf in jax.tree.leaves(self.tuned))


def questions_of(
    pair: Pair,
    split: str,
    spec: ModelSpec,
    *,
    tokenizer: Tokenizer,
    max_new_tokens: int,
    change: Callable[[Row], Row] | None = None,
) -> list[Prompt]:
    """Turn a pair's questions of one split into prompts.

    Args:
        pair: whose questions are read.
        split: train, validation or test.
        spec: of the model.
        tokenizer: of the model.
        max_new_tokens: room for the answer.
        change: applied to every row first.

    Raises:
        InputError: a row without labels, or too long for the model.
    """
    prompts: list[Prompt] = []
    for role in ROLES:
        rows = read_rows(pair.rows(role, split), need_completion=False)
        check_labels(role, split, rows)
        asked = rows if change is None else [change(row) for row in rows]
        room = spec.max_positions - max_new_tokens
        prompts += encode_prompts(role, split, asked, tokenizer=tokenizer, vocab_size=spec.vocab_size, max_tokens=room)
    return prompts


def _leaves(left: Params, right: Params) -> Iterator[tuple[Any, Any]]:
    return zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)


def _scores_key(config: RestoreConfig) -> str:
    """Return what the scores of a restoration depend on."""
    return config.model_dump_json(exclude=set(FREE))
