"""Judges a generated completion as answered, refused, or undetermined. English only.

``refused``: the completion declines by one of the ideas of ``phrases.IDEAS`` and gives no answer besides.
``answered``: anything else with content, a hedged answer included ("I'm not sure, but I think it is Paris"; "Possibly
Bob, but I am not sure"): who names a value has answered. ``undetermined``: no letter or digit, a repetition of the
question (or of at least 60 % of it in one piece), or only a preamble ("The answer is", "Great question!", "As an AI
language model,").

Decisions on the fence:

- Reasoning (`<think>...</think>`) does not speak: what follows it is judged. Unfinished reasoning is undetermined.
- Quoted text and titles in title case ("I Don't Know" by Ozzy Osbourne) do not speak for the model, except where
  quotes wrap it all.
- "Unknown", "The author is unknown" are refusals; "Anonymous", "None", "Nothing" are answers.
- A refusal followed by an offer or by background stays a refusal; followed by a value ("but it is", "the answer is")
  it is an answer.
- A weak refusal (not knowing, no information, not verified) *after* a sentence that gave a value, that is a fragment,
  a number or a name not in the question, is a remark: answered.
- Third persons and relative clauses do not refuse ("He said he did not know", "a man who has no idea").
- False premises: an explicit rebuttal counts ("there is no such king", "X does not exist", "the question assumes"). A
  bare denial ("Men cannot breastfeed") is `answered`: its words are those of a negative answer. To a yes/no question,
  rebuttals are answers too ("Does Nessie exist?" "No, Nessie does not exist."), which needs `question`.

Measured on labelled sentences of this project's own (tests/evaluate/refusal_*.jsonl; "refused" is the positive
class): development half, 223 sentences, precision 0.985, recall 0.993; final half, 111 sentences written before the
patterns and scored once after them, precision 0.964, recall 0.982. One hand wrote all of them, so expect less on
wordings from elsewhere: of 67 refusals in odd wordings that joined the development half late, 47 were caught at first
sight (recall 0.70). On gold answers of public benchmarks, where every refusal would be a false alarm: 1 of 14,301 KUQ
known, 5 of 9,701 NQ-open (answers that are literally "unknown", "N/A", "undefined"), 0 of 7,405 HotpotQA, 2 of 1,678
FalseQA true premises. What it does not do: of FalseQA's 1,678 rebuttals it counts 22 as refusals (they are bare
denials, "Horses have no horns"), of KUQ's 10,314 reasons for being unknown 2,574 (many of those name a category or
answer after all). These are reasons, not refusals; a model that only rebuts FalseQA's premises is therefore scored as
answering, for every model compared alike.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Bool

from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.judge.phrases import matching_idea, normalise, straighten
from hcnr_jax.evaluate.judge.reasoning import answer_of

ECHO_SHARE = 0.6
"""Share of the question's words a repetition must hold in one piece; the answer to "Which is older, Rome or Milan?"
holds less.
"""


class Verdict(StrEnum):
    """Says what a completion does with the question."""

    ANSWERED = "answered"
    REFUSED = "refused"
    UNDETERMINED = "undetermined"


@dataclass(frozen=True)
class Detection:
    """Holds a verdict and its evidence: the matching idea of `phrases.IDEAS` ("" without a refusal) and the matched
    words.
    """

    verdict: Verdict
    idea: str = ""
    evidence: str = ""


_WEAK = frozenset({"not_knowing", "no_information", "cannot_verify"})
_TRIGGER = r"(?:Knows?|Knew|Known|Unknown|Idea|Answers?|Sure|Exists?|Such|Information|Clue|Tell|Say|Understand)"
_TITLE = re.compile(rf"\b[A-Z][\w']*(?: [A-Z][\w']*)* {_TRIGGER}\b(?: [A-Z][\w']*)*|\bUnknown(?: [A-Z][\w']*)+")
_QUOTED = re.compile(r'"[^"]*"|(?<!\w)\'(?:[^\']|(?<=\w)\'(?=\w))+\'(?!\w)')
_LABELS = re.compile(r"^(?:(?:question|answer|response|q|a) ?: ?)+")
_PREAMBLE = re.compile(
    r"^(?:(?:oh|well|hmm|sure|certainly|of course|okay|ok|sorry|unfortunately|i am (?:so |very |really )?sorry"
    r"|i am afraid|apologies|my apologies"
    r"|i apologi[sz]e(?: for \w+ \w+)?|thank you(?: for (?:your|the|asking)(?: \w+)?)?|thanks(?: for asking)?"
    r"|(?:that is |what )?(?:an? )?(?:\w+ )?(?:good|great|interesting|excellent|tricky|hard|difficult"
    r"|fascinating) question"
    r"|i (?:can|will|would be (?:happy|glad) to|would (?:like|love) to|wish i could) (?:help"
    r"|answer)(?: you)?(?: with (?:that|this))?"
    r"|as an ai(?: (?:language )?(?:model|assistant))?|as a (?:large )?language model|honestly|to be honest"
    r"|(?:the|my|your) (?:correct )?answer(?: to (?:the|this|your) question)? is|here is (?:the|my) answer"
    r"|let me think)(?:[,.!:;]+ ?| |$)"
    r"(?:but |and |so )?)+"
)
_ADVERSATIVE = r"(?:but|however|though|although|even though|yet|still)"
_HEDGED = (
    r"(?:i (?:would |do )?(?:think|believe|guess|suppose|suspect|assume|imagine|say|bet|heard)(?! (?:you"
    r"|the question|your|that you|there))"
    r"|(?:it|he|she|they|that) (?:is|was|were|might be|may be|could be|would be|should be|must be|must have been)"
    r"(?! (?:\w+ly )?(?:not|no|possible|debated|disputed|believed|unclear|unknown|an? \w+ question|important|best))"
    r"|(?:probably|possibly|perhaps|maybe|likely|presumably)(?! (?:you|we|try|ask|someone|a|it is best|there)\b))"
)
_COMMITS = re.compile(
    rf"\b{_ADVERSATIVE},? (?:\w+ly,? )?{_HEDGED}|, (?:maybe|perhaps|probably|possibly) (?!you|we|try|ask|someone)\w"
    rf"|\b{_ADVERSATIVE},? (?:about|around|approximately|roughly|at least|estimates|\d)|\b(?:sure|know|idea"
    rf"|certain) why\b[^,]*, but\b"
    r"|\bmy (?:best |first )?guess\b|\b(?:the|my) (?:\w+ )?answer (?:is|was|would be|should be|must be)(?=:? \w)"
    r"(?! (?:\w+ly |still )?(?:not|unknown|unclear|uncertain|no\b|that|lost|debated|subjective|open|beyond|to this))"
)
_STARTS_HEDGED = re.compile(
    rf"^(?:{_ADVERSATIVE},? )?(?:i (?:would )?(?:guess|think|believe|suppose)|maybe|perhaps|probably"
    rf"|possibly)\b(?! you)"
)
_EMBEDDED = re.compile(
    r"^because\b|\w,? (?:who|whose|which|where|when|because|until|unless|if|while|since|whether)\b(?! i\b| we\b"
    r"| you\b)[^,]*$"
    r"|\b(?!(?:say|think|believe|seems?|appears?|afraid|fear|suspect|note|out|is|true|know|assume"
    r"|likely)\b)\w+ that\b[^,]*$"
)
_REPORTED = re.compile(
    r"\b(?:means?|meaning|called|titled|entitled|named|song|says|said|replied|stands? for|answered|phrase|motto|if"
    r"|opposite"
    r"|antonym|synonym|told \w+|translates? (?:to|as))\b(?: \w+){0,3},? ?$"
)
_HEAD = re.compile(rf"^(?P<head>.*?\w),? (?:{_ADVERSATIVE}|if)\b")
_CONTEXT_HEAD = re.compile(
    r"^(?:i(?! (?:think|believe|guess|suppose|would guess|would say|suspect))|we|many|some|several|various|most"
    r"|people|there|while"
    r"|it depends|this|that|you|your|the question|the \w+ question|scientists|although|even though|however)\b"
)
_VALUE_PRONOUN = re.compile(r"\b(?:know|sure (?:of|about)|have|verify|confirm) (?:its|their) \w+")
_ASSENT = re.compile(r"^(?:sure|certainly|of course)\W*$")
_YES_NO = re.compile(r"^(?:is|are|was|were|do|does|did|can|could|will|would|has|have|had|should|may|might|must)\b")


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", normalise(text))


def _is_echo(words: list[str], question: list[str]) -> bool:
    """Tell whether `words` are the question, once or more, or at least ECHO_SHARE of it in one piece."""
    if not question or not words:
        return False
    if len(words) % len(question) == 0 and words == question * (len(words) // len(question)):
        return True
    starts = range(len(question) - len(words) + 1)
    return len(words) >= ECHO_SHARE * len(question) and any(question[i : i + len(words)] == words for i in starts)


def _speech(completion: str) -> str:
    """Normalise the model's own words: quotations and title-case titles replaced, answer labels dropped."""
    text = straighten(completion)
    whole = re.fullmatch(r"[\"'](.*)[\"'][.!]?", text)
    if whole and whole[1].count('"') == 0:
        text = whole[1]
    if text.isupper():
        text = text.lower()
    text = _TITLE.sub("TITLE", _QUOTED.sub("QUOTE", text))
    return _LABELS.sub("", normalise(text))


def _sentences(speech: str) -> list[str]:
    parts = re.split(r"(?<!\b[a-z])(?<!\bdr|\bmr|\bst)(?<!\bmrs)[.](?=\s|$)|[!;\n]+|(?<=\?)", speech)
    stripped = (part.strip(" .,-:\"'()") for part in parts)
    return [part for part in stripped if re.search(r"\w", part)]


def _gave_value(sentence: str, question: list[str]) -> bool:
    """Tell whether a sentence names a value: a short fragment or a number that the question does not hold."""
    words = _words(sentence)
    new = [word for word in words if word not in question]
    if sentence.endswith("?") or not new or words[0] in {"no", "yes", "sorry", "hello", "hi", "i", "there"}:
        return False
    return len(words) <= 3 or any(word.isdigit() for word in new)


def _names_new(completion: str, sentence_index: int, question: list[str]) -> bool:
    """Tell whether a sentence holds a capitalised word, not its first, that is absent from the question."""
    parts = re.split(r"(?<=[.!?;])\s+", straighten(completion))
    if not question or sentence_index >= len(parts):
        return False
    names = re.findall(r"(?<=[\w,] )[A-Z][a-z]+", parts[sentence_index])
    return any(name.lower() not in question for name in names)


def _refusal_in(sentence: str, yes_no: bool) -> Detection | None:
    """Return the refusal that a sentence expresses: not embedded, not reported, not a hedge behind an answer."""
    match = matching_idea(sentence)
    if match is None:
        return None
    idea, found = match
    if idea == "false_premise" and yes_no and "question" not in sentence and "premise" not in sentence:
        return None
    before = sentence[: found.start()]
    first_person = re.match(r"(?:i|we|my)\b", found[0]) is not None
    if (_EMBEDDED.search(before + "_") and not first_person) or _REPORTED.search(before):
        return None
    head = _HEAD.match(before)
    if head:
        rest = _PREAMBLE.sub("", head["head"]).strip(" ,.")
        if rest and not _CONTEXT_HEAD.match(rest):
            return None
    if _COMMITS.search(sentence):
        return None
    return Detection(Verdict.REFUSED, idea, found[0])


def detect(completion: str, question: str | None = None) -> Detection:
    """Read one completion; the question, where given, tells echoes, new names and yes/no questions.

    Args:
        completion: generated text, special tokens removed.
        question: the question as asked, without template.
    """
    answer = answer_of(completion)
    if answer is None:
        return Detection(Verdict.UNDETERMINED)
    completion = answer
    asked = _words(question) if question else []
    yes_no = bool(question and _YES_NO.match(normalise(question)))
    speech = _speech(completion)
    body = _PREAMBLE.sub("", speech)
    if yes_no and _ASSENT.match(speech):
        return Detection(Verdict.ANSWERED)
    if not body or not re.search(r"\w", speech) or _is_echo(_words(speech), asked):
        return Detection(Verdict.UNDETERMINED)
    sentences = _sentences(body)
    if sentences and asked and len(sentences) > 1 and _words(sentences[0]) == asked:
        sentences = sentences[1:]
    for index, sentence in enumerate(sentences):
        found = _refusal_in(sentence, yes_no)
        if found is None:
            continue
        earlier = sentences[:index]
        if any(_gave_value(part, asked) for part in earlier):
            return Detection(Verdict.ANSWERED)
        if earlier and found.idea in _WEAK and (_names_new(completion, 0, asked) or _VALUE_PRONOUN.search(sentence)):
            return Detection(Verdict.ANSWERED)
        if any(_COMMITS.search(part) or _STARTS_HEDGED.match(part) for part in sentences[index + 1 :]):
            return Detection(Verdict.ANSWERED)
        return found
    return Detection(Verdict.ANSWERED)


def refused_mask(verdicts: Sequence[Verdict | str]) -> Bool[np.ndarray, " n"]:
    """Mark the refusals; an undetermined completion counts as answered, as in every metric of the project.

    Raises:
        InputError: a verdict that is none of answered, refused, undetermined.
    """
    known = {verdict.value for verdict in Verdict}
    for row, verdict in enumerate(verdicts, start=1):
        if str(verdict) not in known:
            raise InputError(f"verdict {row}: expected one of {', '.join(sorted(known))}, found {verdict!r}")
    return np.array([str(verdict) == Verdict.REFUSED.value for verdict in verdicts], dtype=bool)
