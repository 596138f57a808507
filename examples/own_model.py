"""Shows how to score, select, restore and compensate your own Linen model, with pure functions on its params.

    python examples/own_model.py

The model is two residual blocks of nn.Dense, unrolled. The functions need three things of a model: the loss of one
example, how to run one block, and which kernels read the same input.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from hcnr_jax.method import fisher, neurons, priority, select
from hcnr_jax.method.sweep.run import BlockModel, Problem, Settings, Sweep

WIDTH, CLASSES = 16, 4


class Block(nn.Module):
    """A residual block: x + down(tanh(up(x)))."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x + nn.Dense(WIDTH, name="down")(jnp.tanh(nn.Dense(2 * WIDTH, name="up")(x)))


class Model(nn.Module):
    """Two blocks and a readout."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(2):
            x = Block(name=f"block_{i}")(x)
        return nn.Dense(CLASSES, name="readout")(x)


def loss(params: Any, example: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Compute the mean cross-entropy of one example's tokens."""
    x, labels = example
    log_probs = jax.nn.log_softmax(Model().apply({"params": params}, x))
    return -jnp.mean(jnp.take_along_axis(log_probs, labels[:, None], axis=-1))


def rows(key: jax.Array, count: int = 32, tokens: int = 8) -> tuple[jax.Array, jax.Array]:
    """Draw random inputs and labels in place of honesty or task data."""
    return jax.random.normal(key, (count, tokens, WIDTH)), jax.random.randint(key, (count, tokens), 0, CLASSES)


def main() -> None:
    """Run all steps on random data: the numbers have no meaning, the calls are those of a real run."""
    keys = jax.random.split(jax.random.key(0), 4)
    base = Model().init(keys[0], jnp.zeros((1, WIDTH)))["params"]
    tuned = jax.tree.map(lambda leaf: leaf + 0.05 * jax.random.normal(keys[1], leaf.shape), base)
    honesty, task = rows(keys[2]), rows(keys[3])

    paths = neurons.find_kernels(tuned, r"block_\d/.*")
    fisher.check_uses(loss, tuned, paths, example=jax.tree.map(lambda leaf: leaf[0], honesty))
    scorer = jax.jit(lambda params, batch: fisher.example_scores(loss, params, paths, batch)[0]["input"])
    scores = [jax.tree.map(lambda leaf: leaf.mean(0), scorer(tuned, batch)) for batch in (honesty, task)]

    kernels, originals = neurons.get_leaves(tuned, paths), neurons.get_leaves(base, paths)
    ranked = priority.priorities("kl", *scores, key=jax.random.key(0))
    candidates = select.in_weight_mask(ranked, kernels, 0.5, granularity="input")
    moved = {
        path: select.perturbation(originals[path], kernels[path], candidates[path], granularity="input")
        for path in paths
    }
    masks, kept = select.cross_weight_mask(candidates, moved, kernels, ratio=0.5)
    print("kept kernels:", ", ".join(map(str, kept)))

    model = BlockModel(
        num_blocks=2,
        embed=lambda params, batch: batch[0],
        apply=lambda block, hidden, batch, index: Block().apply({"params": block}, hidden),
        block_params=lambda params, index: params[f"block_{index}"],
        token_mask=lambda batch: jnp.ones(batch[0].shape[:2], bool),
        groups=(("up/kernel",), ("down/kernel",)),
        kernel=lambda index, path: neurons.Kernel(f"block_{index}/{path}", ()),
    )
    restored, problem = tuned, Problem(model, base, tuned, [honesty], [task])
    for result in Sweep(Settings(method="two_sided")).run(problem, masks):
        restored = neurons.put_leaves(restored, {result.kernel.path: result.weights})
        info = result.info
        print(
            f"{result.kernel}: honesty distance {info.distance_tuned:.4f} tuned, {info.distance_plain:.4f} put back, "
            f"{info.distance_restored:.4f} compensated"
        )
    changed = sum(int(jnp.sum(a != b)) for a, b in zip(*map(jax.tree.leaves, (restored, tuned)), strict=True))
    print(f"{changed} of {sum(leaf.size for leaf in jax.tree.leaves(tuned))} weights changed")


if __name__ == "__main__":
    main()
