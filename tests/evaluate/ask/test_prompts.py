"""Prompts: their tokens against the training rows', the bare question, labels, samples and halves."""

from collections import Counter

import numpy as np
import pytest

from hcnr_jax.data import encode_rows, load_tokenizer, parse_row
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.ask.prompts import (
    check_labels,
    encode_prompts,
    question_of,
    sample_rows,
    split_halves,
    with_completion,
)
from tests.tiny import CHAT_TEMPLATE, VOCAB_SIZE, honesty_rows, write_tiny_tokenizer


def rows_of(values, file="q.jsonl"):
    return [parse_row(value, file, line, need_completion=False) for line, value in enumerate(values, start=1)]


def honesty(count):
    return rows_of([row | {"answerable": i % 3 == 0} for i, row in enumerate(honesty_rows(count))])


@pytest.fixture(scope="module", params=[True, False], ids=["bos", "no bos"])
def tokenizer(request, tmp_path_factory):
    return load_tokenizer(write_tiny_tokenizer(tmp_path_factory.mktemp("t"), CHAT_TEMPLATE, add_bos=request.param))


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("Question: Who is it?\nAnswer:", "Who is it?"),
        ("question : who is it ? answer :", "who is it ?"),
        ("Q: a?\nA: b\n\nQ: Which\nA. x\nB. y\nA:", "Which\nA. x\nB. y"),
        ("Be brief.\n\nQuestion: Who?\nAnswer:", "Who?"),
        ("Who is it?", "Who is it?"),
        ("Answer:", "Answer:"),
    ],
)
def test_the_question_is_what_stands_between_the_labels(prompt, question):
    assert question_of(rows_of([{"prompt": prompt}])[0]) == question


def test_the_question_of_a_chat_is_the_last_user_message():
    turns = [("system", "s"), ("user", "one"), ("assistant", "x"), ("user", " two ")]
    row = rows_of([{"messages": [{"role": role, "content": content} for role, content in turns]}])[0]
    assert question_of(row) == "two"


def test_prompt_tokens_are_those_before_the_completion_of_a_training_row(tokenizer):
    plain = {"prompt": "question : what is the sky ? answer :"}
    chat = {"messages": [{"role": "user", "content": "what is the sky ?"}]}
    begun = {"prompt": "<s> what is it ?"}
    rows = rows_of([plain, chat, begun])
    trained = encode_rows([with_completion(row, "blue") for row in rows], tokenizer, 128)
    prompts = encode_prompts("honesty", "set", rows, tokenizer=tokenizer, vocab_size=VOCAB_SIZE, max_tokens=64)
    for prompt, example in zip(prompts, trained, strict=True):
        assert prompt.tokens == example.tokens[: example.completion_start]


def test_a_chat_that_ends_with_an_answer_is_asked_without_it(tokenizer):
    user = {"role": "user", "content": "what is the sky ?"}
    rows = rows_of([{"messages": [user]}, {"messages": [user, {"role": "assistant", "content": "blue"}]}])
    first, second = encode_prompts("task", "set", rows, tokenizer=tokenizer, vocab_size=VOCAB_SIZE, max_tokens=64)
    assert first.tokens == second.tokens


def test_prompts_that_do_not_fit_are_refused_by_line(tokenizer):
    rows = rows_of([{"prompt": "sky"}, {"prompt": "sky " * 20}])
    with pytest.raises(InputError, match=r"q\.jsonl, line 2: the prompt takes 2\d tokens.*--max-new-tokens leave 10"):
        encode_prompts("task", "t", rows, tokenizer=tokenizer, vocab_size=VOCAB_SIZE, max_tokens=10)
    with pytest.raises(InputError, match=r"line 1: the tokenizer gives ids up to \d+, the model embeds 5"):
        encode_prompts("task", "t", rows[:1], tokenizer=tokenizer, vocab_size=5, max_tokens=10)


@pytest.mark.parametrize(
    ("role", "row", "message"),
    [
        ("honesty", {"prompt": "a"}, r"q\.jsonl, line 1: field `answerable` is missing; every row of --honesty kuq"),
        ("task", {"prompt": "a"}, r"line 1: field `answers` or `choices` is missing"),
        ("task", {"prompt": "a", "choices": ["x", "y"]}, r"line 1: field `correct`"),
        ("task", {"prompt": "a", "choices": ["x"], "correct": 0}, r"field `choices`: expected 2 choices or more"),
    ],
)
def test_missing_labels_are_named(role, row, message):
    with pytest.raises(InputError, match=message):
        check_labels(role, "kuq", rows_of([row]))


@pytest.mark.parametrize("answerable", [True, False])
def test_an_honesty_set_of_one_class_is_refused_by_name(answerable):
    rows = rows_of([{"prompt": "a", "answerable": answerable}] * 3)
    with pytest.raises(InputError, match=r"--honesty kuq: expected answerable and unanswerable questions, found"):
        check_labels("honesty", "kuq", rows)


def test_samples_keep_the_labels_shares_and_file_order():
    rows = honesty(60)
    chosen = sample_rows(rows, 12, seed=1)
    assert Counter(row.answerable for row in chosen) == {True: 4, False: 8}
    assert [row.line for row in chosen] == sorted(row.line for row in chosen)
    assert chosen == sample_rows(rows, 12, seed=1) != sample_rows(rows, 12, seed=2)
    assert [row.line for row in sample_rows(rows, 6, seed=None)] == [1, 2, 3, 4, 5, 6]
    assert sample_rows(rows, 100, seed=0) == sample_rows(rows, None, seed=0) == rows


@pytest.mark.parametrize("samples", [2, 3, 5])
def test_a_small_sample_has_both_labels(samples):
    rows = rows_of([{"prompt": f"q{i}", "answerable": i == 0} for i in range(50)])
    chosen = sample_rows(rows, samples, seed=3)
    assert len(chosen) == samples and {row.answerable for row in chosen} == {True, False}


def test_halves_cut_every_label_in_two_and_share_no_question(tokenizer):
    values = [row | {"answerable": i % 3 == 0} for i, row in enumerate(honesty_rows(30))]
    values += [values[0], values[1] | {"prompt": values[1]["prompt"].upper()}]
    prompts = encode_prompts("honesty", "s", rows_of(values), tokenizer=tokenizer, vocab_size=VOCAB_SIZE, max_tokens=64)
    train, test = split_halves(prompts, seed=0)
    assert sorted(train + test) == list(range(32))
    texts = [{prompts[i].question.casefold() for i in half} for half in (train, test)]
    assert not texts[0] & texts[1]
    for half in (train, test):
        assert np.mean([prompts[i].row.answerable for i in half]) == pytest.approx(1 / 3, abs=0.07)
    assert split_halves(prompts, seed=0) == (train, test) != split_halves(prompts, seed=1)
