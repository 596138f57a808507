"""Linen models that are not the project's own: what a user might bring. And the numbers the method's tests share.

A toy block has what can go wrong in a real one: a norm with a scale, two linears that read the same input, biases on
some, a product of the two, and mixing along the sequence. It comes scanned with remat and unrolled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from hcnr_jax.method.neurons import Kernel, wide
from hcnr_jax.method.sweep.run import BlockModel

VOCAB, WIDTH, INNER = 11, 6, 10
GROUPS = (("first/kernel", "second/kernel"), ("last/kernel",))
PATHS = ("first/kernel", "second/kernel", "last/kernel")


class Rows(NamedTuple):
    """tokens (b, t) int32, mask (b, t) bool: True where a token is real."""

    tokens: Any
    mask: Any


class Block(nn.Module):
    """h + last(causal mean of tanh(first(x)) * second(x)), x = h / rms(h) * scale; shaped for a scan."""

    dtype: Any = None

    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array) -> tuple[jax.Array, None]:
        scale = self.param("scale", nn.initializers.normal(1.0), (WIDTH,)).astype(hidden.dtype)
        x = hidden * jax.lax.rsqrt(jnp.mean(jnp.square(hidden), axis=-1, keepdims=True) + 1e-3)
        x = x * jnp.broadcast_to(scale, x.shape)
        product = jnp.tanh(nn.Dense(INNER, dtype=self.dtype, name="first")(x)) * nn.Dense(
            INNER, use_bias=False, dtype=self.dtype, name="second"
        )(x)
        keep = mask[..., None].astype(hidden.dtype)
        count = jnp.maximum(jnp.cumsum(keep, axis=-2), 1)
        mixed = jnp.cumsum(product * jnp.broadcast_to(keep, product.shape), axis=-2) / count
        return hidden + nn.Dense(WIDTH, dtype=self.dtype, name="last")(mixed), None


class Scanned(nn.Module):
    """Blocks stacked by nn.scan and rematerialised."""

    depth: int = 3
    dtype: Any = None

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        stacked = nn.scan(
            nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast,
            length=self.depth,
        )  # fmt: skip
        hidden = nn.Embed(VOCAB, WIDTH, dtype=self.dtype, name="embed")(tokens)
        hidden, _ = stacked(self.dtype, name="blocks")(hidden, mask)
        return nn.Dense(VOCAB, dtype=self.dtype, name="head")(hidden)


class Unrolled(nn.Module):
    """The same blocks one after the other, each with its own leaves."""

    depth: int = 3
    dtype: Any = None

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        hidden = nn.Embed(VOCAB, WIDTH, dtype=self.dtype, name="embed")(tokens)
        for index in range(self.depth):
            hidden, _ = Block(self.dtype, name=f"block_{index}")(hidden, mask)
        return nn.Dense(VOCAB, dtype=self.dtype, name="head")(hidden)


def paths_of(model: nn.Module) -> tuple[str, ...]:
    """Paths of the kernels inside the model's blocks."""
    places = ["blocks"] if isinstance(model, Scanned) else [f"block_{i}" for i in range(model.depth)]
    return tuple(f"{place}/{path}" for place in places for path in PATHS)


def loss_of(model: nn.Module) -> Callable[[Any, Rows], jax.Array]:
    """Mean NLL of the next real token of ONE row, in float32 at least."""

    def loss(params: Any, row: Rows) -> jax.Array:
        return nll(model.apply({"params": params}, row.tokens, row.mask), row)

    return loss


def nll(logits: jax.Array, row: Rows) -> jax.Array:
    """Mean NLL of one row's real tokens after the first, from its logits."""
    logs = jax.nn.log_softmax(logits.astype(wide(logits.dtype)))[:-1]
    chosen = jnp.take_along_axis(logs, row.tokens[1:, None], axis=-1)[:, 0]
    keep = row.mask[1:].astype(logs.dtype)
    return -jnp.sum(chosen * keep) / jnp.maximum(jnp.sum(keep), 1)


def make_rows(seed: int, rows: int = 5, length: int = 7) -> Rows:
    """Random rows, right-padded to different lengths."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, length + 1, rows)
    mask = np.arange(length)[None, :] < lengths[:, None]
    return Rows(np.where(mask, rng.integers(1, VOCAB, (rows, length)), 0).astype(np.int32), mask)


def make_params(model: nn.Module, seed: int) -> Any:
    """Random parameters, the biases too."""
    row = jnp.zeros((2,), jnp.int32), jnp.ones((2,), bool)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), *row))["params"]
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        fan_in = leaf.shape[-2] if path[-1].key == "kernel" else 4
        return jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(fan_in) + (path[-1].key == "scale"), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, params)


def moved(params: Any, seed: int, size: float = 0.3, only: Callable[[str], bool] = lambda path: True) -> Any:
    """Tuned parameters: those leaves whose path satisfies `only`, moved at random by about `size` of their own size."""
    rng = np.random.default_rng(seed)

    def move(path: Any, leaf: jax.Array) -> jax.Array:
        step = rng.normal(size=leaf.shape) * size * float(jnp.std(leaf.astype(jnp.float32)) + 0.05)
        name = "/".join(key.key for key in path)
        return (leaf.astype(jnp.float32) + jnp.asarray(step, jnp.float32)).astype(leaf.dtype) if only(name) else leaf

    return jax.tree_util.tree_map_with_path(move, params)


def block_model(model: nn.Module, on_trace: Callable[[], None] = lambda: None) -> BlockModel:
    """A toy as the block sweep sees it."""
    scanned = isinstance(model, Scanned)

    def embed(params: Any, rows: Rows) -> jax.Array:
        embedding = nn.Embed(VOCAB, WIDTH, dtype=model.dtype)
        return embedding.apply({"params": params["embed"]}, jnp.asarray(rows.tokens))

    def apply(block_params: Any, hidden: jax.Array, rows: Rows, index: Any) -> jax.Array:
        on_trace()
        return Block(model.dtype).apply({"params": block_params}, hidden, jnp.asarray(rows.mask))[0]

    def block_params(params: Any, index: int) -> Any:
        if not scanned:
            return params[f"block_{index}"]
        return jax.tree.map(lambda leaf: leaf[index], params["blocks"])

    def kernel(index: int, path: str) -> Kernel:
        return Kernel(f"blocks/{path}", (index,)) if scanned else Kernel(f"block_{index}/{path}", ())

    return BlockModel(model.depth, embed, apply, block_params, lambda rows: rows.mask, GROUPS, kernel)


def numpy_block(weights: Any, hidden: np.ndarray, valid: np.ndarray, linear: Callable[..., np.ndarray]) -> np.ndarray:
    """The toy block in float64 numpy, for the oracle."""
    x = hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + 1e-3) * weights["scale"]
    product = np.tanh(linear("first", x)) * linear("second", x)
    keep = valid[..., None].astype(np.float64)
    mixed = np.cumsum(product * keep, axis=-2) / np.maximum(np.cumsum(keep, axis=-2), 1)
    return hidden + linear("last", mixed)


def numpy_blocks(model: nn.Module, params: Any) -> list[dict[str, np.ndarray]]:
    """Each block's weights by path, float64."""
    if isinstance(model, Scanned):
        flat = flatten_dict(params["blocks"], sep="/")
        return [{path: np.asarray(leaf[i], np.float64) for path, leaf in flat.items()} for i in range(model.depth)]
    return [
        {path: np.asarray(leaf, np.float64) for path, leaf in flatten_dict(params[f"block_{i}"], sep="/").items()}
        for i in range(model.depth)
    ]


def numpy_embed(params: Any, batches: Sequence[Rows]) -> tuple[np.ndarray, np.ndarray]:
    """All rows embedded, float64, and which of their tokens are real."""
    tokens = np.concatenate([batch.tokens for batch in batches])
    valid = np.concatenate([batch.mask for batch in batches])
    return np.asarray(params["embed"]["embedding"], np.float64)[tokens], valid
