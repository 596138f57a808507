"""Counted FLOPs against XLA's own count of the same programs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcnr_jax.bench import roofline
from hcnr_jax.bench.model_shapes import SHAPES, spec_of
from hcnr_jax.bench.sections.fisher import plain_loss, random_batch
from hcnr_jax.bench.timing import compile_program
from hcnr_jax.method.compensate import Pair, compensate
from hcnr_jax.method.curvature import Moments
from hcnr_jax.method.fisher import input_scores
from hcnr_jax.method.neurons import get_leaves, put_leaves
from hcnr_jax.models import Decoder, abstract_params, init_params
from hcnr_jax.models.families.llama import LLAMA

ROWS, TOKENS = 4, 24


@pytest.fixture(scope="module")
def spec():
    """One layer, since XLA counts a loop's body once; the shape tiny's sizes else."""
    return dataclasses.replace(spec_of("tiny"), num_layers=1, layer_windows=(None,))


@pytest.fixture(scope="module")
def params(spec):
    return init_params(spec, jax.random.key(0))


def test_a_forward_pass(spec, params) -> None:
    batch = random_batch(spec, ROWS, TOKENS, seed=0)
    decoder = Decoder(spec, remat=False)
    program = compile_program(lambda p, b: decoder.apply({"params": p}, b.tokens, b.attention_mask), params, batch)
    # Norms, rotations and softmax are the rest: a tenth at these sizes, nothing at a model's.
    assert roofline.forward_flops(spec, ROWS, TOKENS) == pytest.approx(program.flops, rel=0.1)


@pytest.mark.parametrize("window", [TOKENS, 8])
def test_a_plain_backward_pass(spec, params, window) -> None:
    batch, loss = random_batch(spec, ROWS, TOKENS, seed=0), plain_loss(spec, jnp.float32, False, window=window)

    def gradients(p, b):
        return jax.grad(lambda kernels: loss(put_leaves(p, kernels), b))(get_leaves(p, LLAMA.kernels))

    program = compile_program(gradients, params, batch)
    counted = roofline.backward_flops(spec, ROWS, TOKENS, weight_gradients=True, logits=window)
    assert counted == pytest.approx(program.flops, rel=0.1)
    assert roofline.backward_flops(spec, ROWS, TOKENS, weight_gradients=False, logits=window) < counted


def test_the_scores_of_a_kernel() -> None:
    x, g = jnp.ones((TOKENS, 64)), jnp.ones((TOKENS, 160))
    program = compile_program(input_scores, x, g)
    assert pytest.approx(program.flops, rel=0.05) == 2 * TOKENS**2 * (64 + 160)


def test_scores_of_a_block_take_the_cheaper_form(spec) -> None:
    sizes = roofline.kernel_sizes(spec)
    assert sizes["blocks/mlp/down/kernel"] == (160, 64) and sizes["blocks/attention/k/kernel"] == (64, 32)
    short = roofline.score_flops(spec, 1, 8, granularity="input")
    assert (
        short
        == sum(2 * 64 * (i + o) for i, o in sizes.values())
        == roofline.score_flops(spec, 1, 8, granularity="output")
    )
    gradients = sum(2 * 512 * i * o for i, o in sizes.values())
    assert (
        roofline.score_flops(spec, 1, 512, granularity="input")
        == gradients
        == roofline.score_flops(spec, 1, 512, granularity="weight")
    )
    assert (
        roofline.fisher_flops(spec, 1, 8, granularity="input")
        == roofline.backward_flops(spec, 1, 8, weight_gradients=False) + short
    )


@pytest.mark.parametrize("method", ["exact", "two_sided"])
def test_a_solve(method) -> None:
    """XLA counts matmuls and no LAPACK call, so that what the floor has beyond the right-hand side is left out."""
    fan_in, fan_out, restored = 96, 40, 32
    rng = np.random.default_rng(0)
    pair = Pair(*map(jnp.asarray, rng.standard_normal((2, fan_in, fan_out)).astype(np.float32)),
                jnp.arange(restored), jnp.arange(restored, fan_in))  # fmt: skip
    moments = Moments(jnp.asarray(9.0), jnp.eye(fan_in), None, None)
    program = compile_program(lambda p, m: compensate(method, "moments", p, m, m, 2.0, 0.01)[0], pair, moments)
    refinement = 2 * 2 * restored**2 * fan_out  # two residuals
    solves = restored**3 / 3 + 2 * restored**2 * fan_out
    counted = (
        roofline.solve_flops(method, "moments", fan_in, fan_out=fan_out, restored=restored, tokens=0)
        - solves
        + refinement
    )
    assert counted == pytest.approx(program.flops, rel=0.15)


def test_floors_of_the_other_forms_are_positive_and_grow() -> None:
    for method, form in (("paper", "moments"), ("paper", "free"), ("exact", "dual"), ("two_sided", "free")):
        small, large = (
            roofline.solve_flops(method, form, 4 * n, fan_out=2 * n, restored=2 * n, tokens=8 * n) for n in (16, 32)
        )
        assert 0 < 3.9 * small < large


def test_rates() -> None:
    rates = roofline.measure_rates("float32")
    assert rates.matmul > 1e8 and rates.copy > 1e7


@pytest.mark.parametrize(
    ("shape", "millions"), [("llama-3.1-8b", 8030), ("llama-3.2-1b", 1236), ("qwen3-4b", 4022), ("100m", 100)]
)
def test_the_shapes_are_those_of_the_models(shape, millions) -> None:
    count = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(spec_of(shape))))
    assert round(count / 1e6) == millions and set(SHAPES[shape]) >= {"vocab_size", "hidden_size"}
