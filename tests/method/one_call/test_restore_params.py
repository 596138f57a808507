"""restore_params against the method in dense float64 numpy, on models that are not ours, in Linen and in NNX."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hcnr_jax import restore_params
from hcnr_jax.errors import InputError
from hcnr_jax.method import fisher
from hcnr_jax.method.neurons import Kernel
from hcnr_jax.method.one_call.linear_view import view_linear
from hcnr_jax.method.solve import Outcome
from tests.method import oracle, toys
from tests.method.one_call import twins

BASE, TUNED = twins.make_params(1), toys.moved(twins.make_params(1), 2)
HONESTY, TASK = toys.make_rows(0, 6, 9), toys.make_rows(1, 6, 9)
OBJECTIVES = ("none", "paper", "exact", "two_sided")


def real(row):
    """The token mask of the toys' rows."""
    return row.mask


@cache
def restored(model, objective="two_sided", **choices):
    """(params as a nested dict of arrays, report) of one of the twins."""
    loss, convert = {"linen": (twins.linen_loss, lambda x: x), "nnx": (twins.nnx_loss, twins.to_state)}[model]
    params, report = restore_params(
        loss, convert(BASE), convert(TUNED), HONESTY, TASK, objective=objective, token_mask=real, **choices
    )
    assert type(params) is type(convert(TUNED))
    return twins.of_state(params), report


@cache
def oracle_masks():
    """Masks (in,) by path from materialised gradients, by the definition."""
    score = {}
    for name, rows in (("honesty", HONESTY), ("task", TASK)):
        gradients = jax.jit(jax.vmap(jax.grad(twins.linen_loss), in_axes=(None, 0)))(TUNED, rows)
        for path, leaf in flatten_dict(gradients, sep="/").items():
            if path in twins.KERNELS:
                score[name, path] = oracle.scores(np.stack([twins.matrix(path, one).T for one in leaf]), "input")
    return {p: oracle.top(oracle.priority(score["honesty", p], score["task", p], "kl"), 0.5) for p in twins.KERNELS}


@pytest.mark.parametrize("model", ["linen", "nnx"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_local_objective_equals_the_dense_solution(model, objective):
    params, report = restored(model, objective)
    flat = [flatten_dict(tree, sep="/") for tree in (BASE, TUNED, params)]
    x, z = twins.numpy_inputs(BASE, HONESTY), twins.numpy_inputs(TUNED, TASK)
    for path, mask in oracle_masks().items():
        np.testing.assert_array_equal(report.masks[path], mask)
        base, tuned, found = (twins.matrix(path, leaves[path]).T for leaves in flat)
        expected = oracle.compensate(
            base, tuned, mask, oracle.moment(x[path]), objective, 0.01, oracle.moment(z[path]), 2.0
        )
        assert np.linalg.norm(found - expected) < 2e-4 * np.linalg.norm(expected - tuned), path
        np.testing.assert_array_equal(found[:, ~mask], tuned[:, ~mask])
    for path in flat[1].keys() - set(twins.KERNELS):
        np.testing.assert_array_equal(flat[2][path], flat[1][path])


@pytest.mark.parametrize("choices", [*({"objective": o} for o in OBJECTIVES), {"inputs": "propagated"}], ids=str)
def test_linen_and_nnx_agree(choices):
    (linen, first), (nnx_, second) = (restored(model, **choices) for model in ("linen", "nnx"))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6), linen, nnx_)
    assert [r.kernel for r in first.kernels] == [r.kernel for r in second.kernels]


@pytest.mark.parametrize("inputs", ["local", "propagated"])
@pytest.mark.parametrize("model", [toys.Scanned(3), toys.Unrolled(2)], ids=["scanned", "unrolled"])
def test_scanned_and_unrolled_blocks_equal_the_oracle_sweep(model, inputs):
    base = toys.make_params(model, 1)
    tuned = toys.moved(base, 5)
    honesty, task = toys.make_rows(0, 6), toys.make_rows(1, 6)
    pattern = r"blocks/.*|block_\d/.*"
    params, report = restore_params(
        toys.loss_of(model), base, tuned, honesty, task, inputs=inputs, kernels=pattern, token_mask=real
    )
    old, new, found = (toys.numpy_blocks(model, tree) for tree in (base, tuned, params))

    def mask_of(k, path):
        return (
            report.masks[f"blocks/{path}"][k] if f"blocks/{path}" in report.masks else report.masks[f"block_{k}/{path}"]
        )

    masks = [{path: mask_of(k, path) for path in toys.PATHS} for k in range(model.depth)]
    rows = toys.numpy_embed(base, [honesty]), toys.numpy_embed(tuned, [honesty]), toys.numpy_embed(tuned, [task])
    expected = oracle.sweep(
        toys.numpy_block, toys.GROUPS, old, new, masks,
        (rows[0][0], rows[1][0], rows[0][1]), rows[2], "two_sided", inputs, 2.0,
    )  # fmt: skip
    for (k, path), weights in expected.items():
        change = np.linalg.norm(weights - new[k][path])
        assert np.linalg.norm(found[k][path] - weights) < 1e-3 * change, (k, path)
    np.testing.assert_array_equal(params["head"]["kernel"], tuned["head"]["kernel"])


def parts(rows, size=2):
    return [jax.tree.map(lambda leaf, i=i: leaf[i : i + size], rows) for i in range(0, len(rows.tokens), size)]


def test_an_iterator_of_batches_equals_one_batch():
    run = lambda h, t: restore_params(twins.linen_loss, BASE, TUNED, h, t, token_mask=real)  # noqa: E731
    whole, one = run(HONESTY, TASK)
    for data in (iter(parts(HONESTY)), iter(parts(TASK))), (parts(HONESTY, 4), (b for b in parts(TASK, 3))):
        split, other = run(*data)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), split, whole)
        np.testing.assert_allclose(other.losses["task"], one.losses["task"], rtol=1e-6)


def test_more_batches_and_a_second_call_trace_the_loss_no_more():
    traces = []

    def loss(params, row):
        traces.append(1)
        return twins.linen_loss(params, row)

    def count(honesty, loss=loss):
        traces.clear()
        restore_params(loss, BASE, TUNED, honesty, TASK)
        return len(traces)

    # The layers are found, their uses are counted, and each of two programs is traced; then the inputs' tokens.
    one = count(HONESTY)
    assert one == 5
    # A second call compiles nothing: it only finds the layers again.
    assert count([HONESTY] * 3) == 2
    assert count(HONESTY, lambda params, row: loss(params, row)) == one
    assert count([HONESTY] * 3, lambda params, row: loss(params, row)) == one


def test_padding_does_not_count_by_default():
    """More padding changes nothing without a token mask; the last token, which predicts nothing, does not count."""

    def longer(rows):
        return toys.Rows(np.pad(rows.tokens, ((0, 0), (0, 4))), np.pad(rows.mask, ((0, 0), (0, 4))))

    found, _ = restore_params(twins.linen_loss, BASE, TUNED, longer(HONESTY), longer(TASK))
    expected, _ = restore_params(twins.linen_loss, BASE, TUNED, HONESTY, TASK)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), found, expected)

    def predicts(row):
        return jnp.append(row.mask[1:], False)

    masked, _ = restore_params(twins.linen_loss, BASE, TUNED, HONESTY, TASK, token_mask=predicts)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), masked, expected)


@pytest.mark.parametrize("inputs", ["local", "propagated"])
@pytest.mark.parametrize("model", ["linen", "nnx"])
def test_a_mesh_of_eight_devices_keeps_every_sharding(model, inputs):
    mesh = Mesh(np.asarray(jax.devices()).reshape(4, 2), ("data", "model"))
    loss, convert = {"linen": (twins.linen_loss, lambda x: x), "nnx": (twins.nnx_loss, twins.to_state)}[model]

    def place(leaf):
        axis = next((i for i, size in enumerate(leaf.shape) if size % 2 == 0), None)
        parts = [None] * leaf.ndim
        if axis is not None:
            parts[axis] = "model"
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*parts)))

    def rows(batch):
        batch = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf[:2]]), batch)
        return jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))

    base, tuned = (jax.tree.map(place, convert(params)) for params in (BASE, TUNED))
    found, _ = restore_params(loss, base, tuned, rows(HONESTY), rows(TASK), inputs=inputs)
    assert all(jax.tree.leaves(jax.tree.map(lambda x, y: x.sharding == y.sharding, found, tuned)))
    alone = [jax.tree.map(np.asarray, rows(batch)) for batch in (HONESTY, TASK)]
    expected, _ = restore_params(loss, convert(BASE), convert(TUNED), *alone, inputs=inputs)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4), found, expected)


def test_scores_of_an_nnx_model_inside_the_users_jit_and_mesh():
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    state = jax.device_put(twins.to_state(TUNED), NamedSharding(mesh, PartitionSpec()))
    rows = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf[:2]]), HONESTY)
    batch = jax.device_put(rows, NamedSharding(mesh, PartitionSpec("data")))
    view = view_linear(twins.nnx_loss, state, jax.tree.map(lambda leaf: leaf[0], rows))

    @jax.jit
    def step(state, batch):
        scores, _ = fisher.example_scores(view.loss, view.split(state), view.paths, batch)
        return jax.tree.map(lambda leaf: leaf.mean(0), scores["input"])

    plain = fisher.example_scores(view.loss, view.split(twins.to_state(TUNED)), view.paths, rows)[0]["input"]
    for path, found in step(state, batch).items():
        np.testing.assert_allclose(found, plain[path].mean(0), rtol=1e-4, atol=1e-8)


def test_bfloat16_params_stay_bfloat16_and_numpy_params_are_taken():
    base, tuned = (jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree) for tree in (BASE, TUNED))

    def loss(params, row):
        return twins.linen_loss(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params), row)

    # The taps travel through the loss's own cast of the whole tree.
    found, _ = restore_params(loss, base, tuned, HONESTY, TASK)
    assert jax.tree.map(lambda leaf: leaf.dtype, found) == jax.tree.map(lambda leaf: leaf.dtype, tuned)
    host = [jax.tree.map(np.asarray, tree) for tree in (BASE, TUNED)]
    found, _ = restore_params(twins.linen_loss, *host, HONESTY, TASK, token_mask=real)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, restored("linen")[0])


class Normed(nnx.Module):
    """A model with state that is no parameter: statistics and a key."""

    def __init__(self, rngs):
        self.inner = nnx.Linear(4, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, use_running_average=True, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs, deterministic=True)
        self.last = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(self.norm(jnp.tanh(self.inner(x)))))


def test_an_nnx_model_with_other_state_and_all_of_its_state_as_params():
    graph, params, rest = nnx.split(Normed(nnx.Rngs(0)), nnx.Param, ...)
    tuned = jax.tree.map(lambda leaf: leaf + 0.1, params)
    x = jax.random.normal(jax.random.key(1), (6, 5, 4))
    loss = lambda params, x: jnp.mean(nnx.merge(graph, params, rest)(x) ** 2)  # noqa: E731
    found, report = restore_params(loss, params, tuned, x, x[:3])
    assert set(report.masks) == {"inner/kernel", "last/kernel"} and type(found) is nnx.State
    whole, state = nnx.split(Normed(nnx.Rngs(0)))
    old, new = (nnx.merge_state(rest, part) for part in (params, tuned))
    again, _ = restore_params(lambda s, x: jnp.mean(nnx.merge(whole, s)(x) ** 2), old, new, x, x[:3])
    assert jax.tree.structure(again) == jax.tree.structure(new) == jax.tree.structure(state)
    np.testing.assert_array_equal(again["last"]["kernel"][...], found["last"]["kernel"][...])


def test_cross_weight_keeps_the_most_perturbed_kernels_and_the_report_says_so():
    _, report = restored("linen", "exact", cross_weight=0.4)
    ranked = sorted(report.kernels, key=lambda r: -r.perturbation)
    kept = round(0.4 * len(report.kernels))
    assert all(r.restored == r.neurons // 2 and r.outcome is Outcome.OK for r in ranked[:kept])
    assert all(r.restored == 0 and r.outcome is None and r.shift == 0 for r in ranked[kept:])
    assert all(r.residual < 1e-4 and r.shift > 0 and r.distances[2] <= r.distances[1] for r in ranked[:kept])
    assert report.losses["honesty"].shape == (6,) and report.choices.objective == "exact"
    assert f"restored in {kept} of {len(report.kernels)} kernels" in str(report)
    assert report.kernels[0].kernel == Kernel("block_0/query/kernel", ())


def test_the_context_of_a_failed_loss_leaves_no_trace():
    own = nnx.Linear.__call__

    def loss(state, row):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        restore_params(loss, twins.to_state(BASE), twins.to_state(TUNED), HONESTY, TASK)
    assert nnx.Linear.__call__ is own


def test_a_token_mask_of_another_length_is_refused():
    with pytest.raises(InputError, match=r"token_mask: it has 3 tokens an example, but the inputs of kernel .* have 9"):
        restore_params(twins.linen_loss, BASE, TUNED, HONESTY, TASK, token_mask=lambda row: row.mask[:3])


def broken(**changes):
    """Arguments of a call, some of them changed."""
    given = {"loss": twins.linen_loss, "base": BASE, "tuned": TUNED, "honesty": HONESTY, "task": TASK}
    return given | changes


def with_nan(rows):
    def loss(params, row):
        return twins.linen_loss(params, row) / jnp.where(row.tokens[0] == rows.tokens[2, 0], 0.0, 1.0)

    return loss


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "exakt"}, "objective: got 'exakt', expected one of none, paper, exact, two_sided"),
        ({"priority": "best"}, "priority: got 'best', expected one of kl, raw, honesty, random"),
        ({"inputs": "both"}, "inputs: got 'both', expected one of local, propagated"),
        ({"in_weight": 0.0}, r"in_weight: got 0.0, expected a fraction in \(0, 1\]"),
        ({"cross_weight": 1.5}, r"cross_weight: got 1.5, expected a fraction in \(0, 1\]"),
        ({"damping": -1.0}, "damping: got -1.0, expected a finite number of at least 0"),
        ({"objective": "paper", "inputs": "propagated"}, "objective 'paper' has no propagated form; expected 'local'"),
        ({"inputs": "propagated", "task": iter([TASK])}, "task: got an iterator, .* Give a list of batches"),
        ({"base": {"head": BASE["head"]}}, "params: tuned has the leaf 'block_0/down/kernel' but base has not"),
        ({"base": BASE | {"extra": jnp.ones(2)}}, "params: base has the leaf 'extra' but tuned has not"),
        (
            {"base": BASE | {"head": {"kernel": jnp.ones((8, 3)), "bias": BASE["head"]["bias"]}}},
            r"the leaf 'head/kernel' has shape \(8, 3\) in base and \(8, 11\) in tuned; expected equal shapes",
        ),
        ({"kernels": "blocks"}, "kernels: no linear layer can be restored among those that match 'blocks'"),
        ({"honesty": []}, "honesty: expected at least one batch, found none"),
        ({"task": 3}, "task: expected a batch .* or an iterable of batches"),
        ({"task": {"x": np.ones((2, 3)), "y": np.ones(4)}}, "the arrays have 2 and 4 examples .* expected one number"),
        ({"honesty": [1.0]}, "honesty, batch 0: expected arrays with examples along their first axis, found float"),
        ({"loss": with_nan(HONESTY)}, "honesty: the loss of example 2 at `tuned` is (inf|nan)"),
        (
            {"objective": "exact", "damping": 0.0, "in_weight": 1.0, "honesty": parts(HONESTY, 1)[:1]},
            "kernel .* are not positive definite: raise `damping`",
        ),
        ({"tuned": jax.tree.map(lambda x: x * jnp.nan, TUNED)}, "honesty: the loss of example 0 at `tuned` is nan"),
        ({"token_mask": lambda row: row.mask & False}, "honesty: no token of the inputs of kernel .* counts"),
    ],
)  # fmt: skip
def test_errors_say_what_was_expected_and_found(changes, message):
    with pytest.raises(InputError, match=message):
        restore_params(**broken(**changes))


def test_a_linen_model_whose_kernels_the_loss_never_reads_from_params():
    model = nn.Dense(3)
    held = model.init(jax.random.key(0), jnp.ones((1, 4)))["params"]
    loss = lambda params, x: jnp.sum(model.apply({"params": held}, x))  # noqa: E731
    with pytest.raises(
        InputError, match=r"kernel is read by none of .* `params` must be what the loss reads them from"
    ):
        restore_params(loss, held, held, jnp.ones((2, 1, 4)), jnp.ones((2, 1, 4)))
