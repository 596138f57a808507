"""Runs `hcnr demo`, which shows the method on a model that is small enough to train at once.

An honest base model is trained from scratch on a synthetic world and fine-tuned on new facts until it bluffs. The
paper's preset and the recommended one then restore it. After training, the demo runs the code of the commands on
ordinary folders.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hcnr_jax.commands.evaluate import ask_and_judge
from hcnr_jax.commands.probe import states_of
from hcnr_jax.config import DemoConfig, RestoreConfig, build, read_yaml
from hcnr_jax.data import read_rows
from hcnr_jax.evaluate import AnswerSettings, LoadedModel, Prompt, encode_prompts
from hcnr_jax.evaluate.ask.model import open_model
from hcnr_jax.evaluate.ask.prompts import Role
from hcnr_jax.evaluate.ask.runner import Answer
from hcnr_jax.evaluate.probe import ProbeResult, evaluate_probes, fit_probes
from hcnr_jax.evaluate.score.metrics import JSON_FIELDS, recovered_share
from hcnr_jax.evaluate.score.scores import summarise
from hcnr_jax.evaluate.trait import HONESTY, TASK
from hcnr_jax.evaluate.warning_signs import check_honesty, check_premise, check_task
from hcnr_jax.organism.build import Organism
from hcnr_jax.organism.build import build as build_organism
from hcnr_jax.organism.refusal_f1 import MAX_NEW_TOKENS
from hcnr_jax.presets import preset
from hcnr_jax.report import restoration_plots
from hcnr_jax.report.console import Reporter, Stage
from hcnr_jax.report.json import to_json, versions
from hcnr_jax.report.percent import percent
from hcnr_jax.report.terminal_tables import wide_table
from hcnr_jax.restoration import restore
from hcnr_jax.runtime.files import check_output, write_result
from hcnr_jax.training.trainer import StepInfo

MODELS = ("base", "tuned", "paper", "restored")
# The honesty metrics, as named in metrics.json.
SHOWN = tuple(JSON_FIELDS.get(metric.name, metric.name) for metric in HONESTY.metrics)
FAST_QUESTIONS = 80
EXAMPLES = 5
# The L2 penalty is strong, because the training questions repeat names. Less penalised probes read these names and
# transfer worse (validation questions of seeds 0 and 1: AUROC in TUNED 0.65 at 1, 0.83 at 100, 0.86 from 10,000 on).
PROBE_PENALTY = 10_000.0


def demo(config: DemoConfig, reporter: Reporter | None = None) -> dict[str, Any]:
    """Run `hcnr demo` and return the content of metrics.json.

    Raises:
        InputError: the output folder exists and is not empty.
        RunError: training failed.
    """
    reporter = reporter or Reporter()
    out = check_output(config.out)
    started = time.perf_counter()
    organism = _build(config, out, reporter)
    for name in ("paper", "restored"):
        _restore(name, organism, config, out, reporter)
    record = measure(config, organism, out, reporter)
    record["seconds"]["whole"] = time.perf_counter() - started
    write_result(out / "metrics.json", to_json(record).decode())
    reporter.say(f"everything is in {out}; metrics: {out / 'metrics.json'}")
    return record


def measure(config: DemoConfig, organism: Organism, out: Path, reporter: Reporter) -> dict[str, Any]:
    """Ask and probe the four models, print and plot the results, and return the content of metrics.json.

    Args:
        config: the options.
        organism: the folders of base, tuned and their data.
        out: folder of the demo, with the restored models.
        reporter: prints progress and results.
    """
    folders = {"base": organism.base, "tuned": organism.tuned, "paper": out / "paper", "restored": out / "restored"}
    with jax.default_matmul_precision("highest"):
        models = {name: open_model(str(folder)).load() for name, folder in folders.items()}
        prompts = _prompts(organism, models["base"], FAST_QUESTIONS if config.fast else None)
        answers = {
            name: ask_and_judge(model, prompts, AnswerSettings(MAX_NEW_TOKENS), reporter=reporter, name=name)
            for name, model in models.items()
        }
        probes = _probe(organism, models, [prompt for prompt in prompts if prompt.role == HONESTY.name], reporter)
    scores = {name: summarise(found, draws=200 if config.fast else 1000) for name, found in answers.items()}
    record = _record(config, scores, probes.to_json(), reporter)
    record["fine_tuning"] = [asdict(trial) for trial in organism.trials]
    record["probe_auroc"] = {
        name: {"chosen_layer": layers[probes.best_layer].value, "layers": [layer.value for layer in layers]}
        for name, layers in probes.auroc.items()
    }
    _write_answers(out / "answers.jsonl", answers)
    _tell(record, answers, reporter)
    _draw(out, record, scores, probes.best_layer, reporter)
    return record


def _build(config: DemoConfig, out: Path, reporter: Reporter) -> Organism:
    """Train base and tuned into `out`, with one progress bar."""
    stage: Stage
    with reporter.stage("train the base and the tuned model", None, "steps") as stage:
        done = {"base": 0, "tuned": 0}

        def follow(name: str, step: int, steps: int, info: StepInfo) -> None:
            done[name] = steps
            stage.expect(sum(done.values()))
            stage.advance()

        return build_organism(out, config.seed, config.size, on_step=follow)


def _restore(name: str, organism: Organism, config: DemoConfig, out: Path, reporter: Reporter) -> None:
    """Restore with a preset, exactly as `hcnr restore BASE TUNED --config PRESET` does."""
    values = read_yaml(RestoreConfig, preset("paper" if name == "paper" else "recommended"))
    values |= {
        "base": str(organism.base),
        "tuned": str(organism.tuned),
        "honesty": organism.honesty["train"],
        "task": organism.task["train"],
        "out": out / name,
        "seed": config.seed,
        "check": False,  # the demo asks more questions, of its own
    }
    reporter.say(f"\nrestore with the preset {'paper' if name == 'paper' else 'recommended'}")
    restore(build(RestoreConfig, values), reporter)


def _prompts(organism: Organism, base: LoadedModel, limit: int | None) -> list[Prompt]:
    """Read the test questions as prompts. `limit` is the number of honesty questions, half of each label."""
    room = base.spec.max_positions - MAX_NEW_TOKENS
    prompts: list[Prompt] = []
    sets: list[tuple[Role, Path]] = [(HONESTY.name, organism.honesty["test"]), (TASK, organism.task["test"])]
    for role, path in sets:
        rows = read_rows(path, need_completion=False)
        if limit is not None and role == HONESTY.name:
            halves = [[row for row in rows if HONESTY.label_of(row) is kind] for kind in (True, False)]
            rows = [half[i] for half in halves for i in np.linspace(0, len(half) - 1, limit // 2).astype(int)]
        prompts += encode_prompts(
            role, role, rows, tokenizer=base.tokenizer, vocab_size=base.spec.vocab_size, max_tokens=room
        )
    return prompts


def _probe(organism: Organism, models: dict[str, LoadedModel], test: list[Prompt], reporter: Reporter) -> ProbeResult:
    """Train BASE's probes on the honesty training questions, and evaluate them on every model with test questions."""
    base = models["base"]
    rows = read_rows(organism.honesty["train"])
    train = encode_prompts(
        HONESTY.name,
        "train",
        rows,
        tokenizer=base.tokenizer,
        vocab_size=base.spec.vocab_size,
        max_tokens=base.spec.max_positions,
    )
    labels = [np.array([not prompt.answerable for prompt in prompts]) for prompts in (train, test)]
    probes = fit_probes(states_of("base", base, train, reporter=reporter), labels[0], penalty=PROBE_PENALTY)
    states = {name: states_of(name, model, test, reporter=reporter) for name, model in models.items()}
    return evaluate_probes(probes, states, labels[1])


def _record(config: DemoConfig, scores: dict[str, Any], probes: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    models = {
        name: {
            **{key: found["summary"][key] for key in SHOWN},
            "task_accuracy": found["summary"]["task_accuracy"],
            "known_fact_accuracy": found[HONESTY.name][HONESTY.name][JSON_FIELDS["known_facts"]],
        }
        for name, found in scores.items()
    }
    recovered = {
        name: {
            **{
                key: recovered_share(models["base"][key], models["tuned"][key], models[name][key])
                for key in (metric.name for metric in HONESTY.lost)
            },
            "task_accuracy_change": models[name]["task_accuracy"] - models["tuned"]["task_accuracy"],
        }
        for name in ("paper", "restored")
    }
    return {
        "seed": config.seed,
        "fast": config.fast,
        "size": config.size,
        "models": models,
        "recovered": recovered,
        "probe_auroc": {},
        "fine_tuning": [],
        "probe": probes,
        "scores": scores,
        "seconds": reporter.seconds,
        "versions": versions(),
        "warnings": reporter.warnings,
    }


def _tell(record: dict[str, Any], answers: dict[str, list[Answer]], reporter: Reporter) -> None:
    """Print the table, five questions with every model's answer, and the paper's warning signs."""
    header = [
        "model",
        "honesty F1",
        "refusal\ndelta",  # broken by hand, because rich would cut a word where 80 columns are too few
        "over-refusal",
        "task\naccuracy",
        "known facts",
        "probe AUROC",
    ]
    keys = (*SHOWN, "task_accuracy", "known_fact_accuracy")
    rows = [
        [
            name,
            *(percent(record["models"][name][key]) for key in keys),
            f"{record['probe_auroc'][name]['chosen_layer']:.3f}",
        ]
        for name in MODELS
    ]
    reporter.console.print(wide_table("held-out test questions, percent", header, rows))
    for name in ("paper", "restored"):
        found = record["recovered"][name]
        share = found["honesty_f1"]
        told = "nothing was lost" if share is None else f"{share:.0%} of the lost honesty F1 recovered"
        reporter.say(f"{name}: {told}, task accuracy {100 * found['task_accuracy_change']:+.1f} points")
    for index in _examples(answers):
        asked = answers["base"][index]
        gold = ", ".join(asked.answers) if asked.answerable else "(no answer exists)"
        reporter.say(f"\n{asked.question}   {gold}")
        for name in MODELS:
            reporter.say(f"  {name:<9}{answers[name][index].completion.strip()}")
    reporter.say("")
    probes, models = record["probe_auroc"], record["models"]
    findings = [
        check_premise(probes["base"]["chosen_layer"], probes["tuned"]["chosen_layer"]),
        check_task(models["tuned"]["task_accuracy"], models["restored"]["task_accuracy"]),
        check_honesty(models["restored"]["honesty_f1"]),
    ]
    for finding in findings:
        (reporter.warn if finding.ok is False else reporter.say)(f"{finding.check}: {finding.text}")


def _examples(answers: dict[str, list[Answer]]) -> Sequence[int]:
    """Choose five questions: first one of each unanswerable kind that the tuned model answers, then known facts."""
    tuned = answers["tuned"]
    bluffs = [i for i, a in enumerate(tuned) if a.role == HONESTY.name and not a.answerable and a.verdict != "refused"]
    known = [i for i, a in enumerate(tuned) if a.role == HONESTY.name and a.answerable]
    chosen: dict[str | None, int] = {}
    for index in bluffs:
        chosen.setdefault(tuned[index].kind, index)
    return [*list(chosen.values())[: EXAMPLES - 1], *known, *bluffs][:EXAMPLES]


def _write_answers(path: Path, answers: dict[str, list[Answer]]) -> None:
    lines = [
        json.dumps({"model": name, **answer.to_json()}, ensure_ascii=False)
        for name, found in answers.items()
        for answer in found
    ]
    write_result(path, "\n".join(lines) + "\n")


def _draw(out: Path, record: dict[str, Any], scores: dict[str, Any], best_layer: int, reporter: Reporter) -> None:
    models = record["models"]
    points = {name: (models[name]["task_accuracy"], models[name]["honesty_f1"]) for name in MODELS}
    intervals = {name: _spans(found) for name, found in scores.items()}
    kernels = {
        name: json.loads((out / name / "hcnr.json").read_text(encoding="utf-8"))["kernels"]
        for name in ("paper", "restored")
    }
    layers = {name: found["layers"] for name, found in record["probe_auroc"].items()}
    drawn = [
        restoration_plots.honesty_against_task(points, intervals, out / "honesty_task.png"),
        restoration_plots.probe_by_layer(layers, best_layer, out / "probe_auroc.png"),
        restoration_plots.neuron_map(kernels, out / "neurons.png"),
    ]
    reporter.say("pictures: " + ", ".join(path.name for path in drawn))


def _spans(found: dict[str, Any]) -> dict[str, tuple[float, float]]:
    pairs = {
        "f1": found[HONESTY.name][HONESTY.name]["intervals"]["f1"],
        "task": found[TASK][TASK]["intervals"]["accuracy"],
    }
    return {name: (span["low"], span["high"]) for name, span in pairs.items() if span is not None}
