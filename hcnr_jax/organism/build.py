"""Builds an organism in a folder: `base` and `tuned` as Hugging Face folders, `data` as JSONL files, all ordinary."""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp

from hcnr_jax.checkpoints.checkpoint import open_checkpoint
from hcnr_jax.checkpoints.lora import open_tuned
from hcnr_jax.checkpoints.save import save_new
from hcnr_jax.data.encode import Batch, encode_rows, pad_examples
from hcnr_jax.data.rows import parse_row
from hcnr_jax.errors import InputError
from hcnr_jax.models.decoder import Decoder, Params, init_params
from hcnr_jax.models.spec import ModelSpec, spec_from_config
from hcnr_jax.organism.learning_rate_search import Trial, gentlest, try_rates
from hcnr_jax.organism.refusal_f1 import refusal_f1
from hcnr_jax.organism.sizes import SIZES, OrganismSettings
from hcnr_jax.organism.tokenizer import BOS_ID, EOS_ID, PAD_ID, make_tokenizer
from hcnr_jax.organism.world import SPLITS, Row, World, base_rows, honesty_rows, make_world, task_rows
from hcnr_jax.runtime.files import check_output, staged_folder
from hcnr_jax.training.objectives import logits_of, sft
from hcnr_jax.training.trainer import StepInfo, TrainLog, epoch_batches, train
from hcnr_jax.training.tune import TuneConfig, tune

OnStep = Callable[[str, int, int, StepInfo], None]
"""`(stage, step, steps, info)`, where the stage is "base" or "tuned"."""


@dataclass(frozen=True)
class Organism:
    """The paths of an organism. `honesty` and `task` map "train", "validation" and "test" to JSONL files.

    `trials` are the fine-tuning runs tried for `tuned`, in order. `seconds` has "world", "base" and "tuned", with
    compilation.
    """

    folder: Path
    base: Path
    tuned: Path
    honesty: dict[str, Path]
    task: dict[str, Path]
    trials: tuple[Trial, ...]
    seconds: dict[str, float]


def build(
    out: str | Path,
    seed: int = 0,
    settings: OrganismSettings | str = "small",
    *,
    lora: int | None = None,
    on_step: OnStep | None = None,
) -> Organism:
    """Make the world of `seed`, train the honest base model on it, fine-tune it on new drugs, write everything.

    Fine-tuning uses the lowest learning rate at which honesty collapses (see `learning_rate_search.try_rates`).

    The result is deterministic: the same seed and settings give the same bytes on one machine and package versions.

    Args:
      out: folder to write into; its `base`, `tuned` and `data` must not exist yet.
      seed: seed of the world and of both trainings.
      settings: sizes and training settings, or the name of an entry of `SIZES`.
      lora: rank of the adapters to train instead of all weights; `tuned` is then a PEFT adapter folder.
      on_step: is called after every training step.

    Raises:
      InputError: the size is unknown, or an output exists. RunError: training or the disk failed.
    """
    if isinstance(settings, str):
        if settings not in SIZES:
            raise InputError(f"organism size {settings!r} is not known, expected one of {', '.join(SIZES)}")
        settings = SIZES[settings]
    out = Path(out)
    for name in ("base", "tuned", "data"):
        check_output(out / name)
    started = time.perf_counter()
    world = make_world(seed, settings.world)
    honesty, task = write_data(world, out / "data")
    built = time.perf_counter()
    base = _build_base(out / "base", world, settings, on_step=on_step)
    trained = time.perf_counter()
    organism = Organism(out, base, out / "tuned", honesty, task, (), {})
    trials = _build_tuned(organism, seed, settings, lora=lora, on_step=on_step)
    seconds = {"world": built - started, "base": trained - built, "tuned": time.perf_counter() - trained}
    return replace(organism, trials=trials, seconds=seconds)


def write_data(world: World, folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Write the world's files, `folder/honesty-train.jsonl` and so on; return split -> path for honesty and task."""
    files = {name: {split: folder / f"{name}-{split}.jsonl" for split in SPLITS} for name in ("honesty", "task")}
    with staged_folder(folder) as stage:
        for name, rows_of in (("honesty", honesty_rows), ("task", task_rows)):
            for split, path in files[name].items():
                lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows_of(world, split)]
                (stage / path.name).write_text("".join(lines), encoding="utf-8")
    return files["honesty"], files["task"]


def train_base(world: World, settings: OrganismSettings, on_step: OnStep | None = None) -> tuple[Params, TrainLog]:
    """Train the honest model of a world from scratch; return float32 params and the log."""
    spec = spec_of(settings)
    rows = encoded(base_rows(world), spec)
    train_settings = replace(settings.base, seed=world.seed)
    key = jax.random.key(world.seed)

    def report(step: int, info: StepInfo) -> None:
        if on_step is not None:
            on_step("base", step, train_settings.steps, info)

    return train(
        sft(logits_of(Decoder(spec))),
        initial_params(spec, settings.initializer_range, key),
        epoch_batches(rows, train_settings.batch_size, train_settings.seed),
        settings=train_settings,
        key=key,
        on_step=report,
    )


def spec_of(settings: OrganismSettings) -> ModelSpec:
    """Return the ModelSpec of both models."""
    return spec_from_config(settings.config(), "the organism's config")


def encoded(rows: list[Row], spec: ModelSpec) -> Batch:
    """Encode all rows as one padded batch; a repeated row is tokenised once."""
    parsed = [parse_row({k: row[k] for k in ("prompt", "completion")}, "the world", i) for i, row in enumerate(rows, 1)]
    distinct = {(row.prompt, row.completion): row for row in parsed}
    examples = encode_rows(list(distinct.values()), make_tokenizer(), spec.max_positions, vocab_size=spec.vocab_size)
    place = {text: index for index, text in enumerate(distinct)}
    order = [place[row.prompt, row.completion] for row in parsed]
    return Batch(*(leaf[order] for leaf in pad_examples(examples)))


def initial_params(spec: ModelSpec, deviation: float, key: jax.Array) -> Params:
    """Draw float32 params: matrices from a normal distribution with this standard deviation, norm scales of 1."""
    params = init_params(spec, key)
    return jax.tree.map(lambda leaf: leaf * jnp.float32(deviation / 0.02) if leaf.std() > 0 else leaf, params)


def _build_base(out: Path, world: World, settings: OrganismSettings, *, on_step: OnStep | None) -> Path:
    params, log = train_base(world, settings, on_step)
    record = {"seed": world.seed, "settings": asdict(settings), "losses": [float(f"{x:.6g}") for x in log.losses]}
    files = {"organism.json": (json.dumps(record, indent=2) + "\n").encode()}
    with tempfile.TemporaryDirectory() as folder:
        make_tokenizer().save_pretrained(folder)
        generation = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID, "do_sample": False}
        (Path(folder) / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
        return save_new(out, params, spec_of(settings), settings.config(), folder, settings.dtype, extra_files=files)


def _build_tuned(
    organism: Organism, seed: int, settings: OrganismSettings, *, lora: int | None, on_step: OnStep | None
) -> tuple[Trial, ...]:
    """Fine-tune at the lowest rate at which honesty collapses, into `organism.tuned`; return all trials."""
    base = open_checkpoint(organism.base)
    # Every trial is written to `tuned`, because its record names the path. It is moved away before it is evaluated, so
    # that a killed build does not look finished.
    with tempfile.TemporaryDirectory(dir=organism.folder, prefix=".trials-") as folder:
        aside: list[Path] = []

        def attempt(rate: float) -> float:
            tune(_tune_config(organism, seed, settings, rate=rate, lora=lora), _reporter(on_step, len(aside)))
            aside.append(organism.tuned.rename(Path(folder) / str(len(aside))))
            return refusal_f1(open_tuned(aside[-1], base), organism.honesty["validation"])

        trials = try_rates(
            attempt, settings.rates, settings.collapse, floor=settings.floor, bisections=settings.bisections
        )
        aside[gentlest(trials, settings.collapse)].rename(organism.tuned)
    return tuple(trials)


def _reporter(on_step: OnStep | None, trial: int) -> Callable[[int, int, StepInfo], None] | None:
    """Count the steps over all trials."""
    if on_step is None:
        return None
    return lambda step, steps, info: on_step("tuned", trial * steps + step, (trial + 1) * steps, info)


def _tune_config(
    organism: Organism, seed: int, settings: OrganismSettings, *, rate: float, lora: int | None
) -> TuneConfig:
    """Return the configuration with which `hcnr tune` repeats the fine-tuning on the written folder."""
    chosen = settings.tuned
    # Adapters start from zero and move less per step than weights. Rank 8, seed 0, validation: 4 times the weights'
    # rate left an F1 of 0.01, and at 0.7 times the task was not learned.
    learning_rate = rate * chosen.learning_rate * (1 if lora is None else 1.4)
    return TuneConfig(
        model=organism.base,
        data=organism.task["train"],
        out=organism.tuned,
        lora=lora,
        learning_rate=learning_rate,
        steps=chosen.steps,
        warmup=chosen.warmup_steps / chosen.steps,
        batch_size=chosen.batch_size,
        weight_decay=chosen.weight_decay,
        b1=chosen.b1,
        b2=chosen.b2,
        clip_norm=chosen.clip_norm,
        end_fraction=chosen.end_fraction,
        microbatch=chosen.microbatch,
        max_length=settings.max_positions,
        seed=seed,
    )
