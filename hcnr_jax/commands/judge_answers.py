"""Runs the judge of `hcnr evaluate --judge`: opens it, and asks it about the answers that it has not judged yet."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace

from hcnr_jax.config import EvaluateConfig
from hcnr_jax.evaluate import Answer, Prompt
from hcnr_jax.evaluate.ask.journal import Journal
from hcnr_jax.evaluate.judge.chat_endpoint import KEY, ChatEndpoint, check_url, is_url
from hcnr_jax.evaluate.judge.judgement import judge_text, read_reply
from hcnr_jax.evaluate.judge.local_model import LocalJudge, open_local_judge
from hcnr_jax.report.console import Reporter

PART = "judgements"

ModelJudge = ChatEndpoint | LocalJudge
"""`ask(texts, take)` gets a reply to each text; `made_of` identifies the model, so that replies of another one are not
taken for its own.
"""


def open_judge(config: EvaluateConfig) -> ModelJudge | None:
    """Open the judge of --judge; None without the option. Nothing is sent yet.

    Raises:
        InputError: the address or the model folder cannot be used.
    """
    if config.judge is None:
        return None
    if not is_url(config.judge):
        return open_local_judge(config.judge, config.dtype, config.microbatch)
    check_url(config.judge)
    key = os.environ.get(KEY, "").strip() or None
    return ChatEndpoint(config.judge, config.judge_model or "", key, config.judge_timeout)


def judge_answers(
    judge: ModelJudge, prompts: Sequence[Prompt], answers: Sequence[Answer], *, journal: Journal, reporter: Reporter
) -> list[Answer]:
    """Add the judge's reply and its judgement to every answer; replies that the journal holds are not asked again.

    Args:
        judge: decides whether an answer is a refusal.
        prompts: of the answers.
        answers: of the evaluated model.
        journal: holds the replies of a stopped run, and stores each new one at once.
        reporter: prints progress.
    """
    texts = [judge_text(answer.question, answer.completion) for answer in answers]
    made_of = [_made_of(judge, text) for text in texts]
    replies: dict[str, str] = {}
    for prompt, source in zip(prompts, made_of, strict=True):
        known = journal.outputs.judgements.get(prompt.key)
        if known is not None and known["made_of"] == source:
            replies[prompt.key] = known["reply"]
    left = [index for index, prompt in enumerate(prompts) if prompt.key not in replies]
    if left:
        with reporter.stage("judge", len(left), "answers") as stage:

            def keep(place: int, reply: str) -> None:
                index = left[place]
                replies[prompts[index].key] = reply
                journal.add(PART, prompts[index].key, {"made_of": made_of[index], "reply": reply})
                stage.advance()

            judge.ask([texts[index] for index in left], keep)
    found = [replies[prompt.key] for prompt in prompts]
    return [
        replace(answer, judgement=read_reply(reply).value, judge_reply=reply)
        for answer, reply in zip(answers, found, strict=True)
    ]


def _made_of(judge: ModelJudge, text: str) -> str:
    """Hash what a reply depends on: the judge and the text it is asked."""
    return hashlib.sha256(json.dumps([judge.made_of, text]).encode()).hexdigest()
