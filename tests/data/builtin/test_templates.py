"""Templates: slots, accepted spellings, names and ids."""

import pytest

from hcnr_jax.data.builtin.templates import accepted, expand, names_in

GROUPS = [
    {
        "ask": ["What is the capital of {}?", "{} has which capital?"],
        "geography": "Nepal = Kathmandu / Katmandu; the island of Malta = Valletta",
        "unknown_entity": "Velmoria; the island of Orr; Kastrelund",
    },
    {
        "ask": ["{0} has {1} coins. How many has {0}?"],
        "context": "Anna | 3 = 3",
        "unknown_entity": "Ben | 4",
    },
]


def test_wordings_take_turns_and_ids_count_within_a_kind():
    made = expand(GROUPS, "train")
    assert [item.question.question for item in made] == [
        "What is the capital of Nepal?",
        "The island of Malta has which capital?",
        "What is the capital of Velmoria?",
        "The island of Orr has which capital?",
        "What is the capital of Kastrelund?",
        "Anna has 3 coins. How many has Anna?",
        "Ben has 4 coins. How many has Ben?",
    ]
    assert [item.question.id for item in made[-2:]] == [
        "builtin/train/context/0001",
        "builtin/train/unknown_entity/0004",
    ]
    assert [item.question.answerable for item in made] == [True, True, False, False, False, True, False]
    assert made[0].question.answers == ("Kathmandu", "Katmandu") and made[2].question.answers == ()
    assert made[1].template == "{} has which capital?" and made[5].question.answers == ("3", "three")


@pytest.mark.parametrize(
    ("answer", "spellings"),
    [
        ("Lima", ("Lima",)),
        ("0", ("0", "zero")),
        ("20", ("20", "twenty")),
        ("42", ("42", "forty-two", "forty two")),
        ("100", ("100", "one hundred", "a hundred")),
        ("1945", ("1945",)),
        ("1 January", ("1 January", "January 1", "1st of January", "January 1st", "1st January")),
        ("12 March", ("12 March", "March 12", "12th of March", "March 12th", "12th March")),
    ],
)
def test_numbers_and_dates_are_accepted_in_their_usual_spellings(answer, spellings):
    assert accepted(answer) == spellings


def test_names_are_the_first_value_and_capitalised_ones():
    assert names_in(["Anna", "red", "Lyon"]) == ("anna", "lyon")
    assert names_in(["a dog"]) == ("a dog",)
    assert names_in(["3", "5"]) == ("3 5",)
