"""Checks within seconds all that can be refused before the work begins: folders, models, rows, tokenizers, options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from jax.sharding import Mesh

from hcnr_jax.checkpoints.checkpoint import RECORD, Checkpoint, open_checkpoint
from hcnr_jax.checkpoints.lora import MergedCheckpoint, open_tuned
from hcnr_jax.checkpoints.pair_checks import DeltaLoss, check_pair, check_windows, delta_lost
from hcnr_jax.checkpoints.tensor_checks import check_finite
from hcnr_jax.config import RestoreConfig
from hcnr_jax.data import (
    Example,
    Row,
    Tokenizer,
    check_tokenizers,
    check_vocabularies,
    choose_rows,
    duplicate_warnings,
    example_warnings,
    fit_rows,
    load_tokenizer,
    overlap_warnings,
    read_rows,
    refuse_same_file,
)
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.ask.prompts import is_answerable
from hcnr_jax.evaluate.score.constraint import parse_constraint
from hcnr_jax.evaluate.score.measurement import NEED_ANSWERABLE
from hcnr_jax.method.adapter import Coordinates
from hcnr_jax.method.neurons import Kernel
from hcnr_jax.models import ModelSpec
from hcnr_jax.report.console import Reporter
from hcnr_jax.restoration.decoder_blocks import layout_of
from hcnr_jax.restoration.kernel_names import kernel_names
from hcnr_jax.restoration.output_kind import adapter_to_write, kernel_coordinates
from hcnr_jax.runtime.compile import AUTO
from hcnr_jax.runtime.files import check_output, check_writable
from hcnr_jax.runtime.sharding import Layout, check_mesh, make_mesh

# Warn if 16-bit rounding hid the change of more than this share of the kernel entries.
LOST_SHARE = 0.05


@dataclass(frozen=True)
class RunInputs:
    """Holds the checked inputs of a restoration. No weights are loaded yet.

    Args:
        config: the options of `hcnr restore`.
        base: BASE, opened.
        tuned: TUNED, opened.
        spec: description of both models.
        honesty: the encoded honesty rows.
        task: the encoded task rows.
        layout: places of params and rows on the mesh of --mesh; None for one device.
    """

    config: RestoreConfig
    base: Checkpoint
    tuned: Checkpoint
    spec: ModelSpec
    honesty: list[Example]
    task: list[Example]
    layout: Layout | None = None

    @cached_property
    def adapter(self) -> MergedCheckpoint | None:
        """Return TUNED if an adapter like it is written; None if a whole model is written."""
        return adapter_to_write(self.config, self.tuned, self.spec)

    @cached_property
    def coordinates(self) -> dict[Kernel, Coordinates] | None:
        """Return the coordinates of every kernel that the adapter to write moves; None for a whole model."""
        return None if self.adapter is None else kernel_coordinates(self.adapter, self.spec)


def open_inputs(config: RestoreConfig, reporter: Reporter) -> RunInputs:
    """Open and compare both models, tokenise the rows, and warn about anything suspicious.

    Raises:
        InputError: these models, rows or options cannot be used for a restoration.
    """
    mesh = _mesh(config)
    if config.compilation_cache not in (None, AUTO):
        check_writable(Path(config.compilation_cache), f"--compilation-cache {config.compilation_cache}")
    refuse_same_file(config.honesty, config.task)
    base, tuned, spec = open_models(config)
    adapter = adapter_to_write(config, tuned, spec)
    tokenizer = load_tokenizer(tuned.tokenizer_folder)
    honesty, task = _examples(config, tokenizer, spec, reporter)
    if config.choose is not None:
        _tell_constraint(config.choose, config.honesty, reporter)
    differing = _check_same_tokenizer(base, tuned, tokenizer, [example.row for example in [*honesty, *task]])
    longest = max(len(example.tokens) for example in [*honesty, *task])
    for warning in [
        *dict.fromkeys([*base.notes, *tuned.notes]),
        *check_windows(base, tuned, longest),
        *differing,
        *example_warnings(honesty),
        *example_warnings(task),
    ]:
        reporter.warn(warning)
    with reporter.stage("check weights", 2, "models") as stage:
        for checkpoint in (base, tuned):
            check_finite(checkpoint)
            stage.advance()
        if adapter is None:
            _warn_lost(delta_lost(base, tuned, kernel_names(spec).values()), tuned, reporter)
    layout = None if mesh is None else layout_of(mesh, spec)
    for warning in layout.warnings() if layout else []:
        reporter.warn(warning)
    return RunInputs(config, base, tuned, spec, honesty, task, layout)


def open_models(config: RestoreConfig) -> tuple[Checkpoint, Checkpoint, ModelSpec]:
    """Open both models and compare them, and check that the output can be written.

    Raises:
        InputError: the models do not fit each other, or --out cannot be used.
    """
    base = open_checkpoint(config.base)
    tuned = open_tuned(config.tuned, base)
    if not (config.resume and (config.out / RECORD).is_file()):
        check_output(config.out, [*base.sources, *tuned.sources, config.honesty, config.task])
    return base, tuned, check_pair(base, tuned)


def _mesh(config: RestoreConfig) -> Mesh | None:
    """Make the mesh of --mesh, None for one device. InputError for a mesh that this machine does not have."""
    check_mesh(config.mesh)
    mesh = make_mesh(config.mesh)
    if mesh is not None and config.stream:
        raise InputError(
            f"--stream works on one device and --mesh {config.mesh} on {mesh.size}: leave one of them out (a mesh "
            "splits the weights over its devices)"
        )
    return mesh


def _examples(
    config: RestoreConfig, tokenizer: Tokenizer, spec: ModelSpec, reporter: Reporter
) -> tuple[list[Example], list[Example]]:
    """Choose and encode the rows of both files, and warn about repeated, shared and omitted rows.

    The next rows of the shuffle replace the rows that --long-rows leaves out.
    """
    options = (
        "--honesty-samples" if config.honesty_samples else "--samples",
        "--task-samples" if config.task_samples else "--samples",
    )
    sets: list[list[Example]] = []
    for path, count, option in zip((config.honesty, config.task), config.rows, options, strict=True):
        every = read_rows(path)
        rows = choose_rows(every, count, config.seed, option=option)
        if config.long_rows != "refuse":
            rows = choose_rows(every, None, config.seed)
        kept, warnings = fit_rows(
            [(row,) for row in rows],
            tokenizer,
            config.max_length,
            long_rows=config.long_rows,
            count=count,
            max_positions=spec.max_positions,
            vocab_size=spec.vocab_size,
        )
        for warning in warnings:
            reporter.warn(warning)
        if count is not None and len(kept) < count:
            raise InputError(
                f"{path}: {option} asks for {count} rows, and {len(kept)} of {len(every)} fit --max-length "
                f"{config.max_length} (--long-rows {config.long_rows}); pass {option} {len(kept)}"
            )
        sets.append([example for (example,) in kept])
    honesty, task = ([example.row for example in examples] for examples in sets)
    for warning in [*duplicate_warnings(honesty), *duplicate_warnings(task), *overlap_warnings(honesty, task)]:
        reporter.warn(warning)
    return sets[0], sets[1]


def _tell_constraint(text: str, honesty: Path, reporter: Reporter) -> None:
    """Print how --choose is read, and check that its metric can be measured.

    Without an answerable honesty row over-refusal cannot be measured. The function then warns, or raises InputError if
    the constraint's own metric needs such rows.
    """
    constraint = parse_constraint(text)
    reporter.say(f"--choose: the highest honesty_f1 with {constraint.in_words()}")
    if any(is_answerable(row) for row in read_rows(honesty)):
        return
    blind = f"--honesty {honesty} has no answerable row to judge over-refusal with"
    remedy = "add answerable rows, with `answerable` true and their answers as completions"
    if constraint.metric in NEED_ANSWERABLE:
        raise InputError(f"--choose {text!r}: {blind}, so that {constraint.metric} cannot be measured: {remedy}")
    reporter.warn(f"--choose: {blind}: a setting that refuses everything would look best; {remedy}")


def _check_same_tokenizer(base: Checkpoint, tuned: Checkpoint, tokenizer: Tokenizer, rows: Sequence[Row]) -> list[str]:
    """Raise InputError if BASE's tokenizer encodes a row differently from TUNED's, and return warnings.

    An adapter may bring its own chat template and end token, which are then used for both models.
    """
    if tuned.tokenizer_folder == base.tokenizer_folder:
        return []
    try:
        other = load_tokenizer(base.folder)
    except InputError:
        return []
    if isinstance(tuned, MergedCheckpoint):
        return check_vocabularies(tokenizer, other, rows)
    check_tokenizers(tokenizer, other, rows)
    return []


def _warn_lost(loss: DeltaLoss, tuned: Checkpoint, reporter: Reporter) -> None:
    """Warn if 16-bit storage rounds away more than `LOST_SHARE` of the change that fine-tuning made."""
    if loss.share <= LOST_SHARE:
        return
    if isinstance(tuned, MergedCheckpoint):
        reporter.warn(
            f"{loss.share:.0%} of the kernel entries that the adapter moves equal BASE's in 16-bit storage (most in "
            f"{loss.worst}). Scores and corrections read the merge in float32, but the model that is written is stored "
            "as BASE is; give BASE in float32 to keep all of the adapter"
        )
        return
    reporter.warn(
        f"{loss.share:.0%} of the kernel entries that fine-tuning may have moved equal BASE's in 16-bit storage "
        f"(most in {loss.worst}): what was rounded away cannot be scored. Save TUNED in float32 if it still exists"
    )
