"""Section fisher: scores of one microbatch, against one plain batched backward pass and two simpler ways to score.

hcnr's side is `method.fisher.score_batch` with the decoder's loss, for all kernels of all blocks. The plain backward
pass differentiates the mean loss of the same rows by the same kernels. It gives no scores: it is the cost of ordinary
training. `vmap(grad)` and the scan over rows square and add every example's weight gradients, all at once or one
example at a time; they give the same scores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hcnr_jax.bench.measurement import BenchContext, Measurement
from hcnr_jax.bench.roofline import fisher_flops
from hcnr_jax.bench.timing import Program, Seconds, compile_program, race
from hcnr_jax.data import Batch
from hcnr_jax.method.fisher import init_scores, materialised_scores, score_batch
from hcnr_jax.method.neurons import Granularity, Leaves, Params, get_leaves, put_leaves
from hcnr_jax.method.sums import Sums
from hcnr_jax.models import Decoder, ModelSpec, init_params
from hcnr_jax.restoration.decoder_blocks import head_nll, row_loss

GRANULARITIES: tuple[Granularity, ...] = ("input", "output")
# Tokens of a default microbatch. A CPU's caches are small; an accelerator needs large matrix products.
HOST_TOKENS, DEVICE_TOKENS = 1024, 8192
# A token in four belongs to the completion.
COMPLETION_SHARE = 4


def measure(context: BenchContext) -> list[Measurement]:
    """Measure each granularity with and without rematerialisation, against each contender."""
    rows = context.config.microbatch or default_microbatch(context.config.rows, context.config.tokens)
    params = init_params(context.spec, jax.random.key(context.config.seed), context.dtype)
    batch = random_batch(context.spec, rows, context.config.tokens, seed=context.config.seed)
    hcnr = {
        _hcnr(granularity, remat): _scores(context, granularity, remat, params=params, batch=batch)
        for granularity in GRANULARITIES
        for remat in (True, False)
    }
    plain = {_plain(remat): _backward(context, remat, params, batch=batch) for remat in (True, False)}
    scanned = {"scan of grad": compile_program(_scanned(context), params, batch)}
    vmapped, vmapped_rows = _materialised(context, params, batch)
    programs = _that_fit({**hcnr, **plain, **scanned, "vmap(grad)": vmapped}, context)
    seconds = race({name: program.call for name, program in programs.items()}, context.config.repeats)
    return _rows(context, programs, seconds, rows=rows, vmapped_rows=vmapped_rows)


def default_microbatch(rows: int, tokens: int) -> int:
    """Return the rows scored at once where --microbatch is not given."""
    room = HOST_TOKENS if jax.devices()[0].platform == "cpu" else DEVICE_TOKENS
    return max(1, min(rows, room // tokens))


def random_batch(spec: ModelSpec, rows: int, tokens: int, *, seed: int) -> Batch:
    """Draw random ids without padding; the last quarter of each row is its completion."""
    ids = np.random.default_rng(seed).integers(0, spec.vocab_size, (rows, tokens), np.int32)
    completion = np.broadcast_to(np.arange(tokens) >= tokens - max(1, tokens // COMPLETION_SHARE), ids.shape)
    return Batch(*map(jnp.asarray, (ids, np.ones(ids.shape, bool), completion)))


def window_of(tokens: int) -> int:
    """Return the number of positions whose logits the loss of `random_batch` reads, rounded up to 8 as in a run."""
    return -(-(max(1, tokens // COMPLETION_SHARE) + 1) // 8) * 8


def plain_loss(spec: ModelSpec, dtype: Any, remat: bool, *, window: int) -> Callable[[Params, Batch], jax.Array]:
    """Make the loss that training differentiates: the mean over rows, with the whole batch in one decoder pass.

    Args:
        spec: the model's sizes.
        dtype: of the arithmetic.
        remat: whether activations are recomputed.
        window: positions at which logits are computed, those that the loss reads, as for the scores.
    """
    decoder = Decoder(spec, dtype, remat)

    def loss(params: Params, batch: Batch) -> jax.Array:
        hidden: Any = decoder.apply({"params": params}, batch.tokens, batch.attention_mask, method="hidden")
        return jnp.mean(head_nll(spec, params, hidden, batch=batch, dtype=dtype, reduction="mean", window=window))

    return loss


def _hcnr(granularity: str, remat: bool) -> str:
    return f"{granularity} scores{', remat' if remat else ''}"


def _plain(remat: bool) -> str:
    return f"plain backward{', remat' if remat else ''}"


def _scores(context: BenchContext, granularity: Granularity, remat: bool, *, params: Params, batch: Batch) -> Program:
    loss = row_loss(context.spec, "mean", context.dtype, remat=remat, window=window_of(context.config.tokens))
    sums = init_scores(params, context.spec.kernels, (granularity,))
    weights = jnp.ones(batch.tokens.shape[0], jnp.float32)

    def step(params: Params, batch: Batch, weights: jax.Array, sums: Sums) -> Any:
        return score_batch(loss, params, context.spec.kernels, batch, weights, sums, (granularity,))

    return compile_program(step, params, batch, weights, sums)


def _backward(context: BenchContext, remat: bool, params: Params, *, batch: Batch) -> Program:
    loss = plain_loss(context.spec, context.dtype, remat, window=window_of(context.config.tokens))

    def gradients(params: Params, batch: Batch) -> tuple[jax.Array, Leaves]:
        return jax.value_and_grad(lambda kernels: loss(put_leaves(params, kernels), batch))(
            get_leaves(params, context.spec.kernels)
        )

    return compile_program(gradients, params, batch)


def _scanned(context: BenchContext) -> Callable[[Params, Batch], Leaves]:
    """Make input scores from one example's gradients at a time, without rematerialisation."""
    loss = row_loss(context.spec, "mean", context.dtype, remat=False, window=window_of(context.config.tokens))

    def scores(params: Params, batch: Batch) -> Leaves:
        kernels = get_leaves(params, context.spec.kernels)
        of_kernels = jax.grad(lambda kernels, example: loss(put_leaves(params, kernels), example))

        def one(total: Leaves, example: Batch) -> tuple[Leaves, None]:
            squares = {
                path: jnp.sum(jnp.square(gradient.astype(jnp.float32)), axis=-1)
                for path, gradient in of_kernels(kernels, example).items()
            }
            return jax.tree.map(jnp.add, total, squares), None

        start = {path: jnp.zeros(leaf.shape[:-1], jnp.float32) for path, leaf in kernels.items()}
        return jax.lax.scan(one, start, batch)[0]

    return scores


def _materialised(context: BenchContext, params: Params, batch: Batch) -> tuple[Program, int]:
    """Compile `vmap(grad)` for the rows, halved until memory holds them; return the program and the number of rows."""
    loss = row_loss(context.spec, "mean", context.dtype, remat=True, window=window_of(context.config.tokens))
    rows = int(batch.tokens.shape[0])
    while True:
        part = jax.tree.map(lambda leaf, rows=rows: leaf[:rows], batch)
        program = compile_program(
            lambda p, b: materialised_scores(loss, p, context.spec.kernels, b, ("input",)), params, part
        )
        if program.fits or rows == 1:
            return program, rows
        rows = -(-rows // 2)


def _that_fit(programs: dict[str, Program], context: BenchContext) -> dict[str, Program]:
    for name, program in programs.items():
        if not program.fits:
            context.say(f"skipped: {name} needs {program.peak_bytes / 1e9:.1f} GB beside the weights")
    return {name: program for name, program in programs.items() if program.fits}


def _rows(
    context: BenchContext, programs: dict[str, Program], seconds: dict[str, Seconds], *, rows: int, vmapped_rows: int
) -> list[Measurement]:
    scale = {name: rows / vmapped_rows if name == "vmap(grad)" else 1.0 for name in programs}
    times = {name: seconds[name].median * scale[name] for name in programs}

    def row(granularity: Granularity, name: str, contender: str) -> Measurement:
        flops = fisher_flops(
            context.spec, rows, context.config.tokens, granularity=granularity, logits=window_of(context.config.tokens)
        )
        notes: dict[str, Any] = {"rows": rows, "other_rows": vmapped_rows} if scale[contender] != 1 else {"rows": rows}
        return Measurement(
            name,
            times[name],
            contender,
            times[contender],
            flops / context.rates.matmul,
            programs[name].peak_bytes,
            programs[contender].peak_bytes,
            programs[name].compile_seconds,
            notes,
        )

    found = []
    plain = [name for name in (_plain(True), _plain(False)) if name in times]
    for granularity in GRANULARITIES:
        hcnr = [name for name in (_hcnr(granularity, True), _hcnr(granularity, False)) if name in times]
        # First with and without remat on both sides, for the memory; then the faster hcnr way against each contender.
        like = [(name, _plain(name.endswith("remat"))) for name in hcnr]
        found += [row(granularity, name, contender) for name, contender in like if contender in times]
        if hcnr:
            best = min(hcnr, key=lambda name: times[name])
            contenders = [min(plain, key=lambda name: times[name])] if plain else []
            contenders += [name for name in ("vmap(grad)", "scan of grad") if name in times]
            found += [row(granularity, best, contender) for contender in contenders if (best, contender) not in like]
    return found
