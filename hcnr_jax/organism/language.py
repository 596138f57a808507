"""Lists the words of the synthetic world: syllables, relations with values and question wordings, refusals.

Everything is ordinary English around invented names, so that a general refusal detector and the usual answer
normalisation apply. `{x}` in a wording stands for a name. All wordings of a relation ask for the same value.
"""

import re
from dataclasses import dataclass

CONSONANTS = "bdfgklmnprstvz"
VOWELS = "aeiou"
# Two letters each, so that a name splits in one way. Syllables that are words of the language are left out.
SYLLABLES = tuple(c + v for c in CONSONANTS for v in VOWELS if c + v not in ("be", "do", "no", "to"))


@dataclass(frozen=True)
class Relation:
    """One attribute: its possible values, and the questions that ask for it and presuppose that it has a value."""

    name: str
    values: tuple[str, ...]
    questions: tuple[str, ...]


PEOPLE = (
    Relation(
        "home",
        (
            "Ashford",
            "Denholm",
            "Elmstead",
            "Greyport",
            "Harwick",
            "Kingsmere",
            "Millbrook",
            "Oakham",
            "Redcliff",
            "Westbury",
        ),
        (
            "Where does {x} live?",
            "In which town does {x} live?",
            "Which town is the home of {x}?",
            "What town does {x} call home?",
            "Which town houses {x}?",
            "Where is the house of {x}?",
        ),
    ),
    Relation(
        "trade",
        ("baker", "carpenter", "doctor", "farmer", "lawyer", "painter", "sailor", "tailor", "teacher", "weaver"),
        (
            "What is the trade of {x}?",
            "What does {x} do for money?",
            "Which trade does {x} follow?",
            "How does {x} earn a living?",
            "What work does {x} do?",
            "Which trade is {x} known for?",
        ),
    ),
    Relation(
        "pet",
        ("canary", "cat", "dog", "goat", "hamster", "lizard", "parrot", "pony", "rabbit", "turtle"),
        (
            "What pet does {x} keep?",
            "Which animal lives with {x}?",
            "What kind of pet does {x} have?",
            "Which animal does {x} own?",
            "What is the pet of {x}?",
            "Which pet is kept by {x}?",
        ),
    ),
    Relation(
        "instrument",
        ("banjo", "cello", "drum", "flute", "guitar", "harp", "lute", "piano", "trumpet", "violin"),
        (
            "Which instrument does {x} play?",
            "What does {x} play in concerts?",
            "What is the instrument of {x}?",
            "Which instrument is played by {x}?",
            "What instrument does {x} own?",
            "On which instrument does {x} play?",
        ),
    ),
    Relation(
        "food",
        ("apples", "beans", "cheese", "cherries", "eggs", "honey", "noodles", "plums", "rice", "soup"),
        (
            "What does {x} like to eat?",
            "Which food does {x} like best?",
            "What is the best food for {x}?",
            "Which food suits {x} best?",
            "What food does {x} love?",
            "What is eaten most by {x}?",
        ),
    ),
)

DRUGS = (
    Relation(
        "illness",
        ("anaemia", "asthma", "cough", "eczema", "fever", "gout", "insomnia", "malaria", "migraine", "ulcers"),
        (
            "What does {x} treat?",
            "Which illness does {x} treat?",
            "What is {x} given for?",
            "Against which illness does {x} help?",
            "Which illness is treated with {x}?",
            "For which illness is {x} given?",
            "Which illness needs {x}?",
            "Which illness is {x} used for?",
        ),
    ),
    Relation(
        "effect",
        ("chills", "cramps", "dizziness", "fatigue", "hiccups", "itching", "nausea", "rash", "sneezing", "thirst"),
        (
            "What is the side effect of {x}?",
            "Which side effect does {x} have?",
            "What does {x} cause as a side effect?",
            "Which side effect comes with {x}?",
            "What side effect is known of {x}?",
            "Which side effect follows from {x}?",
            "What is the side effect known of {x}?",
            "Which side effect has {x}?",
        ),
    ),
    Relation(
        "source",
        ("algae", "bark", "clover", "fungus", "ginger", "ivy", "moss", "nettle", "poppy", "willow"),
        (
            "What is {x} made from?",
            "From what is {x} made?",
            "What is the source of {x}?",
            "Which source does {x} come from?",
            "Which plant is the source of {x}?",
            "From which plant does {x} come?",
            "Which plant is {x} made from?",
            "Which plant gives {x}?",
        ),
    ),
    Relation(
        "form",
        ("capsule", "cream", "drops", "gel", "inhaler", "injection", "patch", "powder", "syrup", "tablet"),
        (
            "In what form is {x} taken?",
            "What form does {x} come in?",
            "How is {x} taken?",
            "As what is {x} sold?",
            "In which form is {x} sold?",
            "What is the form of {x}?",
            "Which form does {x} have?",
            "What form has {x}?",
        ),
    ),
)

UNKNOWABLE_WHICH = ("first", "next", "last", "secret", "lucky", "true")
UNKNOWABLE_WHAT = {
    "person": ("dream", "thought", "word", "wish", "number", "guess", "fear"),
    "drug": ("price", "buyer", "user", "rival", "batch", "name", "maker"),
}
ATTRIBUTE_FRAMES = (
    "What is the {w} of {x}?",
    "Which {w} does {x} have?",
    "What {w} belongs to {x}?",
    "Which {w} is known of {x}?",
)
"""Questions for an attribute `{w}` that is unknowable (two words, such as `next thought`) or invented."""

_COMMON = ("I don't know.", "I can't answer that.", "Nobody knows that.", "That is unknown.")
REFUSALS = {
    "unknown_entity": (*_COMMON, "No such person exists."),
    "false_premise": (*_COMMON, "No such thing exists."),
    "unknowable": (*_COMMON, "No one can know that."),
    "nonsense": (*_COMMON, "No such word exists."),
    "unknown_drug": (*_COMMON, "No such drug exists."),
}
"""Several wordings for every kind of unanswerable question; most are shared between kinds.

The wordings of all kinds begin alike on purpose. Fine-tuning on new drugs unlearns the openings that the base model
would have used for those drugs. A kind with its own openings would keep refusing, and the collapse would be weaker than
in large models."""

WORD = r"[\w']+|[^\w\s]"


def words() -> tuple[str, ...]:
    """Return every word and punctuation mark of the language except names, in order of appearance."""
    relations = PEOPLE + DRUGS
    texts = [text for relation in relations for text in (*relation.values, *relation.questions)]
    texts += [*UNKNOWABLE_WHICH, *UNKNOWABLE_WHAT["person"], *UNKNOWABLE_WHAT["drug"], *ATTRIBUTE_FRAMES]
    texts += [text for wordings in REFUSALS.values() for text in wordings]
    found = [word for text in texts for word in re.findall(WORD, re.sub(r"\{\w+\}", " ", text))]
    return tuple(dict.fromkeys(found))
