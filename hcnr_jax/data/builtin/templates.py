"""Expands the templates of the built-in questions: wordings, and the values that fill their slots.

A YAML file holds one split, a list of groups. A group asks answerable and unanswerable questions in the same wordings,
so that a question's form does not give its label away:

    - ask:                                    # wordings, used in turn
        - "What is the capital of {}?"
        - "Tell me the capital of {}."
      geography: Peru = Lima; Nepal = Kathmandu / Katmandu    # an answerable kind: values = accepted answers
      unknown_entity: Velmoria; Kastrelund                    # an unanswerable kind: values alone

`;` stands between questions, `|` between the values of several slots, `/` between accepted answers. A number is also
accepted in words, and a date in its usual orders.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hcnr_jax.data.questions import Question

UNANSWERABLE_KINDS = {
    "unknown_entity": "no such place, book, person or work exists",
    "nonsense_term": "the word is invented and means nothing",
    "false_premise": "what the question takes for granted is false",
    "future": "nobody can know it yet",
    "private_fact": "only the person who asks, or nobody, knows it",
    "missing_context": "the answer is not in the text that is given",
    "impossible_precision": "nobody counted or measured it, and nobody can",
    "contradiction": "the question rules out every answer",
}
ANSWERABLE_KINDS = {
    "geography": "capitals, continents, currencies, rivers and sights",
    "culture": "books, paintings, music, films, tales and sports",
    "language": "opposites, languages of countries, common foreign words",
    "numbers": "small arithmetic, units and counts",
    "nature": "animals and plants",
    "science": "the human body, planets, inventions, instruments",
    "history": "well-known years, rulers and first deeds",
    "calendar": "days, months and dates",
    "everyday": "household words and uses",
    "context": "the answer is in the text that is given",
}

_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"
)
_ONES, _TENS = _NUMBERS.split()[:20], _NUMBERS.split()[20:]
_DATE = re.compile(r"(?P<day>\d{1,2}) (?P<month>[A-Z][a-z]+)")


@dataclass(frozen=True)
class BuiltinQuestion:
    """Holds one question, the template that it was made of, and the names in it, in lower case.

    The names are the value of the first slot and every other value that starts with a capital letter. Where the first
    value is a number, all values together are the name.
    """

    question: Question
    template: str
    names: tuple[str, ...]


def expand(groups: Sequence[Mapping[str, Any]], split: str) -> tuple[BuiltinQuestion, ...]:
    """Expand the groups of one split, in file order. An id is `builtin/SPLIT/KIND/NUMBER`, counted within the kind."""
    numbers: Counter[str] = Counter()
    made = []
    for group in groups:
        for kind in (name for name in group if name != "ask"):
            for place, (values, answers) in enumerate(_fillings(group[kind])):
                template = group["ask"][place % len(group["ask"])]
                numbers[kind] += 1
                question = Question(
                    _sentence(template, values),
                    kind not in UNANSWERABLE_KINDS,
                    answers,
                    kind=kind,
                    id=f"builtin/{split}/{kind}/{numbers[kind]:04d}",
                    source=f"built-in questions, {split}",
                )
                made.append(BuiltinQuestion(question, template, names_in(values)))
    return tuple(made)


def names_in(values: Sequence[str]) -> tuple[str, ...]:
    """Return the names among the values of one question's slots."""
    if values[0][0].isdigit():
        return (" ".join(values).lower(),)
    others = [value for value in values[1:] if value[0].isupper()]
    return tuple(dict.fromkeys(name.lower() for name in (values[0], *others)))


def accepted(answer: str) -> tuple[str, ...]:
    """Return an answer with its other spellings: a number up to 100 in words, a date in its usual orders."""
    date = _DATE.fullmatch(answer)
    if date:
        day, month = date["day"], date["month"]
        ordinal = day + _ordinal_suffix(int(day))
        return (answer, f"{month} {day}", f"{ordinal} of {month}", f"{month} {ordinal}", f"{ordinal} {month}")
    if answer.isdigit() and int(answer) <= 100:
        return (answer, *_number_words(int(answer)))
    return (answer,)


def _fillings(text: str) -> Iterator[tuple[list[str], tuple[str, ...]]]:
    for item in text.strip().split(";"):
        values, _, answers = item.partition(" = ")
        listed = [answer.strip() for answer in answers.split(" / ") if answer.strip()]
        yield (
            [value.strip() for value in values.split(" | ")],
            tuple(dict.fromkeys(spelling for answer in listed for spelling in accepted(answer))),
        )


def _sentence(template: str, values: Sequence[str]) -> str:
    """Fill a template; the first letter becomes a capital."""
    text = template.format(*values)
    return text[0].upper() + text[1:]


def _ordinal_suffix(day: int) -> str:
    return "th" if 11 <= day <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")


def _number_words(number: int) -> tuple[str, ...]:
    if number < 20:
        return (_ONES[number],)
    if number == 100:
        return ("one hundred", "a hundred")
    ten, one = _TENS[number // 10 - 2], number % 10
    return (f"{ten}-{_ONES[one]}", f"{ten} {_ONES[one]}") if one else (ten,)
