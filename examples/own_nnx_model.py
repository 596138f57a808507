"""Shows how to restore your own NNX model in one call. The params are its `nnx.State`, which the loss merges.

    python examples/own_nnx_model.py

The model is a causal self-attention with kernels (width, heads, head_dim), an MLP and a readout.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from hcnr_jax import restore_params

WIDTH, HEADS, CLASSES = 16, 4, 4


class Model(nnx.Module):
    """Self-attention, x + down(tanh(up(x))), and a readout."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs), nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)
        self.readout = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(x, mask=nnx.make_causal_mask(x[:, 0])[0])
        return self.readout(x + self.down(jnp.tanh(self.up(x))))


def rows(key: jax.Array, count: int = 32, tokens: int = 8) -> tuple[jax.Array, jax.Array]:
    """Draw random inputs and labels in place of honesty or task data: one batch of examples."""
    return jax.random.normal(key, (count, tokens, WIDTH)), jax.random.randint(key, (count, tokens), 0, CLASSES)


def main() -> None:
    """Restore on random data: the numbers have no meaning, the call is that of a real run."""
    keys = jax.random.split(jax.random.key(0), 3)
    graph, base = nnx.split(Model(nnx.Rngs(0)))
    tuned = jax.tree.map(lambda leaf: leaf + 0.05 * jax.random.normal(keys[0], leaf.shape), base)

    def loss(state: nnx.State, example: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, labels = example
        log_probs = jax.nn.log_softmax(nnx.merge(graph, state)(x))
        return -jnp.mean(jnp.take_along_axis(log_probs, labels[:, None], axis=-1))

    # Propagated inputs correct each layer for the inputs that arrive from the layers already restored.
    restored, report = restore_params(
        loss, base, tuned, honesty=rows(keys[1]), task=rows(keys[2]), kernels="(?!readout).*", inputs="propagated"
    )
    print(report)
    model = nnx.merge(graph, restored)
    print(f"restored: {type(model).__name__}, logits {model(rows(keys[1])[0][0]).shape}")


if __name__ == "__main__":
    main()
