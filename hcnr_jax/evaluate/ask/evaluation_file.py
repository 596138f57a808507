"""Reads the answers of an earlier `hcnr evaluate`, and matches them with the questions of this run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from hcnr_jax.data.json_lines import parse_json_lines, read_text
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.ask.prompts import Prompt
from hcnr_jax.evaluate.ask.runner import Answer, Match
from hcnr_jax.evaluate.trait import trait_of

_SAME = "ask both models the same questions: repeat one evaluation with the files, --samples and --seed of the other"


@dataclass(frozen=True)
class Evaluation:
    """Holds another model's answers to the questions of this run, in the order of its prompts.

    max_new_tokens: the limit it was asked with; None where the file does not say.
    """

    file: str
    model: str
    digest: str
    max_new_tokens: int | None
    answers: list[Answer]


def read_evaluation(path: Path, prompts: Sequence[Prompt], match: Match) -> Evaluation:
    """Read a metrics file and the records beside it; the answers are judged again, as this run judges.

    Args:
        path: metrics file that `hcnr evaluate` wrote.
        prompts: of this run.
        match: which text match makes an answer correct.

    Raises:
        InputError: a file cannot be read or is none of `hcnr evaluate`, or its questions differ from this run's.
    """
    option = f"--compare {path}"
    metrics = _metrics(path, option)
    records = path.parent / metrics["records"]
    if not records.is_file():
        raise InputError(f"{option}: its answers, {records}, do not exist; put that file back beside the metrics")
    found = [
        _answer(values, f"{records}, line {line}")
        for line, values in parse_json_lines(read_text(records), str(records))
    ]
    matched = [answer for name in _sets(prompts) for answer in _match(name, prompts, found, option)]
    by_key = {(answer.role, answer.set, answer.line): answer for answer in matched}
    answers = [by_key[prompt.role, prompt.set, prompt.row.line] for prompt in prompts]
    model = metrics["model"]
    limit = (metrics.get("config") or {}).get("max_new_tokens")
    judged = [_judged(answer, match) for answer in answers]
    return Evaluation(str(path), model["folder"], model["digest"], limit, judged)


def _metrics(path: Path, option: str) -> dict[str, Any]:
    """Read the metrics file as far as it is needed."""
    wrong = "expected the metrics file that `hcnr evaluate --out` writes (.json)"
    try:
        found = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{option}: {wrong}, found something that is not JSON ({error})") from error
    model = found.get("model") if isinstance(found, dict) else None
    texts = [found.get("records"), model.get("folder"), model.get("digest")] if isinstance(model, dict) else [None]
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"{option}: {wrong}, found JSON without `records` or `model`")
    return dict(found)


def _answer(values: Any, where: str) -> Answer:
    known = {field.name for field in fields(Answer)}
    try:
        given = {
            name: tuple(item) if isinstance(item, list) else item for name, item in values.items() if name in known
        }
        return Answer(**{"kind": None, "answerable": None, "answers": ()} | given)
    except (AttributeError, TypeError) as error:
        raise InputError(
            f"{where}: expected a record of `hcnr evaluate`, found another value; evaluate again"
        ) from error


def _judged(answer: Answer, match: Match) -> Answer:
    """Judge an answer again: its verdict by this version's detector, its correctness by `match`."""
    verdict = trait_of(answer.role).detect(answer.completion, answer.question).verdict.value
    by_text = answer.exact is not None and answer.chosen is None
    correct = (answer.exact if match == "exact" else answer.contains) if by_text else answer.correct
    return replace(answer, verdict=verdict, correct=correct)


def _sets(prompts: Sequence[Prompt]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((prompt.role, prompt.set) for prompt in prompts))


def _match(name: tuple[str, str], prompts: Sequence[Prompt], found: Sequence[Answer], option: str) -> list[Answer]:
    """Match the answers of one set by question id, or by line where ids repeat; they get this run's line numbers.

    Args:
        name: role and name of the set.
        prompts: of all sets.
        found: the other model's answers to all sets.
        option: for messages.
    """
    asked = [prompt for prompt in prompts if (prompt.role, prompt.set) == name]
    answers = [answer for answer in found if (answer.role, answer.set) == name]
    where = f"{option}: --{name[0]} {name[1]}"
    if not answers:
        there = ", ".join(dict.fromkeys(f"{answer.role} {answer.set}" for answer in found)) or "none"
        raise InputError(f"{where}: not among the sets of that evaluation ({there}); {_SAME}")
    by_id = len({prompt.id for prompt in asked}) == len(asked) and len({item.id for item in answers}) == len(answers)
    others = {answer.id if by_id else answer.line: answer for answer in answers}
    matched = []
    for prompt in asked:
        other = others.pop(prompt.id if by_id else prompt.row.line, None)
        if other is None:
            raise InputError(f"{where}: question {prompt.id} ({_cut(prompt.question)}) was not asked there; {_SAME}")
        _check_same(prompt, other, where)
        matched.append(replace(other, line=prompt.row.line))
    if others:
        extra = next(iter(others.values()))
        raise InputError(
            f"{where}: {len(others)} more questions were asked there, the first {extra.id} ({_cut(extra.question)}); "
            f"{_SAME}"
        )
    return matched


def _check_same(prompt: Prompt, other: Answer, where: str) -> None:
    """Refuse (InputError) an answer to another question, or to the same one with other labels."""
    row = prompt.row
    # Records hold the choices of questions with a right choice alone.
    choices = row.choices if row.correct is not None else ()
    # A repeated choice counts as its first copy in the records, so the right choice is compared by its text.
    right = (_right(choices, row.correct), _right(other.choices, other.right_choice))
    pairs = {
        "question": (prompt.question, other.question),
        "`answerable`": (prompt.answerable, other.answerable),
        "`answers`": (row.answers, other.answers),
        "`choices`": (choices, other.choices),
        "right choice": right,
    }
    for name, (mine, found) in pairs.items():
        if mine != found:
            raise InputError(
                f"{where}: question {prompt.id}: its {name} differs: {_cut(found)} there, {_cut(mine)} here; {_SAME}"
            )


def _right(choices: tuple[str, ...], index: int | None) -> str | None:
    return None if index is None or index >= len(choices) else " ".join(choices[index].split()).casefold()


def _cut(value: object, letters: int = 60) -> str:
    text = str(value)
    return text if len(text) <= letters else f"{text[: letters - 3]}..."
