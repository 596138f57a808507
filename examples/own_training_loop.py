"""Shows how to score, select, restore and compensate inside the jit of your own training loop, on your own mesh.

    python examples/own_training_loop.py

The model is in Linen, its weights are sharded over a mesh, and optax trains it. Restoration is one more jitted step:
parameters keep their shardings, and nothing is gathered on a host.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hcnr_jax.method import fisher, neurons, priority, restore, select
from hcnr_jax.method.compensate import Pair, compensate
from hcnr_jax.method.curvature import Moments, input_moments

WIDTH, INNER, CLASSES, STEPS = 16, 32, 4, 20


class Model(nn.Module):
    """A model of your own: two residual blocks and a readout."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(2):
            x = x + nn.Dense(WIDTH, name=f"down_{i}")(jnp.tanh(nn.Dense(INNER, name=f"up_{i}")(x)))
        return nn.Dense(CLASSES, name="readout")(x)


def loss(params: Any, example: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Compute the mean cross-entropy of one example's tokens."""
    x, labels = example
    log_probs = jax.nn.log_softmax(Model().apply({"params": params}, x))
    return -jnp.mean(jnp.take_along_axis(log_probs, labels[:, None], axis=-1))


def shard(mesh: Mesh, params: Any) -> Any:
    """Shard by a rule of your own: split matrices over `model` by their last axis where it divides."""

    def one(leaf: jax.Array) -> jax.Array:
        split = leaf.ndim == 2 and leaf.shape[1] % mesh.shape["model"] == 0
        return jax.device_put(leaf, NamedSharding(mesh, P(None, "model") if split else P()))

    return jax.tree.map(one, params)


def train(params: Any, batch: Any) -> Any:
    """Train with a loop of your own."""
    optimiser = optax.adam(1e-2)

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        gradients = jax.grad(lambda p: jnp.mean(jax.vmap(loss, in_axes=(None, 0))(p, batch)))(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimiser.update(gradients, state)
            return optax.apply_updates(params, updates), state

    state = optimiser.init(params)
    for _ in range(STEPS):
        params, state = step(params, state)
    return params


def make_restore(paths: tuple[str, ...], ratio: float = 0.5) -> Any:
    """Make (base, tuned, honesty, task) -> (restored, masks), which restores the most honesty-critical inputs."""

    def scores(params: Any, batch: Any) -> neurons.Leaves:
        found = fisher.example_scores(loss, params, paths, batch)[0]["input"]
        return jax.tree.map(lambda leaf: leaf.mean(0), found)

    def moments(params: Any, batch: Any) -> dict[str, Moments]:
        mask = jnp.ones(batch[0].shape[:2], bool)
        count = jnp.asarray(float(mask.size))
        sums = input_moments(
            lambda p, b: Model().apply({"params": p}, b[0]), params, paths, batch=batch, token_mask=mask
        )
        return {path: Moments(count, total / count, None, None) for path, total in sums.items()}

    def run(base: Any, tuned: Any, honesty: Any, task: Any) -> tuple[Any, neurons.Leaves]:
        old, new = neurons.get_leaves(base, paths), neurons.get_leaves(tuned, paths)
        ranked = priority.priorities("kl", scores(tuned, honesty), scores(tuned, task), key=jax.random.key(0))
        masks = select.in_weight_mask(ranked, new, ratio, granularity="input")
        on_honesty, on_task = moments(base, honesty), moments(tuned, task)
        corrected = {}
        for path in paths:
            # The choice of neurons is data, their exact number is static, so that jit knows every shape.
            count = select.exact_count(ratio, old[path].shape[0])
            order = jnp.argsort(~masks[path], stable=True)
            pair = Pair(old[path], new[path], order[:count], order[count:])
            corrected[path], _ = compensate("two_sided", "moments", pair, on_honesty[path], on_task[path], 2.0, 0.01)
        plain = restore.restore(base, tuned, masks)
        return neurons.put_leaves(plain, corrected), masks

    return run


def main() -> None:
    """Run all steps on random data: the numbers have no meaning, the calls are those of a real run."""
    devices = np.asarray(jax.devices()[:4])
    mesh = Mesh(devices.reshape(-1, 2 if len(devices) > 1 else 1), ("data", "model"))
    keys = jax.random.split(jax.random.key(0), 3)
    rows = NamedSharding(mesh, P("data"))

    def data(key: jax.Array) -> Any:
        x = jax.random.normal(key, (32, 8, WIDTH))
        return jax.device_put((x, jax.random.randint(key, (32, 8), 0, CLASSES)), rows)

    base = shard(mesh, Model().init(keys[0], jnp.zeros((1, WIDTH)))["params"])
    honesty, task = data(keys[1]), data(keys[2])
    tuned = train(base, task)
    paths = neurons.find_kernels(tuned, r"(up|down)_\d/.*")
    shardings = jax.tree.map(lambda leaf: leaf.sharding, tuned)
    restored, masks = jax.jit(make_restore(paths), out_shardings=(shardings, None))(base, tuned, honesty, task)
    for name, params in (("base", base), ("tuned", tuned), ("restored", restored)):
        found = [float(jnp.mean(jax.vmap(loss, in_axes=(None, 0))(params, batch))) for batch in (honesty, task)]
        print(f"{name}: loss {found[0]:.3f} on honesty rows, {found[1]:.3f} on task rows")
    print(f"{sum(int(mask.sum()) for mask in masks.values())} neurons restored in {len(paths)} kernels")
    kept = all(jax.tree.leaves(jax.tree.map(lambda a, b: a.sharding == b.sharding, restored, tuned)))
    print(f"on {mesh.size} devices, every sharding kept: {kept}")


if __name__ == "__main__":
    jax.config.update(
        "jax_num_cpu_devices", 4
    )  # simulated devices, so that the example has a mesh without an accelerator
    main()
