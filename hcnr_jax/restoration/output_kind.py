"""Decides whether `hcnr restore` writes an adapter or a whole model, and gives every kernel's adapter coordinates."""

from __future__ import annotations

from hcnr_jax.checkpoints.checkpoint import Checkpoint
from hcnr_jax.checkpoints.lora import MergedCheckpoint
from hcnr_jax.config import RestoreConfig
from hcnr_jax.errors import InputError
from hcnr_jax.method.adapter import Coordinates, coordinates
from hcnr_jax.method.neurons import Kernel
from hcnr_jax.models import ModelSpec
from hcnr_jax.restoration.kernel_names import kernel_names


def adapter_to_write(config: RestoreConfig, tuned: Checkpoint, spec: ModelSpec) -> MergedCheckpoint | None:
    """Return the adapter whose like is written, None if a whole model is written.

    Raises:
        InputError: --output adapter is asked for, and TUNED is no adapter or one that allows no adapter as output.
    """
    reason = why_a_model(config, tuned, spec)
    if config.rank is not None:
        if isinstance(tuned, MergedCheckpoint):
            raise InputError(
                f"--rank {config.rank}: TUNED {tuned.folder} is an adapter, whose ranks the output keeps; leave --rank "
                "out (it goes with a whole TUNED)"
            )
        return None
    if config.output == "adapter" and reason is not None:
        raise InputError(f"--output adapter: {reason}; use --output model")
    return tuned if reason is None and isinstance(tuned, MergedCheckpoint) else None


def why_a_model(config: RestoreConfig, tuned: Checkpoint, spec: ModelSpec) -> str | None:
    """Return the reason why a whole model is written, None if an adapter can be written."""
    if config.output == "model":
        return "--output model"
    if not isinstance(tuned, MergedCheckpoint):
        return f"TUNED {tuned.folder} is a whole model, not a LoRA adapter (--rank N makes one of rank N)"
    if config.granularity != "input":
        return f"--granularity {config.granularity} restores parts of a kernel that no column of an adapter holds"
    if config.refine and config.refine_solver == "gauss_newton":
        return "--refine-solver gauss_newton moves whole weights, which an adapter does not hold (adamw moves A and B)"
    for name, update in tuned.updates.items():
        if update.magnitude is not None:
            return f"{tuned.folder} is a DoRA adapter ({name}), whose norms no low-rank product holds"
    for name in kernel_names(spec).values():
        if name in tuned.replaced:
            return f"{tuned.folder} holds all of {name} (modules_to_save), and not a low-rank product"
    return None


def kernel_coordinates(adapter: MergedCheckpoint, spec: ModelSpec) -> dict[Kernel, Coordinates]:
    """Compute the coordinates of every kernel that the adapter moves. A kernel with B = 0 is not moved."""
    found = {}
    for kernel, name in kernel_names(spec).items():
        update = adapter.low_rank(name)
        if update is not None and (own := coordinates(*update)).rank:
            found[kernel] = own
    return found
