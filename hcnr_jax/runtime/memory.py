"""Free memory of the device, the host and the process's control group, and its release to the system."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import jax


def free_bytes() -> int:
    """Return the bytes of device memory that a new program may use.

    On a CPU this is the host's free memory within the limits of the process's container or job.
    """
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return min(free_host_bytes(), *free_cgroup_bytes(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))


def release_freed_memory() -> None:
    """Return freed heap memory to the system.

    The C library keeps freed memory. Arrays of many sizes fragment it, which would add up over a deep model's blocks.
    """
    _malloc_trim()(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int]:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # another C library than glibc
        return lambda pad: 0
    return found


def free_host_bytes() -> int:
    """Return the bytes of free memory of the machine."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        return 1024 * _fields(meminfo.read_text("utf-8").replace(":", " "))["MemAvailable"]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def free_cgroup_bytes(groups: Path, mount: Path) -> Iterator[int]:
    """Yield the free bytes under the memory limit of each control group, from the process's own group outwards.

    groups: a file like /proc/self/cgroup. mount: the mount point of control groups, version 2, or 1 by controller.
    Inactive file pages count as free, since the kernel reclaims them.
    """
    try:
        lines = groups.read_text("utf-8").splitlines()
    except OSError:  # no Linux
        return
    for _, controllers, place in (line.split(":", 2) for line in lines):
        if controllers in ("", "memory"):
            own = mount / controllers / place.strip("/")
            # Inside a container the mount may show the process's own group as the root.
            for folder in {own, *own.parents, mount / controllers}:
                if folder.is_relative_to(mount / controllers):
                    yield from _left(folder, bool(controllers))


def _left(folder: Path, first: bool) -> Iterator[int]:
    limit, used = ("memory.limit_in_bytes", "memory.usage_in_bytes") if first else ("memory.max", "memory.current")
    cache = "total_inactive_file" if first else "inactive_file"
    try:
        most, taken = int((folder / limit).read_text("utf-8")), int((folder / used).read_text("utf-8"))
        cached = _fields((folder / "memory.stat").read_text("utf-8"))[cache]
    except (OSError, ValueError, KeyError):  # no such group, or its limit is the word `max`
        return
    yield max(most - taken + cached, 0)


def _fields(text: str) -> dict[str, int]:
    """Parse lines that hold a name and a number."""
    return {words[0]: int(words[1]) for words in map(str.split, text.splitlines()) if len(words) > 1}
