"""What a restoration will take, said before it begins: kernels and neurons, memory, time."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from hcnr_jax.config import RestoreConfig, option_name
from hcnr_jax.data import Example
from hcnr_jax.errors import InputError
from hcnr_jax.method.neurons import neuron_count
from hcnr_jax.method.select import exact_count
from hcnr_jax.models import KERNELS, ModelSpec, abstract_params
from hcnr_jax.pipeline.prepare import Prepared

# Rows of a batch are padded to a multiple of this, so that runs of like data compile alike.
LENGTH_STEP = 8
# Tokens of one microbatch on a host: enough to keep its cores in matrix products, few enough to stay in cache.
HOST_TOKENS = 1024
# Share of an accelerator's free memory that one microbatch may take.
MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class Plan:
    """Counts and costs of a run. Bytes are estimates of peaks; `flops` counts multiply-adds twice."""

    kernels: int
    kept: int
    neurons: dict[str, tuple[int, int]]
    restored_share: float
    honesty_shape: tuple[int, int]
    task_shape: tuple[int, int]
    microbatch: int
    weight_bytes: int
    score_bytes: int
    sweep_bytes: int
    output_bytes: int
    flops: float

    def rows(self) -> list[tuple[str, str]]:
        """The plan as a person reads it."""
        rate = matmul_rate()
        per_kernel = ", ".join(f"{_word(path)} {part} of {whole}" for path, (part, whole) in self.neurons.items())
        honesty, task = (f"{rows} rows x {length} tokens" for rows, length in (self.honesty_shape, self.task_shape))
        return [
            ("kernels", f"{self.kept} of {self.kernels} kept"),
            ("neurons per kept kernel", per_kernel),
            ("weights restored", f"about {self.restored_share:.1%} of all parameters"),
            ("honesty data", honesty),
            ("task data", f"{task}, {self.microbatch} rows at a time"),
            (
                "memory",
                f"{size(self.weight_bytes)} weights of both models + {size(max(self.score_bytes, self.sweep_bytes))}",
            ),
            ("disk", size(self.output_bytes)),
            (
                "arithmetic",
                f"{self.flops / 1e12:.3g} TFLOP, about {duration(self.flops / rate)} at this machine's rate",
            ),
        ]


def make_plan(prepared: Prepared) -> Plan:
    """The plan of a prepared run. InputError where a ratio selects nothing."""
    config, spec = prepared.config, prepared.spec
    params = abstract_params(spec)
    leaves = {path: _leaf(params, path) for path in KERNELS}
    neurons = {
        path: (
            _count(
                "in_weight", config, neuron_count(leaf, config.granularity), f"neurons of each {_word(path)} kernel"
            ),
            neuron_count(leaf, config.granularity),
        )
        for path, leaf in leaves.items()
    }
    kernels = spec.num_layers * len(KERNELS)
    kept = _count("cross_weight", config, kernels, "kernels")
    kernel_weights = sum(math.prod(leaf.shape) for leaf in leaves.values())
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    honesty_shape, task_shape = batch_shapes(prepared.honesty, prepared.task)
    microbatch = config.microbatch or choose_microbatch(spec, max(honesty_shape[1], task_shape[1]), max(config.rows))
    tokens = [rows * length for rows, length in (honesty_shape, task_shape)]
    stored = sum(info.nbytes for info in prepared.tuned.tensors.values())
    return Plan(
        kernels=kernels,
        kept=kept,
        neurons=neurons,
        restored_share=kernel_weights / parameters * (kept / kernels) * config.in_weight,
        honesty_shape=honesty_shape,
        task_shape=task_shape,
        microbatch=microbatch,
        weight_bytes=sum(info.nbytes for info in prepared.base.tensors.values()) + stored,
        score_bytes=microbatch * row_bytes(spec, max(honesty_shape[1], task_shape[1])),
        sweep_bytes=_sweep_bytes(config, spec, tokens),
        output_bytes=stored,
        flops=_flops(config, spec, parameters, tokens),
    )


def batch_shapes(honesty: list[Example], task: list[Example]) -> tuple[tuple[int, int], tuple[int, int]]:
    """(rows, padded length) of both sets: one length where they are alike, so that they share compilations."""
    lengths = [_padded(max(len(example.tokens) for example in examples)) for examples in (honesty, task)]
    if max(lengths) <= 1.5 * min(lengths):
        lengths = [max(lengths)] * 2
    return (len(honesty), lengths[0]), (len(task), lengths[1])


def choose_microbatch(spec: ModelSpec, length: int, rows: int) -> int:
    """Rows per step: on a host a few cache-friendly ones, on an accelerator what half its free memory takes."""
    device = jax.devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
        return max(1, min(rows, int(MEMORY_SHARE * free / row_bytes(spec, length))))
    return max(1, min(rows, HOST_TOKENS // length))


def row_bytes(spec: ModelSpec, length: int) -> int:
    """Float32 bytes one row needs in a rematerialised backward pass: block inputs, one block's activations, logits."""
    width = 8 * spec.hidden_size + 4 * spec.intermediate_size + 2 * spec.num_heads * length
    return 4 * length * (spec.num_layers * spec.hidden_size + width + 3 * spec.vocab_size)


def _sweep_bytes(config: RestoreConfig, spec: ModelSpec, tokens: list[int]) -> int:
    """Hidden states of every followed model, and the moments of the widest group with the matrices its solve needs."""
    if config.compensation == "none":
        return 0
    two_sided, propagated = config.compensation == "two_sided", config.inputs == "propagated"
    followed = (1 + propagated) * (tokens[0] + (tokens[1] if two_sided else 0))
    widest = max(spec.hidden_size, spec.intermediate_size, spec.num_heads * spec.head_dim)
    matrices = (1 + two_sided) * (3 if propagated else 1) + 3
    return 4 * (followed * spec.hidden_size + matrices * widest**2)


def _flops(config: RestoreConfig, spec: ModelSpec, parameters: int, tokens: list[int]) -> float:
    """Scores: forward, recomputation, input gradients (6 per weight and token). Moments and factorisations on top."""
    total = sum(tokens)
    flops = 6.0 * parameters * total
    if config.compensation != "none":
        passes = 4 if config.inputs == "propagated" else 2
        flops += 2.0 * parameters * total * passes * config.cross_weight
        widths = [spec.hidden_size] * 6 + [spec.intermediate_size]
        moments = sum(2.0 * total * width**2 + width**3 for width in widths)
        flops += spec.num_layers * config.cross_weight * moments
    return flops


def matmul_rate(size_: int = 512, repeats: int = 4) -> float:
    """Measured float32 FLOP/s of one device, in a few hundredths of a second."""
    x = jnp.ones((size_, size_), jnp.float32)
    multiply = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    multiply(x).block_until_ready()
    start = time.perf_counter()
    for _ in range(repeats):
        multiply(x).block_until_ready()
    return 2.0 * size_**3 * repeats / (time.perf_counter() - start)


def size(count: int | float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def duration(seconds: int | float) -> str:
    """Seconds as a person reads them."""
    return f"{max(seconds, 1):.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _count(field: str, config: RestoreConfig, total: int, what: str) -> int:
    """The exact count of a ratio; InputError names its option where it rounds to 0."""
    ratio = getattr(config, field)
    try:
        return exact_count(ratio, total)
    except InputError:
        least = math.nextafter(0.5 / total, 1)
        raise InputError(
            f"{option_name(RestoreConfig, field)} {ratio:g} of the {total} {what} rounds to 0, so that nothing would "
            f"be restored; expected more than {least:.2g}"
        ) from None


def _word(path: str) -> str:
    return path.split("/")[-2]


def _padded(length: int) -> int:
    return -(-length // LENGTH_STEP) * LENGTH_STEP


def _leaf(tree: dict, path: str) -> jax.ShapeDtypeStruct:
    for key in path.split("/"):
        tree = tree[key]
    return tree  # type: ignore[return-value]
