"""Loads both models of a run."""

from __future__ import annotations

from flax.traverse_util import unflatten_dict

from hcnr_jax.checkpoints import StreamedParams, describe_params, load_params
from hcnr_jax.report.console import Reporter
from hcnr_jax.restoration.correct import prepare_corrections
from hcnr_jax.restoration.inputs import RunInputs
from hcnr_jax.restoration.plan import Plan
from hcnr_jax.restoration.run_context import Models, Run
from hcnr_jax.restoration.score import prepare_scoring
from hcnr_jax.restoration.score_pair import scoring_of
from hcnr_jax.restoration.select import prepare_selection


def load_run(inputs: RunInputs, plan: Plan, reporter: Reporter, *, scoring: bool = True) -> Run:
    """Load both models' weights, while another thread compiles the scoring program.

    Args:
        inputs: the opened models.
        plan: shapes of the microbatches.
        reporter: prints progress.
        scoring: whether rows will be scored; False compiles nothing.
    """
    spec = inputs.spec
    if inputs.config.stream:
        return Run(
            inputs, plan, Models(StreamedParams(inputs.base, spec), StreamedParams(inputs.tuned, spec)), reporter
        )
    described = describe_params(inputs.base, spec), describe_params(inputs.tuned, spec)
    if scoring:
        scored, other = described if inputs.config.scores_at == "base" else described[::-1]
        prepare_scoring(scoring_of(inputs, plan), plan.shapes, scored, other)
    if inputs.layout is None:  # the programs of a mesh depend on where its arrays lie
        prepare_corrections(inputs, plan, described)
        prepare_selection(inputs.config, spec)
    shardings = unflatten_dict(inputs.layout.params(), sep="/") if inputs.layout else None
    with reporter.stage("load", 2, "models") as stage:
        base = load_params(inputs.base, spec, shardings)
        stage.advance()
        tuned = load_params(inputs.tuned, spec, shardings, base=base)
        stage.advance()
    return Run(inputs, plan, Models(base, tuned), reporter)
