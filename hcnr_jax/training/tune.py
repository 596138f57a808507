"""Fine-tunes a Hugging Face folder on rows of text, for `hcnr tune`."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from hcnr_jax.checkpoints.checkpoint import Checkpoint, is_adapter, open_checkpoint
from hcnr_jax.checkpoints.load import load_params
from hcnr_jax.checkpoints.names import tensor_names
from hcnr_jax.checkpoints.save import HFTensors, save_like
from hcnr_jax.config import TuneConfig
from hcnr_jax.data.encode import (
    Batch,
    Example,
    Row,
    example_warnings,
    fit_rows,
    load_tokenizer,
    pad_examples,
    read_rows,
)
from hcnr_jax.data.preferences import read_preferences
from hcnr_jax.errors import InputError
from hcnr_jax.models.decoder import Decoder
from hcnr_jax.models.spec import ModelSpec, spec_from_config
from hcnr_jax.runtime.files import check_output
from hcnr_jax.training.lora import adapted, init_adapters, joined, lora_objective, save_adapter, scaled
from hcnr_jax.training.objectives import Pairs, logits_of
from hcnr_jax.training.preference_pairs import objective_of, pad_pairs, with_reference
from hcnr_jax.training.trainer import StepInfo, TrainLog, TrainSettings, epoch_batches, train

RECORD = "hcnr_tune.json"


class Watched(NamedTuple):
    """Holds what a watch needs to know of the run before it starts. steps: number of steps planned."""

    checkpoint: Checkpoint
    spec: ModelSpec
    steps: int


@runtime_checkable
class Watch(Protocol):
    """Looks at the model while it is trained."""

    def __call__(self, step: int, params: Any) -> bool:
        """Look at the params after `step` steps; return whether training ends here.

        An adapter's leaves are beside the kernels, and the call is inside `adapted`.
        """

    def files(self, record: dict[str, Any]) -> dict[str, bytes]:
        """Add entries to hcnr_tune.json; return further files for the output folder, by name."""


@dataclass(frozen=True)
class TuneResult:
    """Holds the output folder, the settings, the log of every step, and warnings about the rows."""

    out: Path
    settings: TrainSettings
    log: TrainLog
    warnings: tuple[str, ...]


def tune(
    config: TuneConfig,
    on_step: Callable[[int, int, StepInfo], None] | None = None,
    watching: Callable[[Watched], Watch] | None = None,
) -> TuneResult:
    """Fine-tune MODEL and write a folder in its layout and dtypes, or with `config.lora` a PEFT adapter folder.

    Weights are trained in float32 and rounded once, at the end. Nothing is left at `config.out` after an error.

    Args:
      config: the options of `hcnr tune`.
      on_step: is called as `on_step(step, steps, info)` after every step; reading the info waits for the device.
      watching: makes the watch that looks at the params of every step, before the weights are read.

    Raises:
      InputError: options, model, rows or output folder are wrong, which is checked before any training; or the disk
        failed or is full.
      NumericalError: the loss is not finite.
    """
    check_output(config.out, [config.model])
    if is_adapter(config.model):
        raise InputError(
            f"MODEL {config.model} is a LoRA adapter, and training starts from a whole model: name its base, or merge "
            "it first (PEFT's merge_and_unload, then save_pretrained)"
        )
    checkpoint = open_checkpoint(config.model)
    spec = spec_from_config(checkpoint.config, str(checkpoint.folder / "config.json"))
    rows, warnings = _encoded(config, checkpoint, spec)
    settings = train_settings(config, jax.tree.leaves(rows)[0].shape[0])
    watch = None if watching is None else watching(Watched(checkpoint, spec, settings.steps))
    params = load_params(checkpoint, spec)
    model = Decoder(spec, dtype=jnp.dtype(config.compute_dtype))
    make, key = objective_of(config.objective, config.beta), jax.random.key(config.seed)
    if isinstance(rows, Pairs) and config.objective == "dpo":
        rows = with_reference(rows, logits_of(model), params, rows=settings.microbatch or settings.batch_size)
    batches = epoch_batches(rows, settings.batch_size, settings.seed)

    def report(step: int, info: StepInfo) -> None:
        if on_step is not None:
            on_step(step, settings.steps, info)

    if config.lora is None:
        objective = make(logits_of(model))
        trained, log = train(objective, params, batches, settings=settings, key=key, on_step=report, watch=watch)
        files = _files(config, settings, log, watch)
        out = save_like(checkpoint, config.out, _tensors(checkpoint, spec, trained), files)
    else:
        alpha = 2.0 * config.lora if config.lora_alpha is None else config.lora_alpha
        scale = alpha / config.lora
        adapters = init_adapters(params, config.lora, jax.random.fold_in(key, settings.steps), spec.kernels)
        objective = lora_objective(make, model, params, scale)
        look = None if watch is None else _of_adapters(watch, params, scale)
        trained, log = train(objective, adapters, batches, settings=settings, key=key, on_step=report, watch=look)
        out = save_adapter(
            config.out,
            trained,
            alpha,
            base_folder=checkpoint.folder,
            family=spec.recipe,
            extra_files=_files(config, settings, log, watch),
        )
    return TuneResult(out, settings, log, tuple(warnings))


def train_settings(config: TuneConfig, rows: int) -> TrainSettings:
    """Return the optimiser's settings for a number of rows."""
    steps = math.ceil(config.epochs * rows / config.batch_size) if config.steps is None else config.steps
    rate = config.learning_rate
    if rate is None:
        rate = 2e-5 if config.lora is None else 2e-4
    return TrainSettings(
        learning_rate=rate,
        steps=steps,
        warmup_steps=int(config.warmup * steps),
        batch_size=config.batch_size,
        weight_decay=config.weight_decay,
        b1=config.b1,
        b2=config.b2,
        clip_norm=config.clip_norm,
        end_fraction=config.end_fraction,
        seed=config.seed,
        microbatch=config.microbatch,
    )


def _encoded(config: TuneConfig, checkpoint: Checkpoint, spec: ModelSpec) -> tuple[Batch | Pairs, list[str]]:
    """Encode and pad all rows, or all pairs for a preference objective; return them with warnings."""
    tokenizer = load_tokenizer(checkpoint.tokenizer_folder)

    def fitted(groups: Sequence[Sequence[Row]]) -> tuple[list[tuple[Example, ...]], list[str]]:
        return fit_rows(
            groups,
            tokenizer,
            config.max_length,
            long_rows=config.long_rows,
            max_positions=spec.max_positions,
            vocab_size=spec.vocab_size,
        )

    if config.objective == "sft":
        kept, warnings = fitted([(row,) for row in read_rows(config.data)])
        examples = [example for (example,) in kept]
        return pad_examples(examples), [*checkpoint.notes, *warnings, *example_warnings(examples)]
    kept, warnings = fitted(read_preferences(config.data))
    chosen, rejected = ([pair[side] for pair in kept] for side in (0, 1))
    return pad_pairs(chosen, rejected), [*checkpoint.notes, *warnings, *example_warnings([*chosen, *rejected])]


class _TunedTensors(HFTensors):
    """Maps names to trained tensors. A tied checkpoint that stores its head gets the trained embedding there too."""

    def __getitem__(self, name: str) -> np.ndarray:
        family = self._family
        return super().__getitem__(family.embedding if name == family.lm_head and name not in self._places else name)


def _tensors(checkpoint: Checkpoint, spec: ModelSpec, params: dict[str, Any]) -> _TunedTensors:
    names = [name for name in checkpoint.tensors if name in tensor_names(spec) or name == spec.recipe.lm_head]
    return _TunedTensors(params, spec, {name: checkpoint.tensors[name].dtype for name in names})


def _of_adapters(watch: Watch, params: Any, scale: float) -> Callable[[int, Any], bool]:
    """Make the watch of a run that trains adapters alone.

    The scale is put into B, because compiled programs are kept by the shapes of their arguments: a scale in the context
    would be that of the first run of the process.
    """

    def look(step: int, adapters: Any) -> bool:
        with adapted(1.0):
            return watch(step, joined(params, scaled(adapters, scale)))

    return look


def _files(config: TuneConfig, settings: TrainSettings, log: TrainLog, watch: Watch | None) -> dict[str, bytes]:
    """Make the files beside the weights: hcnr_tune.json and those of the watch.

    hcnr_tune.json holds the resolved configuration, package versions and the loss of every step.
    """
    packages = ("hcnr_jax", "jax", "flax", "optax")
    record: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "settings": settings.__dict__,
        "versions": {name: version(name) for name in packages},
        "losses": [float(f"{loss:.6g}") for loss in log.losses],
    }
    files = {} if watch is None else watch.files(record)
    return {RECORD: (json.dumps(record, indent=2) + "\n").encode(), **files}
