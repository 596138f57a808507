"""Scores made a block at a time are the scores of the whole model, losses and padding included."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcnr_jax.method import fisher
from hcnr_jax.method.sums import mean_sums
from hcnr_jax.method.sweep.blockwise_fisher import layerwise_losses, layerwise_scores, stack_scores
from tests.method import toys

BATCHES = [toys.make_rows(0, 3), toys.make_rows(1, 3)]
# The last row of the second microbatch is padding.
WEIGHTS = [jnp.ones(3), jnp.asarray([1.0, 1.0, 0.0])]


def toy_model(model):
    """A toy with its loss, as the layer-wise scores need it."""

    def loss(params, hidden, rows):
        def one(h, row):
            logits = h @ params["head"]["kernel"] + jnp.broadcast_to(params["head"]["bias"], (h.shape[0], toys.VOCAB))
            return toys.nll(logits, row)

        return jax.vmap(one)(hidden, jax.tree.map(jnp.asarray, rows))

    return toys.block_model(model)._replace(loss=loss)


def whole(model, params, granularity):
    """Means over the rows that count, and each microbatch's losses, of the scores made in one backward pass."""
    loss, paths = toys.loss_of(model), toys.paths_of(model)
    step = jax.jit(partial(fisher.score_batch, loss, paths=paths, granularities=(granularity,)))
    sums, losses = fisher.init_scores(params, paths, (granularity,)), []
    for batch, weights in zip(BATCHES, WEIGHTS, strict=True):
        rows = jax.tree.map(jnp.asarray, batch)
        sums, found = step(params, batch=rows, weights=weights, sums=sums)
        losses.append(found)
    return mean_sums(sums)[granularity], losses


@pytest.mark.parametrize("granularity", ["input", "output", "weight"])
@pytest.mark.parametrize("kind", [toys.Scanned, toys.Unrolled])
def test_scores_and_losses_are_the_whole_models(kind, granularity):
    model = kind(3)
    params, store, seen = toys.make_params(model, 1), {}, []
    found, losses = layerwise_scores(
        toy_model(model), params, BATCHES, weights=WEIGHTS, granularity=granularity, store=store, on_block=seen.append
    )
    expected, expected_losses = whole(model, params, granularity)
    leaves = stack_scores(found, toys.paths_of(model))
    assert set(leaves) == set(expected)
    for path, leaf in leaves.items():
        np.testing.assert_allclose(leaf, expected[path], rtol=2e-5, atol=1e-9, err_msg=path)
    np.testing.assert_allclose(jnp.stack(losses), jnp.stack(expected_losses), rtol=1e-6)
    np.testing.assert_allclose(
        jnp.stack(layerwise_losses(toy_model(model), params, BATCHES)), jnp.stack(losses), rtol=1e-6
    )
    assert not store, "the store is emptied"
    assert seen == [0, 1, 2, 2, 1, 0]


def test_a_model_without_a_loss_is_refused():
    model = toys.Scanned(2)
    with pytest.raises(ValueError, match=r"BlockModel\.loss is None"):
        layerwise_losses(toys.block_model(model), toys.make_params(model, 0), BATCHES)


def test_compilations_do_not_grow_with_depth():
    def traces(depth):
        model, seen = toys.Scanned(depth), []
        counted = toys.block_model(model, lambda: seen.append(1))._replace(loss=toy_model(model).loss)
        layerwise_scores(counted, toys.make_params(model, 0), BATCHES, weights=WEIGHTS, granularity="input", store={})
        return len(seen)

    assert traces(2) == traces(5)
