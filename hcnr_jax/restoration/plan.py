"""Plans a restoration before it begins: kernels and neurons, memory, disk and time."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from hcnr_jax.checkpoints.checkpoint import Checkpoint
from hcnr_jax.checkpoints.load import loaded_bytes
from hcnr_jax.checkpoints.lora import MergedCheckpoint
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
from hcnr_jax.restoration.output_kind import why_a_model
from hcnr_jax.runtime.memory import free_bytes
from hcnr_jax.runtime.sharding import Layout
from hcnr_jax.training.teachers import BATCH, LEARNING_COPIES

# How often a streamed run reads a model, as a mean over both models: forward and back for each set's scores, and once
# each for the other model's losses, the perturbations and the sweep.
STREAM_PASSES = 4
# Share of the free memory, beside the weights, that the kept inputs of a block's groups may take. Kept inputs need not
# be computed again.
KEEP_SHARE = 0.25


@dataclass(frozen=True)
class Plan:
    """Holds the counts and costs of a run. Bytes are estimates of peaks.

    Args:
        kernels: number of kernels.
        kept: number of kept kernels.
        neurons: (restored, all) neurons of each kind of kernel, by path.
        restored_share: fraction of all parameters that are restored.
        shapes: of the microbatches.
        window: `loss_window` of the rows.
        rows_by_shape: how many honesty and task rows go into each shape.
        dtype: compute dtype of the scores.
        weight_bytes: memory of the weights.
        score_bytes: memory of one microbatch's backward pass.
        sweep_bytes: memory of the block sweep.
        refine_bytes: memory of the steps of --refine.
        keep_inputs: as in `method.sweep.run.Sweep`; depends on free memory, which can differ between processes.
        output_bytes: disk space of the restored model.
        spill_bytes: disk space that a streamed run uses meanwhile; 0 otherwise.
        read_bytes: bytes of weights that a streamed run reads; 0 otherwise.
        flops: arithmetic of the run; a multiply-add counts as two.
        left_out: files and folders of TUNED that are not copied.
        output: what is written, in words.
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
    output: str = "a whole model"

    def rows(self) -> list[tuple[str, str]]:
        """Return the lines of the plan as (name, text), for printing."""
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
            ("output", self.output),
            ("disk", size(self.output_bytes) + (f" + {size(self.spill_bytes)} meanwhile" if self.spill_bytes else "")),
            (
                "arithmetic",
                f"{self.flops / 1e12:.3g} TFLOP, about {duration(self.flops / rate)} at this machine's rate",
            ),
        ]
        if self.left_out:
            shown = ", ".join(self.left_out[:4]) + (", ..." if len(self.left_out) > 4 else "")
            lines.append(
                ("not copied", f"{len(self.left_out)} files and folders of TUNED that are not part of a model: {shown}")
            )
        return [*lines, ("read", f"{size(self.read_bytes)} of weights, block by block")] if self.read_bytes else lines

    def _data(self, counts: tuple[int, ...]) -> str:
        used = [(count, shape.length) for count, shape in zip(counts, self.shapes, strict=True) if count]
        return " + ".join(f"{count} rows x {length} tokens" for count, length in used)


def make_plan(inputs: RunInputs) -> Plan:
    """Plan a run from its opened inputs.

    Raises:
        InputError: a ratio selects nothing.
    """
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
    written = inputs.tuned if inputs.adapter is None else inputs.adapter.files()
    stored = sum(info.nbytes for info in written.tensors.values())
    both = loaded_bytes(inputs.base, spec, beside_base=False) + loaded_bytes(
        inputs.tuned, spec, beside_base=not config.stream
    )
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
        refine_bytes=_refine_bytes(inputs, kernel_weights),
        keep_inputs=keep_inputs,
        output_bytes=stored,
        spill_bytes=_spill_bytes(spec, max(tokens), int(stored * kept / kernels)) if config.stream else 0,
        read_bytes=STREAM_PASSES * both if config.stream else 0,
        flops=_flops(config, spec, parameters, tokens),
        left_out=inputs.tuned.leftovers() if inputs.adapter is None else (),
        output=_output(inputs),
    )


def _output(inputs: RunInputs) -> str:
    """Say what is written, and why if it is a whole model in place of an adapter."""
    if inputs.config.rank is not None:
        return f"a LoRA adapter of rank {inputs.config.rank}, which holds a part of the change from BASE"
    if inputs.coordinates is not None:
        ranks = sorted({own.rank for own in inputs.coordinates.values()})
        width = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}" if ranks else "rank 0"
        return f"a LoRA adapter like TUNED ({width}, {len(inputs.coordinates)} kernels)"
    if isinstance(inputs.tuned, MergedCheckpoint) and inputs.config.output == "auto":
        return f"a whole model: {why_a_model(inputs.config, inputs.tuned, inputs.spec)}"
    return "a whole model"


def compute_dtype(asked: str, tuned: Checkpoint) -> str:
    """Resolve `--dtype`: auto is bfloat16 on an accelerator for weights stored in 16 bits, and float32 elsewhere."""
    if asked != "auto":
        return asked
    narrow = all(info.dtype in ("BF16", "F16") for info in tuned.tensors.values())
    return "bfloat16" if narrow and jax.default_backend() != "cpu" else "float32"


def _neurons(config: RestoreConfig, leaves: Mapping[str, Shaped]) -> dict[str, tuple[int, int]]:
    """Count the (restored, all) neurons of each kind of kernel."""
    totals = {path: neuron_count(leaf, config.granularity) for path, leaf in leaves.items()}
    return {
        path: (_count("in_weight", config, total, f"neurons of each {_word(path)} kernel"), total)
        for path, total in totals.items()
    }


def _spill_bytes(spec: ModelSpec, tokens: int, corrected: int) -> int:
    """Count the bytes of every block's inputs for one set of rows, and of the corrected kernels."""
    return 4 * spec.num_layers * tokens * spec.hidden_size + corrected


def _sweep_bytes(config: RestoreConfig, spec: ModelSpec, tokens: list[int]) -> int:
    """Count the bytes of all followed models' hidden states, and of the moments and matrices of the widest solve."""
    if not config.objective.solves:
        return 0
    two_sided, propagated = config.objective.reads_task, config.inputs == "propagated"
    matrices = (1 + two_sided) * (3 if propagated else 1) + 3
    return 4 * (_followed(config, tokens) * spec.hidden_size + matrices * max(_widths(spec)) ** 2)


def _kept_bytes(config: RestoreConfig, spec: ModelSpec, tokens: list[int]) -> int:
    """Count the bytes of the inputs of one block's groups in every followed model; 0 unless inputs are propagated."""
    propagated = config.objective.solves and config.inputs == "propagated"
    return 4 * _followed(config, tokens) * sum(_widths(spec)) if propagated else 0


def _fits(kept_inputs: int, weight_bytes: int, layout: Layout | None) -> bool:
    """Return whether the kept inputs fit. Each device of a mesh holds its share; CPU devices share one memory."""
    free = free_bytes()
    if layout is not None:
        devices = jax.local_device_count() if jax.default_backend() == "cpu" else 1
        weight_bytes = devices * weight_bytes // layout.weight_count
        kept_inputs = devices * kept_inputs // layout.row_count
    return kept_inputs <= KEEP_SHARE * (free - weight_bytes)


def _followed(config: RestoreConfig, tokens: list[int]) -> int:
    """Count the tokens of all models that the sweep runs."""
    asked = tokens[0] + (tokens[1] if config.objective.reads_task else 0)
    return asked * (2 if config.inputs == "propagated" else 1)


def _widths(spec: ModelSpec) -> tuple[int, ...]:
    """Return the input width of every group of kernels."""
    return spec.hidden_size, spec.num_heads * spec.head_dim, spec.hidden_size, spec.intermediate_size


def _flops(config: RestoreConfig, spec: ModelSpec, parameters: int, tokens: list[int]) -> float:
    """Count the arithmetic of a run in FLOP.

    The scores need a forward pass, its recomputation and input gradients: 6 FLOP per weight and token. The block sweep
    needs one pass of every followed model, the products of the moments, and the factorisations.
    """
    total = sum(tokens)
    flops = 6.0 * parameters * total
    if config.objective.solves:
        propagated, two_sided = config.inputs == "propagated", config.objective.reads_task
        swept = total if two_sided else tokens[0]
        flops += 2.0 * parameters * swept * (2 if propagated else 1)
        # With propagated inputs there are moments of the current inputs, of their shift and, on honesty rows, of BASE's
        # inputs.
        products = 2.0 * (tokens[0] * (3 if propagated else 1) + (swept - tokens[0]) * (2 if propagated else 1))
        moments = sum(products * width**2 + width**3 for width in _widths(spec))
        flops += spec.num_layers * min(1.0, config.cross_weight * len(spec.kernels) / 4) * moments
    if config.refine_solver == "adamw":
        # A step reads a batch of the rows, forwards, once more for recomputation, and backwards.
        return flops + config.refine * 8.0 * parameters * total * min(1.0, BATCH / sum(config.rows))
    # A Gauss-Newton step needs products (each a forward pass, a pass with its derivative, a backward pass with
    # recomputation) and a gradient.
    return flops + config.refine * (12.0 * PRODUCTS + 14.0) * parameters * total


def _refine_bytes(inputs: RunInputs, kernel_weights: int) -> int:
    """Estimate what the steps of --refine hold beside both models: copies of what learns, or Gauss-Newton vectors."""
    if not inputs.config.refine:
        return 0
    if inputs.config.refine_solver == "gauss_newton":
        return 4 * COPIES * kernel_weights
    if inputs.coordinates is None:
        return 4 * LEARNING_COPIES * kernel_weights
    sizes = (own.basis.size + own.change.size for own in inputs.coordinates.values())
    return 4 * LEARNING_COPIES * sum(sizes)


def matmul_rate(dtype: str = "float32", size_: int = 512, repeats: int = 4) -> float:
    """Measure the FLOP/s of one device, in a few hundredths of a second."""
    x = np.ones((size_, size_), jnp.dtype(dtype))
    multiply = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    multiply(x).block_until_ready()
    start = time.perf_counter()
    for _ in range(repeats):
        multiply(x).block_until_ready()
    return 2.0 * size_**3 * repeats / (time.perf_counter() - start)


def size(count: int | float) -> str:
    """Write a number of bytes with a unit."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def duration(seconds: int | float) -> str:
    """Write a number of seconds in seconds or minutes."""
    return f"{max(seconds, 1):.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _count(field: str, config: RestoreConfig, total: int, what: str) -> int:
    """Return the exact count of a ratio. InputError names the option of a ratio that rounds to 0."""
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
