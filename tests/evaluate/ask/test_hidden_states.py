"""Last-token hidden states against PyTorch's, in every layer, whatever the padding."""

import numpy as np
import pytest
import torch

from hcnr_jax.evaluate import last_token_states
from hcnr_jax.evaluate.ask.hidden_states import last_states
from tests.evaluate.models import load_tiny, torch_model


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "smollm3"])
def test_states_are_those_of_each_prompt_alone(tmp_path, family):
    tiny = load_tiny(tmp_path / "m", family, seed=2, num_hidden_layers=3)
    spec = tiny.model.spec
    prompts = [(1, *range(5, 5 + n)) for n in (3, 20, 7, 30, 1)]
    found = last_token_states(spec, tiny.model.params, prompts, microbatch=2)
    assert found.shape == (4, 5, spec.hidden_size) and found.dtype == np.float32
    blocks = torch_model(tiny.folder).model
    for index, prompt in enumerate(prompts):
        seen = []
        handles = [
            layer.register_forward_hook(
                lambda _, __, out, seen=seen: seen.append((out[0] if isinstance(out, tuple) else out)[..., -1, :])
            )
            for layer in blocks.layers
        ]
        with torch.no_grad():
            ids = torch.tensor([prompt])
            start = blocks.embed_tokens(ids)[:, -1]
            blocks(ids)
        for handle in handles:
            handle.remove()
        expected = torch.stack([start, *seen]).reshape(4, -1).numpy()
        np.testing.assert_allclose(found[:, index], expected, atol=2e-4, rtol=1e-4)


def test_a_second_model_of_the_same_spec_compiles_nothing(tmp_path):
    first, second = (load_tiny(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 2)))
    prompts = [(1, 5, 6), (1, 7, 8, 9)]
    last_token_states(first.model.spec, first.model.params, prompts)
    before = last_states._cache_size()
    last_token_states(second.model.spec, second.model.params, prompts)
    assert last_states._cache_size() == before
