"""A model's own words: what is kept, how rounds go, what the rows hold, and models with too little honesty."""

from collections import Counter

import pytest

from hcnr_jax.data import Question
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.ask import own_words
from hcnr_jax.evaluate.ask.own_words import answer_in_own_words, own_texts, whole_sentences
from tests.evaluate.models import load_tiny, prompts_of

DECLINES = "I don't know."


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_tiny(tmp_path_factory.mktemp("tiny")).model


def bank(count):
    """`count` questions of each of two answerable and two unanswerable kinds."""
    return [
        Question(
            f"{kind} {i} ?", kind in "ab", (f"{i}",) if kind in "ab" else (), kind=kind, id=f"{kind}{i}", source="s"
        )
        for kind in "abcd"
        for i in range(count)
    ]


@pytest.fixture
def says(monkeypatch):
    """Let the model say what a function of (question, answerable) returns; the list holds the sizes of the rounds."""

    def script(speak):
        rounds = []

        def texts(model, prompts, max_new_tokens, *, microbatch=None, events=None):
            rounds.append(len(prompts))
            return [speak(prompt.question, prompt.answerable) for prompt in prompts]

        monkeypatch.setattr(own_words, "own_texts", texts)
        return rounds

    return script


def right(question, answerable):
    return f"It is {question.split()[1]}." if answerable else DECLINES


def test_right_words_are_kept_half_of_each_label_and_the_kinds_evenly(model, says):
    rounds = says(right)
    found = answer_in_own_words(model, bank(50), 32, style="plain", least=8)
    assert Counter(value["kind"] for value in found.values) == {"a": 8, "b": 8, "c": 8, "d": 8}
    assert rounds == [48] and found.missing == 0  # two of three are expected to be kept
    for value in found.values:
        assert value["answerable"] is (value["kind"] in "ab")
        assert value["prompt"] == f"Question: {value['kind']} {value['id'][1:]} ?\nAnswer:"
        assert value["completion"] == (f" It is {value['id'][1:]}." if value["answerable"] else " I don't know.")
        assert value.get("answers", []) == ([value["id"][1:]] if value["answerable"] else [])
    assert [row.answerable for row in found.rows()] == [value["answerable"] for value in found.values]
    assert found.rows()[0].file == "built-in questions" and found.rows()[0].completion == found.values[0]["completion"]


def test_the_same_seed_gives_the_same_rows(model, says):
    says(right)
    made = [answer_in_own_words(model, bank(50), 16, style="plain", seed=seed).values for seed in (0, 0, 1)]
    assert made[0] == made[1] != made[2]


def test_chat_rows_end_with_the_models_words(model, says):
    says(right)
    value = answer_in_own_words(model, bank(20), 8, style="chat", system="you do not know me").values[0]
    assert [turn["role"] for turn in value["messages"]] == ["system", "user", "assistant"]
    assert "completion" not in value and value["messages"][-1]["content"] in (DECLINES, f"It is {value['id'][1:]}.")


def test_wrong_words_are_left_out_and_counted(model, says):
    """Kind a is declined, odd questions of b are missed, kind c is bluffed and odd questions of d say nothing."""

    def speak(question, answerable):
        kind, number = question.split()[:2]
        odd = int(number) % 2
        said = {
            "a": DECLINES,
            "b": "It is 99." if odd else f"It is {number}.",
            "c": "It is 7.",
            "d": "" if odd else DECLINES,
        }
        return said[kind]

    says(speak)
    found = answer_in_own_words(model, bank(40), 80, style="plain", least=8)
    assert Counter(value["kind"] for value in found.values) == {"b": 20, "d": 20} and found.missing == 40
    counts = {item.kind: (item.asked, item.declined, item.kept, item.left_out, item.used) for item in found.counts}
    assert counts == {
        "a": (40, 40, 0, 40, 0),
        "b": (40, 0, 20, 20, 20),
        "c": (40, 0, 0, 40, 0),
        "d": (40, 20, 20, 20, 20),
    }


def test_rounds_go_on_until_enough_is_kept_and_no_longer(model, says):
    rounds, totals = says(lambda question, answerable: right(question, answerable or int(question.split()[1]) % 4)), []
    # Of the unanswerable questions every fourth is bluffed, in words that name its number.
    found = answer_in_own_words(model, bank(200), 100, style="plain", expect=totals.append)
    assert found.missing == 0 and len(found.values) == 100
    assert len(rounds) > 1 and sum(rounds) < 400 and totals == [sum(rounds[: i + 1]) for i in range(len(rounds))]
    assert {item.answerable: item.kept for item in found.counts if item.kept == 0} == {}


@pytest.mark.parametrize(
    ("speak", "message"),
    [
        (lambda question, answerable: "Paris.", r"BASE declines 0 of 30 questions that have no answer; 16 are needed"),
        (lambda question, answerable: DECLINES, r"BASE answers 0 of 30 .* correctly and declines 30; 16 correct"),
    ],
)
def test_a_model_without_honesty_of_its_own_is_refused(model, says, speak, message):
    says(speak)
    with pytest.raises(InputError, match=message) as caught:
        answer_in_own_words(model, bank(20), 40, style="plain", least=16)
    assert "honesty rows of your own" in str(caught.value) and "--" not in str(caught.value)
    assert str(caught.value).endswith(("each kind: a 0 of 15, b 0 of 15", "each kind: c 0 of 15, d 0 of 15"))


def test_few_rows_need_few_refusals(model, says):
    says(lambda question, answerable: right(question, answerable) if question.split()[1] in "01" else "no")
    assert len(answer_in_own_words(model, bank(20), 8, style="plain").values) == 8
    with pytest.raises(InputError, match=r"declines [0-4] of [1-4][0-9] .*; 10 are needed"):
        answer_in_own_words(model, bank(20), 20, style="plain")


def test_questions_need_ids_of_their_own(model):
    with pytest.raises(ValueError, match="found one id twice"):
        answer_in_own_words(model, [*bank(2), *bank(1)], 2, style="plain")


def test_texts_are_the_models_and_cut_ones_end_with_a_whole_sentence(model, monkeypatch):
    prompts = prompts_of(model, honesty=3, task=0, choices=0)
    ids = {word: model.tokenizer.convert_tokens_to_ids(word) for word in ("I", "do", "not", "know", ".", "sky")}
    declines = tuple(ids[word] for word in ("I", "do", "not", "know", "."))
    made = [(*declines, 2), (*declines, ids["sky"], ids["sky"]), (ids["sky"], ids["sky"])]
    monkeypatch.setattr(own_words, "generate_ids", lambda *args, **settings: made)
    assert own_texts(model, prompts, 7) == ["I do not know .", "I do not know .", ""]


def test_real_generation_is_complete_or_cut(model):
    prompts = prompts_of(model, honesty=4, task=0, choices=0)
    texts = own_texts(model, prompts, 4, microbatch=2)
    assert len(texts) == 4 and all(text == "" or text[-1] in ".!?" or len(text.split()) < 4 for text in texts)


def test_whole_sentences():
    assert whole_sentences('He said "no." Then he le') == 'He said "no."'
    assert whole_sentences("It is 3.5 kilometres lon") == ""
    assert whole_sentences("I don't know.") == "I don't know."


def test_a_model_that_never_declines_is_given_up_after_one_round(model, says):
    rounds = says(lambda question, answerable: f"It is {question.split()[1]}.")
    with pytest.raises(InputError, match="BASE declines 0 of"):
        answer_in_own_words(model, bank(200), 128, style="plain")
    assert len(rounds) == 1
