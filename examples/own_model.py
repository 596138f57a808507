"""Shows how to restore your own Linen model in one call: `restore_params` needs its loss, its params and rows.

    python examples/own_model.py

The model is two residual blocks of nn.Dense and a readout. Nothing of it is known to hcnr_jax.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from hcnr_jax import restore_params

WIDTH, CLASSES = 16, 4


class Model(nn.Module):
    """Two blocks x + down(tanh(up(x))) and a readout."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(2):
            x = x + nn.Dense(WIDTH, name=f"down_{i}")(jnp.tanh(nn.Dense(2 * WIDTH, name=f"up_{i}")(x)))
        return nn.Dense(CLASSES, name="readout")(x)


def rows(key: jax.Array, count: int = 32, tokens: int = 8) -> tuple[jax.Array, jax.Array]:
    """Draw random inputs and labels in place of honesty or task data: one batch of examples."""
    return jax.random.normal(key, (count, tokens, WIDTH)), jax.random.randint(key, (count, tokens), 0, CLASSES)


def main() -> None:
    """Restore on random data: the numbers have no meaning, the call is that of a real run."""
    keys = jax.random.split(jax.random.key(0), 4)
    base = Model().init(keys[0], jnp.zeros((1, WIDTH)))["params"]
    tuned = jax.tree.map(lambda leaf: leaf + 0.05 * jax.random.normal(keys[1], leaf.shape), base)

    def loss(params: Any, example: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, labels = example
        log_probs = jax.nn.log_softmax(Model().apply({"params": params}, x))
        return -jnp.mean(jnp.take_along_axis(log_probs, labels[:, None], axis=-1))

    restored, report = restore_params(
        loss, base, tuned, honesty=rows(keys[2]), task=rows(keys[3]), kernels=r"(up|down)_\d/.*", cross_weight=0.5
    )
    print("kept kernels:", ", ".join(str(item.kernel) for item in report.kernels if item.restored))
    print(report)
    changed = sum(int(jnp.sum(a != b)) for a, b in zip(*map(jax.tree.leaves, (restored, tuned)), strict=True))
    print(f"{changed} of {sum(leaf.size for leaf in jax.tree.leaves(tuned))} weights changed")


if __name__ == "__main__":
    main()
