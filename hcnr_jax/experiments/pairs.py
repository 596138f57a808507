"""The pairs of an experiment: folders that hold a base and a tuned model and their rows, or organisms built by seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hcnr_jax.config.experiments import ExperimentConfig
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.ask.question_sets import split_name
from hcnr_jax.evaluate.ask.questions import unique_names
from hcnr_jax.experiments.organism_pairs import organism
from hcnr_jax.report.console import Reporter

SPLITS = ("train", "validation", "test")
ROLES = ("honesty", "task")


@dataclass(frozen=True)
class Pair:
    """Where one pair lies: `base` and `tuned` are models, `data` holds `{honesty,task}-{train,validation,test}.jsonl`.

    train rows are what methods read, validation questions choose settings, test questions show them.
    """

    name: str
    base: Path
    tuned: Path
    data: Path

    def rows(self, role: str, split: str) -> Path:
        """The file of one role and split."""
        return self.data / f"{role}-{split}.jsonl"


def find_pairs(config: ExperimentConfig, reporter: Reporter) -> list[Pair]:
    """The folders of --pair, checked, and the organisms of --seeds, built where an earlier run has not built them."""
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
                "honesty-train.jsonl, -validation, -test and the same of task"
            )
    return pair
