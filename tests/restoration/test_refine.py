"""`hcnr restore --refine`: the last step through the whole network, as a user meets it."""

import numpy as np
import pytest

from tests.restoration.worlds import call, make_world, neurons_of, record_of, restore, weights_of

GAUSS_NEWTON = ("--refine-solver", "gauss_newton")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("refine"))


def test_outputs_come_closer_and_only_restored_neurons_move(world, tmp_path) -> None:
    plain, refined = (
        restore(world, tmp_path / "plain"),
        restore(world, tmp_path / "refined", "--refine", 2, *GAUSS_NEWTON),
    )
    steps = record_of(refined)["refine"]
    weight = record_of(refined)["config"]["task_weight"]
    distances = [step["honesty_kl"] + weight * step["task_kl"] for step in steps]
    assert len(steps) == 3 and distances[2] < distances[1] < distances[0]
    assert steps[0]["length"] == 0 and "refine" not in record_of(plain)
    before, after, tuned = weights_of(plain), weights_of(refined), weights_of(world.tuned)
    chosen = neurons_of(refined)
    for name, weights in after.items():
        moved = np.zeros(weights.shape, bool)
        if name in chosen:
            moved[:, chosen[name]] = True
            assert not np.array_equal(weights[moved], before[name][moved])
        np.testing.assert_array_equal(weights[~moved], tuned[name][~moved])


def test_the_patch_holds_it_and_a_repetition_is_the_same_to_the_bit(world, tmp_path) -> None:
    first, second = (restore(world, tmp_path / name, "--refine", 1, *GAUSS_NEWTON) for name in ("first", "second"))
    assert call("apply", first / "hcnr.patch.safetensors", world.tuned, "--out", tmp_path / "applied").code == 0
    for other in (second, tmp_path / "applied"):
        for name, weights in weights_of(first).items():
            np.testing.assert_array_equal(weights_of(other)[name], weights)


@pytest.mark.parametrize("option", [("--stream",), ("--mesh", "data=1,model=2")])
def test_what_it_does_not_go_with_is_refused(world, tmp_path, option) -> None:
    ended = call(*world.arguments("--out", tmp_path / "out", "--refine", 1, *GAUSS_NEWTON, *option))
    assert ended.code == 2 and f"leave out {option[0]}" in ended.err


def test_the_plan_counts_it(world, tmp_path) -> None:
    ended = call(
        *world.arguments("--out", tmp_path / "out", "--refine", 1, *GAUSS_NEWTON, "--dry-run", "--compensation", "none")
    )
    assert ended.code == 0 and "--task-weight" not in ended.err
