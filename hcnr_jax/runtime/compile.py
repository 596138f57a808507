"""Compiles programs in background threads, while weights are read, and keeps compiled programs for later runs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache as compilation_cache_module

from hcnr_jax.errors import InputError
from hcnr_jax.runtime.files import check_writable

_POOL = ThreadPoolExecutor(2, thread_name_prefix="compile")


def compile_later(lowered: Any) -> Future[Any]:
    """Compile a jax.stages.Lowered in a background thread. A later call of the jitted function finds the program."""
    return _POOL.submit(lowered.compile)


# The name of the default cache folder as an option's value, and the limit of its size. The least recently used programs
# leave a full cache.
AUTO = "auto"
MAX_BYTES = 2 * 2**30
# Programs that compile faster than this many seconds are compiled again: reading them back would take as long.
MIN_SECONDS = 0.02


def default_cache_folder() -> Path:
    """Return the folder of this user's compiled programs: `hcnr_jax/programs` in XDG_CACHE_HOME, or in ~/.cache.

    The folder has a part for each kind of CPU. XLA compiles for the instructions of the CPU at hand, and a home folder
    may be shared by machines of several kinds.
    """
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "hcnr_jax" / "programs" / _cpu_name()


def _cpu_name() -> str:
    """Name the CPU by its architecture and a hash of the instructions that it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = [platform.processor()]
    found = sorted({line for line in lines if line.startswith(("flags", "Features", "model name", "CPU part"))})
    return f"{platform.machine()}-{hashlib.sha256(chr(10).join(found or lines[:1]).encode()).hexdigest()[:12]}"


@contextlib.contextmanager
def compilation_cache(folder: Path | str | None) -> Iterator[None]:
    """Cache compiled programs in `folder` while the block runs.

    Args:
        folder: a folder of the user's choice, which keeps every program; None keeps nothing; AUTO is the cache that
            JAX is already set to (JAX_COMPILATION_CACHE_DIR), or else `default_cache_folder`, limited to MAX_BYTES.
            AUTO keeps nothing where the folder cannot be written.
    """
    before = {name: getattr(jax.config, name) for name in _SETTINGS}
    settings = _cache_settings(folder, before)
    if settings == before:
        yield
        return
    try:
        _set_cache(settings)
        yield
    finally:
        _set_cache(before)


_SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


def _cache_settings(folder: Path | str | None, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of _SETTINGS, in their order, for a value of --compilation-cache."""
    if folder is None:
        return {**before, _SETTINGS[0]: None}
    if folder != AUTO:
        return dict(zip(_SETTINGS, (str(Path(folder).expanduser().resolve()), -1, 0.0, -1), strict=True))
    if before[_SETTINGS[0]]:
        return dict(before)
    place = default_cache_folder()
    try:
        place.mkdir(parents=True, exist_ok=True)
        check_writable(place, "the compilation cache")
    except (OSError, InputError):
        return dict(before)
    return dict(zip(_SETTINGS, (str(place), MAX_BYTES, MIN_SECONDS, -1), strict=True))


def _set_cache(settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache_module.reset_cache()
