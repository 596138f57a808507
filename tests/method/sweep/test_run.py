"""The whole sweep against the float64 oracle, on the Decoder and on models that are not ours."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from hcnr_jax.data import Batch
from hcnr_jax.errors import InputError
from hcnr_jax.method.neurons import Kernel, get_leaves
from hcnr_jax.method.solve import Outcome
from hcnr_jax.method.sweep.model import steps_of
from hcnr_jax.method.sweep.run import Problem, Settings, Sweep, sweep_cases
from hcnr_jax.models import spec_from_config
from hcnr_jax.models.decoder import abstract_params
from hcnr_jax.models.families.llama import GROUPS
from hcnr_jax.restoration.decoder_blocks import block_model
from tests.method import oracle, toys
from tests.method.decoder_oracle import decoder_block
from tests.tiny import tiny_config

TOYS = {"scanned": toys.Scanned(2), "unrolled": toys.Unrolled(2)}
HONESTY = [toys.make_rows(0), toys.make_rows(1)]
TASK = [toys.make_rows(2), toys.make_rows(3)]
LOCAL, PROPAGATED = {"inputs": "local"}, {"inputs": "propagated"}


@cache
def models(name):
    """(model, base, tuned) of a toy; tuned differs in every leaf, norms and embedding too."""
    base = toys.make_params(TOYS[name], 1)
    return TOYS[name], base, toys.moved(base, 2)


@cache
def sweepable(name):
    return toys.block_model(TOYS[name])


def make_masks(model, share=0.5, dropped=((0, "second/kernel"), (1, "first/kernel")), seed=0):
    """{path: mask} with the same count in every kept kernel of a leaf; the `dropped` kernels restore nothing."""
    rng = np.random.default_rng(seed)
    blocks = []
    for index in range(model.depth):
        block = {}
        for path in toys.PATHS:
            fan_in = toys.INNER if path == "last/kernel" else toys.WIDTH
            count = {"one": 1, "all but one": fan_in - 1, "all": fan_in}.get(share) or round(share * fan_in)
            mask = np.zeros(fan_in, bool)
            mask[rng.permutation(fan_in)[:count]] = True
            block[path] = mask & ((index, path) not in dropped)
        blocks.append(block)
    return blocks


def as_leaves(model, blocks):
    if isinstance(model, toys.Scanned):
        return {f"blocks/{path}": jnp.stack([block[path] for block in blocks]) for path in toys.PATHS}
    return {
        f"block_{index}/{path}": jnp.asarray(block[path]) for index, block in enumerate(blocks) for path in toys.PATHS
    }


def run(name, blocks, honesty=HONESTY, task=TASK, base=None, tuned=None, **settings):
    model, old, new = models(name)
    base, tuned = base or old, tuned or new
    results = list(
        Sweep(Settings(**settings)).run(Problem(sweepable(name), base, tuned, honesty, task), as_leaves(model, blocks))
    )
    for result in results:
        assert int(result.info.solve.outcome) == Outcome.OK, (result.kernel, result.info)
    return {result.kernel: np.asarray(result.weights) for result in results}


def expected(name, blocks, honesty=HONESTY, task=TASK, base=None, tuned=None, **settings):
    model, old, new = models(name)
    base, tuned = base or old, tuned or new
    hidden, valid = toys.numpy_embed(base, honesty)
    kept = [{path: mask for path, mask in block.items() if mask.any()} for block in blocks]
    found = oracle.sweep(
        toys.numpy_block, toys.GROUPS, toys.numpy_blocks(model, base), toys.numpy_blocks(model, tuned), kept,
        (hidden, toys.numpy_embed(tuned, honesty)[0], valid), toys.numpy_embed(tuned, task),
        settings.get("method", "two_sided"), settings.get("inputs", "propagated"), settings.get("task_weight", 2.0),
        settings.get("damping", 0.01), settings.get("moments_at", "base"),
    )  # fmt: skip
    return {sweepable(name).kernel(index, path): weights for (index, path), weights in found.items()}


def agree(found, wanted, tolerance=1e-4):
    assert list(found) == list(wanted), "the same kernels in the order data flows"
    for kernel, weights in wanted.items():
        error = np.linalg.norm(oracle.f64(found[kernel]) - weights) / np.linalg.norm(weights)
        assert error < tolerance, (kernel, error)


COMBINATIONS = [
    {"method": "paper", **LOCAL}, {"method": "paper", "solver": "cg", **LOCAL},
    {"method": "exact", **LOCAL}, {"method": "exact", **PROPAGATED},
    {"method": "exact", "moments_at": "tuned", **LOCAL},
    {"method": "two_sided", **LOCAL}, {"method": "two_sided", **PROPAGATED},
    {"method": "two_sided", "solver": "cg", **PROPAGATED},
    {"method": "two_sided", "task_weight": 0.1, "damping": 0.2, **PROPAGATED},
]  # fmt: skip


@pytest.mark.parametrize("settings", COMBINATIONS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_a_sweep_is_the_oracles(settings):
    model = models("scanned")[0]
    blocks = make_masks(model)
    agree(run("scanned", blocks, **settings), expected("scanned", blocks, **settings))


@pytest.mark.parametrize(
    "settings", [{"method": "exact", **LOCAL}, PROPAGATED], ids=["exact local", "two_sided propagated"]
)
def test_a_sweep_over_an_unrolled_model_is_the_oracles(settings):
    blocks = make_masks(models("unrolled")[0])
    agree(run("unrolled", blocks, **settings), expected("unrolled", blocks, **settings))


@pytest.mark.parametrize("inputs", ["local", "propagated"])
def test_with_fewer_tokens_than_rows_the_dual_is_the_oracles(inputs):
    one, other = (
        toys.Rows(*(leaf[:1] for leaf in toys.make_rows(5))),
        toys.Rows(*(leaf[:1] for leaf in toys.make_rows(6))),
    )
    short = [toys.Rows(row.tokens, row.mask & (np.arange(7) < 3)[None]) for row in (one, other)]
    blocks = make_masks(
        models("scanned")[0], 0.9, dropped=((0, "first/kernel"), (0, "second/kernel"), (1, "first/kernel"))
    )
    settings = {"honesty": short[:1], "task": short[1:], "inputs": inputs}
    model, base, tuned = models("scanned")
    results = list(
        Sweep(Settings(inputs=inputs)).run(
            Problem(sweepable("scanned"), base, tuned, *([row] for row in short)), as_leaves(model, blocks)
        )
    )
    assert {str(result.kernel): result.form for result in results} == {
        "blocks/last/kernel[0]": "dual", "blocks/second/kernel[1]": "moments", "blocks/last/kernel[1]": "dual",
    }  # fmt: skip
    assert all(result.tokens == 6 for result in results)
    agree({result.kernel: result.weights for result in results}, expected("scanned", blocks, **settings))


@pytest.mark.parametrize("share", ["one", "all but one", "all"])
def test_masks_at_the_edges(share):
    blocks = make_masks(models("scanned")[0], share)
    agree(run("scanned", blocks), expected("scanned", blocks))


def test_everything_restored_by_exact_local_is_base():
    model, base, _ = models("scanned")
    found = run("scanned", make_masks(model, "all"), method="exact", **LOCAL)
    for kernel, weights in found.items():
        np.testing.assert_array_equal(weights, get_leaves(base, [kernel.path])[kernel.path][kernel.index])


def test_only_kept_kernels_come_out_and_unrestored_rows_keep_their_bits():
    model, _, tuned = models("scanned")
    blocks = make_masks(model)
    found = run("scanned", blocks)
    assert list(found) == [
        Kernel("blocks/first/kernel", (0,)), Kernel("blocks/last/kernel", (0,)),
        Kernel("blocks/second/kernel", (1,)), Kernel("blocks/last/kernel", (1,)),
    ]  # fmt: skip
    for kernel, weights in found.items():
        mask = np.asarray(as_leaves(model, blocks)[kernel.path][kernel.index])
        old = np.asarray(get_leaves(tuned, [kernel.path])[kernel.path][kernel.index])
        np.testing.assert_array_equal(weights[~mask], old[~mask])
        assert not np.any(np.all(weights[mask] == old[mask], axis=1))


def test_no_mask_no_result_and_kernels_without_a_mask_are_left():
    model, base, tuned = models("scanned")
    sweep, problem = Sweep(Settings()), Problem(sweepable("scanned"), base, tuned, HONESTY, TASK)
    nothing = as_leaves(model, make_masks(model, dropped=[(i, path) for i in range(2) for path in toys.PATHS]))
    assert list(sweep.run(problem, nothing)) == []
    first = {"blocks/first/kernel": as_leaves(model, make_masks(model, dropped=()))["blocks/first/kernel"]}
    found = [result.kernel for result in sweep.run(problem, first)]
    assert found == [Kernel("blocks/first/kernel", (0,)), Kernel("blocks/first/kernel", (1,))]


def test_propagated_is_local_where_nothing_before_differs():
    """Base and tuned share embedding and norms, so the first group reads the same in every model; later ones do not."""
    model, base, _ = models("scanned")
    tuned = toys.moved(base, 4, only=lambda path: path.endswith("kernel"))
    blocks = make_masks(model, dropped=())
    local, propagated = (run("scanned", blocks, tuned=tuned, inputs=inputs) for inputs in ("local", "propagated"))
    for kernel in local:
        same = np.allclose(local[kernel], propagated[kernel], rtol=1e-4, atol=1e-5)
        assert same == (kernel.index == (0,) and kernel.path != "blocks/last/kernel"), kernel


def test_the_order_and_the_size_of_batches_do_not_matter():
    blocks = make_masks(models("scanned")[0])
    whole = run("scanned", blocks)
    agree(run("scanned", blocks, HONESTY[::-1], TASK[::-1]), whole, 1e-5)
    joined = [[toys.Rows(*(np.concatenate(leaves) for leaves in zip(*side, strict=True)))] for side in (HONESTY, TASK)]
    agree(run("scanned", blocks, *joined), whole, 1e-5)


def test_eight_devices_give_the_same_weights():
    joined = [toys.make_rows(seed, 8) for seed in (0, 2)]
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    blocks = make_masks(models("scanned")[0])
    sharded = [[jax.device_put(side, rows)] for side in joined]
    replicate = jax.NamedSharding(mesh, jax.P())
    base, tuned = (jax.device_put(params, replicate) for params in models("scanned")[1:])
    found = run("scanned", blocks, *sharded, base=base, tuned=tuned)
    agree(found, run("scanned", blocks, *([side] for side in joined)), 1e-5)


def test_compilations_do_not_grow_with_depth():
    def compilations(depth):
        model, traces, compiled = toys.Scanned(depth), [], []
        params = toys.make_params(model, 0)
        tuned, masks = toys.moved(params, 1), as_leaves(model, make_masks(model, dropped=()))

        def listen(event, duration, **_):
            if event.endswith("backend_compile_duration"):
                compiled.append(event)

        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            counted = toys.block_model(model, lambda: traces.append(1))
            sweep, problem = Sweep(Settings(method="exact")), Problem(counted, params, tuned, HONESTY, TASK)
            assert len(list(sweep.run(problem, masks))) == 3 * depth
            first = len(traces), len(compiled)
            list(sweep.run(problem, masks))
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)
        assert (len(traces), len(compiled)) == first, "a second run compiles nothing"
        return first

    shallow, deep = compilations(3), compilations(6)
    assert deep[0] == shallow[0]
    assert 0 < deep[1] <= shallow[1], "the second may find small operations of the first compiled already"


def test_bfloat16_weights_are_solved_in_float32_and_rounded_once():
    model, base, tuned = models("scanned")
    stored = [jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params) for params in (base, tuned)]
    wide = [jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params) for params in stored]
    computing = toys.block_model(toys.Scanned(2, jnp.float32))
    masks = {"blocks/last/kernel": as_leaves(model, make_masks(model))["blocks/last/kernel"]}
    found, want = (
        list(Sweep(Settings(method="exact", **LOCAL)).run(Problem(computing, *params, HONESTY, TASK), masks))
        for params in (stored, wide)
    )
    for low, high in zip(found, want, strict=True):
        assert low.weights.dtype == jnp.bfloat16 and low.kernel == high.kernel
        np.testing.assert_allclose(oracle.f64(low.weights), oracle.f64(high.weights), rtol=2**-8, atol=1e-6)


def test_a_nan_weight_is_reported_where_it_matters():
    model, base, tuned = models("scanned")
    broken = jax.tree.map(lambda leaf: leaf, tuned)
    broken["blocks"]["first"]["kernel"] = broken["blocks"]["first"]["kernel"].at[0, 0, 0].set(jnp.nan)
    masks = as_leaves(model, make_masks(model))
    result = next(Sweep(Settings()).run(Problem(sweepable("scanned"), base, broken, HONESTY, TASK), masks))
    assert int(result.info.solve.outcome) == Outcome.NOT_FINITE


def test_settings_without_a_sweep_are_refused():
    with pytest.raises(InputError, match="method 'none' has nothing to solve: call `restore`"):
        Sweep(Settings(method="none"))
    with pytest.raises(InputError, match="method 'paper' has no propagated form: use inputs 'local'"):
        Sweep(Settings(method="paper", inputs="propagated"))


def test_progress_is_told_block_by_block():
    model, base, tuned = models("scanned")
    seen = []
    list(
        Sweep(Settings(), seen.append).run(
            Problem(sweepable("scanned"), base, tuned, HONESTY, TASK), as_leaves(model, make_masks(model))
        )
    )
    assert seen == [0, 1]


# ---------------------------------------------------------------- the Decoder

SPEC = spec_from_config(
    tiny_config(
        "qwen2", hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=4, vocab_size=toys.VOCAB
    ),
    "config.json",
)


def decoder_params(seed):
    rng = np.random.default_rng(seed)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.4 + (path[-1].key == "scale"), jnp.float32),
        abstract_params(SPEC),
    )


def layers(params):
    flat = flatten_dict(params["blocks"], sep="/")
    return [{path: np.asarray(leaf[i], np.float64) for path, leaf in flat.items()} for i in range(SPEC.num_layers)]


def embedded(params, batches):
    tokens = np.concatenate([batch.tokens for batch in batches])
    return np.asarray(params["embed"]["embedding"], np.float64)[tokens]


def test_the_decoder_is_swept_as_the_oracle_says():
    base = decoder_params(0)
    tuned = toys.moved(base, 1)
    honesty, task = ([Batch(rows.tokens, rows.mask, rows.mask) for rows in side] for side in (HONESTY, TASK))
    rng = np.random.default_rng(2)
    paths = [path for group in GROUPS for path in group]
    kept = {(0, "attention/q/kernel"), (0, "attention/v/kernel"), (0, "mlp/gate/kernel"), (1, "attention/k/kernel"),
            (1, "attention/o/kernel"), (1, "mlp/down/kernel")}  # fmt: skip
    blocks = []
    for index in range(SPEC.num_layers):
        block = {}
        for path in paths:
            fan_in = get_leaves(base["blocks"], [path])[path].shape[1]
            mask = np.arange(fan_in) < fan_in // 2
            block[path] = rng.permutation(mask) & ((index, path) in kept)
        blocks.append(block)
    masks = {f"blocks/{path}": jnp.stack([block[path] for block in blocks]) for path in paths}
    found = list(Sweep(Settings()).run(Problem(block_model(SPEC), base, tuned, honesty, task), masks))
    valid = np.concatenate([batch.attention_mask for batch in honesty])
    wanted = oracle.sweep(
        decoder_block(SPEC), GROUPS, layers(base), layers(tuned),
        [{path: mask for path, mask in block.items() if mask.any()} for block in blocks],
        (embedded(base, honesty), embedded(tuned, honesty), valid),
        (embedded(tuned, task), np.concatenate([batch.attention_mask for batch in task])),
        "two_sided", "propagated", 2.0,
    )  # fmt: skip
    assert {(r.kernel.index[0], r.kernel.path.removeprefix("blocks/")) for r in found} == kept
    agree(
        {result.kernel: result.weights for result in found},
        {Kernel(f"blocks/{path}", (index,)): weights for (index, path), weights in wanted.items()},
    )


def test_many_cases_are_the_single_ones_for_one_walk():
    model, base, tuned = models("scanned")
    cases = [
        (Settings(method=method, inputs=inputs, damping=damping, task_weight=weight, moments_at=at),
         as_leaves(model, make_masks(model, share, seed=seed)))
        for seed, (method, inputs, damping, weight, at, share) in enumerate([
            ("exact", "local", 0.01, 2.0, "base", 0.5),
            ("paper", "local", 0.1, 2.0, "base", 0.3),
            ("two_sided", "local", 0.01, 0.5, "base", 0.5),
            ("exact", "local", 0.01, 2.0, "tuned", 0.5),
            ("two_sided", "propagated", 0.01, 2.0, "base", 0.5),
        ])
    ]  # fmt: skip
    together = list(sweep_cases(Problem(sweepable("scanned"), base, tuned, HONESTY, TASK), cases))
    for place, (settings, masks) in enumerate(cases):
        alone = list(Sweep(settings).run(Problem(sweepable("scanned"), base, tuned, HONESTY, TASK), masks))
        found = [result for number, result in together if number == place]
        assert [r.kernel for r in found] == [r.kernel for r in alone]
        for one, other in zip(found, alone, strict=True):
            np.testing.assert_allclose(one.weights, other.weights, rtol=1e-6, atol=1e-7)
            assert float(one.info.distance_restored) == pytest.approx(float(other.info.distance_restored), rel=1e-5)


def test_local_cases_share_one_forward_pass_of_each_block():
    model, walks = toys.Scanned(3), []
    params = toys.make_params(model, 0)
    tuned, masks = toys.moved(params, 1), as_leaves(model, make_masks(model, dropped=()))
    counted = toys.block_model(model)
    counted = counted._replace(block_params=lambda p, i: walks.append(i) or toys.block_model(model).block_params(p, i))
    cases = [(Settings(method="exact", damping=10.0**-k, **LOCAL), masks) for k in range(1, 6)]
    assert len(list(sweep_cases(Problem(counted, params, tuned, HONESTY, TASK), cases))) == 5 * 3 * len(toys.PATHS)
    assert walks == [0, 0, 1, 1, 2, 2], "base and tuned are asked for each block once, whatever the number of cases"


def test_cases_that_differ_in_kept_kernels_alone_share_their_solutions(monkeypatch):
    from hcnr_jax.method.sweep import local

    model, base, tuned = models("scanned")
    all_kept, some = (
        make_masks(model, dropped=dropped) for dropped in ((), ((0, "second/kernel"), (1, "last/kernel")))
    )
    settings, solved, solve = Settings(method="exact", **LOCAL), [], local.solve_block_kernel
    monkeypatch.setattr(local, "solve_block_kernel", lambda *args, **named: solved.append(1) or solve(*args, **named))
    cases = [(settings, as_leaves(model, all_kept)), (settings, as_leaves(model, some))]
    found = list(sweep_cases(Problem(sweepable("scanned"), base, tuned, HONESTY, TASK), cases))
    assert len(found) == 6 + 4 and len(solved) == 6
    alone = list(Sweep(settings).run(Problem(sweepable("scanned"), base, tuned, HONESTY, TASK), cases[1][1]))
    for one, other in zip([result for number, result in found if number == 1], alone, strict=True):
        assert one.kernel == other.kernel
        np.testing.assert_array_equal(one.weights, other.weights)


@pytest.mark.parametrize("method", ["exact", "two_sided"])
def test_a_sweep_that_keeps_no_inputs_gives_the_same_bits(method):
    model, base, tuned = models("scanned")
    masks = as_leaves(model, make_masks(model, dropped=((0, "second/kernel"),)))
    problem = Problem(sweepable("scanned"), base, tuned, HONESTY, TASK)
    sweeps = [Sweep(Settings(method=method), keep_inputs=keep) for keep in (True, False)]
    found = [list(sweep.run(problem, masks)) for sweep in sweeps]
    assert len(found[0]) == 5
    for one, other in zip(*found, strict=True):
        assert one.kernel == other.kernel
        np.testing.assert_array_equal(one.weights, other.weights)


def test_a_propagated_sweep_goes_through_each_block_once():
    """The arithmetic of all compiled pieces is that of one pass of each model, whatever the number of groups."""
    model = toys.Scanned(1)
    base = toys.make_params(model, 1)
    block, rows = toys.block_model(model).block_params(base, 0), toys.make_rows(0)
    sweepable = toys.block_model(model)
    steps, hidden = steps_of(sweepable), jnp.asarray(toys.numpy_embed(base, [rows])[0], jnp.float32)

    def dots(function, *args):
        return str(jax.make_jaxpr(function)(*args)).count("dot_general")

    read = {}
    for group in toys.GROUPS:
        read[group[0]] = steps.capture(group[0], block, hidden, rows, 0, read)
    once = dots(lambda *args: sweepable.apply(*args), block, hidden, rows, 0)

    def live(function, *args):
        return jax.jit(function).lower(*args).compile().as_text().count(" dot(")

    pieces = live(lambda b, h, g: steps.finish(b, h, rows, 0, g), block, hidden, read) + sum(
        live(lambda b, h, g, first=group[0]: steps.capture(first, b, h, rows, 0, g), block, hidden, before)
        for group, before in zip(toys.GROUPS, ({}, {"first/kernel": read["first/kernel"]}), strict=True)
    )
    assert pieces == once == 3
