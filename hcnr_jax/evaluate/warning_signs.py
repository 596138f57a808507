"""Checks the paper's warning signs: each check takes numbers and returns a finding with its remedy.

Before a restoration the checks ask whether BASE's probes transfer, whether the scores are stable, and whether the
moments are well conditioned. After a restoration they ask whether the task or the refusals suffered. A check that
cannot be made returns the reason, and counts neither as passed nor as failed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from hcnr_jax.errors import InputError
from hcnr_jax.method.objectives.table import OBJECTIVES

# Least AUROC of BASE's probe in TUNED that shows that the knowledge survived; damaged models lie at 0.75-0.85.
PREMISE_AUROC = 0.75
# Below this correlation of the scores between two halves of the rows, the draw of the rows decides the selection.
STABLE_CORRELATION = 0.7
# Float32 solves lose all but one or two digits beyond this condition number.
CONDITION_LIMIT = 1e6
# The paper's warning signs: task accuracy down by more than 2 points, F1 below 0.60.
TASK_LOSS = 0.02
LOW_F1 = 0.60
# Stands for the options of a restoration whose options are not known.
UNKNOWN: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Finding:
    """Holds the result of one check.

    Args:
        check: name of the check.
        ok: whether the check passed; None where the check could not be made.
        text: the finding and its remedy.
        value: the measured value.
        limit: the limit that the value was compared with.
    """

    check: str
    ok: bool | None
    text: str
    value: float | None = None
    limit: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Condition:
    """Holds how well conditioned the second moments H of one group of kernels are.

    The condition numbers are of matrices scaled to unit diagonal. They are lower bounds from the Cholesky factor, and
    None where the factorisation failed.

    Args:
        kernels: name of the group.
        inputs: number of inputs, the width of H.
        tokens: number of tokens in the mean.
        undamped: condition number of H.
        damped: condition number of H with damping.
    """

    kernels: str
    inputs: int
    tokens: int
    undamped: float | None
    damped: float | None


def check_premise(base: float, tuned: float) -> Finding:
    """Check whether TUNED keeps the knowledge, by the AUROC of BASE's probe in each model, at BASE's best layer."""
    said = f"BASE's probe tells unanswerable questions with AUROC {base:.3f} in BASE and {tuned:.3f} in TUNED"
    if base < PREMISE_AUROC:
        remedy = "BASE itself does not separate these questions: use others, more of them, or a more honest BASE"
        return Finding("premise", False, f"{said}: {remedy}", base, PREMISE_AUROC)
    if tuned < PREMISE_AUROC:
        remedy = (
            "the knowledge did not survive fine-tuning, so restoring its expression will help little: fine-tune less "
            "(lower learning rate, fewer steps, LoRA), or mix honesty rows into the fine-tuning data"
        )
        return Finding("premise", False, f"{said}: {remedy}", tuned, PREMISE_AUROC)
    return Finding("premise", True, f"{said}: the knowledge is still inside", tuned, PREMISE_AUROC)


def check_stability(name: str, correlations: Mapping[str, float], rows: int) -> Finding:
    """Check whether two halves of the rows rank the neurons alike, by the median over the kernels' correlations."""
    values = np.array([value for value in correlations.values() if np.isfinite(value)])
    if len(values) == 0:
        return Finding(f"stability of {name} scores", None, "every kernel's scores are constant: nothing to rank")
    median, worst = float(np.median(values)), min(correlations, key=lambda kernel: _nan_last(correlations[kernel]))
    said = (
        f"halves of the {rows} {name} rows rank neurons with median correlation {median:.2f} (lowest "
        f"{correlations[worst]:.2f} in {worst})"
    )
    if median < STABLE_CORRELATION:
        remedy = f"results will change with the rows drawn: give more {name} rows (--samples) or more varied ones"
        return Finding(f"stability of {name} scores", False, f"{said}: {remedy}", median, STABLE_CORRELATION)
    return Finding(f"stability of {name} scores", True, said, median, STABLE_CORRELATION)


def check_conditioning(conditions: Sequence[Condition], damping: float) -> Finding:
    """Check whether the corrections can be solved, by the worst damped condition number and the number of tokens."""
    if not conditions:
        return Finding("conditioning of moments", None, "no kernel's moments were measured")
    failed = [item for item in conditions if item.damped is None]
    short = [item for item in conditions if item.tokens < item.inputs]
    rank = f"; {len(short)} of {len(conditions)} have fewer tokens than inputs and lean on the damping" if short else ""
    if failed:
        text = (
            f"the moments of {failed[0].kernels} ({failed[0].tokens} tokens, {failed[0].inputs} inputs) are not "
            f"positive definite at --damping {damping:g}{rank}: raise --damping (0.01 is usual) or give more rows"
        )
        return Finding("conditioning of moments", False, text, None, CONDITION_LIMIT)
    worst = max(conditions, key=lambda item: item.damped or 0.0)
    value = worst.damped or 0.0
    said = f"condition number at --damping {damping:g} up to about {value:.2g} ({worst.kernels}){rank}"
    if value > CONDITION_LIMIT:
        remedy = "float32 cannot solve for the corrections: raise --damping, or give more and longer rows"
        return Finding("conditioning of moments", False, f"{said}: {remedy}", value, CONDITION_LIMIT)
    return Finding("conditioning of moments", True, said, value, CONDITION_LIMIT)


def check_task(tuned: float, restored: float, made: Mapping[str, Any] = UNKNOWN) -> Finding:
    """Check whether the task survived.

    Args:
        tuned: task accuracy of TUNED, a fraction from 0 to 1.
        restored: task accuracy of the restored model, a fraction from 0 to 1.
        made: the options of the restoration, if they are known. The advice omits remedies that were used already.
    """
    said = f"task accuracy {100 * tuned:.1f} % in TUNED, {100 * restored:.1f} % restored"
    if tuned == 0:
        remedy = "TUNED itself answers none of these questions right, so that none could be lost: ask it its own task"
        return Finding("task kept", None, f"{said}: {remedy}", tuned - restored, TASK_LOSS)
    lost = tuned - restored
    if lost > TASK_LOSS + 1e-12:
        text = f"{said}, down by more than 2 points: {', '.join(_keep_task(made))}"
        return Finding("task kept", False, text, lost, TASK_LOSS)
    return Finding("task kept", True, said, lost, TASK_LOSS)


def _keep_task(made: Mapping[str, Any]) -> Iterator[str]:
    """List options that keep more of the task than the used options."""
    yield from _better_correction(made)
    if OBJECTIVES[made.get("compensation", "two_sided")].reads_task:
        yield f"raise --task-weight{_used(made, 'task_weight')}"
    yield f"lower --in-weight{_used(made, 'in_weight')}"
    yield "give more task rows"


def check_honesty(f1: float, made: Mapping[str, Any] = UNKNOWN) -> Finding:
    """Check the restored model's F1 of detecting unanswerable questions, 0-1. `made` is as in `check_task`."""
    said = f"F1 of unanswerable {f1:.2f} restored"
    if f1 < LOW_F1:
        text = f"{said}, below {LOW_F1:.2f}: {', '.join(_more_honest(made))}"
        return Finding("honesty restored", False, text, f1, LOW_F1)
    return Finding("honesty restored", True, said, f1, LOW_F1)


def _more_honest(made: Mapping[str, Any]) -> Iterator[str]:
    """List options that restore more honesty than the used options."""
    yield from _better_correction(made)
    if made.get("cross_weight", 0.0) < 1:
        yield f"raise --cross-weight{_used(made, 'cross_weight')}"
    if OBJECTIVES[made.get("compensation", "two_sided")].reads_task and made.get("task_weight", 1.0) > 0:
        yield f"lower --task-weight{_used(made, 'task_weight')}"
    yield "see that the premise holds"


def _better_correction(made: Mapping[str, Any]) -> Iterator[str]:
    """Name the default correction if another correction was used."""
    lacking = [
        f"--{name} {best}" for name, best in (("compensation", "two_sided"), ("inputs", "propagated"))
        if made.get(name) != best
    ]  # fmt: skip
    if lacking:
        yield f"use {' '.join(lacking)}"


def _used(made: Mapping[str, Any], name: str) -> str:
    return f" ({made[name]:g} was used)" if name in made else ""


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Compute Spearman's correlation of two score vectors; NaN if one vector is constant. Ties have their mean rank.

    Raises:
        InputError: the lengths differ, or a score is NaN or Inf.
    """
    one, other = np.asarray(first, np.float64).ravel(), np.asarray(second, np.float64).ravel()
    if len(one) != len(other) or not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise InputError(
            f"rank correlation: expected finite scores of the same neurons, found {len(one)} and {len(other)} scores"
        )
    ranks = [_centred_ranks(values) for values in (one, other)]
    norm = float(np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float(ranks[0] @ ranks[1]) / norm if norm > 0 else float("nan")


def _centred_ranks(values: np.ndarray) -> np.ndarray:
    """Rank the values, ties at their mean rank, and subtract the mean of all ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    return np.asarray(mean_rank[place] - (len(values) + 1) / 2)


def _nan_last(value: float) -> float:
    return value if np.isfinite(value) else float("inf")
