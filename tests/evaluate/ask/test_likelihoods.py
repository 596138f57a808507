"""Likelihoods of completions against PyTorch's log-softmax in float64, and branches against its top tokens."""

import numpy as np
import pytest
import torch

from hcnr_jax.data import REFUSALS, encode_rows
from hcnr_jax.evaluate.ask.likelihoods import (
    branch_ids,
    choice_likelihoods,
    log_likelihoods,
    own_branches,
    refusing,
)
from hcnr_jax.evaluate.ask.prompts import with_completion
from tests.evaluate.models import load_tiny, prompts_of, torch_model

TOLERANCE = 2e-4  # nats over a completion of up to eight tokens, float32 against float64


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return load_tiny(tmp_path_factory.mktemp("tiny") / "m", seed=9)


@torch.no_grad()
def oracle(folder, tokens, start):
    logits = torch_model(folder)(torch.tensor([list(tokens)])).logits[0].double()
    picked = logits.log_softmax(-1)[range(start - 1, len(tokens) - 1), list(tokens)[start:]]
    return float(picked.sum())


@pytest.mark.parametrize("microbatch", [None, 2])
def test_choices_are_scored_with_their_end_token(tiny, microbatch):
    prompts = [prompt for prompt in prompts_of(tiny.model) if prompt.set == "mcq"]
    found = choice_likelihoods(tiny.model, prompts, microbatch)
    for prompt, values in zip(prompts, found, strict=True):
        rows = [with_completion(prompt.row, choice) for choice in prompt.row.choices]
        examples = encode_rows(rows, tiny.model.tokenizer, 128)
        assert [value.tokens for value in values] == [2, 3, 4]  # the words and the end token
        expected = [oracle(tiny.folder, example.tokens, example.completion_start) for example in examples]
        np.testing.assert_allclose([value.log_likelihood for value in values], expected, atol=TOLERANCE)


def test_no_examples_have_no_likelihoods(tiny):
    assert log_likelihoods(tiny.model, []) == [] and choice_likelihoods(tiny.model, []) == []


def test_branches_begin_with_the_likeliest_tokens_and_go_on_greedily(tiny):
    prompts = [prompt.tokens for prompt in prompts_of(tiny.model, honesty=3, task=0, choices=0)]
    found = branch_ids(tiny.model, prompts, 4, count=3)
    model = torch_model(tiny.folder)
    for prompt, branches in zip(prompts, found, strict=True):
        with torch.no_grad():
            top = model(torch.tensor([prompt])).logits[0, -1].topk(3).indices.tolist()
        assert [ids[0] for ids in branches] == top
        for ids in branches:
            grown = list(ids[:1])
            while len(grown) < 4 and grown[-1] != 2:
                with torch.no_grad():
                    grown.append(int(model(torch.tensor([[*prompt, *grown]])).logits[0, -1].argmax()))
            assert ids == tuple(grown)


def test_branches_carry_the_likelihood_of_the_tokens_kept(tiny):
    prompts = prompts_of(tiny.model, honesty=3, task=0, choices=0)
    ids = branch_ids(tiny.model, [prompt.tokens for prompt in prompts], 4)
    found = own_branches(tiny.model, prompts, 4)
    for prompt, rows, branches in zip(prompts, ids, found, strict=True):
        for row, branch in zip(rows, branches, strict=True):
            expected = oracle(tiny.folder, prompt.tokens + row, len(prompt.tokens))
            assert branch.log_likelihood == pytest.approx(expected, abs=TOLERANCE)
        assert sum(np.exp(branch.log_likelihood) for branch in branches) <= 1 + 1e-5


def test_portions_change_nothing_and_are_told(tiny):
    prompts = prompts_of(tiny.model, honesty=6, task=0, choices=0)
    told = []
    few = refusing(tiny.model, prompts, 3, microbatch=1, take=lambda index, found: told.append(index))
    many = refusing(tiny.model, prompts, 3, microbatch=8)
    assert told == list(range(6))
    for one, other in zip(few, many, strict=True):
        assert len(one.wordings) == len(REFUSALS)
        np.testing.assert_allclose(one.wordings, other.wordings, atol=TOLERANCE)
        assert [branch.text for branch in one.branches] == [branch.text for branch in other.branches]
