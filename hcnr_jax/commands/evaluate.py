"""Runs `hcnr evaluate`, which measures a model's honesty and task metrics, and writes metrics and answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from hcnr_jax.checkpoints import open_checkpoint, output_lock, sha256_files
from hcnr_jax.commands.judge_answers import ModelJudge, judge_answers, open_judge
from hcnr_jax.config import EvaluateConfig
from hcnr_jax.data.json_lines import to_json_lines
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate import Answer, AnswerSettings, Events, LoadedModel, Prompt, encode_prompts, judge, summarise
from hcnr_jax.evaluate.ask.evaluation_file import Evaluation, read_evaluation
from hcnr_jax.evaluate.ask.journal import Journal, fingerprint
from hcnr_jax.evaluate.ask.model import OpenedModel, open_model
from hcnr_jax.evaluate.ask.question_sets import QuestionSet, read_sets
from hcnr_jax.evaluate.ask.runner import Outputs, counts, run_part
from hcnr_jax.evaluate.score.agreement import agreement_scores
from hcnr_jax.evaluate.score.paired_scores import paired_scores
from hcnr_jax.evaluate.trait import TASK, TRAITS
from hcnr_jax.report.console import Reporter
from hcnr_jax.report.evaluation_tables import print_evaluation
from hcnr_jax.report.json import versions
from hcnr_jax.report.result_file import check_new_file, write_record
from hcnr_jax.runtime.files import write_result


def evaluate(config: EvaluateConfig, reporter: Reporter | None = None) -> dict[str, Any]:
    """Run `hcnr evaluate` and return the content of the metrics file. Repeating the command continues a stopped run.

    Raises:
        InputError: the options, the model or the questions cannot be used.
        RunError: a fault stopped the run.
    """
    reporter = reporter or Reporter()
    records, unfinished = _checked_paths(config)
    model = open_model(config.model, open_checkpoint(config.base) if config.base else None)
    sets = question_sets(config, model, reporter)
    prompts = prompts_of(sets, model, config.max_new_tokens)
    others, second = _others(config, prompts, reporter), open_judge(config)
    with output_lock(config.out), jax.default_matmul_precision("highest"):
        digest = _digest(model, reporter)
        with Journal(unfinished, fingerprint(digest, prompts, _raw_settings(config, model))) as journal:
            if journal.resumed:
                reporter.say(f"resumed: {journal.resumed} outputs of an earlier run are kept ({unfinished})")
            try:
                answers = _answers(config, model, prompts, second=second, journal=journal, reporter=reporter)
            except KeyboardInterrupt:
                reporter.say(f"stopped: repeat the command to continue from {unfinished}")
                raise
        scores = summarise(answers, config.draws, config.seed or 0)
        result = {
            "model": {"folder": config.model, "digest": digest, "family": model.spec.family},
            "config": config.model_dump(mode="json"),
            "sets": [_set_record(found) for found in sets],
            **scores,
            "compare": [_comparison(other, answers, config) for other in others],
            "judge": _agreement(config, answers),
            "records": records.name,
            "versions": versions(),
            "seconds": reporter.seconds,
            "warnings": reporter.warnings,
        }
        write_result(records, to_json_lines(answer.to_json() for answer in answers))
        write_record(config.out, result)
        unfinished.unlink()
    print_evaluation(reporter, result)
    reporter.say(f"metrics: {config.out}; records: {records}")
    return result


def _checked_paths(config: EvaluateConfig) -> tuple[Path, Path]:
    """Return `record_paths`. InputError where there is no set, or a file would be overwritten."""
    if not any(named_sets(config).values()):
        options = ", ".join(f"--{role}" for role in named_sets(config))
        raise InputError(f"{options}: expected one set or more (NAME=FILE), found none")
    check_new_file(config.out)
    records, unfinished = record_paths(config.out)
    if not unfinished.exists():
        check_new_file(records)
    return records, unfinished


def record_paths(out: Path) -> tuple[Path, Path]:
    """Return the paths of two files beside the metrics: the records, and the outputs of an unfinished run."""
    return out.with_suffix(".records.jsonl"), out.with_suffix(".unfinished.jsonl")


def named_sets(config: EvaluateConfig) -> dict[str, tuple[str, ...]]:
    """Return the NAME=FILE values by role: every trait that is an option, and the task."""
    return {role: getattr(config, role) for role in (*TRAITS, TASK) if role in type(config).model_fields}


def question_sets(config: EvaluateConfig, model: OpenedModel, reporter: Reporter) -> list[QuestionSet]:
    """Read and check the sets of all options, and print the notes of their readers."""
    sets = [
        found
        for role, named in named_sets(config).items()
        for found in read_sets(
            role, named, config.template, tokenizer=model.tokenizer, samples=config.samples, seed=config.seed
        )
    ]
    for found in sets:
        for note in found.notes:
            reporter.say(note)
    return sets


def prompts_of(sets: list[QuestionSet], model: OpenedModel, max_new_tokens: int) -> list[Prompt]:
    """Turn the questions of all sets into prompts. InputError for a question that is too long for the model."""
    room = model.spec.max_positions - max_new_tokens
    return [
        prompt
        for found in sets
        for prompt in encode_prompts(
            found.role,
            found.name,
            found.rows,
            tokenizer=model.tokenizer,
            vocab_size=model.spec.vocab_size,
            max_tokens=room,
        )
    ]


def settings_of(config: EvaluateConfig) -> AnswerSettings:
    """Select the options that decide how a model is asked and judged."""
    return AnswerSettings(config.max_new_tokens, config.microbatch, config.match, config.calibration)


def ask(
    model: LoadedModel,
    prompts: list[Prompt],
    settings: AnswerSettings,
    *,
    outputs: Outputs,
    reporter: Reporter,
    journal: Journal | None = None,
    name: str = "",
) -> Outputs:
    """Ask every prompt whose output is missing, with one progress stage for each kind of output.

    Args:
        model: the loaded model.
        prompts: the prompts of all sets.
        settings: how the model is asked.
        outputs: the known outputs; the missing ones are added in place.
        reporter: prints progress.
        journal: stores every output at once, for a later resume.
        name: name of the model, for progress.
    """
    for part, total in counts(prompts, settings).items():
        left = total - len(getattr(outputs, part))
        if left <= 0:
            continue
        with reporter.stage(f"{name} {part}".strip(), left, "questions") as stage:
            events = Events(
                advance=lambda kind, count, part=part, stage=stage: stage.advance(count) if kind == part else None,  # type: ignore[misc]
                output=journal.add if journal else Events().output,
                smaller=lambda rows: reporter.warn(f"device memory ran out: going on with --microbatch {rows}"),
            )
            run_part(part, model, prompts, settings=settings, outputs=outputs, events=events)
    return outputs


def ask_and_judge(
    model: LoadedModel, prompts: list[Prompt], settings: AnswerSettings, *, reporter: Reporter, name: str
) -> list[Answer]:
    """Ask a loaded model all prompts, and judge its answers.

    Args:
        model: the loaded model.
        prompts: the prompts of all sets.
        settings: how the model is asked and judged.
        reporter: prints progress.
        name: name of the model, for progress.
    """
    return judge(
        prompts, ask(model, prompts, settings, outputs=Outputs(), reporter=reporter, name=name), settings.match
    )


def _answers(
    config: EvaluateConfig,
    model: OpenedModel,
    prompts: list[Prompt],
    *,
    second: ModelJudge | None,
    journal: Journal,
    reporter: Reporter,
) -> list[Answer]:
    """Ask the model and judge its answers, with the detector and with the judge of --judge if there is one.

    Args:
        config: the options.
        model: the opened model; its weights are loaded here, and dropped before a judge's are loaded.
        prompts: the prompts of all sets.
        second: the judge of --judge.
        journal: stores every output at once.
        reporter: prints progress.
    """
    settings = settings_of(config)
    ask(_load(model, config, reporter), prompts, settings, outputs=journal.outputs, reporter=reporter, journal=journal)
    answers = judge(prompts, journal.outputs, config.match)
    return judge_answers(second, prompts, answers, journal=journal, reporter=reporter) if second else answers


def _agreement(config: EvaluateConfig, answers: list[Answer]) -> dict[str, Any] | None:
    if config.judge is None:
        return None
    return {"judge": config.judge, "model": config.judge_model, "sets": agreement_scores(answers)}


def _others(config: EvaluateConfig, prompts: list[Prompt], reporter: Reporter) -> list[Evaluation]:
    """Read the evaluations of --compare, and warn of one whose answers had another maximum length."""
    others = [read_evaluation(path, prompts, config.match) for path in config.compare]
    for other in others:
        if other.max_new_tokens not in (None, config.max_new_tokens):
            reporter.warn(
                f"--compare {other.file}: asked with --max-new-tokens {other.max_new_tokens}, this run with "
                f"{config.max_new_tokens}; part of a difference may come from that"
            )
    return others


def _comparison(other: Evaluation, answers: list[Answer], config: EvaluateConfig) -> dict[str, Any]:
    """Compare this model's answers with another model's, as a record of the metrics file."""
    sets = paired_scores(other.answers, answers, draws=config.draws, seed=config.seed or 0)
    return {"file": other.file, "model": other.model, "digest": other.digest, "sets": sets}


def _raw_settings(config: EvaluateConfig, model: OpenedModel) -> dict[str, Any]:
    return {"max_new_tokens": config.max_new_tokens, "dtype": config.dtype, "end_ids": model.eos_ids}


def _digest(model: OpenedModel, reporter: Reporter) -> str:
    with reporter.stage("check weights", 1, "model") as stage:
        digest = model.digest()
        stage.advance()
    return digest


def _load(model: OpenedModel, config: EvaluateConfig, reporter: Reporter) -> LoadedModel:
    with reporter.stage("load", 1, "model") as stage:
        loaded = model.load(config.dtype)
        stage.advance()
    return loaded


def _set_record(found: QuestionSet) -> dict[str, Any]:
    path = Path(found.path)
    files = sorted(item for item in path.iterdir() if item.is_file()) if path.is_dir() else [path]
    return {
        "role": found.role,
        "name": found.name,
        "path": found.path,
        "questions": len(found.rows),
        "sha256": sha256_files(item for item in files if item.is_file()),
        "notes": found.notes,
    }
