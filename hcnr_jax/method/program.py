"""Compiled functions that can be called with shapes instead of arrays, so that their programs compile ahead of time.

A sweep calls some dozens of programs, one after another. With `lowering`, the same sweep runs on descriptions of
arrays: every program is traced and lowered, and none runs. The caller compiles the lowered programs, for example in
background threads while weights are read. The later call with arrays of these shapes then finds its program compiled.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

import jax
from jaxtyping import Array

Described: TypeAlias = Array | jax.ShapeDtypeStruct
"""An array, or its description while `lowering`."""


class Compiling(Protocol):
    """A compilation in progress, such as a concurrent.futures.Future."""

    def result(self) -> Any:
        """Wait until the program is compiled."""


Receiver: TypeAlias = Callable[[Any], Compiling | None]

_receiver: contextvars.ContextVar[Receiver | None] = contextvars.ContextVar("receiver", default=None)


@contextlib.contextmanager
def lowering(receive: Receiver) -> Iterator[None]:
    """Lower the programs that are called while the block runs, and run none of them.

    Calls then take and return jax.ShapeDtypeStruct in place of arrays.

    Args:
        receive: called with the jax.stages.Lowered of every call, once for each combination of program and shapes. The
            first call with arrays of these shapes waits for the compilation that `receive` returns.

    >>> double = Program(lambda x: 2 * x)
    >>> with lowering(lambda lowered: print(lowered.compile()(jax.numpy.ones(2)))):
    ...     print(double(jax.ShapeDtypeStruct((2,), jax.numpy.float32)))
    [2. 2.]
    ShapeDtypeStruct(shape=(2,), dtype=float32)
    """
    token = _receiver.set(receive)
    try:
        yield
    finally:
        _receiver.reset(token)


class Program:
    """Compiles a function like `jax.jit`, for calls with arrays or, while `lowering`, with shapes.

    Args:
        function: the function.
        static_argnums: places of the arguments whose values are compiled into the program.
        options: further options of `jax.jit`.

    >>> Program(lambda x: 2 * x)(jax.numpy.ones(2)).tolist()
    [2.0, 2.0]
    """

    def __init__(self, function: Callable[..., Any], *, static_argnums: Sequence[int] = (), **options: Any) -> None:
        self._jitted = jax.jit(function, static_argnums=tuple(static_argnums), **options)
        self._static = frozenset(static_argnums)
        self._lowered: dict[Any, Any] = {}
        self._waiting: dict[Any, Compiling] = {}
        functools.update_wrapper(self, function)

    def lower(self, *arguments: Any) -> Any:
        """Return the jax.stages.Lowered of `jax.jit` for these arguments."""
        return self._jitted.lower(*arguments)

    def __call__(self, *arguments: Any) -> Any:
        """Call the function. The first call after `lowering` waits for its program."""
        receive = _receiver.get()
        if receive is not None:
            return self._lower(receive, arguments)
        if self._waiting and (found := self._waiting.pop(self._key(arguments), None)) is not None:
            found.result()
        return self._jitted(*arguments)

    def _lower(self, receive: Receiver, arguments: Sequence[Any]) -> Any:
        key = self._key(arguments)
        if key not in self._lowered:
            lowered = self.lower(*arguments)
            self._lowered[key] = jax.tree.map(_described, lowered.out_info)
            if (compiling := receive(lowered)) is not None:
                self._waiting[key] = compiling
        return self._lowered[key]

    def _key(self, arguments: Sequence[Any]) -> Any:
        """Return what decides the program of a call: static values, and the other leaves' shapes and dtypes."""
        values = tuple(arguments[place] for place in sorted(self._static))
        leaves, tree = jax.tree.flatten([leaf for place, leaf in enumerate(arguments) if place not in self._static])
        return values, tree, tuple(_description(leaf) for leaf in leaves)


def _described(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _description(leaf: Any) -> Any:
    return (tuple(leaf.shape), str(leaf.dtype)) if hasattr(leaf, "dtype") else type(leaf)
