"""One small transformer in Linen and in NNX, with every kind of linear layer, and its forward pass in numpy.

Attention has kernels (width, heads, head_dim) and (heads, head_dim, width), the MLP has einsums beside plain layers.
Both models have the same parameter paths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from tests.method.toys import VOCAB, Rows, nll

WIDTH, HEADS, DIM, INNER, DEPTH = 8, 2, 4, 12, 1
ATTENTION = ("query", "key", "value", "out")
NAMES = (*ATTENTION, "gate", "up", "down")
KERNELS = (*(f"block_{i}/{name}/kernel" for i in range(DEPTH) for name in NAMES), "head/kernel")
# Which kernels read the very same array, by the first of them.
GROUPS = {
    first: paths
    for i in range(DEPTH)
    for first, paths in (
        (f"block_{i}/query/kernel", tuple(f"block_{i}/{name}/kernel" for name in ATTENTION[:3])),
        (f"block_{i}/out/kernel", (f"block_{i}/out/kernel",)),
        (f"block_{i}/gate/kernel", (f"block_{i}/gate/kernel", f"block_{i}/up/kernel")),
        (f"block_{i}/down/kernel", (f"block_{i}/down/kernel",)),
    )
} | {"head/kernel": ("head/kernel",)}  # fmt: skip


def block(xp: Any, x: Any, mask: Any, linear: Callable[[str, Any], Any]) -> Any:
    """One block on one row, x (t, width), in jax.numpy or numpy: attention, then a gated MLP, without norms."""
    q, k, v = (linear(name, x) for name in ATTENTION[:3])
    scores = xp.einsum("tnh,snh->nts", q, k) * DIM**-0.5
    length = x.shape[0]
    causal = (np.arange(length)[:, None] >= np.arange(length)[None, :])[None]
    seen = xp.where(causal & mask[None, None, :], scores, -1e9)
    weights = xp.exp(seen - seen.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True)
    x = x + linear("out", xp.einsum("nts,snh->tnh", weights, v))
    return x + linear("down", xp.tanh(linear("gate", x)) * linear("up", x))


class LinenBlock(nn.Module):
    """The block in Linen."""

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        general = {name: nn.DenseGeneral((HEADS, DIM), name=name) for name in ATTENTION[:3]}
        layers: dict[str, Any] = general | {
            "out": nn.DenseGeneral(WIDTH, axis=(-2, -1), use_bias=False, name="out"),
            "gate": nn.Dense(INNER, name="gate"),
            "up": nn.Einsum((WIDTH, INNER), "td,df->tf", name="up"),
            "down": nn.Einsum((WIDTH, INNER), "tf,df->td", use_bias=False, name="down"),
        }
        return block(jnp, x, mask, lambda name, x: layers[name](x))


class LinenModel(nn.Module):
    """The transformer in Linen."""

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        x = nn.Embed(VOCAB, WIDTH, name="embed")(tokens)
        for i in range(DEPTH):
            x = LinenBlock(name=f"block_{i}")(x, mask)
        return nn.Dense(VOCAB, name="head")(x)


class NnxBlock(nnx.Module):
    """The block in NNX."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        for name in ATTENTION[:3]:
            setattr(self, name, nnx.LinearGeneral(WIDTH, (HEADS, DIM), rngs=rngs))
        self.out = nnx.LinearGeneral((HEADS, DIM), WIDTH, axis=(-2, -1), use_bias=False, rngs=rngs)
        self.gate = nnx.Linear(WIDTH, INNER, rngs=rngs)
        self.up = nnx.Einsum("td,df->tf", (WIDTH, INNER), (INNER,), rngs=rngs)
        self.down = nnx.Einsum("tf,df->td", (WIDTH, INNER), rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        return block(jnp, x, mask, lambda name, x: getattr(self, name)(x))


class NnxModel(nnx.Module):
    """The transformer in NNX."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(VOCAB, WIDTH, rngs=rngs)
        for i in range(DEPTH):
            setattr(self, f"block_{i}", NnxBlock(rngs))
        self.head = nnx.Linear(WIDTH, VOCAB, rngs=rngs)

    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        x = self.embed(tokens)
        for i in range(DEPTH):
            x = getattr(self, f"block_{i}")(x, mask)
        return self.head(x)


def linen_loss(params: Any, row: Rows) -> jax.Array:
    """Mean NLL of one row's tokens in the Linen model."""
    return nll(LinenModel().apply({"params": params}, row.tokens, row.mask), row)


GRAPH, STATE = nnx.split(NnxModel(nnx.Rngs(0)))


def nnx_loss(state: Any, row: Rows) -> jax.Array:
    """The same loss in the NNX model."""
    return nll(nnx.merge(GRAPH, state)(row.tokens, row.mask), row)


def make_params(seed: int) -> Any:
    """Random Linen params, the biases too."""
    row = jnp.zeros((2,), jnp.int32), jnp.ones((2,), bool)
    shapes = jax.eval_shape(lambda: LinenModel().init(jax.random.key(0), *row))["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 2.5, leaf.dtype), shapes)


def to_state(params: Any) -> nnx.State:
    """The same params as the NNX model's state."""
    flat = flatten_dict(params)
    return jax.tree_util.tree_map_with_path(lambda path, leaf: flat[tuple(key.key for key in path[:-1])], STATE)


def of_state(state: Any) -> Any:
    """The state as a nested dict of arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return unflatten_dict({tuple(key.key for key in path if hasattr(key, "key")): leaf for path, leaf in leaves})


def matrix(path: str, kernel: Any) -> np.ndarray:
    """A kernel as (in, out), in float64, written out for each layer."""
    kernel = np.asarray(kernel, np.float64)
    name = path.split("/")[-2]
    if name in ATTENTION[:3]:
        return kernel.reshape(WIDTH, HEADS * DIM)
    if name == "out":
        return kernel.reshape(HEADS * DIM, WIDTH)
    return kernel.T if name == "down" else kernel


def numpy_inputs(params: Any, rows: Rows) -> dict[str, np.ndarray]:
    """What every kernel reads of the rows' real tokens, (tokens, in), by a float64 forward pass."""
    flat = {path: np.asarray(leaf, np.float64) for path, leaf in flatten_dict(params, sep="/").items()}
    seen: dict[str, list[np.ndarray]] = {}
    for tokens, mask in zip(rows.tokens, rows.mask, strict=True):

        def linear(name: str, x: np.ndarray, mask: np.ndarray = mask) -> np.ndarray:
            path = f"{name}/kernel"
            flat_x = x.reshape(len(x), -1)
            seen.setdefault(path, []).append(flat_x[mask])
            y = flat_x @ matrix(path, flat[path])
            y = y.reshape(len(x), HEADS, DIM) if name.split("/")[-1] in ATTENTION[:3] else y
            return y + flat.get(f"{name}/bias", 0.0)

        x = flat["embed/embedding"][tokens]
        for i in range(DEPTH):
            x = block(np, x, mask, lambda name, x, i=i: linear(f"block_{i}/{name}", x))
        linear("head", x)
    return {path: np.concatenate(parts) for path, parts in seen.items()}
