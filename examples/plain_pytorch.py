"""Shows the paper's method in plain PyTorch, as a research repository would write it; race_pytorch.py runs it too.

    python examples/plain_pytorch.py BASE TUNED --honesty H.jsonl --task T.jsonl --out DIR --samples 128

It uses the settings of configs/paper.yaml and the first rows of each file. transformers loads the models, and one
backward pass for each row gives the Fisher scores. Forward hooks collect X X^T of all kept kernels in one pass over the
honesty rows. Cholesky factors are float32, and save_pretrained writes the model. The script avoids needless work: only
the kernels have gradients, squares are summed at once, and the hooks' forward passes take whole batches.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import transformers

ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
IN_WEIGHT, CROSS_WEIGHT, DAMPING, FLOOR = 0.5, 0.4, 0.01, 1e-12
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORWARD_ROWS = 16

Row = tuple[torch.Tensor, int]  # ids [T], where the completion starts
Vectors = dict[str, torch.Tensor]


def main() -> None:
    """Read the options and restore."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("tuned", type=Path)
    for name in ("honesty", "task", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=128)
    options = parser.parse_args()
    restore(options.base, options.tuned, options.honesty, options.task, options.out, options.samples)


def restore(base_folder: Path, tuned_folder: Path, honesty: Path, task: Path, out: Path, samples: int) -> None:
    """Load, score, select, correct, save; OUT/report.json holds the selected neurons, seconds and peak memory.

    Args:
        base_folder, tuned_folder: folders of both models.
        honesty, task: files of rows.
        out: the output folder.
        samples: rows of each file.
    """
    start, seconds = time.perf_counter(), {}

    def done(stage: str) -> None:
        seconds[stage] = time.perf_counter() - start - sum(seconds.values())

    base, tuned = load(base_folder), load(tuned_folder)
    rows = [read_rows(tuned_folder, path, samples) for path in (honesty, task)]
    done("load")
    scores = [score(tuned, part) for part in rows]
    done("score")
    masks = select(weights_of(base), weights_of(tuned), *scores)
    done("select")
    moments = input_moments(base, rows[0], set(masks))
    done("moments")
    for name, (layer, old) in paired(tuned, base, masks).items():
        layer.weight.data = correct(old.weight.data, layer.weight.data, masks[name], moments.pop(name))
    done("correct")
    tuned.save_pretrained(out)
    transformers.AutoTokenizer.from_pretrained(tuned_folder).save_pretrained(out)
    done("write")
    neurons = {name: torch.nonzero(mask).flatten().tolist() for name, mask in masks.items()}
    report = {"seconds": seconds, "peak_bytes": peak_bytes(), "neurons": neurons}
    (out / "report.json").write_text(json.dumps(report), encoding="utf-8")


def load(folder: Path, attention: str | None = None) -> torch.nn.Module:
    """Load a causal language model in its stored dtype; only the kernels have gradients."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto", attn_implementation=attention)
    model = model.to(DEVICE).eval()
    model.requires_grad_(False)
    for layer in kernels(model).values():
        layer.weight.requires_grad_(True)
    return model


def kernels(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """Return Hugging Face tensor name -> linear layer, by block and then q, k, v, o, gate, up, down."""
    found = {}
    for index, block in enumerate(model.model.layers):
        for name in ORDER:
            part = "self_attn" if name in ORDER[:4] else "mlp"
            found[f"model.layers.{index}.{part}.{name}.weight"] = getattr(getattr(block, part), name)
    return found


def weights_of(model: torch.nn.Module) -> Vectors:
    """Return the kernels' weights (out, in)."""
    return {name: layer.weight.data for name, layer in kernels(model).items()}


def paired(
    model: torch.nn.Module, other: torch.nn.Module, names: Vectors
) -> dict[str, tuple[torch.nn.Linear, torch.nn.Linear]]:
    """Return the named layers of both models."""
    mine, theirs = kernels(model), kernels(other)
    return {name: (mine[name], theirs[name]) for name in names}


def read_rows(folder: Path, path: Path, count: int) -> list[Row]:
    """Read the first rows of a file as ids with the end token, and the start of each completion."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = []
    # Not splitlines, which also cuts at line separators inside a question.
    for line in [text for text in path.read_text("utf-8").split("\n") if text.strip()][:count]:
        row = json.loads(line)
        ids = [*tokenizer(row["prompt"] + row["completion"])["input_ids"], tokenizer.eos_token_id]
        found.append((torch.tensor(ids, device=DEVICE), len(tokenizer(row["prompt"])["input_ids"])))
    return found


def row_loss(model: torch.nn.Module, ids: torch.Tensor, start: int) -> torch.Tensor:
    """Compute the mean NLL of one row's completion."""
    logits = model(input_ids=ids[None]).logits[0, start - 1 : -1].float()
    return torch.nn.functional.cross_entropy(logits, ids[start:])


def score(model: torch.nn.Module, rows: list[Row]) -> Vectors:
    """Compute the mean over rows of squared gradients, summed over the weights of each input channel."""
    layers = kernels(model)
    sums = {name: torch.zeros(layer.in_features, device=DEVICE) for name, layer in layers.items()}
    for ids, start in rows:
        row_loss(model, ids, start).backward()
        for name, layer in layers.items():
            sums[name] += layer.weight.grad.float().square().sum(0)
            layer.weight.grad = None
    return {name: total / len(rows) for name, total in sums.items()}


def select(old: Vectors, new: Vectors, honesty: Vectors, task: Vectors) -> Vectors:
    """Select the restored neurons of the kept kernels: {name: mask (in,)}.

    Args:
        old, new: the weights of base and tuned.
        honesty, task: the scores on both sets of rows.
    """
    masks, moved = {}, {}
    for name, s_hon in honesty.items():
        p, q = (s + FLOOR * s.mean() for s in (s_hon, task[name]))
        ranked = torch.argsort(p * torch.log(p / q), descending=True, stable=True)
        masks[name] = torch.zeros(len(p), dtype=torch.bool, device=DEVICE)
        masks[name][ranked[: round(IN_WEIGHT * len(p))]] = True
        columns = [w.float()[:, masks[name]] for w in (new[name] - old[name], old[name])]
        moved[name] = float(columns[0].norm() / columns[1].norm())
    kept = sorted(moved, key=lambda name: -moved[name])[: round(CROSS_WEIGHT * len(moved))]
    return {name: masks[name] for name in masks if name in set(kept)}


def input_moments(model: torch.nn.Module, rows: list[Row], names: set[str]) -> Vectors:
    """Compute mean x x^T of each named kernel's inputs by hooks; rows of one length share a forward pass."""
    sums: Vectors = {}

    def hook(name: str) -> object:
        def collect(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
            x = inputs[0].flatten(0, 1).float()
            sums[name] = sums.get(name, 0) + x.T @ x

        return collect

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in kernels(model).items() if name in names]
    by_length: dict[int, list[torch.Tensor]] = {}
    for ids, _ in rows:
        by_length.setdefault(len(ids), []).append(ids)
    with torch.no_grad():
        for group in by_length.values():
            for start in range(0, len(group), FORWARD_ROWS):
                model.model(input_ids=torch.stack(group[start : start + FORWARD_ROWS]), use_cache=False)
    for handle in handles:
        handle.remove()
    tokens = sum(len(ids) for ids, _ in rows)
    return {name: total / tokens for name, total in sums.items()}


def correct(base: torch.Tensor, tuned: torch.Tensor, mask: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Compute W' (out, in): in restored columns, base plus the sum over task neurons k of D_k [H^-1]_kR / [H^-1]_kk.

    Args:
        base, tuned: the weights; D = tuned - base.
        mask: True at the restored neurons R.
        second: H without damping; it is changed in place.
    """
    second.diagonal().add_(DAMPING * second.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(second))
    steps = (tuned - base).float()[:, ~mask] / inverse.diagonal()[~mask]
    new = tuned.clone()
    new[:, mask] = (base.float()[:, mask] + steps @ inverse[~mask][:, mask]).to(new.dtype)
    return new


def peak_bytes() -> int:
    """Return the largest resident size of this process (Linux)."""
    status = Path("/proc/self/status").read_text("utf-8")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


if __name__ == "__main__":
    main()
