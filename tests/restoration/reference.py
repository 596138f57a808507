"""A whole restoration again, in float64, with PyTorch's models and the dense numpy oracle: rows in, kernels out."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

from hcnr_jax.config import RestoreConfig
from tests.method import oracle

ATTENTION = ("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj")
ORDER = (
    *ATTENTION,
    "gate_proj",
    "up_proj",
    "gate_up_proj",
    "down_proj",
)  # a model has q, k, v or qkv; gate, up or gate_up
GROUPS = (ORDER[:4], ORDER[4:5], ORDER[5:8], ORDER[8:])


class Tokens(NamedTuple):
    """One row: ids, and where its completion begins."""

    ids: list[int]
    start: int


class Restored(NamedTuple):
    """What the definition says: d of every kernel, restored neurons of the kept ones, their new weights (out, in), and
    d_hon (tuned, plain, restored) of local corrections."""

    d: dict[str, float]
    neurons: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]


def setting(options: dict, name: str) -> Any:
    """An option as given, or RestoreConfig's default."""
    return options.get(name, RestoreConfig.model_fields[name].default)


def load(folder: Path) -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")


def tokens_of(folder: Path, rows: Path, count: int) -> list[Tokens]:
    """The first rows of a file in file order, tokenised as docs/design.md says."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    chosen = [json.loads(line) for line in rows.read_text().splitlines()[:count]]
    return [
        Tokens(
            tokenizer(row["prompt"] + row["completion"])["input_ids"] + [tokenizer.eos_token_id],
            len(tokenizer(row["prompt"])["input_ids"]),
        )
        for row in chosen
    ]


def loss(model: torch.nn.Module, row: Tokens, reduction: str = "mean") -> torch.Tensor:
    """NLL of one row's completion."""
    ids = torch.tensor([row.ids])
    logits = model(input_ids=ids).logits[0, row.start - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, ids[0, row.start :], reduction=reduction)


def mean_loss(model: torch.nn.Module, rows: Sequence[Tokens]) -> float:
    """Mean over rows of the mean NLL."""
    return float(np.mean([loss(model, row).item() for row in rows]))


def kernels(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """HF tensor name -> linear layer, by block and then in ORDER."""
    found = {}
    for index, block in enumerate(model.model.layers):
        for name in ORDER:
            part = "self_attn" if name in ATTENTION else "mlp"
            if (layer := getattr(getattr(block, part), name, None)) is not None:
                found[f"model.layers.{index}.{part}.{name}.weight"] = layer
    return found


def weights(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: layer.weight.detach().numpy().copy() for name, layer in kernels(model).items()}


def scores(model: torch.nn.Module, rows: Sequence[Tokens], granularity: str, reduction: str) -> dict[str, np.ndarray]:
    """Fisher scores from one backward pass a row."""
    layers, gradients = kernels(model), {name: [] for name in kernels(model)}
    for row in rows:
        model.zero_grad()
        loss(model, row, reduction).backward()
        for name, layer in layers.items():
            gradients[name].append(layer.weight.grad.numpy().copy())
    return {name: oracle.scores(np.stack(found), granularity) for name, found in gradients.items()}


def inputs(model: torch.nn.Module, rows: Sequence[Tokens]) -> dict[str, np.ndarray]:
    """What every kernel reads, all tokens of all rows."""
    seen: dict[str, list[np.ndarray]] = {name: [] for name in kernels(model)}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, name=name: seen[name].append(args[0][0].detach().numpy().copy())
        )
        for name, layer in kernels(model).items()
    ]
    with torch.no_grad():
        for row in rows:
            model(input_ids=torch.tensor([row.ids]))
    for hook in hooks:
        hook.remove()
    return {name: np.concatenate(found) for name, found in seen.items()}


def select(
    base: torch.nn.Module, tuned: torch.nn.Module, honesty: Sequence[Tokens], task: Sequence[Tokens], options: dict
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """d of every kernel and the masks (neurons) of the kept ones."""
    granularity = setting(options, "granularity")
    at = base if setting(options, "scores_at") == "base" else tuned
    s_hon, s_task = (scores(at, rows, granularity, setting(options, "loss")) for rows in (honesty, task))
    old, new = weights(base), weights(tuned)
    masks, d = {}, {}
    for name in old:
        ranked = oracle.priority(s_hon[name], s_task[name], setting(options, "priority"))
        masks[name] = oracle.top(ranked, setting(options, "in_weight"))
        d[name] = oracle.perturbation(old[name], new[name], spread(masks[name], granularity))
    keys = {(int(name.split(".")[2]), name.split(".")[-2]): name for name in d}
    kept = oracle.keep({key: d[name] for key, name in keys.items()}, setting(options, "cross_weight"), ORDER)
    return d, {name: masks[name] for key, name in keys.items() if key in kept}


def spread(mask: np.ndarray, granularity: str) -> np.ndarray:
    """A mask of neurons against (out, in) weights."""
    return {"input": mask[None, :] if mask.ndim == 1 else mask, "output": mask[..., None], "weight": mask}[granularity]


def restore(
    base_folder: Path, tuned_folder: Path, honesty: Path, task: Path, counts: tuple[int, int], options: dict
) -> Restored:
    """The whole method. `options` are RestoreConfig's fields, defaults its defaults; file order of rows."""
    base, tuned = load(base_folder), load(tuned_folder)
    rows = [tokens_of(tuned_folder, path, n) for path, n in zip((honesty, task), counts, strict=True)]
    d, masks = select(base, tuned, *rows, options)
    method, granularity = setting(options, "compensation"), setting(options, "granularity")
    old, new = weights(base), weights(tuned)
    if method == "none":
        done = {name: np.where(spread(mask, granularity), old[name], new[name]) for name, mask in masks.items()}
    else:
        done = correct(base, tuned, masks, *rows, options)
    return Restored(d, {name: np.flatnonzero(mask) for name, mask in masks.items()}, done)


def correct(
    base: torch.nn.Module,
    tuned: torch.nn.Module,
    masks: dict[str, np.ndarray],
    honesty: Sequence[Tokens],
    task: Sequence[Tokens],
    options: dict,
) -> dict[str, np.ndarray]:
    """Group by group; with propagated inputs the model restored so far is run afresh before each."""
    method, local = setting(options, "compensation"), setting(options, "inputs") == "local"
    damping = setting(options, "damping")
    weight = setting(options, "task_weight") if method == "two_sided" else 0.0
    x, z = inputs(tuned if setting(options, "moments_at") == "tuned" else base, honesty), inputs(tuned, task)
    old, new, now = weights(base), weights(tuned), copy.deepcopy(tuned)
    layers, done = kernels(now), {}
    for index in range(len(now.model.layers)):
        for group in GROUPS:
            names = [n for n in masks if n.split(".")[2] == str(index) and n.split(".")[-2] in group]
            if names and not local:
                x_now, z_now = inputs(now, honesty), inputs(now, task)
            for name in names:
                if local:
                    second, second_task = oracle.moment(x[name]), oracle.moment(z[name])
                    done[name] = oracle.compensate(
                        old[name], new[name], masks[name], second, method, damping, second_task, weight
                    )
                else:
                    done[name] = oracle.propagated(
                        old[name], new[name], masks[name], x[name], x_now[name], z[name], z_now[name], weight, damping
                    )
            for name in names:
                layers[name].weight.data = torch.tensor(done[name])
    return done
