"""The view finds kernels, order and shared inputs, and its scores are those of materialised per-example gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from flax.traverse_util import flatten_dict

from hcnr_jax.errors import InputError
from hcnr_jax.method import fisher
from hcnr_jax.method.one_call.linear_view import view_linear
from hcnr_jax.method.taps_layers import Axes, as_rows, einsum_axes
from tests.method import toys
from tests.method.one_call import twins

ROWS = jax.tree.map(jnp.asarray, toys.make_rows(0, 4))
ROW = jax.tree.map(lambda leaf: leaf[0], ROWS)
PARAMS = twins.make_params(1)
TWINS = {
    "linen": (twins.linen_loss, PARAMS),
    "nnx": (twins.nnx_loss, twins.to_state(PARAMS)),
    "nnx dict": (twins.nnx_loss, twins.of_state(twins.to_state(PARAMS))),
}


@pytest.mark.parametrize("name", TWINS)
def test_it_finds_kernels_order_and_shared_inputs(name):
    view = view_linear(*TWINS[name], ROW)
    assert view.paths == twins.KERNELS and view.groups == twins.GROUPS and view.left_out == ()


@pytest.mark.parametrize("name", TWINS)
def test_join_is_the_inverse_of_split(name):
    loss, params = TWINS[name]
    view = view_linear(loss, params, ROW)
    split = view.split(params)
    for path, leaf in flatten_dict(split, sep="/").items():
        if path in twins.KERNELS:
            np.testing.assert_array_equal(leaf, twins.matrix(path, flatten_dict(PARAMS, sep="/")[path]))
    joined = view.join(split)
    assert type(joined) is type(params) and jax.tree.structure(joined) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, joined, params)


def materialised(gradient, path):
    """Scores (examples, in) of one kernel from its gradients (examples, *shape)."""
    return np.stack([np.sum(twins.matrix(path, one) ** 2, axis=1) for one in gradient])


@pytest.mark.parametrize("name", TWINS)
def test_scores_equal_materialised_gradients(name):
    loss, params = TWINS[name]
    view = view_linear(loss, params, ROW)
    scores, losses = jax.jit(lambda p, b: fisher.example_scores(view.loss, view.split(p), view.paths, b))(params, ROWS)
    plain, gradients = jax.jit(jax.vmap(jax.value_and_grad(loss), in_axes=(None, 0)))(params, ROWS)
    gradients = flatten_dict(twins.of_state(gradients), sep="/")
    np.testing.assert_allclose(losses, plain, rtol=1e-6)
    for path in twins.KERNELS:
        expected = materialised(gradients[path], path)
        found = np.asarray(scores["input"][path])
        assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected), path


class ScannedNnx(nnx.Module):
    """Layers stacked by vmap, applied by scan with remat: a tanh of a linear."""

    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=0, out_axes=0)
        def make(rngs):
            return nnx.Linear(5, 5, rngs=rngs)

        self.layers = make(rngs)
        self.head = nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        @nnx.remat
        def step(x, layer):
            return jnp.tanh(layer(x))

        return self.head(step(x, self.layers))


def test_a_scanned_nnx_model_is_scored():
    graph, state = nnx.split(ScannedNnx(nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(1), (3, 4, 5))

    def loss(state, x):
        return jnp.mean(nnx.merge(graph, state)(x) ** 2)

    view = view_linear(loss, state, x[0])
    assert view.paths == ("layers/kernel", "head/kernel") and dict(view.layers)["layers/kernel"].stack == (3,)
    scores = fisher.example_scores(view.loss, view.split(state), view.paths, x)[0]["input"]
    gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0))(state, x)
    expected = np.sum(np.square(gradients["layers"]["kernel"].get_value()), axis=-1)
    np.testing.assert_allclose(scores["layers/kernel"], expected, rtol=2e-5, atol=1e-9)


class Odd(nn.Module):
    """One layer that can be restored, and one of each kind that cannot."""

    @nn.compact
    def __call__(self, x):
        shared, own = nn.Dense(4, name="shared"), self.param("kernel", nn.initializers.ones, (4, 4))
        x = nn.Dense(4, name="once")(shared(shared(x)) @ (own * 2))
        x = nn.Conv(4, (3,), name="conv")(x)
        x = nn.DenseGeneral(4, batch_dims=(0,), name="batched")(x)
        return nn.Dense(4, name="unused")(x) * 0 + x if self.is_initializing() else x


def test_kernels_that_cannot_be_restored_are_named_with_the_reason():
    x = jnp.ones((3, 4))
    params = Odd().init(jax.random.key(0), x)["params"]

    def loss(params, x):
        return jnp.mean(Odd().apply({"params": params}, x) ** 2)

    view = view_linear(loss, params, x)
    assert view.paths == ("once/kernel",)
    reasons = dict(view.left_out)
    assert set(reasons) == {"kernel", "shared/kernel", "conv/kernel", "batched/kernel", "unused/kernel"}
    assert reasons["shared/kernel"] == "is used 2 times in the loss of one example, expected once"
    assert "no single matrix" in reasons["batched/kernel"]
    for path in ("kernel", "conv/kernel", "unused/kernel"):
        assert reasons[path].startswith("is read by none of nn.Dense"), path
    with pytest.raises(InputError, match=r"no linear layer can be restored .*'shared/.\*'.* is used 2 times"):
        view_linear(loss, params, x, r"shared/.*")
    with pytest.raises(InputError, match=r"the leaves are .*once/kernel"):
        view_linear(loss, params, x, "nothing")


def test_a_layer_used_by_a_loop_over_tokens_is_counted():
    dense = nn.Dense(3)
    params = dense.init(jax.random.key(0), jnp.ones((3,)))["params"]

    def loss(params, x):
        def step(carry, _):
            return jnp.tanh(dense.apply({"params": params}, carry)), None

        return jnp.sum(jax.lax.scan(step, x, None, length=5)[0])

    with pytest.raises(InputError, match="kernel is used 5 times in the loss of one example"):
        view_linear(loss, params, jnp.ones((3,)))


def test_a_model_that_jits_its_layers_is_seen_each_time():
    dense = nn.Dense(3)
    params = dense.init(jax.random.key(0), jnp.ones((2, 3)))["params"]
    apply = jax.jit(lambda params, x: dense.apply({"params": params}, x))

    def loss(params, x):
        return jnp.sum(apply(params, x) ** 2)

    x = jnp.ones((2, 2, 3))
    views = [view_linear(loss, params, x[0]) for _ in range(2)]
    assert views[0] == views[1] and hash(views[0]) == hash(views[1])
    view, expected = views[1], jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, x)["kernel"]
    for _ in range(2):
        found = fisher.example_scores(view.loss, view.split(params), view.paths, x)[0]["input"]["kernel"]
        np.testing.assert_allclose(found, np.sum(np.square(expected), axis=-1), rtol=1e-5)


@pytest.mark.parametrize("loss", [lambda p, x: x, lambda p, x: (jnp.sum(x), 1.0), lambda p, x: jnp.argmax(x)])
def test_a_loss_that_is_no_scalar_is_refused(loss):
    with pytest.raises(InputError, match=r"loss: expected one floating-point number, shape .*no batch axis"):
        view_linear(loss, {"kernel": jnp.ones((3, 3))}, jnp.ones((3,)))


@pytest.mark.parametrize(
    ("equation", "ndim", "axes"),
    [
        ("btd,ndh->btnh", 3, Axes((1,), (0, 2), (2,), (2, 3))),
        ("btnh,nhd->btd", 4, Axes((0, 1), (2,), (2, 3), (2,))),
        ("...sd,ckdh->...cksh", 4, None),
        ("...d,df->...f", 2, Axes((0,), (1,), (1,), (1,))),
        ("td,fd->ft", 2, Axes((1,), (0,), (1,), (0,))),
        ("td,d->td", 2, None),
        ("td,td->td", 2, None),
        ("td,df->f", 2, None),
    ],
)
def test_einsums_as_matrix_products(equation, ndim, axes):
    """A product in matrix form equals the einsum; what is no such product has no axes."""
    if equation == "...sd,ckdh->...cksh":
        axes = einsum_axes(equation, ndim)
        assert axes is not None
    assert einsum_axes(equation, ndim) == axes
    if axes is None:
        return
    rng, sizes = np.random.default_rng(0), {c: i + 2 for i, c in enumerate("btdnhscfk")}
    operands, output = equation.replace("...", "bn"[: ndim - 2 if "s" in equation else ndim - 1]).split("->")
    x, kernel = (rng.normal(size=[sizes[c] for c in letters]) for letters in operands.split(","))
    y = np.einsum(f"{operands}->{output}", x, kernel)
    rows = as_rows(jnp.asarray(x), axes.inputs), as_rows(jnp.asarray(y), axes.outputs)
    weight = np.transpose(kernel, axes.kernel_in + axes.kernel_out).reshape(rows[0].shape[1], -1)
    np.testing.assert_allclose(rows[0] @ weight, rows[1], rtol=1e-4, atol=1e-4)


class Jitted(nnx.Module):
    """A model whose method is jitted, with a kernel that the model's own code reads beside the layer."""

    def __init__(self, rngs):
        self.a, self.b = nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)

    @nnx.jit
    def __call__(self, x):
        penalty = (
            jnp.sum(jnp.square(self.b.kernel[...])) + jnp.sum(self.b.kernel * 2.0) + self.b.kernel.get_value().sum()
        )
        return self.b(jnp.tanh(self.a(x))) + penalty


def test_a_jitted_nnx_method_whose_code_reads_a_kernel():
    graph, state = nnx.split(Jitted(nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(0), (2, 5, 4))

    def loss(state, x):
        return jnp.mean(nnx.merge(graph, state)(x) ** 2)

    gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0))(state, x)["a"]["kernel"].get_value()
    for _ in range(2):
        view = view_linear(loss, state, x[0])
        assert view.paths == ("a/kernel", "b/kernel")
        found = fisher.example_scores(view.loss, view.split(state), view.paths, x)[0]["input"]["a/kernel"]
        np.testing.assert_allclose(found, np.sum(np.square(gradients), axis=-1), rtol=1e-4)


def test_a_kernel_that_the_loss_reads_where_no_tap_can_travel_is_refused_with_a_remedy():
    graph, state = nnx.split(Jitted(nnx.Rngs(0)))

    def loss(state, x):
        model = nnx.merge(graph, state)
        return jnp.mean(model(x) ** 2) + jnp.sum(jnp.square(model.a.kernel))

    x = jnp.ones((5, 4))
    with pytest.raises(InputError, match=r"loss: it reads a kernel outside .* leave the kernel out with `kernels`"):
        view_linear(loss, state, x)
    assert view_linear(loss, state, x, "b/.*").paths == ("b/kernel",)


def test_boxed_linen_params_keep_their_boxes():
    kernel_init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    model, x = nn.Dense(3, kernel_init=kernel_init), jnp.ones((2, 5, 4))
    params = model.init(jax.random.key(0), x[0])["params"]

    def loss(params, x):
        return jnp.mean(model.apply({"params": params}, x) ** 2)

    view = view_linear(loss, params, x[0])
    assert view.paths == ("kernel",)
    assert jax.tree.structure(view.join(view.split(params))) == jax.tree.structure(params)
    found = fisher.example_scores(view.loss, view.split(params), view.paths, x)[0]["input"]["kernel"]
    gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, x)["kernel"].value
    np.testing.assert_allclose(found, np.sum(np.square(gradients), axis=-1), rtol=1e-5)
