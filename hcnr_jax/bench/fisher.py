"""Section fisher: scoring one microbatch, against one plain batched backward pass and two other ways to the scores.

Ours is `method.fisher.score_batch` with the decoder's loss, all kernels of all blocks. The plain backward pass (the
mean loss of the same rows, gradients of the same kernels) gives no scores at all: it is the price of ordinary training.
`vmap(grad)` and the scan over rows make every example's weight gradients, all at once or one example at a time, square
and add them up: the same scores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hcnr_jax.bench.floors import fisher_flops
from hcnr_jax.bench.section import Measured, Setting
from hcnr_jax.bench.timing import Program, Seconds, compile_program, race
from hcnr_jax.data import Batch
from hcnr_jax.method import sums as streaming
from hcnr_jax.method.fisher import init_scores, materialised_scores, score_batch
from hcnr_jax.method.neurons import Granularity, Leaves, Params, get_leaves, put_leaves
from hcnr_jax.models import KERNELS, Decoder, ModelSpec, init_params
from hcnr_jax.restoration.decoder_blocks import head_nll, row_loss

GRANULARITIES: tuple[Granularity, ...] = ("input", "output")
# Tokens of one microbatch where none is given: a host's caches are small, an accelerator wants large products.
HOST_TOKENS, DEVICE_TOKENS = 1024, 8192
# A token in four belongs to the completion.
COMPLETION_SHARE = 4


def measure(setting: Setting) -> list[Measured]:
    """Rows: each granularity with and without rematerialisation, against each comparison."""
    rows = setting.config.microbatch or default_microbatch(setting.config.rows, setting.config.tokens)
    params = init_params(setting.spec, jax.random.key(setting.config.seed), setting.dtype)
    batch = random_batch(setting.spec, rows, setting.config.tokens, setting.config.seed)
    ours = {
        _ours(granularity, remat): _scores(setting, granularity, remat, params, batch)
        for granularity in GRANULARITIES
        for remat in (True, False)
    }
    plain = {_plain(remat): _backward(setting, remat, params, batch) for remat in (True, False)}
    scanned = {"scan of grad": compile_program(_scanned(setting), params, batch)}
    vmapped, vmapped_rows = _materialised(setting, params, batch)
    programs = _that_fit({**ours, **plain, **scanned, "vmap(grad)": vmapped}, setting)
    seconds = race({name: program.call for name, program in programs.items()}, setting.config.repeats)
    return _rows(setting, programs, seconds, rows, vmapped_rows)


def default_microbatch(rows: int, tokens: int) -> int:
    """Rows scored at once where --microbatch is not given."""
    room = HOST_TOKENS if jax.devices()[0].platform == "cpu" else DEVICE_TOKENS
    return max(1, min(rows, room // tokens))


def random_batch(spec: ModelSpec, rows: int, tokens: int, seed: int) -> Batch:
    """Random ids without padding; the last quarter of each row is its completion."""
    ids = np.random.default_rng(seed).integers(0, spec.vocab_size, (rows, tokens), np.int32)
    completion = np.broadcast_to(np.arange(tokens) >= tokens - max(1, tokens // COMPLETION_SHARE), ids.shape)
    return Batch(*map(jnp.asarray, (ids, np.ones(ids.shape, bool), completion)))


def window_of(tokens: int) -> int:
    """Positions whose logits the loss of `random_batch` reads, a restoration's rounding to 8 included."""
    return -(-(max(1, tokens // COMPLETION_SHARE) + 1) // 8) * 8


def plain_loss(spec: ModelSpec, dtype: Any, remat: bool, window: int) -> Callable[[Params, Batch], jax.Array]:
    """The mean over rows of their losses, the batch going through the decoder at once: what training differentiates.

    Logits are made where the loss reads them alone, as for the scores.
    """
    decoder = Decoder(spec, dtype, remat)

    def loss(params: Params, batch: Batch) -> jax.Array:
        hidden: Any = decoder.apply({"params": params}, batch.tokens, batch.attention_mask, method="hidden")
        return jnp.mean(head_nll(spec, params, hidden, batch, dtype, "mean", window))

    return loss


def _ours(granularity: str, remat: bool) -> str:
    return f"{granularity} scores{', remat' if remat else ''}"


def _plain(remat: bool) -> str:
    return f"plain backward{', remat' if remat else ''}"


def _scores(setting: Setting, granularity: Granularity, remat: bool, params: Params, batch: Batch) -> Program:
    loss = row_loss(setting.spec, "mean", setting.dtype, remat, window_of(setting.config.tokens))
    sums = init_scores(params, KERNELS, (granularity,))
    weights = jnp.ones(batch.tokens.shape[0], jnp.float32)

    def step(params: Params, batch: Batch, weights: jax.Array, sums: streaming.Sums) -> Any:
        return score_batch(loss, params, KERNELS, batch, weights, sums, (granularity,))

    return compile_program(step, params, batch, weights, sums)


def _backward(setting: Setting, remat: bool, params: Params, batch: Batch) -> Program:
    loss = plain_loss(setting.spec, setting.dtype, remat, window_of(setting.config.tokens))

    def gradients(params: Params, batch: Batch) -> tuple[jax.Array, Leaves]:
        return jax.value_and_grad(lambda kernels: loss(put_leaves(params, kernels), batch))(get_leaves(params, KERNELS))

    return compile_program(gradients, params, batch)


def _scanned(setting: Setting) -> Callable[[Params, Batch], Leaves]:
    """Input scores from one example's gradients at a time; without rematerialisation, which one row does not need."""
    loss = row_loss(setting.spec, "mean", setting.dtype, False, window_of(setting.config.tokens))

    def scores(params: Params, batch: Batch) -> Leaves:
        kernels = get_leaves(params, KERNELS)
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


def _materialised(setting: Setting, params: Params, batch: Batch) -> tuple[Program, int]:
    """`vmap(grad)` on as many of the rows as memory holds, halved until they fit: the program, and how many."""
    loss = row_loss(setting.spec, "mean", setting.dtype, True, window_of(setting.config.tokens))
    rows = int(batch.tokens.shape[0])
    while True:
        part = jax.tree.map(lambda leaf, rows=rows: leaf[:rows], batch)
        program = compile_program(lambda p, b: materialised_scores(loss, p, KERNELS, b, ("input",)), params, part)
        if program.fits or rows == 1:
            return program, rows
        rows = -(-rows // 2)


def _that_fit(programs: dict[str, Program], setting: Setting) -> dict[str, Program]:
    for name, program in programs.items():
        if not program.fits:
            setting.say(f"skipped: {name} needs {program.peak_bytes / 1e9:.1f} GB beside the weights")
    return {name: program for name, program in programs.items() if program.fits}


def _rows(
    setting: Setting, programs: dict[str, Program], seconds: dict[str, Seconds], rows: int, vmapped_rows: int
) -> list[Measured]:
    scale = {name: rows / vmapped_rows if name == "vmap(grad)" else 1.0 for name in programs}
    times = {name: seconds[name].median * scale[name] for name in programs}

    def row(granularity: Granularity, name: str, other: str) -> Measured:
        flops = fisher_flops(setting.spec, rows, setting.config.tokens, granularity, window_of(setting.config.tokens))
        notes: dict[str, Any] = {"rows": rows, "other_rows": vmapped_rows} if scale[other] != 1 else {"rows": rows}
        return Measured(
            name,
            times[name],
            other,
            times[other],
            flops / setting.rates.matmul,
            programs[name].peak_bytes,
            programs[other].peak_bytes,
            programs[name].compile_seconds,
            notes,
        )

    found = []
    plain = [name for name in (_plain(True), _plain(False)) if name in times]
    for granularity in GRANULARITIES:
        ours = [name for name in (_ours(granularity, True), _ours(granularity, False)) if name in times]
        # Like with like, for the memory; then the faster of ours against the fastest plain backward and the others.
        like = [(name, _plain(name.endswith("remat"))) for name in ours]
        found += [row(granularity, name, other) for name, other in like if other in times]
        if ours:
            best = min(ours, key=lambda name: times[name])
            others = [min(plain, key=lambda name: times[name])] if plain else []
            others += [name for name in ("vmap(grad)", "scan of grad") if name in times]
            found += [row(granularity, best, other) for other in others if (best, other) not in like]
    return found
