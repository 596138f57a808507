"""What a restoration will take, said before it begins: kernels and neurons, memory, time."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from hcnr_jax.checkpoints.checkpoint import Checkpoint
from hcnr_jax.config import RestoreConfig, option_name
from hcnr_jax.errors import InputError
from hcnr_jax.method.neurons import Shaped, get_leaves, neuron_count
from hcnr_jax.method.refine.gauss_newton import COPIES, PRODUCTS
from hcnr_jax.method.select import exact_count
from hcnr_jax.models import ModelSpec, abstract_params
from hcnr_jax.restoration.inputs import RunInputs
from hcnr_jax.restoration.microbatches import (
    Shape,
    choose_shapes,
    count_rows,
    loss_window,
    padded_tokens,
    rounded_up,
    row_bytes,
)
from hcnr_jax.runtime.memory import free_bytes
from hcnr_jax.runtime.sharding import Layout

# How often a streamed run reads a model: forward and back for each set's scores, once for the other model's losses, for
# the perturbations and for the sweep; a mean over both models.
STREAM_PASSES = 4
# Share of the free memory that what a block's groups read may take, beside the weights, to save computing it again.
KEEP_SHARE = 0.25


@dataclass(frozen=True)
class Plan:
    """Counts and costs of a run. Bytes are estimates of peaks; `flops` counts multiply-adds twice.

    keep_inputs: of `method.sweep.run.Sweep`; by free memory, which is every process's own. shapes: of the microbatches.
    window: `loss_window` of the rows. rows_by_shape: how many honesty and task rows go into each shape. dtype: compute
    dtype of the scores. spill_bytes, read_bytes: what a streamed run keeps on the disk and reads from it; 0 otherwise.
    """

    kernels: int
    kept: int
    neurons: dict[str, tuple[int, int]]
    restored_share: float
    shapes: tuple[Shape, ...]
    window: int
    rows_by_shape: dict[str, tuple[int, ...]]
    dtype: str
    weight_bytes: int
    score_bytes: int
    sweep_bytes: int
    refine_bytes: int
    keep_inputs: bool
    output_bytes: int
    spill_bytes: int
    read_bytes: int
    flops: float
    left_out: tuple[str, ...] = ()

    def rows(self) -> list[tuple[str, str]]:
        """The plan as a person reads it."""
        rate = matmul_rate(self.dtype)
        per_kernel = ", ".join(f"{_word(path)} {part} of {whole}" for path, (part, whole) in self.neurons.items())
        held = "3 blocks and the embeddings of both models" if self.read_bytes else "weights of both models"
        working = size(max(self.score_bytes, self.sweep_bytes, self.refine_bytes))
        lines = [
            ("kernels", f"{self.kept} of {self.kernels} kept"),
            ("neurons per kept kernel", per_kernel),
            ("weights restored", f"about {self.restored_share:.1%} of all parameters"),
            *((f"{name} data", self._data(counts)) for name, counts in self.rows_by_shape.items()),
            ("at a time", " or ".join(f"{rows} rows x {length}" for length, rows in self.shapes) + f", {self.dtype}"),
            ("memory", f"{size(self.weight_bytes)} {held} + {working}"),
            ("disk", size(self.output_bytes) + (f" + {size(self.spill_bytes)} meanwhile" if self.spill_bytes else "")),
            (
                "arithmetic",
                f"{self.flops / 1e12:.3g} TFLOP, about {duration(self.flops / rate)} at this machine's rate",
            ),
        ]
        if self.left_out:
            shown = ", ".join(self.left_out[:4]) + (", ..." if len(self.left_out) > 4 else "")
            lines.append(
                ("not copied", f"{len(self.left_out)} files and folders of TUNED that are no model's: {shown}")
            )
        return [*lines, ("read", f"{size(self.read_bytes)} of weights, block by block")] if self.read_bytes else lines

    def _data(self, counts: tuple[int, ...]) -> str:
        used = [(count, shape.length) for count, shape in zip(counts, self.shapes, strict=True) if count]
        return " + ".join(f"{count} rows x {length} tokens" for count, length in used)


def make_plan(inputs: RunInputs) -> Plan:
    """Plan a run from its opened inputs. InputError where a ratio selects nothing."""
    config, spec = inputs.config, inputs.spec
    params = abstract_params(spec)
    neurons = _neurons(config, get_leaves(params, spec.kernels))
    kernels = spec.num_layers * len(spec.kernels)
    kept = _count("cross_weight", config, kernels, "kernels")
    kernel_weights = sum(math.prod(leaf.shape) for leaf in get_leaves(params, spec.kernels).values())
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    sets = {"honesty": inputs.honesty, "task": inputs.task}
    every = [example for examples in sets.values() for example in examples]
    window = loss_window(every)
    one, two = (_flops(config, spec, parameters, [count, 0]) for count in (1, 2))
    shapes = choose_shapes(spec, every, two - one, microbatch=config.microbatch)
    shapes = rounded_up(shapes, inputs.layout.row_count if inputs.layout else 1)
    tokens = [padded_tokens(examples, shapes) for examples in sets.values()]
    stored = sum(info.nbytes for info in inputs.tuned.tensors.values())
    both = sum(info.nbytes for info in inputs.base.tensors.values()) + stored
    restored_share = kernel_weights / parameters * (kept / kernels) * config.in_weight
    share_of_block = kernel_weights / parameters / spec.num_layers
    weight_bytes = int(both * (1 - kernel_weights / parameters + 3 * share_of_block)) if config.stream else both
    kept_inputs = _kept_bytes(config, spec, tokens)
    keep_inputs = _fits(kept_inputs, weight_bytes, inputs.layout)
    return Plan(
        kernels=kernels,
        kept=kept,
        neurons=neurons,
        restored_share=restored_share,
        shapes=shapes,
        window=window,
        rows_by_shape={name: count_rows(examples, shapes) for name, examples in sets.items()},
        dtype=compute_dtype(config.dtype, inputs.tuned),
        weight_bytes=weight_bytes,
        score_bytes=max(rows * row_bytes(spec, length, window, streamed=config.stream) for length, rows in shapes),
        sweep_bytes=_sweep_bytes(config, spec, tokens) + keep_inputs * kept_inputs,
        refine_bytes=4 * COPIES * kernel_weights if config.refine else 0,
        keep_inputs=keep_inputs,
        output_bytes=stored,
        spill_bytes=_spill_bytes(spec, max(tokens), int(stored * kept / kernels)) if config.stream else 0,
        read_bytes=STREAM_PASSES * both if config.stream else 0,
        flops=_flops(config, spec, parameters, tokens),
        left_out=inputs.tuned.leftovers(),
    )


def compute_dtype(asked: str, tuned: Checkpoint) -> str:
    """`--dtype` as a dtype: auto is bfloat16 on an accelerator for weights stored in 16 bits, float32 elsewhere."""
    if asked != "auto":
        return asked
    narrow = all(info.dtype in ("BF16", "F16") for info in tuned.tensors.values())
    return "bfloat16" if narrow and jax.default_backend() != "cpu" else "float32"


def _neurons(config: RestoreConfig, leaves: Mapping[str, Shaped]) -> dict[str, tuple[int, int]]:
    """(restored, all) neurons of each kind of kernel."""
    totals = {path: neuron_count(leaf, config.granularity) for path, leaf in leaves.items()}
    return {
        path: (_count("in_weight", config, total, f"neurons of each {_word(path)} kernel"), total)
        for path, total in totals.items()
    }


def _spill_bytes(spec: ModelSpec, tokens: int, corrected: int) -> int:
    """Inputs of every block for one set of rows, and the corrected kernels."""
    return 4 * spec.num_layers * tokens * spec.hidden_size + corrected


def _sweep_bytes(config: RestoreConfig, spec: ModelSpec, tokens: list[int]) -> int:
    """Hidden states of every followed model, and the moments of the widest group with the matrices its solve needs."""
    if not config.objective.solves:
        return 0
    two_sided, propagated = config.objective.reads_task, config.inputs == "propagated"
    matrices = (1 + two_sided) * (3 if propagated else 1) + 3
    return 4 * (_followed(config, tokens) * spec.hidden_size + matrices * max(_widths(spec)) ** 2)


def _kept_bytes(config: RestoreConfig, spec: ModelSpec, tokens: list[int]) -> int:
    """What one block's groups read in every followed model, where inputs are propagated."""
    propagated = config.objective.solves and config.inputs == "propagated"
    return 4 * _followed(config, tokens) * sum(_widths(spec)) if propagated else 0


def _fits(kept_inputs: int, weight_bytes: int, layout: Layout | None) -> bool:
    """Whether there is room to keep them. On a mesh a device holds its share of both; on a CPU all share one memory."""
    free = free_bytes()
    if layout is not None:
        devices = jax.local_device_count() if jax.default_backend() == "cpu" else 1
        weight_bytes = devices * weight_bytes // layout.weight_count
        kept_inputs = devices * kept_inputs // layout.row_count
    return kept_inputs <= KEEP_SHARE * (free - weight_bytes)


def _followed(config: RestoreConfig, tokens: list[int]) -> int:
    """Tokens of all followed models."""
    asked = tokens[0] + (tokens[1] if config.objective.reads_task else 0)
    return asked * (2 if config.inputs == "propagated" else 1)


def _widths(spec: ModelSpec) -> tuple[int, ...]:
    """Inputs of every group of kernels."""
    return spec.hidden_size, spec.num_heads * spec.head_dim, spec.hidden_size, spec.intermediate_size


def _flops(config: RestoreConfig, spec: ModelSpec, parameters: int, tokens: list[int]) -> float:
    """Scores: forward, recomputation, input gradients (6 per weight and token). Then the block sweep: one pass of every
    followed model, the moments' products, factorisations."""
    total = sum(tokens)
    flops = 6.0 * parameters * total
    if config.objective.solves:
        propagated, two_sided = config.inputs == "propagated", config.objective.reads_task
        swept = total if two_sided else tokens[0]
        flops += 2.0 * parameters * swept * (2 if propagated else 1)
        # Propagated: moments of what is met, of its shift and, on honesty rows, of what is meant.
        products = 2.0 * (tokens[0] * (3 if propagated else 1) + (swept - tokens[0]) * (2 if propagated else 1))
        moments = sum(products * width**2 + width**3 for width in _widths(spec))
        flops += spec.num_layers * min(1.0, config.cross_weight * len(spec.kernels) / 4) * moments
    # A step's products (a forward pass, the same with its derivative, one backward with recomputation) and gradient.
    return flops + config.refine * (12.0 * PRODUCTS + 14.0) * parameters * total


def matmul_rate(dtype: str = "float32", size_: int = 512, repeats: int = 4) -> float:
    """Measured FLOP/s of one device, in a few hundredths of a second."""
    x = jnp.ones((size_, size_), jnp.dtype(dtype))
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
