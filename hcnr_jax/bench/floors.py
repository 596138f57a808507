"""What a stage cannot be faster than here: FLOPs counted from the shapes over the measured rate of a large matmul.

A multiply-add counts as two. Counted is what the mathematics needs, whoever computes it: rematerialised forward
passes, casts and padding are overhead, so that floor / seconds is the model FLOP utilisation (MFU).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hcnr_jax.method.neurons import Granularity
from hcnr_jax.models import KERNELS, ModelSpec, abstract_params

# Rounds of a rate; the fastest counts, since a floor is what the machine can do.
ROUNDS = 5


class Rates(NamedTuple):
    """Of one device: FLOP/s of a large matmul in the dtype and in float32, bytes/s read plus written by a copy."""

    matmul: float
    matmul_float32: float
    copy: float


@functools.cache
def measure_rates(dtype: DTypeLike) -> Rates:
    """A second or less."""
    return Rates(matmul_rate(dtype), matmul_rate(jnp.float32), copy_rate())


def matmul_rate(dtype: DTypeLike) -> float:
    """FLOP/s of a square matmul that fills the device, at the precision the method asks for (float32: no TF32)."""
    size = 1024 if jax.devices()[0].platform == "cpu" else 8192
    x = jnp.full((size, size), 1 / size, dtype)
    return 2.0 * size**3 / _fastest(jax.jit(lambda a: jnp.matmul(a, a, precision="highest")), x)


def copy_rate() -> float:
    """Bytes/s of x + 1 on an array too large for any cache, reading and writing counted."""
    x = jnp.zeros(1 << 26, jnp.float32)
    return 2.0 * x.nbytes / _fastest(jax.jit(lambda a: a + 1), x)


def _fastest(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
    function(x).block_until_ready()
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        function(x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def kernel_sizes(spec: ModelSpec) -> dict[str, tuple[int, int]]:
    """(in, out) of each of a block's kernels, by path."""
    blocks = abstract_params(spec)["blocks"]
    sizes = {}
    for path in KERNELS:
        _, part, name, _ = path.split("/")
        sizes[path] = tuple(int(size) for size in blocks[part][name]["kernel"].shape[1:])
    return sizes  # type: ignore[return-value]


def forward_flops(spec: ModelSpec, rows: int, tokens: int, logits: int | None = None) -> float:
    """A forward pass: the kernels, the attention's two products over all pairs of tokens, the head at the last
    `logits` positions (all without it)."""
    weights = sum(fan_in * fan_out for fan_in, fan_out in kernel_sizes(spec).values())
    attention = 2 * tokens * spec.num_heads * spec.head_dim
    head = spec.hidden_size * spec.vocab_size * (tokens if logits is None else min(logits, tokens))
    return 2.0 * rows * (tokens * spec.num_layers * (weights + attention) + head)


def backward_flops(spec: ModelSpec, rows: int, tokens: int, weight_gradients: bool, logits: int | None = None) -> float:
    """Forward and backward: the inputs' cotangents cost a forward pass (attention two), the kernels' gradients one
    more. The head and the embedding are not differentiated."""
    forward = forward_flops(spec, rows, tokens, logits)
    attention = 4.0 * rows * tokens**2 * spec.num_layers * spec.num_heads * spec.head_dim
    head = forward_flops(spec, rows, tokens, logits) - forward_flops(spec, rows, tokens, 0)
    gradients = forward - attention - head if weight_gradients else 0.0
    return 2 * forward + attention + gradients


def score_flops(spec: ModelSpec, rows: int, tokens: int, granularity: Granularity) -> float:
    """The scores alone, each kernel in the cheaper form: two products through tokens x tokens, or the gradient."""
    if granularity == "weight":
        one = sum(2.0 * tokens * fan_in * fan_out for fan_in, fan_out in kernel_sizes(spec).values())
    else:
        one = sum(2.0 * tokens * min(tokens * (i + o), i * o) for i, o in kernel_sizes(spec).values())
    return rows * spec.num_layers * one


def fisher_flops(spec: ModelSpec, rows: int, tokens: int, granularity: Granularity, logits: int | None = None) -> float:
    """Scoring: forward, the inputs' cotangents, the scores."""
    return backward_flops(spec, rows, tokens, False, logits) + score_flops(spec, rows, tokens, granularity)


def solve_flops(method: str, form: str, fan_in: int, fan_out: int, restored: int, tokens: int) -> float:
    """One kernel's correction from its statistic: a Cholesky factorisation, the right-hand side, two triangular solves.

    tokens: those stacked in the dual (honesty and task). Iterative refinement and what is only reported are overhead,
    and conjugate gradients have no count before they have run: their floor is two steps.
    """
    task = fan_in - restored
    if form == "free":
        columns = task if method == "paper" else fan_out
        size = fan_in if method == "paper" else restored
        return 2 * 4.0 * tokens * size * columns
    if method == "paper":
        return fan_in**3 / 3 + fan_in**3 / 3 + 2.0 * fan_in**2 * fan_out
    # two_sided has the task's pull on the restored rows in its right-hand side too.
    rhs = 2.0 * restored * (task + (restored if method == "two_sided" else 0)) * fan_out
    if form == "dual":
        solves = tokens**2 * restored + tokens**3 / 3 + 2.0 * tokens**2 * fan_out
        return solves + 2.0 * tokens * fan_in * fan_out + 2.0 * tokens * restored * fan_out
    return rhs + restored**3 / 3 + 2.0 * restored**2 * fan_out
