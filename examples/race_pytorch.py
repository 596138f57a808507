"""Compares speed and memory of hcnr_jax and PyTorch on one machine, with the same random weights and rows.

    python examples/race_pytorch.py --shape 100m --rows 128 --tokens 64 [--json race.json]

It needs PyTorch and transformers. The first race computes the scores of one microbatch. hcnr_jax runs against one
backward pass for each row, torch.func's vmap(grad), Opacus' ghost norms and one plain batched backward pass. Ghost
norms give one number a kernel, where hcnr_jax gives one a neuron; without `opacus` they are skipped. The plain backward
pass gives no scores.

The second race runs whole restorations: `hcnr restore`, with and without --stream, against plain_pytorch.py. Each runs
in its own process with the settings of configs/paper.yaml; wall seconds and peak memory count from start to exit.

A race counts only between contenders that agree. Scores must agree to 1e-3 of the largest score of their kernel, and
restored weights to 1e-4. The neurons must be the same except ties within rounding (one in 10,000). Otherwise the race
is void, and the script ends with code 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import plain_pytorch
import torch
from safetensors import safe_open

from hcnr_jax.bench.measurement import chosen_dtype
from hcnr_jax.bench.model_shapes import SHAPES, spec_of
from hcnr_jax.bench.random_models import Pair, write_pair
from hcnr_jax.bench.sections.fisher import default_microbatch, random_batch, window_of
from hcnr_jax.bench.sections.restore import restore_config
from hcnr_jax.bench.timed_restoration import Run, run_process, run_restore
from hcnr_jax.bench.timing import compile_program, race
from hcnr_jax.checkpoints import hf_name_of, load_params, open_checkpoint
from hcnr_jax.method.fisher import init_scores, score_batch
from hcnr_jax.method.sums import Sums
from hcnr_jax.report.json import to_json, versions
from hcnr_jax.restoration.decoder_blocks import row_loss
from hcnr_jax.runtime.memory import free_bytes

Scores = dict[str, np.ndarray]
SCORE_TOLERANCE, WEIGHT_TOLERANCE, TIES = 1e-3, 1e-4, 1e-4


def main() -> int:
    """Read the options, run the races, print a Markdown table. Return 1 where a race is void."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="100m")
    parser.add_argument("--rows", type=int, default=128, help="honesty rows and as many task rows of the restoration")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--microbatch", type=int, help="rows scored at once; default: as in hcnr bench")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--races", nargs="+", choices=("scores", "restore"), default=["scores", "restore"])
    parser.add_argument("--scratch", type=Path, help="folder for temporary models")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    # This must precede the first use of a device: JAX would otherwise take three quarters of its memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    options.dtype = chosen_dtype(options.dtype)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="hcnr-race-", dir=options.scratch) as folder:
        pair = write_pair(Path(folder), options.shape, options.dtype, rows=options.rows, tokens=options.tokens, seed=0)
        # Whole runs come first, because they are separate processes that need the memory of an accelerator.
        rows += race_restorations(pair, options) if "restore" in options.races else []
        rows += race_scores(pair, options) if "scores" in options.races else []
    tell(rows)
    if options.json:
        given = {name: str(value) for name, value in vars(options).items()}
        found = versions() | {"torch": torch.__version__, "torch_threads": str(torch.get_num_threads())}
        options.json.write_bytes(to_json({"options": given, "versions": found, "rows": rows}))
    return int(any(row["void"] for row in rows))


def tell(rows: list[dict[str, Any]]) -> None:
    """Print a Markdown table; a ratio to hcnr_jax above 1 is slower, or larger, than hcnr_jax."""
    print("| race | contender | seconds | ratio to hcnr_jax | peak GB | ratio to hcnr_jax | agrees |")
    print("|---|---|---|---|---|---|---|")
    ours = {row["race"]: row for row in rows if row["contender"] == "hcnr_jax"}
    for row in rows:
        mine = ours[row["race"]]
        memory = ["", ""]
        if row.get("peak_bytes"):
            memory = [f"{row['peak_bytes'] / 1e9:.2f}", f"{row['peak_bytes'] / mine['peak_bytes']:.2f}"]
        cells = [row["race"], row["contender"], f"{row['seconds']:.3g}", f"{row['seconds'] / mine['seconds']:.2f}"]
        print("| " + " | ".join([*cells, *memory, f"VOID: {row['agrees']}" if row["void"] else row["agrees"]]) + " |")


# ------------------------------------------------------------------------------------------------ scores


def race_scores(pair: Pair, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time one microbatch with all contenders in turns, and compare their scores with hcnr_jax's."""
    rows = options.microbatch or default_microbatch(options.rows, options.tokens)
    batch = random_batch(spec_of(options.shape), rows, options.tokens, seed=0)
    model = plain_pytorch.load(pair.tuned)
    ids = torch.tensor(np.asarray(batch.tokens), dtype=torch.long, device=plain_pytorch.DEVICE)
    start = int(np.argmax(np.asarray(batch.completion_mask)[0]))
    contenders: dict[str, Callable[[], Any]] = {
        "hcnr_jax": hcnr_scores(pair, options, batch),
        "PyTorch, backward a row": lambda: rowwise(model, ids, start),
        # The fused attention kernels have no vmap rule and would be called row by row.
        "torch.func vmap(grad)": vmapped(plain_pytorch.load(pair.tuned, attention="eager"), ids, start),
        "PyTorch, one plain backward": lambda: plain_backward(model, ids, start),
    }
    if importlib.util.find_spec("opacus"):
        contenders["Opacus ghost norms"] = ghost(plain_pytorch.load(pair.tuned), ids, start)
    else:
        print("opacus is not installed: its ghost norms are left out", file=sys.stderr)
    found = {name: call() for name, call in contenders.items()}
    seconds = race({name: synchronised(call) for name, call in contenders.items()}, options.repeats)
    agreements = {name: agreement(found["hcnr_jax"], scores) for name, scores in found.items()}
    return [
        {
            "race": f"scores of {rows} rows",
            "contender": name,
            "seconds": seconds[name].median,
            "agrees": said,
            "void": void,
        }
        for name, (said, void) in agreements.items()
    ]


def synchronised(call: Callable[[], Any]) -> Callable[[], Any]:
    """Make a call wait for the device before it returns."""

    def ended() -> Any:
        found = call()
        if plain_pytorch.DEVICE == "cuda":
            torch.cuda.synchronize()
        return found

    return ended


def agreement(mine: Scores, scores: Scores | None) -> tuple[str, bool]:
    """Return the largest relative distance from hcnr_jax's scores, and whether it is too large.

    The distance is relative to the largest score of a kernel, or to their sum where there is one number a kernel.
    """
    if scores is None:
        return "gives no scores", False
    worst = 0.0
    for name, values in scores.items():
        own = mine[name] if values.size > 1 else mine[name].sum(keepdims=True)
        worst = max(worst, float(np.abs(values - own).max() / np.abs(own).max()))
    return f"to {worst:.1g}", not worst < SCORE_TOLERANCE


def hcnr_scores(pair: Pair, options: argparse.Namespace, batch: Any) -> Callable[[], Scores]:
    """Make the call that computes hcnr_jax's scores, summed over the rows, by Hugging Face name."""
    spec = spec_of(options.shape)
    params = load_params(open_checkpoint(pair.tuned), spec)
    loss = row_loss(spec, "mean", options.dtype, remat=False, window=window_of(options.tokens))
    count = int(batch.tokens.shape[0])

    def step(params: Any, batch: Any, weights: jax.Array, sums: Sums) -> Any:
        return score_batch(loss, params, spec.kernels, batch, weights, sums)[0].total["input"]

    with jax.default_matmul_precision("highest"):
        program = compile_program(step, params, batch, jnp.ones(count), init_scores(params, spec.kernels))

    def call() -> Scores:
        totals = {path: np.asarray(total) for path, total in program.call().items()}
        return {hf_name_of(path, layer): total[layer] for path, total in totals.items() for layer in range(len(total))}

    return call


def losses(model: Any, ids: torch.Tensor, start: int) -> torch.Tensor:
    """Compute the mean completion NLL of every row, with the whole batch at once."""
    logits = model(input_ids=ids, use_cache=False).logits[:, start - 1 : -1].float()
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, start:].flatten(), reduction="none")
    return each.view(len(ids), -1).mean(1)


def rowwise(model: Any, ids: torch.Tensor, start: int) -> Scores:
    """Compute the scores of plain_pytorch.py, summed over the rows."""
    found = plain_pytorch.score(model, [(row, start) for row in ids])
    return {name: len(ids) * scores.cpu().numpy() for name, scores in found.items()}


def plain_backward(model: Any, ids: torch.Tensor, start: int) -> None:
    """Run the backward pass of ordinary training."""
    losses(model, ids, start).mean().backward()
    for layer in plain_pytorch.kernels(model).values():
        layer.weight.grad = None


def vmapped(model: Any, ids: torch.Tensor, start: int) -> Callable[[], Scores]:
    """Make the call that takes weight gradients of many rows at once, as many as a quarter of free memory holds."""
    weights = {name: layer.weight.detach() for name, layer in plain_pytorch.kernels(model).items()}
    mask = torch.full((ids.shape[1],) * 2, torch.finfo(model.dtype).min, dtype=model.dtype, device=ids.device).triu(1)
    places = torch.arange(ids.shape[1], device=ids.device)[None]

    def loss(kernels: dict[str, torch.Tensor], row: torch.Tensor) -> torch.Tensor:
        # Mask and positions are given, since transformers would read values to make them, which vmap forbids.
        inputs = {"input_ids": row[None], "attention_mask": mask[None, None], "position_ids": places}
        logits = torch.func.functional_call(model, kernels, (), {**inputs, "use_cache": False}).logits
        return torch.nn.functional.cross_entropy(logits[0, start - 1 : -1].float(), row[start:])

    size = sum(weight.nbytes for weight in weights.values())
    free = torch.cuda.mem_get_info()[0] if plain_pytorch.DEVICE == "cuda" else free_bytes()
    rows = max(1, min(len(ids), int(free / 4 / size)))
    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))

    def call() -> Scores:
        total: dict[str, Any] = dict.fromkeys(weights, 0)
        for part in ids.split(rows):
            for name, gradient in gradients(weights, part).items():
                total[name] = total[name] + gradient.float().square().sum((0, 1))
        return {name: scores.cpu().numpy() for name, scores in total.items()}

    return call


def ghost(model: Any, ids: torch.Tensor, start: int) -> Callable[[], Scores]:
    """Make the call that squares and sums Opacus' per-row gradient norms of each kernel."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    # The hooks work only in training mode; these models have no dropout.
    wrapped = GradSampleModuleFastGradientClipping(model.train(), max_grad_norm=1.0, loss_reduction="sum")
    layers = plain_pytorch.kernels(model)

    def call() -> Scores:
        losses(wrapped, ids, start).sum().backward()
        found = {name: layer.weight._norm_sample.square().sum(0, keepdim=True) for name, layer in layers.items()}
        for layer in layers.values():
            layer.weight.grad = layer.weight._norm_sample = None
        return {name: norms.detach().cpu().numpy() for name, norms in found.items()}

    return call


# ------------------------------------------------------------------------------------------------ restorations


def race_restorations(pair: Pair, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure whole runs twice, in turns; the faster run of each contender counts."""
    folder = pair.base.parent
    script = str(Path(__file__).with_name("plain_pytorch.py"))
    config = restore_config("paper", pair, folder / "ours", rows=options.rows, seed=0).model_copy(update={"seed": None})
    ways = {"hcnr_jax": config, "hcnr_jax --stream": config.model_copy(update={"out": folder / "s", "stream": True})}
    places = [str(pair.base), str(pair.tuned), "--honesty", str(pair.honesty), "--task", str(pair.task)]
    command = [sys.executable, script, *places, "--out", str(folder / "plain"), "--samples", str(options.rows)]
    runs: dict[str, list[Run]] = {name: [] for name in ways}
    times, plain = [], {}
    for _ in range(2):
        for name, way in ways.items():
            shutil.rmtree(way.out, ignore_errors=True)
            runs[name].append(run_restore(way))
        shutil.rmtree(folder / "plain", ignore_errors=True)
        times.append(run_process(command))
        plain = json.loads((folder / "plain" / "report.json").read_text("utf-8"))
    race = f"restore, {options.rows} + {options.rows} rows"
    rows = []
    for name, way in ways.items():
        best = min(runs[name], key=lambda run: run.seconds)
        said, void = same_result(way.out, folder / "plain", plain["neurons"])
        measured = {"seconds": best.seconds, "peak_bytes": best.peak_bytes, "report": best.report}
        rows.append({"race": race, "contender": name, **measured, "agrees": said, "void": void})
    theirs = {"seconds": min(times), "peak_bytes": plain["peak_bytes"], "report": {"stages": plain["seconds"]}}
    return [*rows, {"race": race, "contender": "plain PyTorch", **theirs, "agrees": "", "void": False}]


def same_result(mine: Path, theirs: Path, neurons: dict[str, list[int]]) -> tuple[str, bool]:
    """Return how far neurons and weights of two restored models differ, and whether the race is void."""
    with safe_open(mine / "hcnr.patch.safetensors", framework="numpy") as patch:
        chosen = {key.removesuffix(".neurons"): patch.get_tensor(key) for key in patch.keys() if "neurons" in key}  # noqa: SIM118
    if set(chosen) != set(neurons):
        return f"{len(set(chosen) ^ set(neurons))} kernels kept by one alone", True
    differ = sum(len(set(chosen[name]) ^ set(neurons[name])) // 2 for name in chosen)
    first, second = (open_checkpoint(folder) for folder in (mine, theirs))
    worst = 0.0
    for name in (name for name in chosen if set(chosen[name]) == set(neurons[name])):
        own, other = (np.asarray(checkpoint.read(name)).astype(np.float32) for checkpoint in (first, second))
        worst = max(worst, float(np.linalg.norm(own - other) / np.linalg.norm(own)))
    void = differ > TIES * sum(map(len, chosen.values())) or not worst < WEIGHT_TOLERANCE
    return f"{differ} neurons differ, weights to {worst:.1g}", void


if __name__ == "__main__":
    sys.exit(main())
