"""Axes of a device mesh as the user names them. Parameters carry logical axes already (models.logical_axes)."""

from __future__ import annotations

import math

import jax

from hcnr_jax.errors import InputError

AXES = ("data", "fsdp", "model")


def parse_mesh(text: str) -> dict[str, int]:
    """`data=2,model=4` as {axis: size}; an empty text is no mesh. InputError names the part that is not understood."""
    sizes: dict[str, int] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, size = part.partition("=")
        if name not in AXES or not size.isdigit() or int(size) < 1:
            raise InputError(f"--mesh {text}: expected axes out of {', '.join(AXES)}, as in data=2, got {part!r}")
        if name in sizes:
            raise InputError(f"--mesh {text}: the axis {name} is given twice")
        sizes[name] = int(size)
    return sizes


def check_mesh(text: str) -> None:
    """Refuse a mesh this machine has too few devices for, and, while a run uses one device, any larger one."""
    wanted, found = math.prod(parse_mesh(text).values()), jax.device_count()
    if wanted > found:
        raise InputError(f"--mesh {text}: {wanted} devices are asked for, {found} are here; use a smaller mesh")
    if wanted > 1:
        raise InputError(f"--mesh {text}: this version runs on one device; leave --mesh out")
