"""Greedy text equals that of transformers' generate, for batches of unequal prompts; one trace a shape."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hcnr_jax.models import Decoder, spec_from_config
from hcnr_jax.models.generate import generate
from hcnr_jax.models.layers import Block
from tests.models.helpers import params_of, random_tokens, twin

PAD = 0


def left_padded(rows):
    width = max(map(len, rows))
    tokens, mask = np.full((len(rows), width), PAD, np.int32), np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        tokens[i, width - len(row) :], mask[i, width - len(row) :] = row, True
    return jnp.asarray(tokens), jnp.asarray(mask)


def torch_generate(model, tokens, mask, count, eos=None):
    """What transformers adds to the prompts, padded to `count` columns where all rows ended early."""
    model.generation_config.eos_token_id = eos  # a None argument alone would leave the config's own end token in force
    out = model.generate(
        torch.tensor(np.asarray(tokens)).long(),
        attention_mask=torch.tensor(np.asarray(mask)).long(),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=PAD,
    ).numpy()[:, tokens.shape[1] :]
    return np.pad(out, ((0, 0), (0, count - out.shape[1])), constant_values=PAD)


NAMES = ["llama-llama3-v5", "mistral-window", "qwen2-windows", "qwen3"]


@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_equal_transformers_for_unequal_prompts(name):
    model, spec, params, _ = twin(name)
    tokens, mask = left_padded([random_tokens((n,), seed=n) for n in (11, 4, 1)])
    ours = generate(spec, params, tokens, mask, 20, (), PAD)
    assert ours.shape == (3, 20) and ours.dtype == jnp.int32
    assert ours.tolist() == torch_generate(model, tokens, mask, 20).tolist()


@pytest.mark.parametrize("name", ["llama-gqa", "qwen2-windows"])
def test_the_cache_changes_nothing(name):
    """Each token is the argmax of the whole decoder run on everything before it."""
    _, spec, params, _ = twin(name)
    tokens, mask = left_padded([random_tokens((6,)), random_tokens((3,), seed=1)])
    ours = generate(spec, params, tokens, mask, 9, (), PAD)
    everything = jnp.concatenate([tokens, ours], axis=1)
    logits = Decoder(spec).apply({"params": params}, everything, jnp.pad(mask, ((0, 0), (0, 9)), constant_values=True))
    assert np.array_equal(jnp.argmax(logits, -1)[:, 5:-1], ours)


def test_rows_do_not_depend_on_their_neighbours_or_on_what_pads_them():
    _, spec, params, _ = twin("mistral-window")
    rows = [random_tokens((n,), seed=n) for n in (9, 5, 2)]
    tokens, mask = left_padded(rows)
    together = generate(spec, params, jnp.where(mask, tokens, 7), mask, 8, (), PAD)
    for row, expected in zip(rows, together, strict=True):
        alone = generate(spec, params, *left_padded([row]), 8, (), PAD)
        assert alone[0].tolist() == expected.tolist()


def test_a_row_ends_with_its_end_token_and_is_padded_after():
    model, spec, params, _ = twin("llama-gqa")
    tokens, mask = left_padded([random_tokens((n,), seed=n) for n in (7, 3)])
    free = np.asarray(generate(spec, params, tokens, mask, 12, (), PAD))
    ends = (int(free[0, 3]), int(free[1, 7]))
    ours = generate(spec, params, tokens, mask, 12, ends, PAD)
    assert ours.tolist() == torch_generate(model, tokens, mask, 12, list(ends)).tolist()
    for row, plain in zip(np.asarray(ours), free, strict=True):
        stop = next(i for i, token in enumerate(plain) if token in ends)
        assert row[: stop + 1].tolist() == plain[: stop + 1].tolist() and not row[stop + 1 :].any()


def test_stops_as_soon_as_every_row_has_ended(monkeypatch):
    """Counted at run time: a callback in the block fires once a layer and step."""
    _, spec, params, _ = twin("qwen2-windows")
    tokens, mask = left_padded([random_tokens((4,))])
    free = np.asarray(generate(spec, params, tokens, mask, 30, (), PAD))[0].tolist()
    calls, inner = [], Block.__call__

    def counting(self, hidden, *rest):
        jax.debug.callback(lambda _: calls.append(1), hidden[0, 0, 0])
        return inner(self, hidden, *rest)

    monkeypatch.setattr(Block, "__call__", counting)
    end = free[4]
    assert free.index(end) > 1
    for _ in range(2):  # a length of its own, so that the first is traced again; the second only runs
        jax.effects_barrier()
        calls.clear()
        ours = generate(spec, params, tokens, mask, 29, (end,), PAD)
    jax.effects_barrier()
    steps = free.index(end) + 1
    assert ours[0].tolist() == free[:steps] + [PAD] * (29 - steps)
    assert len(calls) == spec.num_layers * steps


def test_one_trace_for_each_shape(monkeypatch):
    _, spec, params, _ = twin("qwen3")
    traces, inner = [], Block.__call__

    def counting(self, *arguments):
        traces.append(1)
        return inner(self, *arguments)

    monkeypatch.setattr(Block, "__call__", counting)
    for seed in range(3):
        generate(spec, params, *left_padded([random_tokens((5,), seed), random_tokens((2,), seed)]), 7, (2,), PAD)
        if seed == 0:
            once = len(traces)
    assert len(traces) == once > 0
    generate(spec, params, *left_padded([random_tokens((6,))]), 7, (2,), PAD)
    assert len(traces) == 2 * once


def test_bfloat16_and_a_single_token():
    _, spec, params, _ = twin("qwen3")
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    tokens, mask = left_padded([random_tokens((4,))])
    out = generate(spec, half, tokens, mask, 1, (2,), PAD, jnp.bfloat16)
    logits = Decoder(spec, jnp.bfloat16).apply({"params": half}, tokens, mask)
    assert out.tolist() == [[int(logits[0, -1].argmax())]]


def test_refuses_prompts_that_are_not_left_padded():
    _, spec, params, _ = twin("qwen3")
    tokens, mask = left_padded([random_tokens((4,)), random_tokens((2,))])
    for wrong in (mask.at[1].set(mask[1, ::-1]), mask.at[1].set(False), mask.at[1, 0].set(True)):
        with pytest.raises(ValueError, match=r"attention_mask row 1 is not left-padded.*pad prompts on the left"):
            generate(spec, params, tokens, wrong, 3, (), PAD)
    with pytest.raises(ValueError, match="max_new_tokens = 0; expected at least 1"):
        generate(spec, params, tokens, mask, 0, (), PAD)


@pytest.mark.parametrize("name", ["stories260K", "stories3M"])
def test_real_models_tell_the_story_pytorch_tells(name, real_data):
    folder = real_data / "models" / name
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    spec = spec_from_config(json.loads((folder / "config.json").read_text()), str(folder / "config.json"))
    params = params_of(model, spec)
    prompts = ["Once upon a time, there was a little girl named", "Tom and his dog", "One day"]
    tokens, mask = left_padded([tokenizer(prompt)["input_ids"] for prompt in prompts])
    with torch.no_grad():
        expected = model(torch.tensor(np.asarray(tokens)).long(), torch.tensor(np.asarray(mask)).long()).logits.numpy()
    logits = np.asarray(Decoder(spec).apply({"params": params}, tokens, mask))
    np.testing.assert_allclose(logits[np.asarray(mask)], expected[np.asarray(mask)], rtol=0, atol=1e-4)
    ours = np.asarray(generate(spec, params, tokens, mask, 100, spec.eos_token_ids, PAD))
    theirs = torch_generate(model, tokens, mask, 100, list(spec.eos_token_ids))
    assert [tokenizer.decode(row) for row in ours] == [tokenizer.decode(row) for row in theirs]
    assert ours.tolist() == theirs.tolist()
