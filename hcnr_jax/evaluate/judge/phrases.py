"""Lists the phrases of the refusal detector: regular expressions grouped by the idea they express.

The patterns are matched against one sentence of *normalised* English (``normalise``): lower case, straight quotes,
contractions written out ("don't", "dont" -> "do not"; "can't", "cannot" -> "can not"; "it's" -> "it is"), so that one
pattern serves every spelling. ``IDEAS`` maps an idea to its patterns; the first idea that matches is the one
reported.

What counts as a refusal, by idea:

- ``not_knowing``: the speaker does not know, is not sure, has no idea, has never heard of it, would rather not guess.
- ``no_information``: the speaker has, or finds, no information, records, data, access.
- ``cannot_verify``: the speaker cannot verify or confirm.
- ``false_premise``: the question rests on something untrue, or what it asks about is said *not to exist*. A bare
  denial ("Men cannot breastfeed") is NOT counted: nothing in its words tells it from a negative answer ("Penguins
  cannot fly").
- ``unanswerable``: nobody knows, it cannot be known, predicted or decided, it is a matter of opinion.
- ``nonsense``: the question makes no sense, or is not understood.
- ``rephrase``: the speaker asks for clarification, context or another wording.
"""

import re
import unicodedata

_ADVERB = r"(?:(?:\w+ly|just|even|also|yet|still|quite|at all|in fact|ever|as yet) )*"
_FACT = (
    r"(?:information|info|data|details?|knowledge|records?|answers?|access|evidence|memory|context|facts?|sources?"
    r"|documentation|mention|account)"
)
_SETTLED = (
    r"(?:answered|known|determined|predicted|foreseen|foretold|resolved|settled|established|ascertained|answerable"
    r"|estimated|deduced|discovered)"
)
_TELL = (
    r"(?:know|say|tell|answer|predict|determine|guess|be (?:sure|certain)|find out|foresee|establish|ascertain|give an)"
)
_EXPERTS = (
    r"(?:we|scientists|historians|researchers|experts|scholars|philosophers|astronomers|physicists|biologists"
    r"|archaeologists|doctors|people|humans|science|history|humanity)"
)
_NAMED = (
    r"(?:called|named|titled|entitled|known as|known by|(?:by|of|with|under) (?:that|this|the|such an?) (?:name|title))"
)
_NEG_DO = r"(?:do|does|did) not"

IDEAS: dict[str, tuple[str, ...]] = {
    "not_knowing": (
        rf"\b(?:i|we) {_ADVERB}(?:do|did|would) {_ADVERB}not {_ADVERB}(?:know|recall|remember|recogni[sz]e)\b"
        r"(?! (?:anyone|anybody|a soul|a single person|one person) (?:who|that))",
        r"^(?:sorry,? )?do not (?:really )?know$",
        rf"\bi am {_ADVERB}(?:not {_ADVERB}(?:sure|certain|aware|familiar|acquainted)|unsure|uncertain|unaware"
        rf"|unfamiliar)\b",
        r"^(?:sorry,? |well,? )?(?:i am )?(?:not (?:really |entirely |too |so |quite )?(?:sure|certain)|unsure)\b",
        r"\b(?:i|we) (?:\w+ )?have (?:\w+ )?(?:no|not an?|not the \w+) (?:\w+ )?(?:idea|clue|notion)\b",
        r"\b(?:i|we) do not have (?:a|an|any|the \w+) (?:idea|clue|notion)\b",
        r"^(?:sorry,? |honestly,? )?(?:absolutely )?(?:no (?:idea|clue)|not a clue|have not (?:an?"
        r"|the \w+) ?(?:idea|clue)?$)",
        r"(?:^|\bi (?:have |had )?)(?:never|not) heard (?:of|about)\b|\b(?:do|does|did) not ring (?:a|any) bells?\b",
        r"^(?:it |that )?beats me\b|\byour guess is as good as mine\b|^you (?:have )?got me\b|^search me$|^who knows$",
        r"\bnot (?:something|anything|one) (?:that )?(?:i|we|one|anyone) (?:\w+ )?(?:know|can|could|am able|have)\b",
        r"\bi know (?:nothing|very little|little|of no|no)\b(?! (?:more|better))",
        r"\b(?:beyond|outside(?: of)?) (?:the (?:scope|limits) of )?my (?:\w+ )?(?:knowledge|understanding"
        r"|expertise|training)\b",
        r"\bi (?:would|will|had) (?:rather|prefer) not (?:to )?(?:\w+ )?(?:guess|speculate|say|answer)\b",
        rf"\bmy (?:\w+ )?(?:knowledge|training(?: data)?|data|information|database|sources?"
        rf"|records?) (?:\w+ )?{_NEG_DO}\b",
        r"^no (?:\w+ ){1,5}(?:is|are|was) known to me\b|\bunknown to me\b|\bnot known to me\b",
    ),
    "no_information": (
        rf"\b(?:i|we) {_ADVERB}(?:do|did) not {_ADVERB}have (?:[\w-]+ ){{0,4}}?{_FACT}\b",
        rf"\b(?:i|we) (?:\w+ )?(?:have|find|found|see|know of|hold|possess) no (?:[\w-]+ ){{0,3}}?{_FACT}\b",
        rf"\b(?:i|we) (?:\w+ )?lack (?:[\w-]+ ){{0,3}}?{_FACT}\b",
        rf"\bthere (?:is|are|was|were|exists?|seems to be|appears to be) (?:\w+ )?(?:no|not enough|not any"
        rf"|insufficient) "
        rf"(?:[\w-]+ ){{0,4}}?{_FACT}\b",
        r"^no (?:\w+ )?sources? (?:\w+ )?(?:mention|record|list|describe|confirm)s?\b",
        rf"^(?:insufficient|not enough|no) (?:[\w-]+ ){{0,3}}?{_FACT}(?: (?:\w+ )?(?:exists?|is|are|was|were|found"
        rf"|available)\b|$)",
        rf"\bno (?:[\w-]+ ){{0,3}}?{_FACT} (?:\w+ )?(?:exists?|(?:is|are|was|were) (?:\w+ )?(?:available|found"
        rf"|known))\b",
        r"\b(?:i|we) (?:\w+ )?(?:(?:can|could|did) not|(?:am|was|were|are) (?:unable"
        r"|not able) to) (?:seem to )?(?:\w+ )?"
        r"(?:find|locate|provide|share|access|retrieve|see|identify|recognise|recognize)\b",
        r"^unable to (?:find|locate|provide|answer|determine|verify|identify)\b|^not found$",
        r"^(?:n/a|not available|not applicable|unspecified|not specified|not provided|no answer|no data)$",
        r"\b(?:is|are|was|were|has|have) (?:not|never) (?:been )?(?:\w+ly |yet )?(?:disclosed|revealed|published"
        r"|documented"
        r"|recorded|made public|announced|specified|available)\b",
        rf"\b(?:history|records?|sources?|the (?:text|article|passage|context|literature|sources|records)"
        rf"|documents|science) "
        rf"{_NEG_DO} (?:\w+ )?(?:record|say|tell|mention|state|specify|reveal|indicate|provide|show|know)\b",
    ),
    "cannot_verify": (
        r"\b(?:can|could) not (?:\w+ )?(?:verify|confirm|validate|substantiate|vouch)\b",
        r"\b(?:unable|not able) to (?:\w+ )?(?:verify|confirm)\b",
        r"\b(?:is|are) (?:unverified|unverifiable|not verifiable)\b",
    ),
    "false_premise": (
        r"\b(?:question|query|premise) (?:\w+ ){0,2}?(?:contains|rests on|is (?:based|built|predicated) on"
        r"|relies on|assumes"
        r"|presupposes|presumes)\b",
        r"\b(?:false|incorrect|wrong|mistaken|faulty|flawed|invalid|untrue|erroneous) (?:premise|assumption"
        r"|presupposition)s?\b"
        r"(?! is an?\b)",
        r"\b(?:premise|assumption|question)(?: \w+){0,4}? is (?:\w+ly |just |itself )?(?:false|wrong|incorrect"
        r"|mistaken|flawed"
        r"|not (?:true|correct|valid|accurate))\b",
        r"\b(?:that|this|it|which) is (?:\w+ly |just )?(?:not (?:\w+ly )?(?:true|correct|the case|accurate)|untrue"
        r"|false"
        r"|incorrect|a (?:common )?(?:myth|misconception))\b",
        r"\bno such \w+\b",
        rf"\b(?:there (?:is|are|was|were|has been|exists?) (?:\w+ )?(?:no|not an?|not any)|^no|know of no|is no) "
        rf"(?:[\w-]+ ){{1,5}}?{_NAMED}\b",
        r"\bthere (?:was|were|has|have) never (?:been )?(?:an?|any)\b",
        rf"\bthere {_NEG_DO} (?:seem|appear) to be\b|\bthere (?:seems|appears) to be no\b",
        rf"\b{_NEG_DO} (?:\w+ly |in fact |seem to |appear to )*exist\b(?! (?:before|after|until)\b)",
        r"^no (?:\w+ ){1,4}(?:has|have|had|bears|goes by) (?:that|this|such a) name\b",
        r"\bnever (?:\w+ly )?(?:existed|happened|took place|occurred)\b",
        r"\b(?:is|are|was) not (?:\w+ly )?(?:an? )?(?:real|existing|recogni[sz]ed|actual|legitimate)\b",
        rf"\b{_NEG_DO} (?:seem|appear) to be (?:an? )?(?:real|valid|actual|existing|genuine|known|recogni[sz]ed)\b",
        r"\b(?:is|are|be) (?:an? )?(?:nonexistent|non-existent|made[- ]up(?! of)|fictitious|fabricated)\b",
        r"\b(?:is|are|was|were) (?:an? )?(?:purely )?(?:fictional|mythical|imaginary|legendary)\b[^,]*,? (?:so"
        r"|therefore|thus|hence"
        rf"|and {_NEG_DO}|and (?:has|have) no)\b",
        r"\byou (?:may|might|could|must|seem to|appear to) (?:have (?:\w+ )?(?:made|misspel\w+|mistaken|confused|mixed)"
        r"|be (?:\w+ )?(?:thinking of|confus\w+|mistaken|mixing))",
        r"\b(?:been|is) (?:an? |some )?(?:misunderstanding|mix-up)\b|\bmistake in (?:your|the) question\b",
    ),
    "unanswerable": (
        rf"\b(?:can not|could not|can never|may never|will never|has never been|have never been|has not|have not) "
        rf"(?:\w+ly |yet |be |been )*{_SETTLED}\b",
        rf"\b(?:has|have) yet to (?:be )?(?:\w+ly )?(?:{_SETTLED}|determine|discover|answer|settle|establish|find)\b",
        r"\b(?:is|are|was|were|remains?|still) (?:\w+ly |still |as yet |yet |quite )*(?:unknown|unanswerable"
        r"|unknowable|undetermined"
        r"|unclear|uncertain|a mystery|an open question|unresolved|unsolved|unpredictable|ambiguous|anyone's guess"
        r"|up for debate"
        r"|a matter of (?:\w+ )?(?:opinion|debate|perspective|taste|speculation|interpretation|preference)"
        r"|open to (?:debate"
        r"|interpretation)|subjective|hypothetical|speculative|debatable|underspecified)\b",
        r"\b(?:is|are|was|were|remains) (?:not|never) (?:\w+ly |yet |fully |well )*(?:known|certain|clear|understood)\b"
        r"(?! (?:to (?:have|be)|as|for)\b)",
        r"^(?:the answer (?:is|remains) )?(?:unknown|not known|unanswerable|unclear|uncertain|undetermined|undefined)$",
        rf"\b(?:nobody|no one|no-one|none of us|no scientist|no expert|no human) (?:\w+ )?(?:knows?"
        rf"|can (?:\w+ )?{_TELL})\b"
        r"(?!.*\b(?:better|more|as well|best) ?(?:than|as|of|$))",
        rf"\b(?:we|one|humans|people|you) (?:\w+ )?(?:can|may|might|will|could|have) (?:never|not|no way of|no way to) "
        rf"(?:\w+ )?(?:{_TELL}|knowing|telling)\b",
        rf"\b{_EXPERTS} (?:\w+ )?(?:(?:do|does|have|has) not (?:\w+ ){{0,2}}?(?:know|agree|agreed|understand"
        rf"|discovered|determined))\b",
        rf"\bi (?:\w+ )?(?:can|could|will|would) not (?:be able to )?(?:\w+ly |even |really )?(?:{_TELL}|speculate"
        rf"|comment"
        r"|help(?! but)|assist|respond|offer|give)\b",
        rf"^can not (?:\w+ly |really |even )?(?:{_TELL}|help)\b(?! but)",
        r"\bi (?:do|can) not (?:\w+ )?(?:have|hold|possess|form) (?:[\w-]+ ){0,2}?(?:opinions?|feelings|emotions"
        r"|preferences|experiences|beliefs"
        r"|favou?rites?|the ability)\b",
        r"\b(?:not something that can (?:ever )?be|without an answer|would be (?:pure |mere )?(?:speculation"
        r"|guesswork))\b",
        r"\bi do not (?:think|believe) (?:that )?(?:(?:the|that|this|your) question|it|there|anyone"
        r"|anybody) (?:\w+ )?(?:has|is|can|knows|exists)\b",
        rf"\bi am (?:\w+ )?(?:unable|not able) to (?:\w+ )?(?:{_TELL}|speculate|comment|help|assist|respond|offer"
        rf"|give|fulfil\w*|complete)\b",
        r"\bno (?:\w+ ){0,2}?way (?:\w+ )?(?:to|of|for) (?:\w+ )?(?:know|tell|say|determin|predict|answer|find"
        r"|be sure|being)\w*",
        r"\b(?:there is|there are|has|have) no (?:[\w-]+ ){0,3}?(?:answer|answers|consensus)\b",
        rf"\b(?:impossible|not possible|difficult|hard|too (?:early|soon|difficult|hard"
        rf"|vague)) (?:for \w+ )?to (?:\w+ly )?{_TELL}\b",
        r"\b(?:only )?time will tell\b|\banyone's guess\b",
    ),
    "nonsense": (
        r"\bquestion is (?:\w+ly )?(?:too|not) (?:\w+ )?(?:vague|broad|specific|clear|answerable|well[- ]defined)\b",
        rf"\b{_NEG_DO} (?:\w+ )?make (?:any |much |a lot of )?sense\b(?! of)|\bmakes (?:no|little) sense\b(?! of)",
        r"\b(?:is|seems|appears)(?: to be)? (?:\w+ )?(?:nonsensical|meaningless|incoherent|gibberish"
        r"|unintelligible|nonsense)\b"
        r"(?! \w)",
        r"\bi (?:\w+ )?(?:do|can|did|could) not (?:\w+ly |quite )?(?:understand|follow|make sense of)\b",
        r"\bnot an? (?:\w+ )?(?:valid|meaningful|proper|real|coherent|sensible) question\b",
        r"\b(?:not|to be) an? (?:\w+ )?(?:real|actual|valid|existing|known|recogni[sz]ed) (?:word|term|thing"
        r"|concept|name)\b",
    ),
    "rephrase": (
        r"\b(?:could|can|would|will) you (?:\w+ ){0,3}?(?:clarify|rephrase|elaborate|specify|double-check|restate"
        r"|reword|repeat"
        r"|be more specific|(?:provide|give|tell|share)(?: me)? (?:\w+ ){0,2}?(?:context|details?|information"
        r"|clarification|more))\b",
        r"\bplease (?:\w+ )?(?:clarify|rephrase|specify|restate|reword|be more specific|check (?:the|your)"
        r"|(?:provide|give)(?: me)? (?:\w+ )?(?:more|additional|further))\b",
        r"\bwhat (?:exactly )?(?:do|did) you mean\b|\bdid you mean\b",
        r"\bi (?:\w+ )?(?:need|require) (?:\w+ )?(?:more|additional|further) (?:\w+ )?(?:information|context"
        r"|details)\b",
    ),
}

PATTERNS: dict[str, tuple[re.Pattern[str], ...]] = {
    idea: tuple(re.compile(pattern) for pattern in patterns) for idea, patterns in IDEAS.items()
}

_CONTRACTIONS = tuple(
    (re.compile(pattern), full)
    for pattern, full in (
        (r"\bcan't\b|\bcant\b|\bcannot\b", "can not"),
        (r"\bwon't\b|\bwont\b", "will not"),
        (r"\bshan't\b", "shall not"),
        (r"\b(do|does|did|is|are|was|were|has|have|had|could|would|should)n'?t\b", r"\1 not"),
        (r"\bdunno\b", "do not know"),
        (r"\bidk\b", "i do not know"),
        (r"\bi'?m\b", "i am"),
        (r"'re\b", " are"),
        (r"'ve\b", " have"),
        (r"'ll\b", " will"),
        (r"'d\b", " would"),
        (r"\b(it|that|there|this|he|she|what|who|one|nobody|here)'s\b", r"\1 is"),
        (r"\bthere is been\b", "there has been"),
    )
)
_STRAIGHT = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u02bc": "'", "\u201c": '"', "\u201d": '"', "\u00ab": '"', "\u00bb": '"'}
)


def straighten(text: str) -> str:
    """Return the Unicode compatibility form with straight quotes and single blanks (line breaks become blanks)."""
    return " ".join(unicodedata.normalize("NFKC", text).translate(_STRAIGHT).split())


def normalise(text: str) -> str:
    """Lower case with contractions written out and no blank before punctuation: the form the patterns are written
    for.
    """
    text = re.sub(r"\s+([,.;:!?])", r"\1", straighten(text).lower())
    for pattern, full in _CONTRACTIONS:
        text = pattern.sub(full, text)
    return " ".join(text.split())


def matching_idea(sentence: str) -> tuple[str, re.Match[str]] | None:
    """Return the first refusal idea in a normalised sentence, with its match; None where no pattern matches."""
    for idea, patterns in PATTERNS.items():
        for pattern in patterns:
            found = pattern.search(sentence)
            if found:
                return idea, found
    return None
