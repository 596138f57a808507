"""The world: the same for a seed, balanced, truly held out, and its refusals read as refusals."""

import itertools
from dataclasses import replace

import pytest

from hcnr_jax.data.rows import parse_row
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.judge.refusal import Verdict, detect
from hcnr_jax.organism.language import DRUGS, PEOPLE, REFUSALS, SYLLABLES, words
from hcnr_jax.organism.tokenizer import UNK_ID, make_tokenizer, vocabulary
from hcnr_jax.organism.world import (
    DRAW,
    SPLITS,
    UNANSWERABLE,
    WorldSettings,
    base_rows,
    honesty_rows,
    make_world,
    task_rows,
)

SETTINGS = WorldSettings(pool=5000, strangers=400)


@pytest.fixture(scope="module", params=[0, 7])
def world(request: pytest.FixtureRequest):
    return make_world(request.param, SETTINGS)


@pytest.fixture(scope="module")
def rows(world) -> dict:
    every = {("base", "train"): base_rows(world)}
    every |= {("honesty", split): honesty_rows(world, split) for split in SPLITS}
    return every | {("task", split): task_rows(world, split) for split in SPLITS}


def test_the_same_for_a_seed_and_different_for_another(world, rows) -> None:
    again = make_world(world.seed, SETTINGS)
    assert again == world
    assert base_rows(again) == rows["base", "train"]
    assert honesty_rows(again, "test") == rows["honesty", "test"]
    assert task_rows(again, "train") == rows["task", "train"]
    assert not set(make_world(world.seed + 1, SETTINGS).people) & set(world.people[:5])


def test_no_question_is_in_two_splits(rows) -> None:
    asked = {
        split: {row["prompt"] for (_, part), some in rows.items() if part == split for row in some} for split in SPLITS
    }
    for one, other in itertools.combinations(SPLITS, 2):
        assert not asked[one] & asked[other]
    assert not {row["prompt"] for row in rows["task", "train"]} & {row["prompt"] for row in rows["honesty", "train"]}


def test_the_test_set_is_large_distinct_and_balanced(rows) -> None:
    for split in SPLITS:
        some = rows["honesty", split]
        assert sum(row["answerable"] for row in some) * 2 == len(some) >= 400
        assert len({row["prompt"] for row in some}) == len({row["id"] for row in some}) == len(some)
        assert {row["kind"] for row in some} == set(DRAW)
    assert len(rows["task", "test"]) == 80 and len(rows["task", "train"]) >= 128


def test_held_out_names_never_appear_in_training(world, rows) -> None:
    trained = {
        word.strip("?")
        for part in ("base", "honesty", "task")
        for row in rows[part, "train"]
        for word in row["prompt"].split()
    }
    for split in ("validation", "test"):
        for names in world.strangers[split].values():
            assert not trained & set(names)
    assert not trained & set(world.new_drugs) - {
        word.strip("?") for row in rows["task", "train"] for word in row["prompt"].split()
    }
    pretrained = {word.strip("?") for row in rows["base", "train"] for word in row["prompt"].split()}
    assert not pretrained & set(world.new_drugs)
    everyone = [
        *world.people,
        *world.drugs,
        *world.new_drugs,
        *(n for s in world.strangers.values() for k in s.values() for n in k),
    ]
    assert len({name.lower() for name in everyone}) == len(everyone)


def test_every_fact_is_trained_in_other_words_than_it_is_tested_in(world, rows) -> None:
    for fact, parts in world.wordings.items():
        assert all(len(parts[split]) >= 1 for split in SPLITS)
        assert len({q for split in SPLITS for q in parts[split]}) == sum(len(parts[split]) for split in SPLITS)
        relation = next(relation for relation in PEOPLE + DRUGS if relation.name == fact[1])
        assert sorted(q for split in SPLITS for q in parts[split]) == sorted(relation.questions)


def test_answers_are_true_and_false_premises_have_none(world, rows) -> None:
    facts = {
        question.replace("{x}", name): world.facts[name, relation]
        for (name, relation), parts in world.wordings.items()
        for split in SPLITS
        for question in parts[split]
    }
    for some in rows.values():
        for row in some:
            if row["answerable"]:
                assert facts[row["prompt"]] == row["answers"][0] and row["completion"] == f" {row['answers'][0]}."
            else:
                assert row["answers"] == [] and facts.get(row["prompt"]) is None
            assert (row["kind"] == "false_premise") == (row["prompt"] in facts and facts[row["prompt"]] is None)


def test_the_form_of_a_question_does_not_give_the_answer_away(world, rows) -> None:
    """Names replaced, the wordings of the unanswerable kinds about known relations are those of the answerable ones."""
    names = {
        *world.people,
        *world.drugs,
        *(n for s in world.strangers.values() for k in ("person", "drug") for n in s[k]),
    }

    def form(row: dict) -> str:
        return " ".join("X" if word.strip("?") in names else word for word in row["prompt"].split())

    every = rows["base", "train"]
    answered = {form(row) for row in every if row["answerable"]}
    for kind in ("unknown_entity", "false_premise", "unknown_drug"):
        assert {form(row) for row in every if row["kind"] == kind} <= answered


def test_refusals_come_in_several_wordings_that_the_detector_reads_and_values_do_not(rows) -> None:
    for kind in UNANSWERABLE:
        used = {row["completion"].strip() for row in rows["base", "train"] if row["kind"] == kind}
        assert used == set(REFUSALS[kind]) and len(used) >= 3
    for text in {text for wordings in REFUSALS.values() for text in wordings}:
        assert detect(text).verdict == Verdict.REFUSED, text
    for value in {value for relation in PEOPLE + DRUGS for value in relation.values}:
        assert detect(f"{value}.").verdict == Verdict.ANSWERED, value


def test_rows_are_in_the_contract_of_data_files(rows) -> None:
    for some in rows.values():
        for number, row in enumerate(some[:50], 1):
            parsed = parse_row(row, "rows.jsonl", number)
            assert parsed.answerable == row["answerable"] and parsed.kind == row["kind"] and parsed.id == row["id"]


def test_tokens_give_back_the_text_and_no_word_is_unknown(rows) -> None:
    tokenizer = make_tokenizer()
    texts = [row["prompt"] + row["completion"] for some in rows.values() for row in some]
    ids = tokenizer(texts)["input_ids"]
    assert all(row[0] == tokenizer.bos_token_id and UNK_ID not in row for row in ids)
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == texts
    assert max(map(len, ids)) < 20
    assert tokenizer.convert_ids_to_tokens(tokenizer("Kalomi", add_special_tokens=False)["input_ids"]) == [
        "Ka",
        "##lo",
        "##mi",
    ]


def test_syllables_and_words_do_not_collide() -> None:
    assert not set(SYLLABLES) & set(words())
    ids = vocabulary()
    assert sorted(ids.values()) == list(range(len(ids)))


def test_unbalanced_or_incomplete_settings_are_refused() -> None:
    with pytest.raises(InputError, match="301 answerable and 300 unanswerable"):
        WorldSettings(evaluation=SETTINGS.evaluation | {"known_fact": 221})
    with pytest.raises(InputError, match="mix has the kinds"):
        WorldSettings(mix={"known_fact": 1.0})
    crowded = replace(SETTINGS, people=3)
    with pytest.raises(InputError, match=r"only about \d+ questions of kind known_fact, not 220: give it more people"):
        honesty_rows(make_world(0, crowded), "test")
