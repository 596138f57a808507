"""Restore any Flax model in one call: `restore_params`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

from hcnr_jax.errors import InputError
from hcnr_jax.method import select
from hcnr_jax.method.neurons import Kernel, Leaves, Params, get_leaves, order_kernels
from hcnr_jax.method.one_call.batches import Batch, read_batches
from hcnr_jax.method.one_call.correct import Restoration, Solved, correct_local, correct_propagated, put_kernels
from hcnr_jax.method.one_call.layer_inputs import TokenMask
from hcnr_jax.method.one_call.linear_view import LinearView, Loss, name_leaves, view_linear
from hcnr_jax.method.one_call.report import Choices, KernelReport, RestoreReport
from hcnr_jax.method.one_call.statistics import Matrices, programs_of, read_once
from hcnr_jax.method.priority import priorities
from hcnr_jax.method.solve import Outcome


def restore_params(
    loss: Loss,
    base: Params,
    tuned: Params,
    honesty: Batch | Iterable[Batch],
    task: Batch | Iterable[Batch],
    *,
    objective: str = "two_sided",
    inputs: str = "local",
    priority: str = "kl",
    in_weight: float = 0.5,
    cross_weight: float = 1.0,
    task_weight: float = 2.0,
    damping: float = 0.01,
    kernels: str = r".*",
    token_mask: TokenMask | None = None,
    seed: int = 0,
) -> tuple[Params, RestoreReport]:
    """Restore a fine-tuned Linen or NNX model: score its neurons, select some, put them back and compensate.

    The linear layers, their order and their shared inputs are found by a trace of the loss. They are `nn.Dense`,
    `nn.DenseGeneral`, `nn.Einsum`, `nnx.Linear`, `nnx.LinearGeneral` and `nnx.Einsum`, also inside scans, remat
    or vmaps over layers. All other leaves stay as tuned. On a mesh every leaf keeps the sharding of tuned's leaf.

    The defaults are those of configs/recommended.yaml, but for the inputs. With local inputs each set of rows is read
    once, and the moments of all groups, (in, in) each, are in memory at once. With propagated inputs the rows are read
    once more for each group of kernels, and the whole model runs each time.

    Args:
        loss: (params, example) -> scalar L. The loss of an NNX model merges its graph definition with `params`.
        base: the params before fine-tuning, theta_0: a nested dict or an `nnx.State`.
        tuned: the params after fine-tuning, theta_f, a tree like `base`.
        honesty: one batch, or a list or another iterable of batches. A batch is a pytree of arrays whose examples are
            stacked along the first axis.
        task: the same for task rows.
        objective: how the restored neurons are corrected, a name in `OBJECTIVES`.
        inputs: `local` solves every kernel alone; `propagated` solves in data-flow order, with the inputs x' of the
            model restored so far.
        priority: how the neurons of a kernel are ranked, a name in `PRIORITIES`.
        in_weight: R_IW, the share of a kernel's neurons that are candidates.
        cross_weight: R_CW, the share of the kernels that are restored.
        task_weight: w, the weight of the task term of `two_sided`.
        damping: share of the mean diagonal of the moments that is added to it.
        kernels: regular expression that the path of a kernel matches, such as 'blocks/.*'. `hcnr restore` leaves the
            output head as tuned; a pattern does so here.
        token_mask: example -> bool, True where a token counts in the moments, with one entry for each token that a
            kernel reads. By default a token counts where the loss depends on what the layer makes of it, so that
            padding is left out.
        seed: of the priority 'random'.

    Returns:
        The restored params, with the tree, dtypes and shardings of tuned, and the report.

    Raises:
        InputError: an argument is not as described, a number is not finite, or a solve failed. The message says what
            was expected, what was found and what to do.

    >>> from flax import linen as nn
    >>> import jax.numpy as jnp
    >>> model, x = nn.Dense(2), jax.random.normal(jax.random.key(0), (8, 5, 4))
    >>> base = model.init(jax.random.key(1), x)["params"]
    >>> tuned = jax.tree.map(lambda leaf: leaf + 0.1, base)
    >>> loss = lambda params, x: jnp.mean(model.apply({"params": params}, x) ** 2)
    >>> restored, report = restore_params(loss, base, tuned, honesty=x, task=x[:4])
    >>> report.kernels[0].restored, report.kernels[0].outcome.name, restored["bias"].tolist() == tuned["bias"].tolist()
    (2, 'OK', True)
    """
    choices = Choices(objective, inputs, priority, in_weight, cross_weight, task_weight, damping, token_mask, seed)
    choices.check()
    check_trees(base, tuned)
    rows: dict[str, Callable[[], Iterator[Batch]]] = {
        name: partial(read_batches, data, name) for name, data in (("honesty", honesty), ("task", task))
    }
    _check_repeats(choices, {"honesty": honesty, "task": task})
    batches = {name: read() for name, read in rows.items()}
    first = next(batches["honesty"])
    view = view_linear(loss, tuned, jax.tree.map(lambda leaf: leaf[0], first), kernels)
    programs, old, new = programs_of(view, token_mask), view.split(base), view.split(tuned)
    local = choices.rule.solves and inputs == "local"
    at_base, at_tuned = ("base", old) if local else None, ("tuned", new) if local and choices.rule.reads_task else None
    batches["honesty"] = itertools.chain([first], batches["honesty"])
    on_honesty = read_once(view, programs, batches["honesty"], tuned=new, aim=at_base, name="honesty")
    on_task = read_once(view, programs, batches["task"], tuned=new, aim=at_tuned, name="task")
    masks, moved, kept = select_kernels(view, choices, old, new, on_honesty.scores, on_task.scores)
    work = Restoration(view, choices, old, new, masks)
    if inputs == "local" or not choices.rule.solves:
        solved = correct_local(work, kept, on_honesty.moments, on_task.moments)
    else:
        solved = correct_propagated(work, kept, programs, rows)
    restored = view.join(put_kernels(new, {kernel: item.weights for kernel, item in solved.items()}))
    losses = {"honesty": on_honesty.losses, "task": on_task.losses}
    reports = tuple(report_kernel(kernel, masks, value, solved) for kernel, value in moved.items())
    return place_like(restored, tuned), RestoreReport(reports, masks, dict(view.left_out), losses, choices)


def check_trees(base: Params, tuned: Params) -> None:
    """Refuse two models whose params differ in their paths or shapes."""
    (old, _), (new, _) = name_leaves(base), name_leaves(tuned)
    for one, other, names in (("base", "tuned", set(old) - set(new)), ("tuned", "base", set(new) - set(old))):
        if names:
            raise InputError(
                f"params: {one} has the leaf {min(names)!r} but {other} has not ({len(names)} such leaves); expected "
                "two trees of one model. Merge adapters into the kernels, and take both from the same collection"
            )
    shapes = [
        dict(zip(names, map(np.shape, jax.tree.leaves(p)), strict=True)) for names, p in ((old, base), (new, tuned))
    ]
    wrong = next((name for name in new if shapes[0][name] != shapes[1][name]), None)
    if wrong is not None:
        raise InputError(
            f"params: the leaf {wrong!r} has shape {shapes[0][wrong]} in base and {shapes[1][wrong]} in tuned; "
            "expected equal shapes. Is base the model that tuned was trained from?"
        )
    if type(base) is not type(tuned):
        raise InputError(
            f"params: base is a {type(base).__name__} and tuned a {type(tuned).__name__}; expected one type"
        )


def _check_repeats(choices: Choices, data: dict[str, Any]) -> None:
    """Refuse data that can be read only once where propagated inputs read it again."""
    for name, rows in data.items():
        if choices.inputs == "propagated" and isinstance(rows, Iterator):
            raise InputError(
                f"{name}: got an iterator, which can be read once; inputs 'propagated' read the rows again for each "
                "group of kernels. Give a list of batches, or use inputs 'local'"
            )


def select_kernels(
    view: LinearView, choices: Choices, base: Matrices, tuned: Matrices, honesty: Leaves, task: Leaves
) -> tuple[dict[str, np.ndarray], dict[Kernel, float], list[Kernel]]:
    """Return the masks on the host, d_j of every kernel, and the kernels that are restored.

    Args:
        view: the model.
        choices: the priority and both ratios.
        base: matrices W_base.
        tuned: matrices W_tuned.
        honesty: scores s_hon.
        task: scores s_task.
    """
    old, new = get_leaves(base, view.paths), get_leaves(tuned, view.paths)
    ranked = priorities(choices.priority, honesty, task, key=jax.random.key(choices.seed))
    candidates = select.in_weight_mask(ranked, new, choices.in_weight, granularity="input")
    moved = {path: np.asarray(_perturbation(old[path], new[path], candidates[path])) for path in view.paths}
    masks, kept = select.cross_weight_mask(candidates, moved, new, ratio=choices.cross_weight)
    values = {kernel: float(moved[kernel.path][kernel.index]) for kernel in order_kernels(new)}
    return {path: np.asarray(mask) for path, mask in masks.items()}, values, kept


_perturbation = jax.jit(partial(select.perturbation, granularity="input"))


def report_kernel(
    kernel: Kernel, masks: dict[str, np.ndarray], perturbation: float, solved: dict[Kernel, Solved]
) -> KernelReport:
    """Build the report of one kernel from its solve.

    Args:
        kernel: which kernel.
        masks: of all kernels.
        perturbation: d_j.
        solved: the kernels that were restored.
    """
    mask = masks[kernel.path][kernel.index]
    report = KernelReport(kernel, mask.size, int(mask.sum()), perturbation)
    if kernel not in solved:
        return report
    info, shift = jax.device_get((solved[kernel].info, solved[kernel].shift))
    report = replace(report, shift=float(shift))
    if info is None:
        return report
    return replace(
        report,
        outcome=Outcome(int(info.solve.outcome)),
        residual=float(info.solve.residual),
        correction=float(info.correction),
        distances=(float(info.distance_tuned), float(info.distance_plain), float(info.distance_restored)),
    )


def place_like(restored: Params, tuned: Params) -> Params:
    """Give every leaf the dtype and the sharding of tuned's leaf."""

    def one(new: Any, old: Any) -> Any:
        if new is old or not isinstance(old, jax.Array):
            return new
        return jax.device_put(new, old.sharding)

    return jax.tree.map(one, restored, tuned)
