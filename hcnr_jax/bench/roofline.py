"""Computes the floor of a stage: FLOPs counted from the shapes, over the measured rate of a large matmul.

A multiply-add counts as two FLOPs. Only FLOPs of the mathematics count. Rematerialised forward passes, casts and
padding are overhead, so that floor / seconds is the model FLOP utilisation (MFU).
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
from hcnr_jax.models import ModelSpec, abstract_params

# Rounds of a rate measurement; the fastest counts, since the floor is the limit of the machine.
ROUNDS = 5


class Rates(NamedTuple):
    """Rates of one device: FLOP/s of a large matmul in the dtype and in float32; bytes/s of a copy, both ways."""

    matmul: float
    matmul_float32: float
    copy: float


@functools.cache
def measure_rates(dtype: DTypeLike) -> Rates:
    """Measure the rates of this device, in about a second."""
    return Rates(matmul_rate(dtype), matmul_rate(jnp.float32), copy_rate())


def matmul_rate(dtype: DTypeLike) -> float:
    """Measure FLOP/s of a square matmul that fills the device, at the method's precision (float32: no TF32)."""
    size = 1024 if jax.devices()[0].platform == "cpu" else 8192
    x = jnp.full((size, size), 1 / size, dtype)
    return 2.0 * size**3 / _fastest(jax.jit(lambda a: jnp.matmul(a, a, precision="highest")), x)


def copy_rate() -> float:
    """Measure bytes/s of x + 1 on an array too large for any cache; reads and writes count."""
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
    """Return (in, out) of each kernel of a block, by path."""
    blocks = abstract_params(spec)["blocks"]
    sizes = {}
    for path in spec.kernels:
        _, part, name, _ = path.split("/")
        sizes[path] = tuple(int(size) for size in blocks[part][name]["kernel"].shape[1:])
    return sizes  # type: ignore[return-value]


def forward_flops(spec: ModelSpec, rows: int, tokens: int, *, logits: int | None = None) -> float:
    """Count a forward pass: the kernels, the two products of attention over all pairs of tokens, and the head.

    Args:
        spec: the model's sizes.
        rows: rows of the batch.
        tokens: tokens of a row.
        logits: number of last positions at which the head is computed; None computes all.
    """
    weights = sum(fan_in * fan_out for fan_in, fan_out in kernel_sizes(spec).values())
    attention = 2 * tokens * spec.num_heads * spec.head_dim
    head = spec.hidden_size * spec.vocab_size * (tokens if logits is None else min(logits, tokens))
    return 2.0 * rows * (tokens * spec.num_layers * (weights + attention) + head)


def backward_flops(
    spec: ModelSpec, rows: int, tokens: int, *, weight_gradients: bool, logits: int | None = None
) -> float:
    """Count a forward and a backward pass; the head and the embedding are not differentiated.

    The cotangents of the inputs cost one forward pass (for attention two), the gradients of the kernels one more.

    Args:
        spec, rows, tokens, logits: as in `forward_flops`.
        weight_gradients: whether the kernels' gradients are computed.
    """
    forward = forward_flops(spec, rows, tokens, logits=logits)
    attention = 4.0 * rows * tokens**2 * spec.num_layers * spec.num_heads * spec.head_dim
    head = forward_flops(spec, rows, tokens, logits=logits) - forward_flops(spec, rows, tokens, logits=0)
    gradients = forward - attention - head if weight_gradients else 0.0
    return 2 * forward + attention + gradients


def score_flops(spec: ModelSpec, rows: int, tokens: int, *, granularity: Granularity) -> float:
    """Count the scores alone, each kernel in the cheaper form: two products through tokens x tokens, or the gradient.

    Args:
        spec, rows, tokens: as in `forward_flops`.
        granularity: of the scores.
    """
    if granularity == "weight":
        one = sum(2.0 * tokens * fan_in * fan_out for fan_in, fan_out in kernel_sizes(spec).values())
    else:
        one = sum(2.0 * tokens * min(tokens * (i + o), i * o) for i, o in kernel_sizes(spec).values())
    return rows * spec.num_layers * one


def fisher_flops(
    spec: ModelSpec, rows: int, tokens: int, *, granularity: Granularity, logits: int | None = None
) -> float:
    """Count scoring: the forward pass, the cotangents of the inputs, and the scores.

    Args:
        spec, rows, tokens, logits: as in `forward_flops`.
        granularity: of the scores.
    """
    return backward_flops(spec, rows, tokens, weight_gradients=False, logits=logits) + score_flops(
        spec, rows, tokens, granularity=granularity
    )


def solve_flops(method: str, form: str, fan_in: int, *, fan_out: int, restored: int, tokens: int) -> float:
    """Count one kernel's correction: a Cholesky factorisation, the right-hand side, and two triangular solves.

    Iterative refinement and reported values are overhead. The number of conjugate gradient steps is unknown before the
    run, so that their floor is two steps.

    Args:
        method: `exact`, `paper` or `two_sided`.
        form: `moments`, `dual` or `free`.
        fan_in, fan_out: the kernel's sizes.
        restored: |R|, the number of restored rows.
        tokens: tokens stacked in the dual, of honesty and task.
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
