"""Scores both sets of rows (stage 1.1 of the method), and checks that BASE and TUNED are not swapped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hcnr_jax.restoration.inputs import RunInputs
from hcnr_jax.restoration.plan import Plan
from hcnr_jax.restoration.resume.folder import Work
from hcnr_jax.restoration.resume.products import keep_scores, recall_scores
from hcnr_jax.restoration.run_context import Run
from hcnr_jax.restoration.score import Scores, Scoring, losses_of, score

# The number of rows on which the losses of BASE and TUNED are compared; their losses differ clearly on 32 rows.
SWAP_ROWS = 32


def scoring_of(inputs: RunInputs, plan: Plan) -> Scoring:
    """Return how this run scores its rows."""
    config = inputs.config
    return Scoring(inputs.spec, config.loss, config.granularity, plan.dtype, inputs.layout, plan.window)


def score_pair(run: Run, work: Work | None = None, spill: Path | None = None) -> dict[str, Scores]:
    """Score both sets of rows, or read the scores of an interrupted run. Warn if BASE and TUNED seem to be swapped.

    Args:
        run: both models and their rows.
        work: the work folder, for a run that can be resumed.
        spill: folder to which a streamed run offloads block inputs.
    """
    config, how = run.config, scoring_of(run.inputs, run.plan)
    at = run.models.tuned if config.scores_at == "tuned" else run.models.base
    scores: dict[str, Scores] = {}
    for name, examples in {"honesty": run.inputs.honesty, "task": run.inputs.task}.items():
        found = recall_scores(work, name, run.spec) if work else None
        if found is None:
            # One set suffices, because the rounding depends on the program and hardly on the rows.
            measured = name == "honesty" and spill is None and work is not None
            found = score(
                how,
                at,
                examples,
                shapes=run.plan.shapes,
                name=name,
                reporter=run.reporter,
                spill=spill and spill / name,
                rounding=measured,
            )
            if work:
                keep_scores(work, name, found)
        scores[name] = found
    known: dict[str, np.ndarray] = (
        {config.scores_at: scores["honesty"].losses[:SWAP_ROWS]} if config.loss == "mean" else {}
    )
    _check_swap(run, known, work)
    return scores


def _check_swap(run: Run, known: Mapping[str, np.ndarray], work: Work | None) -> None:
    """Warn if TUNED fits the honesty rows better than BASE.

    Args:
        run: both models and their rows.
        known: losses of the first honesty rows that the scoring gave, by model.
        work: the work folder, which keeps all other losses, so that a resumed run prints the same numbers.
    """
    kept = dict(known)
    rows, how = run.inputs.honesty[:SWAP_ROWS], scoring_of(run.inputs, run.plan)
    models = {"base": run.models.base, "tuned": run.models.tuned}
    for name in {"base", "tuned"} - set(known):
        tree = work.tree(f"losses-{name}") if work else None
        kept[name] = (
            losses_of(how, models[name], rows, shapes=run.plan.shapes, name="honesty")
            if tree is None
            else tree["losses"]
        )
        if work and tree is None:
            work.keep_tree(f"losses-{name}", {"losses": kept[name]})
    before, after = (float(np.mean(kept[name])) for name in ("base", "tuned"))
    if after < before:
        run.reporter.warn(
            f"TUNED fits the honesty rows better than BASE (loss {after:.3f} against {before:.3f} per token, "
            f"{len(kept['base'])} rows): are BASE and TUNED swapped, or was TUNED trained on such rows?"
        )
