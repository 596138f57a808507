"""On the project's own decoder, one call gives what the block sweep of `hcnr restore` gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from hcnr_jax import restore_params
from hcnr_jax.data import Batch
from hcnr_jax.method.neurons import put_leaves
from hcnr_jax.method.sweep.run import Problem, Settings, Sweep
from hcnr_jax.models import spec_from_config
from hcnr_jax.models.decoder import abstract_params
from hcnr_jax.restoration.decoder_blocks import block_model, row_loss
from tests.method import toys
from tests.tiny import tiny_config

SPEC = spec_from_config(
    tiny_config(
        "qwen2", hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=20
    ),
    "config.json",
)


def rows(seed):
    """Prompts of two tokens and completions of different lengths."""
    tokens, mask = toys.make_rows(seed, 6, 9)
    return Batch(tokens, mask, mask & (np.arange(9) >= 2)[None])


@pytest.mark.parametrize(
    ("objective", "inputs"), [("two_sided", "propagated"), ("two_sided", "local"), ("paper", "local")]
)
def test_one_call_equals_the_block_sweep(objective, inputs):
    rng = np.random.default_rng(3)
    base = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.2, jnp.float32), abstract_params(SPEC))
    tuned = toys.moved(base, 4)
    honesty, task = rows(0), rows(1)
    found, report = restore_params(
        row_loss(SPEC), base, tuned, honesty, task, objective=objective, inputs=inputs, kernels="blocks/.*",
        token_mask=lambda row: row.attention_mask,
    )  # fmt: skip
    assert set(report.masks) == set(SPEC.kernels) and not report.left_out
    problem = Problem(block_model(SPEC), base, tuned, [honesty], [task])
    expected = flatten_dict(tuned, sep="/")
    masks = {path: jnp.asarray(mask) for path, mask in report.masks.items()}
    for result in Sweep(Settings(method=objective, inputs=inputs)).run(problem, masks):
        path, index = result.kernel.path, result.kernel.index
        expected[path] = expected[path].at[index].set(result.weights)
    expected = flatten_dict(put_leaves(tuned, expected), sep="/")
    for path, leaf in flatten_dict(found, sep="/").items():
        change = np.linalg.norm(expected[path] - flatten_dict(tuned, sep="/")[path])
        assert np.linalg.norm(leaf - expected[path]) <= 2e-4 * change, path
