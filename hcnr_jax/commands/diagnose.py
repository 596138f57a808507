"""Runs `hcnr diagnose`, which checks whether a restoration will work, and whether a finished restoration did harm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hcnr_jax.checkpoints import check_pair
from hcnr_jax.checkpoints.checkpoint import RECORD, read_json
from hcnr_jax.commands.evaluate import ask_and_judge
from hcnr_jax.commands.probe import states_of, transfer
from hcnr_jax.config import DiagnoseConfig, RestoreConfig, build
from hcnr_jax.data import Example, Row, read_rows
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate import (
    AnswerSettings,
    Finding,
    LoadedModel,
    Prompt,
    check_conditioning,
    check_honesty,
    check_premise,
    check_stability,
    check_task,
    encode_prompts,
    input_conditions,
    rank_correlation,
    summarise,
)
from hcnr_jax.evaluate.ask.model import OpenedModel, open_model
from hcnr_jax.evaluate.ask.prompts import Role, check_labels
from hcnr_jax.evaluate.trait import HONESTY, TASK, TASK_ACCURACY
from hcnr_jax.method.neurons import Params
from hcnr_jax.models import ModelSpec
from hcnr_jax.report.console import Reporter
from hcnr_jax.report.json import versions
from hcnr_jax.report.result_file import check_new_file, write_record
from hcnr_jax.report.terminal_tables import wide_table
from hcnr_jax.restoration.decoder_blocks import block_model
from hcnr_jax.restoration.inputs import RunInputs, open_inputs
from hcnr_jax.restoration.kernel_names import kernel_names
from hcnr_jax.restoration.microbatches import Shape, loss_window, microbatches
from hcnr_jax.restoration.plan import make_plan
from hcnr_jax.restoration.score import Scoring, score

# Least number of held-out questions. With fewer, all rows are asked, including the scored rows.
HELD_OUT = 20

Part = tuple[list[Finding], dict[str, Any]]


def diagnose(config: DiagnoseConfig, reporter: Reporter | None = None) -> list[Finding]:
    """Run `hcnr diagnose` and return its findings. A failed check is a warning, so that the exit code stays 0.

    Raises:
        InputError: the options, models or rows cannot be used.
    """
    reporter = reporter or Reporter()
    check_new_file(config.out)
    inputs = open_inputs(_restore_config(config), reporter)
    base = open_model(config.base)
    tuned = open_model(config.tuned, base.checkpoint)
    restored = _open_restored(config, base)
    with jax.default_matmul_precision("highest"):
        base_model, tuned_model = base.load(), tuned.load()
        parts = {
            "probe": premise(config, base_model, tuned_model, reporter=reporter),
            **before(inputs, base_model.params, tuned_model.params, reporter=reporter, microbatch=config.microbatch),
        }
        if restored is not None:
            made = settings_of(restored)
            parts["restored"] = after(
                config, inputs, tuned_model, restored=restored.load(), reporter=reporter, made=made
            )
    findings = [finding for found, _ in parts.values() for finding in found]
    tell(findings, reporter)
    record = {
        "config": config.model_dump(mode="json"),
        "findings": [finding.to_json() for finding in findings],
        **{name: details for name, (_, details) in parts.items()},
        "versions": versions(),
        "seconds": reporter.seconds,
        "warnings": reporter.warnings,
    }
    write_record(config.out, record)
    reporter.say(f"report: {config.out}")
    return findings


def tell(findings: Sequence[Finding], reporter: Reporter) -> None:
    """Print the findings as a table, then a warning for each failed check and the reason for each check not made."""
    words = {True: "ok", False: "WARNING", None: "not checked"}
    rows = [
        [
            finding.check,
            "-" if finding.value is None else f"{finding.value:.3g}",
            "-" if finding.limit is None else f"{finding.limit:.3g}",
            words[finding.ok],
        ]
        for finding in findings
    ]
    reporter.console.print(wide_table("diagnosis", ["check", "value", "limit", "result"], rows))
    for finding in findings:
        if finding.ok is False:
            reporter.warn(f"{finding.check}: {finding.text}")
        else:
            reporter.say(f"{finding.check}: {finding.text}")


def premise(config: DiagnoseConfig, base: LoadedModel, tuned: LoadedModel, *, reporter: Reporter) -> Part:
    """Check whether BASE's probes transfer to TUNED, on all rows of --honesty that have `answerable`.

    Args:
        config: the options.
        base: BASE, loaded.
        tuned: TUNED, loaded.
        reporter: prints progress.
    """
    rows = [row for row in read_rows(config.honesty) if HONESTY.label_of(row) is not None]
    kinds = [sum(bool(HONESTY.label_of(row)) == kind for row in rows) for kind in (True, False)]
    if min(kinds) < 4:
        text = (
            f"{config.honesty}: probes need `answerable` true on 4 rows or more and false on 4 or more, found "
            f"{kinds[0]} and {kinds[1]}; add the field and rows of both classes (restore ignores it)"
        )
        return [Finding("premise", None, text)], {}
    prompts = encode_prompts(
        HONESTY.name,
        HONESTY.name,
        rows,
        tokenizer=base.tokenizer,
        vocab_size=base.spec.vocab_size,
        max_tokens=base.spec.max_positions,
    )
    states = {
        name: states_of(name, model, prompts, reporter=reporter, microbatch=config.microbatch)
        for name, model in (("base", base), ("tuned", tuned))
    }
    try:
        with reporter.stage("fit probes", len(states["base"]), "layers"):
            result = transfer(states, prompts, config.seed or 0)
    except InputError as error:
        return [Finding("premise", None, str(error))], {}
    return [check_premise(result.best("base").value, result.best("tuned").value)], result.to_json()


def before(
    inputs: RunInputs, base: Params, tuned: Params, *, reporter: Reporter, microbatch: int | None = None
) -> dict[str, Part]:
    """Check the stability of the scores and the conditioning of the moments, before a restoration.

    Args:
        inputs: inputs of the restoration.
        base: params of BASE.
        tuned: params of TUNED.
        reporter: prints progress.
        microbatch: rows computed at once; None chooses the number.
    """
    config, spec = inputs.config, inputs.spec
    shapes = make_plan(inputs).shapes
    if microbatch:
        shapes = tuple(Shape(length, microbatch) for length, _ in shapes)
    parts: dict[str, Part] = {}
    for name, examples in ((HONESTY.name, inputs.honesty), (TASK, inputs.task)):
        by_kernel, pooled = split_half(
            config, spec, tuned, examples=examples, shapes=shapes, name=name, reporter=reporter
        )
        finding = check_stability(name, by_kernel, len(examples))
        parts[f"stability_{name}"] = ([finding], {"kernels": by_kernel, "all_neurons": pooled})
    with reporter.stage("moments", len(inputs.honesty), "rows") as stage:
        batches = [part.batch for part in microbatches(inputs.honesty, shapes)]
        conditions = input_conditions(block_model(spec), base, batches, damping=config.damping)
        stage.advance(len(inputs.honesty))
    finding = check_conditioning(conditions, config.damping)
    parts["moments"] = ([finding], {"conditions": [asdict(condition) for condition in conditions]})
    return parts


def split_half(
    config: RestoreConfig,
    spec: ModelSpec,
    params: Params,
    *,
    examples: Sequence[Example],
    shapes: Sequence[Shape],
    name: str,
    reporter: Reporter,
) -> tuple[dict[str, float], float]:
    """Compute Spearman's correlation of the Fisher scores of two halves of the rows, by kernel and over all neurons.

    Each half takes every second row, so that a sorted file is divided fairly. The correlation over all neurons is
    higher, because kernels differ in scale; the selection ranks within kernels.

    Args:
        config: options of the restoration.
        spec: description of the model.
        params: params of TUNED.
        examples: the rows.
        shapes: shapes of the microbatches.
        name: name of the set of rows, for progress.
        reporter: prints progress.
    """
    how = Scoring(spec, config.loss, config.granularity, window=loss_window(examples))
    halves = [
        score(how, params, examples[start::2], shapes=shapes, name=f"{name} half {start + 1}", reporter=reporter).scores
        for start in range(2)
    ]
    scores = {
        tensor: [np.asarray(half[kernel.path][kernel.index]) for half in halves]
        for kernel, tensor in kernel_names(spec).items()
    }
    by_kernel = {tensor: rank_correlation(*pair) for tensor, pair in scores.items()}
    pooled = rank_correlation(*(np.concatenate([pair[i] for pair in scores.values()]) for i in range(2)))
    return by_kernel, pooled


def settings_of(restored: OpenedModel) -> dict[str, Any]:
    """Read the options of a restored model from its hcnr.json; return {} without a readable hcnr.json."""
    try:
        found = read_json(restored.checkpoint.folder / RECORD).get("config")
    except InputError:
        return {}
    return found if isinstance(found, dict) else {}


def after(
    config: DiagnoseConfig,
    inputs: RunInputs,
    tuned: LoadedModel,
    *,
    restored: LoadedModel,
    reporter: Reporter,
    made: Mapping[str, Any],
) -> Part:
    """Compare TUNED and the restored model on rows that were not scored, or on all rows if too few are left.

    Args:
        config: the options.
        inputs: inputs of the restoration, with the scored rows.
        tuned: TUNED, loaded.
        restored: the restored model, loaded.
        reporter: prints progress.
        made: options the model was restored with, for the advice.
    """
    findings: list[Finding] = []
    prompts: list[Prompt] = []
    files: list[tuple[Role, Path, list[Example]]] = [
        (HONESTY.name, config.honesty, inputs.honesty),
        (TASK, config.task, inputs.task),
    ]
    for role, path, scored in files:
        rows = _held_out(read_rows(path), {example.row.line for example in scored}, role, reporter)
        try:
            check_labels(role, role, rows)
        except InputError as error:
            findings.append(Finding("honesty restored" if role == HONESTY.name else "task kept", None, str(error)))
            continue
        room = tuned.spec.max_positions - config.max_new_tokens
        prompts += encode_prompts(
            role, role, rows, tokenizer=tuned.tokenizer, vocab_size=tuned.spec.vocab_size, max_tokens=room
        )
    settings = AnswerSettings(config.max_new_tokens, config.microbatch, config.match)
    scores = {
        name: summarise(ask_and_judge(model, prompts, settings, reporter=reporter, name=name))["summary"]
        for name, model in (("tuned", tuned), ("restored", restored))
        if prompts
    }
    if scores and scores["tuned"][TASK_ACCURACY] is not None:
        findings.append(check_task(scores["tuned"][TASK_ACCURACY], scores["restored"][TASK_ACCURACY], made))
    if scores and scores["restored"][HONESTY.main.name] is not None:
        findings.append(check_honesty(scores["restored"][HONESTY.main.name], made))
    return findings, scores


def _held_out(rows: list[Row], scored: set[int], role: Role, reporter: Reporter) -> list[Row]:
    left = [row for row in rows if row.line not in scored]
    if len(left) >= HELD_OUT:
        reporter.say(f"--{role}: {len(left)} rows that --samples left are asked")
        return left
    reporter.warn(
        f"--{role}: only {len(left)} of {len(rows)} rows are not scored (expected {HELD_OUT}), so all are asked; "
        "scored rows make a restoration look better than it is: evaluate on other questions with hcnr evaluate"
    )
    return rows


def _open_restored(config: DiagnoseConfig, base: OpenedModel) -> OpenedModel | None:
    if config.restored is None:
        return None
    restored = open_model(config.restored)
    check_pair(base.checkpoint, restored.checkpoint)
    return restored


def _restore_config(config: DiagnoseConfig) -> RestoreConfig:
    """Build the configuration of the restoration that is checked."""
    shared = (
        "base",
        "tuned",
        "honesty",
        "task",
        "out",
        "samples",
        "seed",
        "loss",
        "damping",
        "max_length",
        "microbatch",
    )
    return build(RestoreConfig, {name: getattr(config, name) for name in shared})
