"""Runs `hcnr probe`, which applies BASE's probes to the hidden states of BASE, TUNED and a restored model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from rich.table import Table
from threadpoolctl import threadpool_limits

from hcnr_jax.checkpoints import check_pair, open_checkpoint
from hcnr_jax.config import ProbeConfig
from hcnr_jax.data import check_tokenizers
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate import Events, LoadedModel, Prompt, encode_prompts, last_token_states, split_halves
from hcnr_jax.evaluate.ask.model import OpenedModel, open_model
from hcnr_jax.evaluate.ask.prompts import with_completion
from hcnr_jax.evaluate.ask.question_sets import read_sets
from hcnr_jax.evaluate.probe import ProbeResult, evaluate_probes, fit_probes
from hcnr_jax.evaluate.trait import HONESTY
from hcnr_jax.report.console import Reporter
from hcnr_jax.report.json import versions
from hcnr_jax.report.result_file import check_new_file, write_record
from hcnr_jax.report.terminal_tables import wide_table

FOLDS = 5
# A fit on fewer numbers than this runs on one thread. On a busy host several threads wait for each other during such
# small products: they took 50 s, and one thread took 0.6 s.
SMALL_FIT = 1_000_000


def probe(config: ProbeConfig, reporter: Reporter | None = None) -> ProbeResult:
    """Run `hcnr probe` and return the AUROC of every model and layer.

    Raises:
        InputError: the options, models or questions cannot be used.
    """
    reporter = reporter or Reporter()
    check_new_file(config.out)
    models = open_models(config)
    base = models["base"]
    sets = read_sets(
        HONESTY.name,
        config.honesty,
        config.template,
        tokenizer=base.tokenizer,
        samples=config.samples,
        seed=config.seed,
    )
    for note in (note for found in sets for note in found.notes):
        reporter.say(note)
    prompts = [
        prompt
        for found in sets
        for prompt in encode_prompts(
            HONESTY.name,
            found.name,
            found.rows,
            tokenizer=base.tokenizer,
            vocab_size=base.spec.vocab_size,
            max_tokens=base.spec.max_positions,
        )
    ]
    for other in list(models.values())[1:]:
        check_tokenizers(other.tokenizer, base.tokenizer, [with_completion(prompt.row, "I") for prompt in prompts])
    states = {}
    with jax.default_matmul_precision("highest"):
        for name, model in models.items():
            states[name] = states_of(
                name, model.load(config.dtype), prompts, reporter=reporter, microbatch=config.microbatch
            )
    with reporter.stage("fit probes", len(states["base"]), "layers") as stage:
        result = transfer(states, prompts, config.seed, penalty=config.penalty)
        stage.advance(len(states["base"]))
    record = {
        "config": config.model_dump(mode="json"),
        **result.to_json(),
        "versions": versions(),
        "seconds": reporter.seconds,
    }
    write_record(config.out, record)
    reporter.console.print(probe_table(result))
    reporter.say(chosen_layer_line(result))
    reporter.say(f"probes: {config.out}")
    return result


def open_models(config: ProbeConfig) -> dict[str, OpenedModel]:
    """Open BASE, TUNED and the restored model, if given. InputError unless they share architecture and shapes."""
    base = open_checkpoint(config.base)
    models = {"base": open_model(config.base), "tuned": open_model(config.tuned, base)}
    if config.restored is not None:
        models["restored"] = open_model(config.restored)
    for model in list(models.values())[1:]:
        check_pair(base, model.checkpoint)
    return models


def states_of(
    name: str, model: LoadedModel, prompts: Sequence[Prompt], *, reporter: Reporter, microbatch: int | None = None
) -> np.ndarray:
    """Compute the hidden states of each prompt's last token, [layers + 1, questions, width].

    Args:
        name: name of the model, for progress.
        model: the loaded model.
        prompts: the questions.
        reporter: prints progress.
        microbatch: questions computed at once; None chooses the number.
    """
    with reporter.stage(f"hidden states of {name}", len(prompts), "questions") as stage:
        events = Events(
            advance=lambda part, count: stage.advance(count),
            smaller=lambda rows: reporter.warn(f"device memory ran out: going on with --microbatch {rows}"),
        )
        tokens = [prompt.tokens for prompt in prompts]
        return last_token_states(
            model.spec, model.params, tokens, microbatch=microbatch, dtype=model.dtype, events=events
        )


def transfer(
    states: Mapping[str, np.ndarray], prompts: Sequence[Prompt], seed: int, *, penalty: float = 1.0
) -> ProbeResult:
    """Train probes on BASE's states of half the prompts, and evaluate them on every model's states of the other half.

    Args:
        states: hidden states by model name, [layers + 1, questions, width]; "base" must be present.
        prompts: the questions, in the order of the states.
        seed: seed of the halves and the folds.
        penalty: L2 penalty of the probes.

    Raises:
        InputError: the training half has fewer than 2 questions of a class.
    """
    train, test = split_halves(prompts, seed)
    unanswerable = np.array([not prompt.answerable for prompt in prompts])
    smaller = min(int(unanswerable[train].sum()), int((~unanswerable[train]).sum()))
    if smaller < 2:
        raise InputError(
            f"probe: expected 4 different questions or more of either class, found {int(unanswerable.sum())} "
            f"unanswerable of {len(prompts)}; half of them train the probes: add questions to --honesty"
        )
    hidden = states["base"][:, train]
    with threadpool_limits(1 if hidden[0].size < SMALL_FIT else None):
        probes = fit_probes(hidden, unanswerable[train], folds=min(FOLDS, smaller), penalty=penalty, seed=seed)
    held_out = {name: hidden[:, test] for name, hidden in states.items()}
    return evaluate_probes(probes, held_out, unanswerable[test], seed=seed)


def probe_table(result: ProbeResult) -> Table:
    """Build the table of AUROC by layer and model, with a mark at the layer chosen on BASE."""
    rows = [
        [
            f"{'embedding' if layer == 0 else f'after block {layer - 1}'}"
            f"{' (chosen)' if layer == result.best_layer else ''}",
            f"{validated:.3f}",
            *(f"{layers[layer].value:.3f}" for layers in result.auroc.values()),
        ]
        for layer, validated in enumerate(result.cross_validated)
    ]
    title = (
        f"AUROC of base's probes for unanswerable, trained on {result.train_questions} questions, tested on "
        f"{result.test_questions} others"
    )
    return wide_table(title, ["hidden state", "validation", *result.auroc], rows)


def chosen_layer_line(result: ProbeResult) -> str:
    """Write every model's AUROC in the layer chosen on BASE, with 95 % intervals."""
    found = {name: result.best(name) for name in result.auroc}
    said = ", ".join(f"{name} {auroc.value:.3f} [{auroc.low:.3f}, {auroc.high:.3f}]" for name, auroc in found.items())
    return f"chosen layer: {said}"
