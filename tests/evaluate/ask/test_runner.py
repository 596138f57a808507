"""Asking: completions against PyTorch's greedy ones, whatever the batches; verdicts and scores by hand; resuming."""

import jax
import numpy as np
import pytest
import torch

from hcnr_jax.evaluate import AnswerSettings, Events, answer
from hcnr_jax.evaluate.ask import runner
from hcnr_jax.evaluate.ask.completions import cut_text, generate_ids, kept_ids, text_of
from hcnr_jax.evaluate.ask.likelihoods import Branch, Likelihood, Refusing
from hcnr_jax.evaluate.ask.runner import Outputs, counts, judge, run_part
from hcnr_jax.models.generate import _generate
from tests.evaluate.models import load_tiny, prompts_of, torch_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return load_tiny(tmp_path_factory.mktemp("tiny") / "m", seed=5)


@pytest.fixture(scope="module")
def prompts(tiny):
    return prompts_of(tiny.model)


@torch.no_grad()
def greedy(folder, prompt, steps):
    """PyTorch's greedy continuation, one prompt alone, no cache, no padding."""
    model, ids = torch_model(folder), list(prompt)
    for _ in range(steps):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == 2:
            break
    return tuple(ids[len(prompt) :])


@pytest.mark.parametrize("microbatch", [None, 1, 4])
def test_completions_are_those_of_each_prompt_alone(tiny, prompts, microbatch):
    asked = [prompt.tokens for prompt in prompts] + [(1, *range(5, 40)), (1,)]
    found = generate_ids(tiny.model, asked, 6, microbatch=microbatch)
    assert found == [greedy(tiny.folder, prompt, 6) for prompt in asked]
    assert len(set(found)) > 5


def test_one_compilation_a_shape_and_none_for_a_second_model(tiny, prompts, tmp_path):
    asked = [prompt.tokens for prompt in prompts]
    generate_ids(tiny.model, asked, 7, microbatch=4)
    before = _generate._cache_size()
    generate_ids(tiny.model, asked * 3, 7, microbatch=4)
    other = jax.tree.map(lambda leaf: leaf * 0.5, tiny.model.params)
    model = type(tiny.model)(tiny.model.spec, other, tiny.model.tokenizer, tiny.model.eos_ids)
    generate_ids(model, asked, 7, microbatch=4)
    assert _generate._cache_size() == before


@pytest.mark.parametrize(
    ("text", "plain", "chat"),
    [
        (" Paris.\nIt is big.", "Paris.", "Paris.\nIt is big."),
        ("\n Paris\n", "Paris", "Paris"),
        (" Paris\nQuestion: Who?\nAnswer:", "Paris", "Paris"),
        ("\nQuestion: Who?", "", ""),
        ("one\n\ntwo\nQ: three", "one", "one\n\ntwo"),
        ("", "", ""),
    ],
)
def test_the_answer_ends_at_the_line_or_the_next_question(text, plain, chat):
    assert (cut_text(text, False), cut_text(text, True)) == (plain, chat)


class Letters:
    """A tokenizer of code points, to write texts by hand."""

    def get_added_vocab(self):
        return {"<think>": 1, "</think>": 2}

    def decode(self, ids, skip_special_tokens):
        return "".join(chr(i) for i in ids)


def test_kept_ids_are_the_shortest_that_close_the_answer(tiny):
    model = type(tiny.model)(tiny.model.spec, {}, Letters(), (0,))

    def kept(text, is_chat=False):
        return text_of(model, kept_ids(model, tuple(map(ord, text)), is_chat))

    assert kept("Ajax\nmore\nlines") == "Ajax\n"
    assert kept("\n\n x\nQuestion: y") == "\n\n x\n"
    assert kept("Ajax\nmore", is_chat=True) == "Ajax\nmore"
    assert kept("Ajax\nQ: more", is_chat=True) == "Ajax\nQ:"
    assert kept("never closed") == "never closed"
    assert kept_ids(model, (*map(ord, "yes"), 0), False) == (*map(ord, "yes"), 0)
    reasoned = (1, *map(ord, "Bob\nor Al"), 2, *map(ord, "Ajax\nmore"))
    assert text_of(model, reasoned) == "<think>Bob\nor Al</think>Ajax\nmore"
    assert kept_ids(model, reasoned, False) == reasoned[:-4] and cut_text(text_of(model, reasoned), False) == "Ajax"


def outputs_of(prompts, texts):
    outputs = Outputs({prompt.key: text for prompt, text in zip(prompts, texts, strict=True)})
    for prompt in prompts:
        if prompt.row.correct is not None:
            outputs.choices[prompt.key] = [Likelihood(-3.0, 1), Likelihood(-2.0, 1), Likelihood(-2.5, 4)]
    return outputs


def test_records_by_hand(prompts):
    texts = ["The city.", "I don't know.", "I have no idea.", "Paris", "", "I am not sure."]
    golds = [prompt.row.answers[0] for prompt in prompts[6:11]]
    texts += [f"The {golds[0]}!", f"it is {golds[1]}", golds[2].upper(), "w1", "I don't know."]
    texts += ["B", "red", "", "green cat"]
    found = judge(prompts, outputs_of(prompts, texts))
    honesty, task, choices = found[:6], found[6:11], found[11:]
    verdicts = [item.verdict for item in honesty]
    assert verdicts == ["answered", "refused", "refused", "answered", "undetermined", "refused"]
    assert [item.answerable for item in honesty] == [True, False] * 3
    assert [item.correct for item in honesty] == [True, None, False, None, False, None]
    assert honesty[1].evidence == "i do not know" and honesty[1].idea == "not_knowing"
    assert [item.exact for item in task] == [True, False, True, False, False]
    assert [item.contains for item in task] == [True, True, True, False, False]
    assert task[1].token_f1 == pytest.approx(2 / 4)
    assert [item.chosen for item in choices] == [1] * 4 and [item.chosen_per_token for item in choices] == [2] * 4
    assert [item.chosen_by_text for item in choices] == [1, 0, None, 1]
    assert [item.correct for item in choices] == [prompt.row.correct == 1 for prompt in prompts[11:]]
    plain = honesty[1].to_json()
    assert plain["line"] == 2 and plain["set"] == "kuq" and "exact" not in plain and "choices" not in plain


def test_contains_makes_a_longer_answer_correct(prompts):
    gold = prompts[6].row.answers[0]
    texts = [f"I think it is {gold}."] * len(prompts)
    exact = judge(prompts, outputs_of(prompts, texts), "exact")[6]
    contains = judge(prompts, outputs_of(prompts, texts), "contains")[6]
    assert (exact.correct, contains.correct) == (False, True)


def test_probabilities_of_refusing_by_hand(prompts):
    outputs = outputs_of(prompts, ["x"] * len(prompts))
    wordings = [np.log(0.2), np.log(0.1), *[-np.inf] * 3]
    answering = [Branch("The city.", np.log(0.3)), Branch("It is red.", np.log(0.1))]
    outputs.refusals[prompts[0].key] = Refusing(answering, wordings)
    refuses = [Branch("I don't know.", np.log(0.5)), Branch("The city.", np.log(0.25))]
    outputs.refusals[prompts[1].key] = Refusing(refuses, wordings)
    first, second = judge(prompts, outputs)[:2]
    assert first.refusal_probability == pytest.approx(0.3 / 0.7)
    # "I don't know." is both a branch and a wording: it counts once.
    assert second.refusal_probability == pytest.approx(0.6 / 0.85)


def test_answer_asks_every_part_and_tells(tiny, prompts):
    done, kept = {}, []
    events = Events(
        advance=lambda part, count: done.update({part: done.get(part, 0) + count}),
        output=lambda part, key, value: kept.append((part, key)),
    )
    settings = AnswerSettings(max_new_tokens=5, microbatch=3, calibration=True)
    found = answer(tiny.model, prompts, settings, events=events)
    assert done == counts(prompts, settings) == {"completions": 15, "choices": 4, "refusals": 6}
    assert sorted(kept) == sorted(
        [("completions", p.key) for p in prompts]
        + [("choices", p.key) for p in prompts if p.set == "mcq"]
        + [("refusals", p.key) for p in prompts if p.role == "honesty"]
    )
    assert [item.line for item in found] == [prompt.row.line for prompt in prompts]
    assert all((item.refusal_probability is not None) == (item.role == "honesty") for item in found)
    larger = answer(tiny.model, prompts, AnswerSettings(max_new_tokens=5))
    assert [item.completion for item in larger] == [item.completion for item in found]


def test_what_is_there_is_not_asked_again(tiny, prompts):
    outputs = Outputs({prompt.key: "kept" for prompt in prompts[:10]})
    asked = []
    events = Events(output=lambda part, key, value: asked.append(key))
    run_part(
        "completions", tiny.model, prompts, settings=AnswerSettings(max_new_tokens=3), outputs=outputs, events=events
    )
    assert sorted(asked) == sorted(prompt.key for prompt in prompts[10:])
    assert outputs.completions[prompts[0].key] == "kept"


def test_qwen_and_bfloat16_can_be_asked(tmp_path):
    import jax.numpy as jnp

    tiny = load_tiny(tmp_path / "q", "qwen3", dtype="bfloat16")
    model = type(tiny.model)(tiny.model.spec, tiny.model.params, tiny.model.tokenizer, (2,), jnp.bfloat16)
    asked = prompts_of(model, honesty=2, task=0, choices=2)
    found = answer(model, asked, AnswerSettings(max_new_tokens=3))
    assert len(found) == 4 and all(np.isfinite(item.choice_log_likelihoods).all() for item in found[2:])


@pytest.mark.parametrize("right", [1, 2])
def test_either_copy_of_a_repeated_choice_counts(right) -> None:
    likely = [Likelihood(value, 1) for value in (-3.0, -1.0, -2.0)]
    scores = runner._choice_scores(right, ("Yes", "No", "no "), "No", likely)
    assert scores["correct"] and scores["chosen"] == scores["right_choice"] == scores["chosen_by_text"] == 1
    assert not runner._choice_scores(0, ("Yes", "No", "no "), "No", likely)["correct"]
