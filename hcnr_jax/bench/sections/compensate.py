"""Section compensate: the corrections of one block, against a SparseGPT-style sequential solve on the same H.

Both sides get the same statistics: moments from rows x tokens tokens. The forms that keep the tokens (dual, free) are
made for few tokens, and get an eighth of the hidden size. A random half of each kernel's neurons is restored. The
inputs are correlated as activations are: a falling spectrum over a sixteenth of the directions, noise, and a few
outlier channels.

Every d_hon is computed again in float64 without damping. `error` is the relative distance of hcnr's d_hon from that of
the float64 solution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hcnr_jax.bench.measurement import BenchContext, Measurement
from hcnr_jax.bench.roofline import kernel_sizes, solve_flops
from hcnr_jax.bench.sparsegpt_solve import sequential
from hcnr_jax.bench.timing import Program, compile_each, race
from hcnr_jax.method.compensate import Method, Pair, compensate
from hcnr_jax.method.curvature import Inputs, Moments
from hcnr_jax.method.objectives.table import OBJECTIVES

DAMPING, TASK_WEIGHT = 0.01, 2.0
METHODS: tuple[Method, ...] = ("exact", "paper", "two_sided")


class Kernel(NamedTuple):
    """One problem: the pair, honesty and task inputs (tokens, in), and the number of tokens for the few-token forms."""

    pair: Pair
    honesty: jax.Array
    task: jax.Array
    few: int


def measure(context: BenchContext) -> list[Measurement]:
    """Measure each method and form; `exact` from the same statistic corresponds to the sequential solve."""
    tokens = context.config.rows * context.config.tokens
    block = random_block(context, tokens)
    found = []
    for few in (False, True):
        statistics = {path: _moments(kernel, few) for path, kernel in block.items()}
        contender = _sequential(block, statistics)
        programs = {
            f"{method} {form}": _solve(
                method, form, block, statistics=statistics if form == "moments" else _inputs(block)
            )
            for method in METHODS
            for form in OBJECTIVES[method].forms
            if (form != "moments") is few
        }
        calls = {name: program.call for name, program in {**programs, "sequential": contender}.items()}
        seconds = {name: found.median for name, found in race(calls, context.config.repeats).items()}
        reference = _reference(block, few)
        for name, program in programs.items():
            method, form = name.split()
            notes = _distances(method, program.call(), contender.call(), block=block, few=few, reference=reference)
            found.append(
                Measurement(
                    name,
                    seconds[name],
                    "sequential",
                    seconds["sequential"],
                    _floor(context, method, form, block=block, few=few),
                    program.peak_bytes,
                    contender.peak_bytes,
                    program.compile_seconds,
                    {"tokens": next(iter(block.values())).few if few else tokens, **notes},
                )
            )
    return found


def random_block(context: BenchContext, tokens: int) -> dict[str, Kernel]:
    """Draw the kernels of one block; the kernels of one group read the same inputs."""
    rng = np.random.default_rng(context.config.seed)
    sizes = {path.removeprefix("blocks/"): size for path, size in kernel_sizes(context.spec).items()}
    few = max(2, min(tokens, context.spec.hidden_size // 8))
    block = {}
    for group in context.spec.groups:
        honesty, task = (random_inputs(rng, tokens, sizes[group[0]][0]) for _ in range(2))
        for path in group:
            base = rng.standard_normal(sizes[path], np.float32) / np.float32(sizes[path][0] ** 0.5)
            tuned = base + np.float32(0.05 / sizes[path][0] ** 0.5) * rng.standard_normal(sizes[path], np.float32)
            order = rng.permutation(sizes[path][0])
            half = sizes[path][0] // 2
            rows = [jnp.asarray(np.sort(part)) for part in (order[:half], order[half:])]
            block[path] = Kernel(Pair(jnp.asarray(base), jnp.asarray(tuned), *rows), honesty, task, few)
    return block


def random_inputs(rng: np.random.Generator, tokens: int, fan_in: int) -> jax.Array:
    """Draw tokens (n, in) of correlated channels, float32."""
    rank = max(1, fan_in // 16)
    strength = (np.arange(1, rank + 1) ** -0.5).astype(np.float32)
    directions = rng.standard_normal((rank, fan_in), np.float32)
    seen = (rng.standard_normal((tokens, rank), np.float32) * strength) @ directions
    seen += 0.3 * rng.standard_normal((tokens, fan_in), np.float32)
    seen[:, rng.integers(0, fan_in, 1 + fan_in // 512)] *= 20
    return jnp.asarray(seen)


def _tokens(kernel: Kernel, few: bool) -> tuple[jax.Array, jax.Array]:
    count = kernel.few if few else kernel.honesty.shape[0]
    return kernel.honesty[:count], kernel.task[:count]


def _moments(kernel: Kernel, few: bool) -> tuple[Moments, Moments]:
    def one(x: jax.Array) -> Moments:
        return Moments(jnp.asarray(float(x.shape[0])), jnp.matmul(x.T, x, precision="highest") / x.shape[0], None, None)

    honesty, task = _tokens(kernel, few)
    return one(honesty), one(task)


def _inputs(block: Mapping[str, Kernel]) -> dict[str, tuple[Inputs, Inputs]]:
    return {
        path: (Inputs(honesty, None), Inputs(task, None))
        for path, kernel in block.items()
        for honesty, task in [_tokens(kernel, True)]
    }


def _solve(method: Method, form: str, block: Mapping[str, Kernel], *, statistics: Mapping[str, Any]) -> Program:
    """Compile the correction of the block's kernels one by one, as in a sweep, with everything `compensate` reports."""

    def solve(pair: Pair, honesty: Any, task: Any) -> Any:
        return compensate(method, form, pair, honesty, task, TASK_WEIGHT, DAMPING)

    return compile_each(solve, {path: (kernel.pair, *statistics[path]) for path, kernel in block.items()})


def _sequential(block: Mapping[str, Kernel], statistics: Mapping[str, tuple[Moments, Moments]]) -> Program:
    def solve(pair: Pair, second: jax.Array) -> tuple[jax.Array]:
        return (sequential(pair, second, DAMPING),)

    calls = {path: (kernel.pair, statistics[path][0].inputs) for path, kernel in block.items()}
    return compile_each(solve, calls)


def _floor(context: BenchContext, method: str, form: str, *, block: Mapping[str, Kernel], few: bool) -> float:
    """Count the floor at the float32 rate, since solves run in float32 for every dtype of the weights."""

    def one(kernel: Kernel) -> float:
        fan_in, fan_out = kernel.pair.base.shape
        tokens = _tokens(kernel, few)[0].shape[0] * (2 if OBJECTIVES[method].reads_task else 1)
        return solve_flops(method, form, fan_in, fan_out=fan_out, restored=kernel.pair.restored.shape[0], tokens=tokens)

    return sum(one(kernel) for kernel in block.values()) / context.rates.matmul_float32


Reference = dict[str, dict[str, float]]


def _distances(
    method: str, found: Any, sequential: Any, *, block: Mapping[str, Kernel], few: bool, reference: Reference
) -> dict[str, float]:
    """Compute d_hon, summed over the block's kernels, after hcnr's solve and after the sequential solve.

    `error` is the largest relative distance of a kernel's d_hon from that of the float64 solution.
    """
    own, contender = (
        {path: _distance(block[path], few, w[0]) for path, w in weights.items()} for weights in (found, sequential)
    )
    errors = [abs(own[path] - reference[method][path]) / reference[method][path] for path in block]
    return {"d_hon": sum(own.values()), "its d_hon": sum(contender.values()), "error": max(errors)}


def _distance(kernel: Kernel, few: bool, weights: Any) -> float:
    """Compute mean ||x E||^2 in float64."""
    change = np.asarray(weights, np.float64) - np.asarray(kernel.pair.base, np.float64)
    honesty = np.asarray(_tokens(kernel, few)[0], np.float64)
    return float(np.square(honesty @ change).sum() / len(honesty))


def _reference(block: Mapping[str, Kernel], few: bool) -> Reference:
    """Compute d_hon of the float64 solutions, by method and kernel."""
    return {
        method: {path: _distance(kernel, few, DENSE[method](kernel, few)) for path, kernel in block.items()}
        for method in METHODS
    }


def _dense(kernel: Kernel, few: bool) -> tuple[np.ndarray, ...]:
    """Return base, delta, restored and task rows, and the damped H and H_task (scaled to H's trace), in float64."""
    pair = [np.asarray(part) for part in kernel.pair]
    seconds = [x.T @ x / len(x) for x in (np.asarray(part, np.float64) for part in _tokens(kernel, few))]
    seconds[1] *= np.trace(seconds[0]) / np.trace(seconds[1])
    ridge = DAMPING * np.trace(seconds[0]) / len(seconds[0]) * np.eye(len(seconds[0]))
    base, tuned = (part.astype(np.float64) for part in pair[:2])
    return base, tuned - base, pair[2], pair[3], seconds[0] + ridge, seconds[1] + ridge


def _dense_exact(kernel: Kernel, few: bool, weight: float = 0.0) -> np.ndarray:
    base, change, rows, others, honesty, task = _dense(kernel, few)
    rhs = -honesty[np.ix_(rows, others)] @ change[others] + weight * task[np.ix_(rows, rows)] @ change[rows]
    system = honesty[np.ix_(rows, rows)] + weight * task[np.ix_(rows, rows)]
    change[rows] = np.linalg.solve(system, rhs)
    return base + change


def _dense_paper(kernel: Kernel, few: bool) -> np.ndarray:
    base, change, rows, others, honesty, _ = _dense(kernel, few)
    inverse = np.linalg.inv(honesty)
    steps = change[others] / np.diag(inverse)[others][:, None]
    change[rows] = inverse[np.ix_(rows, others)] @ steps
    return base + change


DENSE: dict[str, Callable[[Kernel, bool], np.ndarray]] = {
    "exact": _dense_exact,
    "paper": _dense_paper,
    "two_sided": lambda kernel, few: _dense_exact(kernel, few, TASK_WEIGHT),
}
