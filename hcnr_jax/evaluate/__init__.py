"""Evaluation: ask a model, read what it says, score it, and look inside it.

`questions` makes prompts of rows, `runner` asks and judges, `scores` summarises, `journal` lets a killed run go on;
`refusal`, `metrics`, `statistics`, `calibration` are the measures; `hidden` and `probe` look at what the model knows;
`checks` and `conditioning` are the warning signs of the paper.
"""

from hcnr_jax.evaluate.ask.batches import Events
from hcnr_jax.evaluate.ask.completions import LoadedModel
from hcnr_jax.evaluate.ask.hidden_states import last_token_states
from hcnr_jax.evaluate.ask.questions import Prompt, check_labels, encode_prompts, question_of, sample_rows, split_halves
from hcnr_jax.evaluate.ask.runner import Answer, AnswerSettings, answer, judge
from hcnr_jax.evaluate.checks import (
    Finding,
    check_conditioning,
    check_honesty,
    check_premise,
    check_stability,
    check_task,
    rank_correlation,
)
from hcnr_jax.evaluate.conditioning import input_conditions
from hcnr_jax.evaluate.judge.refusal import detect
from hcnr_jax.evaluate.score.metrics import honesty_metrics, recovered_share
from hcnr_jax.evaluate.score.scores import summarise

__all__ = [
    "Answer",
    "AnswerSettings",
    "Events",
    "Finding",
    "LoadedModel",
    "Prompt",
    "answer",
    "check_conditioning",
    "check_honesty",
    "check_labels",
    "check_premise",
    "check_stability",
    "check_task",
    "detect",
    "encode_prompts",
    "honesty_metrics",
    "input_conditions",
    "judge",
    "last_token_states",
    "question_of",
    "rank_correlation",
    "recovered_share",
    "sample_rows",
    "split_halves",
    "summarise",
]
