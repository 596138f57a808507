"""One pair opened for experiments: weights and questions are loaded once, rows scored once a kind of scores."""

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
from hcnr_jax.evaluate.ask.questions import Role, check_labels
from hcnr_jax.evaluate.ask.runner import Answer, answer
from hcnr_jax.experiments.cache_keys import restoration
from hcnr_jax.experiments.kernel_map import KernelMap, kernel_map
from hcnr_jax.experiments.pairs import ROLES, Pair
from hcnr_jax.method.neurons import Params
from hcnr_jax.models import ModelSpec
from hcnr_jax.report.console import Reporter
from hcnr_jax.restoration.correct import restored_params
from hcnr_jax.restoration.grid import FREE, GridFailure, try_grid
from hcnr_jax.restoration.inputs import Prepared, prepare
from hcnr_jax.restoration.plan import Plan, make_plan
from hcnr_jax.restoration.run import load_pair, score_pair, scoring_of
from hcnr_jax.restoration.score import Scores, prepare_scoring


class Made(NamedTuple):
    """A model an experiment made: its params, the seconds that took (a share of what settings have in common), and of a
    restoration what it did to every kernel."""

    params: Params
    seconds: float
    kernels: KernelMap | None = None


Failure = InputError | NumericalError
"""Why a setting has no model; the experiment goes on without it."""


class _Scored(NamedTuple):
    prepared: Prepared
    plan: Plan
    scores: dict[str, Scores]
    seconds: float


class Lab:
    """A pair in memory. `restored` makes restorations, `ask` puts its questions to any params of its shape."""

    def __init__(self, pair: Pair, config: ExperimentConfig, reporter: Reporter) -> None:
        self.pair, self.config, self.reporter = pair, config, reporter
        self._scored: dict[str, _Scored] = {}
        self._opened: dict[str, tuple[Prepared, Plan]] = {}
        self._prompts: dict[tuple[str, int], list[Prompt]] = {}
        first = self.restoration("recommended", {})
        prepared = prepare(first, reporter)
        self.spec = prepared.spec
        self.honesty = [example.row for example in prepared.honesty]
        self.task = [example.row for example in prepared.task]
        self.examples = {"honesty": prepared.honesty, "task": prepared.task}
        self.tokenizer: Tokenizer = load_tokenizer(prepared.tuned.tokenizer_folder)
        self._eos = end_ids(prepared.tuned, self.spec, self.tokenizer)
        plan = make_plan(prepared)
        # Rows are scored when a restoration asks for it: experiments that only train never do.
        self.base, self.tuned = load_pair(prepared, plan, reporter, scoring=False)
        self._opened[_scores_key(first)] = prepared, plan

    def restoration(self, name: str, values: Mapping[str, Any]) -> RestoreConfig:
        """A preset's settings on this pair's rows, with some of them changed."""
        return restoration(self.config, self.pair, name, values)

    def restored(self, configs: Sequence[RestoreConfig]) -> Iterator[tuple[int, Made | InputError]]:
        """(place, the restored model, or why that setting has none), settings of equal scores together."""
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

    def _grid(self, scored: _Scored, configs: Sequence[RestoreConfig]) -> Iterator[tuple[int, Made | InputError]]:
        """One walk for all that share one."""
        prepared, plan, scores, _ = scored
        started = time.perf_counter()
        for item in try_grid(prepared, plan, configs, self.base, self.tuned, scores, self.reporter):
            if isinstance(item, GridFailure):
                yield item.place, item.error
                continue
            made = jax.block_until_ready(restored_params(self.tuned, item.corrected))
            yield item.place, Made(made, time.perf_counter() - started, kernel_map(item.selection))
            started = time.perf_counter()

    def _score(self, config: RestoreConfig) -> _Scored:
        key = _scores_key(config)
        if key not in self._scored:
            if key not in self._opened:
                found = prepare(config, self.reporter)
                self._opened[key] = found, make_plan(found)
            prepared, plan = self._opened.pop(key)
            started = time.perf_counter()
            scored = prepared.tuned if config.scores_at == "tuned" else prepared.base
            prepare_scoring(scoring_of(prepared, plan), plan.shapes, describe_params(scored, self.spec))
            scores = score_pair(prepared, plan, self.base, self.tuned, self.reporter, None)
            self._scored[key] = _Scored(prepared, plan, scores, time.perf_counter() - started)
        return self._scored[key]

    def loaded(self, params: Params) -> LoadedModel:
        """Params ready to be asked."""
        return LoadedModel(self.spec, params, self.tokenizer, self._eos)

    def ask(self, params: Params, split: str, change: Callable[[Row], Row] | None = None, tag: int = 0) -> list[Answer]:
        """The answers to the pair's questions of a split. change: of every row before it is asked, told apart by `tag`.

        InputError for a question that does not fit into the model's positions.
        """
        settings = AnswerSettings(self.config.max_new_tokens, self.config.microbatch, self.config.match)
        return answer(self.loaded(params), self._questions(split, change, tag), settings)

    def _questions(self, split: str, change: Callable[[Row], Row] | None, tag: int) -> list[Prompt]:
        if (split, tag) not in self._prompts:
            tokens = self.config.max_new_tokens
            self._prompts[split, tag] = questions_of(self.pair, split, self.spec, self.tokenizer, tokens, change)
        return self._prompts[split, tag]

    def touched(self, params: Params) -> float:
        """Share of all parameters whose value differs from tuned's."""
        moved = [int((np.asarray(x) != np.asarray(y)).sum()) for x, y in _leaves(params, self.tuned)]
        return sum(moved) / sum(leaf.size for leaf in jax.tree.leaves(self.tuned))


def questions_of(
    pair: Pair,
    split: str,
    spec: ModelSpec,
    tokenizer: Tokenizer,
    max_new_tokens: int,
    change: Callable[[Row], Row] | None = None,
) -> list[Prompt]:
    """A pair's questions of one split as prompts of a model; InputError for rows without labels or too long for it."""
    prompts: list[Prompt] = []
    for role in ROLES:
        rows = read_rows(pair.rows(role, split), need_completion=False)
        named: Role = "honesty" if role == "honesty" else "task"
        check_labels(named, split, rows)
        asked = rows if change is None else [change(row) for row in rows]
        room = spec.max_positions - max_new_tokens
        prompts += encode_prompts(named, split, asked, tokenizer, spec.vocab_size, room)
    return prompts


def _leaves(left: Params, right: Params) -> Iterator[tuple[Any, Any]]:
    return zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)


def _scores_key(config: RestoreConfig) -> str:
    """What the scores depend on."""
    return config.model_dump_json(exclude=set(FREE))
