"""Programs compiled before their arguments exist, on threads of their own, so that compiling hides behind loading."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache as compilation_cache_module

_POOL = ThreadPoolExecutor(2, thread_name_prefix="compile")


class Ahead:
    """A function under jit whose programs `prepare` can start to compile from shapes alone.

    A call whose arguments have the shapes, dtypes and static values of a prepared one runs that program (and waits for
    it if it must); any other goes through jit as usual. One device only: a program is compiled for the default one.
    """

    def __init__(self, function: Callable[..., Any], static: Sequence[int] = (), donate: Sequence[int] = ()) -> None:
        self._jitted = jax.jit(function, static_argnums=tuple(static), donate_argnums=tuple(donate))
        self._static = frozenset(static)
        self._programs: dict[Any, Future[Any]] = {}

    def prepare(self, *arguments: Any) -> None:
        """Compile in the background for arguments like these; ShapeDtypeStruct leaves serve."""
        key = self._key(arguments)
        if key not in self._programs:
            # Options such as the matmul precision are the calling thread's: tracing stays here, compiling goes.
            lowered = self._jitted.lower(*arguments)
            self._programs[key] = _POOL.submit(lowered.compile)

    def lower(self, *arguments: Any) -> Any:
        """What jit lowers these arguments to."""
        return self._jitted.lower(*arguments)

    def __call__(self, *arguments: Any) -> Any:
        """The function's value."""
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
    """Keep compiled programs in `folder` while the block runs, however small and quick to compile; None changes
    nothing (JAX_COMPILATION_CACHE_DIR in the environment still counts)."""
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
