"""Holds what `restore_params` reports: its choices, every kernel's outcome, and the losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hcnr_jax.errors import InputError
from hcnr_jax.method.neurons import Kernel
from hcnr_jax.method.objectives.table import OBJECTIVES, Objective
from hcnr_jax.method.one_call.layer_inputs import TokenMask
from hcnr_jax.method.priority import PRIORITIES
from hcnr_jax.method.solve import Outcome


@dataclass(frozen=True)
class Choices:
    """Holds the choices of one restoration; the fields are the keyword arguments of `restore_params`."""

    objective: str = "two_sided"
    inputs: str = "local"
    priority: str = "kl"
    in_weight: float = 0.5
    cross_weight: float = 1.0
    task_weight: float = 2.0
    damping: float = 0.01
    token_mask: TokenMask | None = None
    seed: int = 0

    def check(self) -> None:
        """Refuse choices that no restoration can follow.

        >>> Choices(objective="exakt").check()  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        hcnr_jax.errors.InputError: objective: got 'exakt', expected one of none, paper, exact, two_sided
        """
        tables: dict[str, Any] = {"objective": OBJECTIVES, "priority": PRIORITIES, "inputs": ("local", "propagated")}
        for name, allowed in tables.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{name}: got {getattr(self, name)!r}, expected one of {', '.join(allowed)}")
        for name in ("in_weight", "cross_weight"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"{name}: got {getattr(self, name)}, expected a fraction in (0, 1]")
        for name in ("task_weight", "damping"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name}: got {getattr(self, name)}, expected a finite number of at least 0")
        if self.inputs == "propagated" and self.rule.solves and not self.rule.propagates:
            raise InputError(
                f"inputs: objective {self.objective!r} has no propagated form; expected 'local' here, or objective "
                "'exact' or 'two_sided'"
            )

    @property
    def rule(self) -> Objective:
        """Return the entry of `OBJECTIVES`."""
        return OBJECTIVES[self.objective]


@dataclass(frozen=True)
class KernelReport:
    """Reports one kernel.

    Attributes:
        kernel: the path of its leaf in the params, and its index along the leaf's stack axes.
        neurons: the number of its input channels.
        restored: how many of them are restored, 0 for a kernel that stays as tuned.
        perturbation: d_j, by which kernels are ranked.
        outcome: how the solve ended; None where nothing was solved.
        residual: ||rhs - S E|| / ||rhs|| of the solve, NaN where nothing was solved.
        correction: ||E_R|| / ||W_base||, 0 where nothing was solved.
        shift: ||W' - W_tuned|| / ||W_tuned||.
        distances: d_hon of the tuned kernel, of plain restoration and of the result; None where nothing was solved.
    """

    kernel: Kernel
    neurons: int
    restored: int
    perturbation: float
    outcome: Outcome | None = None
    residual: float = float("nan")
    correction: float = 0.0
    shift: float = 0.0
    distances: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class RestoreReport:
    """Reports one call of `restore_params`.

    Attributes:
        kernels: every kernel, in the order in which ties are broken.
        masks: {path: bool (*stack, in)}, True for a restored neuron.
        left_out: {path: reason} of kernels that the method cannot treat; they stay as tuned.
        losses: {'honesty': (examples,), 'task': (examples,)}, the losses at tuned.
        choices: the choices that were made.
    """

    kernels: tuple[KernelReport, ...]
    masks: Mapping[str, np.ndarray]
    left_out: Mapping[str, str]
    losses: Mapping[str, np.ndarray]
    choices: Choices

    def __str__(self) -> str:
        kept = [report for report in self.kernels if report.restored]
        neurons = sum(report.restored for report in kept), sum(report.neurons for report in self.kernels)
        lines = [f"{neurons[0]} of {neurons[1]} neurons restored in {len(kept)} of {len(self.kernels)} kernels"]
        for report in kept:
            line = f"{report.restored} of {report.neurons} neurons restored, weights moved by {report.shift:.1%}"
            if report.distances is not None:
                said = "honesty distance {:.4g} tuned, {:.4g} put back, {:.4g} compensated".format(*report.distances)
                line = f"{said}; {line}"
            lines.append(f"{report.kernel}: {line}")
        lines += [f"{path} {reason}; left as tuned" for path, reason in self.left_out.items()]
        return "\n".join(lines)
