"""The built-in questions: counts, kinds, splits that share nothing, and labels that the wording does not give away."""

import itertools
import re
from collections import Counter

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from hcnr_jax.data import BENCHMARKS, normalise_question, read_dataset
from hcnr_jax.data.builtin import ANSWERABLE_KINDS, SPLITS, UNANSWERABLE_KINDS, bank, questions
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.judge.refusal import Verdict, detect

PAIRS = list(itertools.combinations(SPLITS, 2))
EVERY = [item for split in SPLITS for item in bank(split)]
# Capitalised words that are no names: titles begin with an article, and the calendar is everybody's.
COMMON = {"I", "A", "The", "English", "Tuesday", "January", "March", "April", "May", "June", "July"}


def labels(items):
    return np.array([item.question.answerable for item in items])


def test_counts():
    answerable = sum(labels(EVERY))
    assert answerable >= 900 and len(EVERY) - answerable >= 900
    shares = {split: len(bank(split)) / len(EVERY) for split in SPLITS}
    assert shares == pytest.approx({"train": 0.5, "validation": 0.25, "test": 0.25}, abs=0.01)


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_holds_every_kind_and_as_many_of_each_label(split):
    items = questions(split)
    assert sum(item.answerable for item in items) * 2 == len(items)
    kinds = {label: {item.kind for item in items if item.answerable is label} for label in (True, False)}
    assert kinds == {True: set(ANSWERABLE_KINDS), False: set(UNANSWERABLE_KINDS)}
    counts = Counter(item.kind for item in items if not item.answerable)
    assert min(counts.values()) >= 0.8 * np.mean(list(counts.values()))


@pytest.mark.parametrize("split", SPLITS)
def test_no_template_makes_much_of_a_split(split):
    share = Counter(item.template for item in bank(split)).most_common(1)[0][1] / len(bank(split))
    assert share <= 0.06


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_splits_share_no_template_and_no_name(first, second):
    def words(item):
        return " ".join(re.findall(r"[a-z]+", item.template.lower()))

    assert not {words(item) for item in bank(first)} & {words(item) for item in bank(second)}
    assert not names(first) & names(second)
    assert capitals(first) & capitals(second) <= COMMON


def names(split):
    return {name for item in bank(split) for name in item.names}


def capitals(split):
    """Capitalised words that do not begin a sentence or a quotation: the names of the split, in templates too."""
    inside = re.compile(r"(?<![.?!:] )(?<!^)(?<![\"'])\b[A-Z]\w*")
    return {word for item in bank(split) for word in inside.findall(item.question.question)}


def test_no_question_comes_twice():
    texts = Counter(normalise_question(item.question.question) for item in EVERY)
    assert [text for text, count in texts.items() if count > 1] == []
    ids = [item.question.id for item in EVERY]
    assert len(set(ids)) == len(ids)


def test_the_questions_are_the_same_in_every_run():
    first = questions("train")
    bank.cache_clear()
    assert questions("train") == first
    assert first[0].id == "builtin/train/geography/0001" and first[0].question == "What is the capital of Peru?"
    assert first[0].answers == ("Lima",) and first[0].source == "built-in questions, train"


def test_every_question_is_plain_text():
    for text in (item.question.question for item in EVERY):
        assert text.isascii() and text[0].isupper() and text[-1] in "?.", text
        assert "{" not in text and "  " not in text and text.count('"') % 2 == 0 and 10 <= len(text) <= 200, text


def test_answers_are_there_where_there_is_one_and_do_not_look_like_refusals():
    for item in (item.question for item in EVERY):
        assert bool(item.answers) is item.answerable, item
        for answer in item.answers:
            assert answer and answer == answer.strip(), item
            assert detect(f"{answer}.", item.question).verdict is Verdict.ANSWERED, item


@pytest.mark.parametrize("name", BENCHMARKS)
def test_no_question_is_from_a_benchmark(real_data, name):
    files = real_data / "data" / name
    if not files.exists():
        pytest.skip(f"{files} does not exist")
    theirs = {normalise_question(item.question) for item in read_dataset(name, files).questions}
    assert len(theirs) > 10 and not theirs & {normalise_question(item.question.question) for item in EVERY}


def test_another_split_is_refused():
    with pytest.raises(InputError, match="expected the split train, validation, test, got dev"):
        questions("dev")


def accuracy(text_of, trained, scored):
    """Accuracy of a logistic regression on word counts, trained on one split and scored on another."""
    vectoriser = CountVectorizer(token_pattern=r"\S+")
    model = LogisticRegression(max_iter=2000).fit(
        vectoriser.fit_transform([text_of(item) for item in trained]), labels(trained)
    )
    return np.mean(model.predict(vectoriser.transform([text_of(item) for item in scored])) == labels(scored))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_wording_does_not_tell_the_label(split):
    """Measured: words of the template 0.50, the first two words 0.51, all words 0.62 to 0.64; chance is 0.50."""
    wordings = {
        "template": (lambda item: re.sub(r"\{\d?\}", " ", item.template), 0.55),
        "first two words": (lambda item: " ".join(item.question.question.split()[:2]), 0.55),
        "all words": (lambda item: item.question.question, 0.70),
    }
    for name, (text_of, limit) in wordings.items():
        assert accuracy(text_of, bank("train"), bank(split)) <= limit, name


@pytest.mark.parametrize("split", SPLITS)
def test_both_labels_are_of_one_length_and_have_every_template(split):
    lengths = np.array([len(item.question.question.split()) for item in bank(split)])
    yes = labels(bank(split))
    assert 0.85 <= lengths[yes].mean() / lengths[~yes].mean() <= 1.15
    templates = [
        {item.template for item in bank(split) if item.question.answerable is label} for label in (True, False)
    ]
    assert templates[0] == templates[1]
