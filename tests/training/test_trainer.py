"""The training loop against a hand-written optax loop; one compile, float32, the start left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hcnr_jax.errors import InputError, NumericalError
from hcnr_jax.training.trainer import TrainSettings, epoch_batches, kernels_only, schedule, train

KEY = jax.random.key(0)


def toy_params() -> dict:
    rng = np.random.default_rng(0)
    return {
        "layer": {"kernel": rng.normal(size=(3, 2)).astype(np.float32), "bias": np.zeros(2, np.float32)},
        "norm": {"scale": np.ones(3, np.float32)},
    }


def toy_rows(rows: int = 12) -> dict:
    rng = np.random.default_rng(1)
    weight = rng.integers(0, 3, size=rows).astype(np.float32)
    weight[0] = 2.0
    return {
        "x": rng.normal(size=(rows, 3)).astype(np.float32),
        "y": rng.normal(size=(rows, 2)).astype(np.float32),
        "weight": weight,
    }


def squares(params: dict, batch: dict, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weighted squared error, so that rows weigh differently."""
    scaled = batch["x"] * params["norm"]["scale"][None, :]
    error = scaled @ params["layer"]["kernel"] + params["layer"]["bias"][None, :] - batch["y"]
    return jnp.sum(jnp.sum(error**2, axis=1) * batch["weight"]), jnp.sum(batch["weight"])


SETTINGS = TrainSettings(
    learning_rate=0.05,
    steps=30,
    warmup_steps=5,
    batch_size=4,
    weight_decay=0.1,
    b2=0.95,
    clip_norm=0.5,
    end_fraction=0.1,
)


def by_hand(settings: TrainSettings, batches, decayed) -> tuple[dict, list[float]]:
    """The same run written out in optax, without jit."""
    rates = optax.warmup_cosine_decay_schedule(0.0, 0.05, 5, 30, 0.005)
    transform = optax.chain(
        optax.clip_by_global_norm(0.5), optax.adamw(rates, b1=0.9, b2=0.95, weight_decay=0.1, mask=decayed)
    )
    params = jax.tree.map(jnp.asarray, toy_params())
    losses = []
    with jax.numpy_dtype_promotion("standard"):
        state = transform.init(params)
        for step in range(settings.steps):
            batch = batches(step)

            def loss(p, batch=batch):
                total, weight = squares(p, batch, KEY)
                return total / weight

            value, gradient = jax.value_and_grad(loss)(params)
            updates, state = transform.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            losses.append(float(value))
    return params, losses


@pytest.mark.parametrize("microbatch", [None, 2, 4])
def test_equals_a_hand_written_optax_loop(microbatch: int | None) -> None:
    settings = TrainSettings(**{**SETTINGS.__dict__, "microbatch": microbatch})
    batches = epoch_batches(toy_rows(), 4, seed=3)
    params, log = train(squares, toy_params(), batches, settings=settings, key=KEY)
    mask = {"layer": {"kernel": True, "bias": False}, "norm": {"scale": False}}
    expected, losses = by_hand(settings, batches, mask)
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6), params, expected)
    np.testing.assert_allclose(log.losses, losses, rtol=1e-5)


def test_compiles_once_and_draws_a_new_key_each_step() -> None:
    traces, draws = [], []

    def noisy(params, batch, key):
        traces.append(1)
        jax.debug.callback(lambda value: draws.append(float(value)), jax.random.uniform(key))
        return squares(params, batch, key)

    train(noisy, toy_params(), epoch_batches(toy_rows(), 4, 0), settings=TrainSettings(steps=7, batch_size=4), key=KEY)
    jax.effects_barrier()
    assert len(traces) == 1
    assert len(set(draws)) == 7


def test_trains_in_float32_and_leaves_the_start_alone() -> None:
    start = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), toy_params())
    before = jax.tree.map(np.array, start)
    params, _ = train(
        squares, start, epoch_batches(toy_rows(), 4, 0), settings=TrainSettings(steps=3, batch_size=4), key=KEY
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    jax.tree.map(np.testing.assert_array_equal, start, before)  # a donated buffer would raise here


def test_same_seed_same_weights_and_another_seed_others() -> None:
    runs = [
        train(squares, toy_params(), epoch_batches(toy_rows(), 4, seed), settings=SETTINGS, key=KEY)[0]["layer"][
            "kernel"
        ]
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_frozen_arrays_travel_as_arguments() -> None:
    frozen = jnp.arange(3, dtype=jnp.float32)
    seen = []

    def loss(fixed, params, batch, key):
        seen.append(isinstance(fixed, jax.core.Tracer))
        return jnp.sum((params["w"] - fixed) ** 2), jnp.float32(1.0)

    objective = jax.tree_util.Partial(loss, frozen)
    settings = TrainSettings(learning_rate=0.1, steps=200, batch_size=1)
    params, _ = train(objective, {"w": jnp.zeros(3)}, epoch_batches(toy_rows(), 1, 0), settings=settings, key=KEY)
    assert seen == [True]
    np.testing.assert_allclose(params["w"], frozen, atol=0.02)


def test_on_step_sees_every_step_and_the_log_agrees() -> None:
    seen = []
    _, log = train(
        squares,
        toy_params(),
        epoch_batches(toy_rows(), 4, 0),
        settings=SETTINGS,
        key=KEY,
        on_step=lambda step, info: seen.append((step, info)),
    )
    assert [step for step, _ in seen] == list(range(30))
    np.testing.assert_array_equal(log.losses, np.array([float(info.loss) for _, info in seen], np.float32))
    assert log.gradient_norms.shape == (30,) and (log.gradient_norms > 0).all()


@pytest.mark.parametrize(("steps", "bad"), [(60, 52), (3, 2), (50, 49)])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(steps: int, bad: int) -> None:
    rows = toy_rows(1)

    def batches(step: int) -> dict:
        return rows if step != bad else {**rows, "y": rows["y"] * np.float32(np.nan)}

    with pytest.raises(NumericalError, match=rf"training loss is nan at step {bad}"):
        train(squares, toy_params(), batches, settings=TrainSettings(steps=steps, batch_size=1), key=KEY)


def test_the_schedule_rises_then_falls_to_its_end() -> None:
    rates = [float(schedule(SETTINGS)(step)) for step in (0, 1, 5, 30)]
    np.testing.assert_allclose(rates, [0.0, 0.01, 0.05, 0.005], rtol=1e-5)
    constant_start = schedule(TrainSettings(learning_rate=0.3, steps=10))
    assert float(constant_start(0)) == pytest.approx(0.3)


def test_decay_reaches_kernels_alone_unless_told() -> None:
    assert kernels_only(toy_params()) == {"layer": {"kernel": True, "bias": False}, "norm": {"scale": False}}

    def still(params, batch, key):
        return 0.0 * jnp.sum(params["norm"]["scale"]), jnp.float32(1.0)

    for everything in (False, True):
        settings = TrainSettings(
            learning_rate=0.1, steps=5, batch_size=1, weight_decay=0.5, decay_everything=everything
        )
        params, _ = train(still, toy_params(), epoch_batches(toy_rows(), 1, 0), settings=settings, key=KEY)
        assert (params["norm"]["scale"][0] < 1.0) == everything
        assert abs(float(params["layer"]["kernel"][0, 0])) < abs(float(toy_params()["layer"]["kernel"][0, 0]))


def test_batches_are_full_and_every_epoch_shows_every_row_once() -> None:
    rows = {"x": np.arange(10)}
    batches = epoch_batches(rows, 4, seed=5)
    seen = np.concatenate([batches(step)["x"] for step in range(10)])
    for epoch in range(4):
        np.testing.assert_array_equal(np.sort(seen[10 * epoch : 10 * epoch + 10]), np.arange(10))
    assert not np.array_equal(seen[:10], seen[10:20])
    np.testing.assert_array_equal(batches(2)["x"], epoch_batches(rows, 4, seed=5)(2)["x"])  # no memory of earlier steps


def test_a_batch_may_hold_several_epochs() -> None:
    batches = epoch_batches({"x": np.arange(3)}, 8, seed=0)
    seen = np.concatenate([batches(step)["x"] for step in (0, 1, 2)])
    assert np.bincount(seen).tolist() == [8, 8, 8]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("learning_rate", 0.0, "learning_rate is 0.0, expected a number above 0"),
        ("steps", 0, "steps is 0, expected at least 1"),
        ("warmup_steps", 1000, "expected from 0 to steps - 1 = 999"),
        ("microbatch", 5, "microbatch is 5, expected a divisor of batch_size = 32"),
        ("clip_norm", 0.0, "expected above 0, or none"),
        ("b2", 1.0, r"expected in \[0, 1\)"),
        ("weight_decay", float("nan"), "expected 0 or more"),
    ],
)
def test_impossible_settings_are_refused_by_name(field: str, value: float, words: str) -> None:
    with pytest.raises(InputError, match=words):
        TrainSettings(**{field: value})


def test_no_rows_are_refused() -> None:
    with pytest.raises(InputError, match="no rows"):
        epoch_batches({"x": np.zeros((0, 2))}, 4, 0)
