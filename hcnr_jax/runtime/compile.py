"""Ahead-of-time compilation in background threads, and the persistent compilation cache.

A program is compiled from the shapes of its arguments while the weights are still being read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache as compilation_cache_module

_POOL = ThreadPoolExecutor(2, thread_name_prefix="compile")


class PrecompiledFunction:
    """A jitted function that `prepare` compiles ahead of time from the shapes of its arguments.

    A call with the shapes, dtypes and static values of a prepared call runs the prepared program, and waits for its
    compilation if needed. Every other call goes through jit. Programs are compiled for the default device only.
    """

    def __init__(self, function: Callable[..., Any], static: Sequence[int] = (), donate: Sequence[int] = ()) -> None:
        self._jitted = jax.jit(function, static_argnums=tuple(static), donate_argnums=tuple(donate))
        self._static = frozenset(static)
        self._programs: dict[Any, Future[Any]] = {}

    def prepare(self, *arguments: Any) -> None:
        """Start to compile in the background for these shapes; leaves may be ShapeDtypeStruct."""
        key = self._key(arguments)
        if key not in self._programs:
            # Options such as the matmul precision belong to the calling thread, so that tracing must happen in it.
            lowered = self._jitted.lower(*arguments)
            self._programs[key] = _POOL.submit(lowered.compile)

    def lower(self, *arguments: Any) -> Any:
        """Return the lowered program of `jax.jit` for these arguments."""
        return self._jitted.lower(*arguments)

    def __call__(self, *arguments: Any) -> Any:
        """Call the function, through a prepared program where one fits."""
        program = self._programs.get(self._key(arguments)) if self._programs else None
        if program is None:
            return self._jitted(*arguments)
        return program.result()(*(leaf for i, leaf in enumerate(arguments) if i not in self._static))

    def _key(self, arguments: Sequence[Any]) -> Any:
        static = tuple(arguments[i] for i in sorted(self._static))
        leaves, tree = jax.tree.flatten([leaf for i, leaf in enumerate(arguments) if i not in self._static])
        return static, tree, tuple((leaf.shape, jax.numpy.dtype(leaf.dtype)) for leaf in leaves)


@contextlib.contextmanager
def compilation_cache(folder: Path | None) -> Iterator[None]:
    """Cache compiled programs in `folder` while the block runs, however small and quick to compile they are.

    None changes nothing: the environment variable JAX_COMPILATION_CACHE_DIR still applies.
    """
    if folder is None:
        yield
        return
    settings = {
        "jax_compilation_cache_dir": str(folder.expanduser().resolve()),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache_module.reset_cache()
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache_module.reset_cache()
