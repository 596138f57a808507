"""Finds the pairs of an experiment: folders with a base model, a tuned model and rows, or organisms built by seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hcnr_jax.config.experiments import ExperimentConfig
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.ask.prompts import unique_names
from hcnr_jax.evaluate.ask.question_sets import split_name
from hcnr_jax.evaluate.trait import HONESTY, TASK
from hcnr_jax.experiments.organism_pairs import organism
from hcnr_jax.report.console import Reporter

SPLITS = ("train", "validation", "test")
ROLES = (HONESTY.name, TASK)


@dataclass(frozen=True)
class Pair:
    """Names the folders of one pair.

    `base` and `tuned` are models, `data` holds `{honesty,task}-{train,validation,test}.jsonl`. Methods read the train
    rows, validation questions choose settings, and test questions give the results.
    """

    name: str
    base: Path
    tuned: Path
    data: Path

    def rows(self, role: str, split: str) -> Path:
        """Return the file of one role and split."""
        return self.data / f"{role}-{split}.jsonl"


def find_pairs(config: ExperimentConfig, reporter: Reporter) -> list[Pair]:
    """Check the folders of --pair, and build those organisms of --seeds that do not exist yet."""
    named = [split_name(word, "--pair") for word in config.pair]
    pairs = [_opened(name, Path(path)) for name, path in named]
    pairs += [_opened(f"seed-{seed}", organism(seed, config, reporter)) for seed in config.seeds]
    unique_names([pair.name for pair in pairs], "--pair")
    return pairs


def _opened(name: str, folder: Path) -> Pair:
    pair = Pair(name, folder / "base", folder / "tuned", folder / "data")
    needed = [pair.base, pair.tuned, *(pair.rows(role, split) for role in ROLES for split in SPLITS)]
    for path in needed:
        if not path.exists():
            raise InputError(
                f"pair {pair.name}: {path} is not there; expected a folder with base, tuned and data, where data holds "
                f"{ROLES[0]}-train.jsonl, -validation, -test and the same of {ROLES[1]}"
            )
    return pair
