"""Evaluates a model: asks it questions, judges its answers, scores them, and looks at its hidden states.

`ask` turns rows into prompts and puts them to a model, `judge` tells refusals from answers, `score` computes metrics
with intervals. `trait` says what is measured. `probe` finds what a model knows but does not say; `warning_signs` and
`conditioning` check whether a restoration will work, or did.
"""

from hcnr_jax.evaluate.ask.batches import Events
from hcnr_jax.evaluate.ask.completions import LoadedModel
from hcnr_jax.evaluate.ask.hidden_states import last_token_states
from hcnr_jax.evaluate.ask.prompts import Prompt, check_labels, encode_prompts, question_of, sample_rows, split_halves
from hcnr_jax.evaluate.ask.runner import Answer, AnswerSettings, answer, judge
from hcnr_jax.evaluate.conditioning import input_conditions
from hcnr_jax.evaluate.judge.refusal import detect
from hcnr_jax.evaluate.score.metrics import honesty_metrics, recovered_share
from hcnr_jax.evaluate.score.scores import summarise
from hcnr_jax.evaluate.score.statistics import Interval, McNemar, bootstrap, f1_of, mcnemar, mean_of, paired_difference
from hcnr_jax.evaluate.trait import HONESTY, TRAITS, Metric, Trait
from hcnr_jax.evaluate.warning_signs import (
    Finding,
    check_conditioning,
    check_honesty,
    check_premise,
    check_stability,
    check_task,
    rank_correlation,
)

__all__ = [
    "HONESTY",
    "TRAITS",
    "Answer",
    "AnswerSettings",
    "Events",
    "Finding",
    "Interval",
    "LoadedModel",
    "McNemar",
    "Metric",
    "Prompt",
    "Trait",
    "answer",
    "bootstrap",
    "check_conditioning",
    "check_honesty",
    "check_labels",
    "check_premise",
    "check_stability",
    "check_task",
    "detect",
    "encode_prompts",
    "f1_of",
    "honesty_metrics",
    "input_conditions",
    "judge",
    "last_token_states",
    "mcnemar",
    "mean_of",
    "paired_difference",
    "question_of",
    "rank_correlation",
    "recovered_share",
    "sample_rows",
    "split_halves",
    "summarise",
]
