"""Asks a model every question once, and judges its answers: raw outputs first, then verdicts on them.

Raw outputs (completions, likelihoods) cost time, and a stopped run keeps them; verdicts and scores are functions of
them. `answer` does all in one call, for params already in memory: models of one spec share every compilation.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from hcnr_jax.evaluate.ask.batches import Events
from hcnr_jax.evaluate.ask.completions import LoadedModel, cut_text, generate_ids, text_of
from hcnr_jax.evaluate.ask.likelihoods import (
    Branch,
    Likelihood,
    Refusing,
    choice_likelihoods,
    probability_of_refusing,
    refusing,
)
from hcnr_jax.evaluate.ask.prompts import Prompt, Role
from hcnr_jax.evaluate.score.grade import grade
from hcnr_jax.evaluate.score.metrics import (
    choice_from_text,
    choose_by_likelihood,
    contains_match,
    exact_match,
    token_f1,
)
from hcnr_jax.evaluate.trait import TRAITS, trait_of

Match = Literal["exact", "contains"]
PARTS = ("completions", "choices", "refusals")


@dataclass(frozen=True)
class AnswerSettings:
    """Says how a model is asked. match: which text match makes an answer correct. calibration: also P(refuse)."""

    max_new_tokens: int = 64
    microbatch: int | None = None
    match: Match = "exact"
    calibration: bool = False


@dataclass
class Outputs:
    """Holds raw outputs by prompt key: completions, likelihoods of choices, and what P(refuse) is computed from.

    `judgements` holds a model judge's `reply` to each completion, and the hash of what was asked (`made_of`).
    """

    completions: dict[str, str] = field(default_factory=dict)
    choices: dict[str, list[Likelihood]] = field(default_factory=dict)
    refusals: dict[str, Refusing] = field(default_factory=dict)
    judgements: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, part: str, key: str, value: Any) -> None:
        """Add one output in the form of `plain_output`."""
        if part == "completions":
            self.completions[key] = str(value)
        elif part == "choices":
            self.choices[key] = [Likelihood(**item) for item in value]
        elif part == "judgements":
            self.judgements[key] = {"made_of": str(value["made_of"]), "reply": str(value["reply"])}
        else:
            self.refusals[key] = Refusing([Branch(**item) for item in value["branches"]], value["wordings"])


def plain_output(value: Any) -> Any:
    """Convert one raw output to JSON values."""
    return [asdict(item) for item in value] if isinstance(value, list) else asdict(value)


@dataclass(frozen=True)
class Answer:
    """Holds one question's record.

    Fields that do not apply are None; log-likelihoods are in nats, the rest 0-1.
    """

    role: Role
    set: str
    line: int
    id: str
    kind: str | None
    prompt: str
    question: str
    answerable: bool | None
    answers: tuple[str, ...]
    completion: str
    verdict: str
    idea: str
    evidence: str
    correct: bool | None = None
    exact: bool | None = None
    contains: bool | None = None
    token_f1: float | None = None
    choices: tuple[str, ...] = ()
    right_choice: int | None = None
    chosen: int | None = None
    chosen_per_token: int | None = None
    chosen_by_text: int | None = None
    choice_log_likelihoods: tuple[float, ...] = ()
    refusal_probability: float | None = None
    judgement: str | None = None
    judge_reply: str | None = None

    @property
    def grade(self) -> str | None:
        """The grade of a text answer to a question that has a gold answer; a choice by likelihood has none."""
        scored = None if self.answerable is False or self.chosen is not None else self.correct
        found = grade(self.verdict, scored, self.exact)
        return None if found is None else found.value

    def to_json(self) -> dict[str, Any]:
        """Plain values and the grade, without the fields that do not apply."""
        values = asdict(self) | {"grade": self.grade}
        return {name: value for name, value in values.items() if value is not None and value != ()}


def counts(prompts: Sequence[Prompt], settings: AnswerSettings) -> dict[str, int]:
    """Count the questions of each part of a run."""
    return {
        "completions": len(prompts),
        "choices": sum(prompt.row.correct is not None for prompt in prompts),
        "refusals": sum(prompt.role in TRAITS for prompt in prompts) if settings.calibration else 0,
    }


def run_part(
    part: str,
    model: LoadedModel,
    prompts: Sequence[Prompt],
    *,
    settings: AnswerSettings,
    outputs: Outputs,
    events: Events | None = None,
) -> None:
    """Ask what `outputs` lacks of one part (`PARTS`), and store it there.

    Args:
        part: of `PARTS`.
        model: loaded.
        prompts: of all sets.
        settings: how the model is asked.
        outputs: what is known already; completed here.
        events: `events.output` is called with each output as it is made.
    """
    events, size = events or Events(), settings.microbatch
    wanted = [
        prompt
        for prompt in prompts
        if prompt.key not in getattr(outputs, part)
        and (part == "completions" or (prompt.row.correct is not None if part == "choices" else prompt.role in TRAITS))
    ]
    if part == "completions":

        def keep(index: int, ids: tuple[int, ...]) -> None:
            prompt = wanted[index]
            outputs.completions[prompt.key] = cut_text(text_of(model, ids), prompt.row.is_chat)
            events.output(part, prompt.key, outputs.completions[prompt.key])

        generate_ids(
            model,
            [prompt.tokens for prompt in wanted],
            settings.max_new_tokens,
            microbatch=size,
            take=keep,
            events=events,
        )
    elif part == "choices":

        def keep_choices(index: int, found: list[Likelihood]) -> None:
            outputs.choices[wanted[index].key] = found
            events.output(part, wanted[index].key, plain_output(found))

        choice_likelihoods(model, wanted, size, events=events, take=keep_choices)
    elif wanted:

        def keep_refusing(index: int, found: Refusing) -> None:
            outputs.refusals[wanted[index].key] = found
            events.output(part, wanted[index].key, plain_output(found))

        refusing(model, wanted, settings.max_new_tokens, microbatch=size, events=events, take=keep_refusing)


def judge(prompts: Sequence[Prompt], outputs: Outputs, match: Match = "exact") -> list[Answer]:
    """Judge the raw outputs: one record a prompt, in order.

    The detector of the prompt's trait gives a completion's verdict, with the question as asked. `correct` tells, for
    choices, whether the likeliest by summed log-likelihood is right; for answers, whether the completion matches one
    after normalisation. It is None for unanswerable questions and those without gold answers.
    """
    refusal: dict[str, float] = {}
    for name in dict.fromkeys(prompt.role for prompt in prompts):
        asked = [prompt for prompt in prompts if prompt.role == name and prompt.key in outputs.refusals]
        if asked:
            found, questions = [outputs.refusals[p.key] for p in asked], [p.question for p in asked]
            values = probability_of_refusing(found, questions, trait_of(name).detect)
            refusal |= {prompt.key: value for prompt, value in zip(asked, values, strict=True)}
    return [_answer(prompt, outputs, match, refusal.get(prompt.key)) for prompt in prompts]


def _answer(prompt: Prompt, outputs: Outputs, match: Match, refusal_probability: float | None) -> Answer:
    row, completion = prompt.row, outputs.completions[prompt.key]
    detection = trait_of(prompt.role).detect(completion, prompt.question)
    scores: dict[str, Any] = {}
    if row.answers and prompt.answerable is not False:
        scores = {
            "exact": exact_match(completion, row.answers),
            "contains": contains_match(completion, row.answers),
            "token_f1": token_f1(completion, row.answers),
        }
        scores["correct"] = scores[match]
    if prompt.key in outputs.choices:
        scores |= _choice_scores(row.correct, row.choices, completion, outputs.choices[prompt.key])
    return Answer(
        role=prompt.role,
        set=prompt.set,
        line=row.line,
        id=prompt.id,
        kind=row.kind,
        prompt=row.prompt or "\n".join(f"{turn['role']}: {turn['content']}" for turn in row.messages),
        question=prompt.question,
        answerable=prompt.answerable,
        answers=row.answers,
        completion=completion,
        verdict=detection.verdict.value,
        idea=detection.idea,
        evidence=detection.evidence,
        refusal_probability=refusal_probability,
        **scores,
    )


def _choice_scores(
    right: int | None, choices: tuple[str, ...], completion: str, found: Sequence[Likelihood]
) -> dict[str, Any]:
    # Some files repeat a choice. Its copies are equally right, and count as the first of them.
    keys = [" ".join(choice.split()).casefold() for choice in choices]
    first = [keys.index(key) for key in keys]
    values, tokens = [item.log_likelihood for item in found], [item.tokens for item in found]
    chosen = first[int(choose_by_likelihood([values])[0])]
    named = choice_from_text(completion, [text if first[i] == i else "" for i, text in enumerate(choices)])
    right = None if right is None else first[right]
    return {
        "choices": choices,
        "right_choice": right,
        "choice_log_likelihoods": tuple(values),
        "chosen": chosen,
        "chosen_per_token": first[int(choose_by_likelihood([values], [tokens])[0])],
        "chosen_by_text": None if named is None else first[named],
        "correct": chosen == right,
    }


def answer(
    model: LoadedModel,
    prompts: Sequence[Prompt],
    settings: AnswerSettings | None = None,
    *,
    events: Events | None = None,
) -> list[Answer]:
    """Ask a loaded model all prompts, whatever their sets, and judge its answers: one record a prompt, in order.

    Args:
        model: loaded.
        prompts: of all sets.
        settings: how the model is asked and judged.
        events: callbacks for progress.

    Raises:
        RunError: the device failed, or memory does not hold one prompt.
    """
    settings, outputs = settings or AnswerSettings(), Outputs()
    for part, count in counts(prompts, settings).items():
        if count:
            run_part(part, model, prompts, settings=settings, outputs=outputs, events=events)
    return judge(prompts, outputs, settings.match)
