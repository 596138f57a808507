"""Every legal combination of method, inputs and form of the solve against the oracle, and the facts of the method."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcnr_jax.method.compensate import Pair, choose_form, compensate
from hcnr_jax.method.curvature import Inputs, Moments, init_moments, mean_moments, update_moments
from hcnr_jax.method.solve import Outcome
from tests.method import oracle

FAN_IN, FAN_OUT = 12, 5
LOCAL = [
    ("paper", "moments"), ("paper", "free"),
    ("exact", "moments"), ("exact", "dual"), ("exact", "free"),
    ("two_sided", "moments"), ("two_sided", "dual"), ("two_sided", "free"),
]  # fmt: skip
COMBINATIONS = [(*pair, "local") for pair in LOCAL] + [(*pair, "propagated") for pair in LOCAL if pair[0] != "paper"]
MASKS = {
    "one": np.arange(FAN_IN) == 4,
    "half": np.arange(FAN_IN) % 2 == 0,
    "all but one": np.arange(FAN_IN) != 3,
    "all": np.ones(FAN_IN, bool),
}
run = jax.jit(compensate, static_argnums=(0, 1))


class Case:
    """One kernel with its tokens: `tokens` honesty rows and `tokens` - 1 task rows, some channels outliers."""

    def __init__(self, seed=0, tokens=90, outliers=0, shifted=0.2):
        rng = np.random.default_rng(seed)
        mix = np.eye(FAN_IN) + 0.3 * rng.normal(size=(FAN_IN, FAN_IN))
        scale = np.where(np.arange(FAN_IN) < outliers, 1e4, 1.0)

        def draw(count):
            return ((rng.normal(size=(count, FAN_IN)) @ mix) * scale).astype(np.float32)

        self.x, self.z = draw(tokens), draw(tokens - 1)
        self.x_now = (self.x + shifted * draw(tokens)).astype(np.float32)
        self.z_now = (self.z + shifted * draw(tokens - 1)).astype(np.float32)
        self.base = rng.normal(size=(FAN_IN, FAN_OUT)).astype(np.float32)
        self.tuned = (self.base + 0.3 * rng.normal(size=self.base.shape)).astype(np.float32)

    def statistics(self, form, inputs):
        return tuple(
            statistic(form, now if inputs == "propagated" else aim, aim if inputs == "propagated" else None)
            for now, aim in ((self.x_now, self.x), (self.z_now, self.z))
        )

    def pair(self, mask):
        return Pair(
            jnp.asarray(self.base), jnp.asarray(self.tuned), jnp.asarray(np.flatnonzero(mask)),
            jnp.asarray(np.flatnonzero(~mask)),
        )  # fmt: skip

    def solve(self, method, form, inputs, mask, w=2.0, damping=0.01, runner=run):
        return runner(method, form, self.pair(mask), *self.statistics(form, inputs), w, damping)

    def expected(self, method, inputs, mask, w=2.0, damping=0.01):
        """The oracle's kernel, (in, out) as the package has it."""
        base, tuned = self.base.T, self.tuned.T
        if inputs == "propagated":
            w = 0.0 if method == "exact" else w
            return oracle.propagated(base, tuned, mask, self.x, self.x_now, self.z, self.z_now, w, damping).T
        moments = oracle.moment(self.x), oracle.moment(self.z)
        return oracle.compensate(base, tuned, mask, moments[0], method, damping, moments[1], w).T


def statistic(form, now, reference):
    if form != "moments":
        return Inputs(jnp.asarray(now), None if reference is None else jnp.asarray(now - reference))
    moments = init_moments(now.shape[1], reference is not None)
    mask = jnp.ones(len(now), bool)
    aim = None if reference is None else jnp.asarray(reference)
    return mean_moments(jax.jit(update_moments)(moments, jnp.asarray(now), aim, mask))


def check(case, method, form, inputs, mask, **options):
    """Weights within 1e-5 and, sharper, what compensation adds to plain restoration within 1e-4 of its own size."""
    kernel, info = case.solve(method, form, inputs, mask, **options)
    assert int(info.solve.outcome) == Outcome.OK
    expected = case.expected(method, inputs, mask, **options)
    assert np.linalg.norm(kernel - expected) < 1e-5 * np.linalg.norm(expected)
    correction = expected - np.where(mask[:, None], case.base, case.tuned)
    assert np.linalg.norm(kernel - expected) < 1e-4 * np.linalg.norm(correction) + 1e-6 * np.linalg.norm(expected)
    np.testing.assert_array_equal(np.asarray(kernel)[~mask], case.tuned[~mask])
    return kernel, info


@pytest.mark.parametrize(("method", "form", "inputs"), COMBINATIONS)
def test_every_combination_is_the_oracles(method, form, inputs):
    """With more tokens than inputs and with fewer, where the moments are singular but for damping."""
    for tokens in (90, 4):
        check(Case(tokens=tokens), method, form, inputs, MASKS["half"])


@pytest.mark.parametrize(("method", "form", "inputs"), COMBINATIONS)
def test_other_masks_are_the_oracles(method, form, inputs):
    if inputs == "propagated" and form != "moments":
        pytest.skip("the rows are taken before the inputs tell: local covers it")
    names = {"moments": ("one", "all but one"), "dual": ("all but one",), "free": ("one",)}[form]
    if (method, form) == ("two_sided", "moments"):
        names = (*names, "all")
    for name in names:
        check(Case(1), method, form, inputs, MASKS[name])


@pytest.mark.parametrize(("method", "form", "inputs"), COMBINATIONS)
def test_outlier_channels_are_the_oracles(method, form, inputs):
    """Two channels 1e4 times the others: their second moments are 1e8 times as large."""
    check(Case(2, outliers=2), method, form, inputs, MASKS["half"])


@pytest.mark.parametrize(("method", "form"), [*LOCAL[:5], ("two_sided", "moments")])
def test_an_empty_set_of_restored_neurons_leaves_tuned(method, form):
    case = Case()
    kernel, info = case.solve(method, form, "local", np.zeros(FAN_IN, bool))
    assert int(info.solve.outcome) == Outcome.OK
    np.testing.assert_array_equal(kernel, case.tuned)


@pytest.mark.parametrize(("method", "form"), [pair for pair in LOCAL if pair[0] != "two_sided"])
def test_everything_restored_gives_base(method, form):
    case = Case()
    kernel, info = case.solve(method, form, "local", MASKS["all"])
    assert int(info.solve.outcome) == Outcome.OK
    np.testing.assert_array_equal(kernel, case.base)
    assert float(info.distance_restored) == 0 and float(info.correction) == 0


def stacked(seeds, form="moments", **options):
    cases = [Case(seed, **options) for seed in seeds]
    pairs = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[case.pair(MASKS["half"]) for case in cases])
    honesty = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[case.statistics(form, "local")[0] for case in cases])
    return cases, pairs, honesty


@pytest.mark.parametrize("damping", [0.01, 0.3])
def test_exact_is_nearest_to_base_on_honesty_tokens(damping):
    """40 kernels at once: tr(E H E^T), H damped, is never larger for exact than for paper or plain restoration."""
    cases, pairs, honesty = stacked(range(40), tokens=30)
    kernels = {
        method: jax.jit(
            jax.vmap(lambda p, h, method=method: compensate(method, "moments", p, h, None, 0.0, damping)[0])
        )(pairs, honesty)
        for method in ("paper", "exact")
    }
    for index, case in enumerate(cases):
        h = oracle.damped(oracle.moment(case.x), damping)
        plain = np.where(MASKS["half"][:, None], case.base, case.tuned)
        distance = {
            name: oracle.distance(oracle.f64(kernel).T - case.base.T, h)
            for name, kernel in {**{m: kernels[m][index] for m in kernels}, "none": plain}.items()
        }
        assert distance["exact"] <= distance["paper"] * (1 + 1e-6)
        assert distance["exact"] <= distance["none"] * (1 + 1e-6)


def test_undamped_exact_is_still_nearer_than_plain_restoration():
    cases, pairs, honesty = stacked(range(10), tokens=60)
    kernels, info = jax.jit(jax.vmap(lambda p, h: compensate("exact", "moments", p, h, None, 0.0, 0.0)))(pairs, honesty)
    for index, case in enumerate(cases):
        h = oracle.moment(case.x)
        expected = case.expected("exact", "local", MASKS["half"], damping=0.0)
        assert np.linalg.norm(kernels[index] - expected) < 1e-4 * np.linalg.norm(expected)
        plain = np.where(MASKS["half"][:, None], case.base, case.tuned)
        found = oracle.distance(oracle.f64(kernels[index]).T - case.base.T, h)
        assert found <= oracle.distance(plain.T - case.base.T, h) * (1 + 1e-6)
        np.testing.assert_allclose(float(info.distance_restored[index]), found, rtol=1e-4)


@pytest.mark.parametrize(("form", "other"), [("moments", "moments"), ("free", "free"), ("free", "dual")])
def test_with_one_task_neuron_paper_is_exact(form, other):
    case, mask = Case(3), MASKS["all but one"]
    paper, exact = (case.solve(m, f, "local", mask)[0] for m, f in (("paper", form), ("exact", other)))
    np.testing.assert_allclose(paper, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["paper", "exact"])
def test_orthogonal_inputs_need_no_correction(method):
    case = Case(4)
    diagonal = Moments(
        jnp.asarray(90.0), jnp.diag(jnp.asarray(np.random.default_rng(0).random(FAN_IN) + 0.1, jnp.float32)), None, None
    )
    kernel, info = run(method, "moments", case.pair(MASKS["half"]), diagonal, None, 0.0, 0.01)
    np.testing.assert_array_equal(kernel, np.where(MASKS["half"][:, None], case.base, case.tuned))
    assert float(info.distance_restored) == float(info.distance_plain)


@pytest.mark.parametrize("form", ["moments", "dual", "free"])
@pytest.mark.parametrize("inputs", ["local", "propagated"])
def test_two_sided_without_task_weight_is_exact(form, inputs):
    case = Case(5)
    two, exact = (case.solve(m, form, inputs, MASKS["half"], w=0.0)[0] for m in ("two_sided", "exact"))
    np.testing.assert_allclose(two, exact, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("form", ["moments", "dual", "free"])
def test_two_sided_with_a_huge_task_weight_is_tuned(form):
    case = Case(6)
    kernel, info = case.solve("two_sided", form, "local", MASKS["half"], w=1e7)
    assert int(info.solve.outcome) == Outcome.OK
    assert np.linalg.norm(kernel - case.tuned) < 1e-4 * np.linalg.norm(case.tuned - case.base)


def test_the_task_weight_moves_from_base_outputs_to_tuned_outputs():
    case = Case(7)
    h, t = oracle.moment(case.x), oracle.moment(case.z)
    honesty, task = [], []
    for w in (0.0, 0.5, 2.0, 8.0, 100.0):
        kernel = oracle.f64(case.solve("two_sided", "moments", "local", MASKS["half"], w=w)[0])
        honesty.append(oracle.distance((kernel - case.base).T, h))
        task.append(oracle.distance((kernel - case.tuned).T, t))
    assert honesty == sorted(honesty) and task == sorted(task, reverse=True)


@pytest.mark.parametrize(("method", "form"), [pair for pair in LOCAL if pair[0] != "paper"])
def test_propagated_is_local_where_the_inputs_coincide(method, form):
    case = Case(8, shifted=0.0)
    local, propagated = (case.solve(method, form, inputs, MASKS["half"])[0] for inputs in ("local", "propagated"))
    np.testing.assert_allclose(propagated, local, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("method", "form", "inputs"), COMBINATIONS)
def test_the_order_of_tokens_does_not_matter(method, form, inputs):
    case, other = Case(9), Case(9)
    rng = np.random.default_rng(1)
    for names in (("x", "x_now"), ("z", "z_now")):
        order = rng.permutation(len(getattr(case, names[0])))
        for name in names:
            setattr(other, name, getattr(case, name)[order])
    first, second = (c.solve(method, form, inputs, MASKS["half"])[0] for c in (case, other))
    np.testing.assert_allclose(second, first, rtol=1e-4, atol=2e-6)


def test_eager_and_jit_agree():
    jitted, expected = Case().solve("two_sided", "moments", "local", MASKS["half"])
    eager, info = Case().solve("two_sided", "moments", "local", MASKS["half"], runner=compensate)
    np.testing.assert_allclose(eager, jitted, rtol=1e-4, atol=1e-5)
    for name, value, other in zip(info._fields[1:], info[1:], expected[1:], strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize(("method", "form"), [("two_sided", "moments"), ("two_sided", "free"), ("paper", "free")])
def test_vmap_and_jit_agree(method, form):
    cases = [Case(seed) for seed in range(3)]
    jitted = [case.solve(method, form, "local", MASKS["half"]) for case in cases]
    pairs, statistics = (
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *values)
        for values in (
            [case.pair(MASKS["half"]) for case in cases], [case.statistics(form, "local") for case in cases]
        )
    )  # fmt: skip
    mapped = jax.jit(jax.vmap(lambda p, s: compensate(method, form, p, *s, 2.0, 0.01)[0]))(pairs, statistics)
    for index, (kernel, _) in enumerate(jitted):
        np.testing.assert_allclose(mapped[index], kernel, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inputs", ["local", "propagated"])
@pytest.mark.parametrize("form", ["moments", "free"])
def test_the_distances_reported_are_undamped_and_of_the_reference_inputs(form, inputs):
    case, mask = Case(10), MASKS["half"]
    kernel, info = case.solve("exact", form, inputs, mask)
    h = oracle.moment(case.x)
    plain = np.where(mask[:, None], case.base, case.tuned)
    for found, weights in (
        (info.distance_tuned, case.tuned), (info.distance_plain, plain), (info.distance_restored, kernel)
    ):  # fmt: skip
        np.testing.assert_allclose(float(found), oracle.distance((oracle.f64(weights) - case.base).T, h), rtol=1e-4)
    correction = np.linalg.norm(kernel - plain) / np.linalg.norm(case.base)
    np.testing.assert_allclose(float(info.correction), correction, rtol=1e-4)


@pytest.mark.parametrize(("method", "form"), LOCAL)
def test_nan_in_the_inputs_is_reported(method, form):
    case = Case(11)
    case.x[3, 5] = np.nan
    _, info = case.solve(method, form, "local", MASKS["half"])
    assert int(info.solve.outcome) == Outcome.NOT_FINITE


@pytest.mark.parametrize(("method", "form"), LOCAL)
def test_nan_in_the_weights_is_reported(method, form):
    case = Case(11)
    case.tuned[1, 2] = np.nan
    _, info = case.solve(method, form, "local", MASKS["half"])
    assert int(info.solve.outcome) == Outcome.NOT_FINITE


@pytest.mark.parametrize(("method", "form"), [pair for pair in LOCAL if pair[1] != "dual"])
def test_without_damping_too_few_tokens_are_reported(method, form):
    """One token too few is told as surely as many; task tokens of weight 0 do not count."""
    for tokens in (4, 5) if form == "moments" else (4,):
        _, info = Case(12, tokens=tokens).solve(method, form, "local", MASKS["half"], w=0.0, damping=0.0)
        assert int(info.solve.outcome) == Outcome.NOT_POSITIVE_DEFINITE


def test_task_tokens_count_where_they_weigh():
    """4 honesty and 3 task tokens for 6 rows: too few with the first alone, enough with both."""
    _, info = Case(12, tokens=4).solve("two_sided", "moments", "local", MASKS["half"], w=2.0, damping=0.0)
    assert int(info.solve.outcome) == Outcome.OK


@pytest.mark.parametrize("method", ["paper", "exact", "two_sided"])
def test_inputs_that_are_all_zero_are_reported(method):
    case = Case(13)
    case.x[:] = 0
    case.z[:] = 0
    _, info = case.solve(method, "moments", "local", MASKS["half"])
    assert int(info.solve.outcome) != Outcome.OK


@pytest.mark.parametrize(
    ("method", "form"), [("paper", "moments"), ("exact", "moments"), ("exact", "dual"), ("exact", "free")]
)
def test_a_dead_channel_goes_back_to_base(method, form):
    """An input that is always 0 on honesty tokens has nothing to correct: with damping its row is base's."""
    case = Case(14)
    case.x[:, 2] = 0
    kernel, _ = check(case, method, form, "local", MASKS["half"])
    np.testing.assert_allclose(kernel[2], case.base[2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("method", "form"), LOCAL)
def test_outlier_channels_in_step_are_the_oracles(method, form):
    """Massive activations stand in a fixed ratio on one token; only damping tells such channels apart."""
    case = Case(15)
    case.x[:, :2] *= 1e-2
    case.x[0, 0], case.x[0, 2], case.x[0, 4] = 3e3, -2e3, 1e3
    check(case, method, form, "local", MASKS["half"])


def test_float64_is_exact_to_ten_digits():
    with jax.enable_x64(True):
        case = Case(16)
        for name in ("x", "x_now", "z", "z_now", "base", "tuned"):
            setattr(case, name, getattr(case, name).astype(np.float64))
        moments = tuple(
            Moments(
                jnp.asarray(90.0),
                *(jnp.asarray(m) for m in (oracle.moment(now), oracle.moment(now, now - aim), oracle.moment(aim))),
            )
            for now, aim in ((case.x_now, case.x), (case.z_now, case.z))
        )
        kernel, _ = run("two_sided", "moments", case.pair(MASKS["half"]), *moments, 2.0, 0.01)
        expected = case.expected("two_sided", "propagated", MASKS["half"])
        assert kernel.dtype == jnp.float64
        assert np.linalg.norm(kernel - expected) < 1e-10 * np.linalg.norm(expected)


def test_one_trace_serves_all_weights_and_dampings():
    traces = []

    def counted(pair, honesty, task, weight, damping):
        traces.append(1)
        return compensate("two_sided", "moments", pair, honesty, task, weight, damping)

    step = jax.jit(counted)
    for seed, (w, damping) in enumerate([(1.0, 0.01), (2.0, 0.1), (0.0, 0.0)]):
        case = Case(seed)
        step(case.pair(MASKS["half"]), *case.statistics("moments", "propagated"), w, damping)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("method", "solver", "tokens", "restored", "damping", "form"),
    [
        ("exact", "dense", 10, 11, 0.01, "dual"),
        ("two_sided", "dense", 11, 11, 0.01, "moments"),
        ("two_sided", "dense", 10, 11, 0.0, "moments"),
        ("paper", "dense", 10, 11, 0.01, "moments"),
        ("paper", "cg", 100, 11, 0.01, "free"),
        ("exact", "cg", 10, 11, 0.0, "free"),
    ],
)
def test_the_form_follows_from_tokens_rows_and_damping(method, solver, tokens, restored, damping, form):
    assert choose_form(method, solver, tokens, restored=restored, damping=damping) == form
