"""Find the calls of Flax's linear layers, and describe each call as one matrix product.

Linen has `nn.intercept_methods`. NNX has no hook on calls, so `intercept` replaces `__call__` of NNX's three linear
classes while a context is open. This reaches subclasses and any nesting of modules, and no model code changes. Other
threads see their own layers unchanged.

A linear layer computes Y (n, out) = X (n, in) W (in, out), with n tokens, once its axes are merged:

    Dense, Linear                 (..., in)          (in, out)            -> (..., out)
    DenseGeneral, LinearGeneral   (..., *in)         (*in, *out)          -> (..., *out)
    Einsum 'btd,ndh->btnh'        (b, t, d)          (n, d, h)            -> (b, t, n, h): in is d, out is (n, h)
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array


class Axes(NamedTuple):
    """Holds the axes that make a linear layer's call a matrix product.

    Attributes:
        kernel_in: axes of the kernel that are contracted with the inputs.
        kernel_out: the other axes of the kernel.
        inputs: the axes of the inputs that are contracted, in the order of `kernel_in`.
        outputs: the axes of the output that come from the kernel, in the order of `kernel_out`.
    """

    kernel_in: tuple[int, ...]
    kernel_out: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


Visit = Callable[[Any, Array, Callable[[Array], Array], Axes | None], Array]
"""(layer, inputs, the layer's own computation, axes or None) -> output."""


def as_rows(array: Array, axes: Sequence[int]) -> Array:
    """Merge the axes `axes` of an array into one last axis, and all other axes into the first.

    >>> as_rows(jnp.zeros((2, 3, 5)), (0, 2)).shape
    (3, 10)
    """
    axes = [axis % array.ndim for axis in axes]
    tokens = [axis for axis in range(array.ndim) if axis not in axes]
    moved = jnp.transpose(array, (*tokens, *axes))
    return moved.reshape(-1, *(_product(array.shape[axis] for axis in part) for part in (axes,)))


def _product(sizes: Any) -> int:
    return functools.reduce(lambda a, b: a * b, sizes, 1)


def dense_axes(layer: Any, ndim: int) -> Axes:
    """Return the axes of a call of `nn.Dense` or `nnx.Linear`, whose inputs have `ndim` axes."""
    return Axes((0,), (1,), (ndim - 1,), (ndim - 1,))


def general_axes(layer: Any, ndim: int) -> Axes | None:
    """Return the axes of a call of `nn.DenseGeneral` or `nnx.LinearGeneral`, or None if it has batch axes."""
    linen = isinstance(layer, nn.DenseGeneral)
    features = layer.features if linen else layer.out_features
    if layer.batch_dims if linen else layer.batch_axis:
        return None
    count = len(features) if isinstance(features, Sequence) else 1
    axis = layer.axis if isinstance(layer.axis, Sequence) else (layer.axis,)
    read = tuple(sorted(a % ndim for a in axis))
    given = range(ndim - len(read), ndim - len(read) + count)
    return Axes(tuple(range(len(read))), tuple(range(len(read), len(read) + count)), read, tuple(given))


def einsum_axes(equation: str, ndim: int) -> Axes | None:
    """Return the axes of an einsum of inputs with `ndim` axes and a kernel, or None if it is no matrix product.

    >>> einsum_axes("...d,ndh->...nh", 3)
    Axes(kernel_in=(1,), kernel_out=(0, 2), inputs=(2,), outputs=(2, 3))
    >>> einsum_axes("btnd,ndh->btnh", 4) is None
    True
    """
    operands, _, output = equation.replace(" ", "").partition("->")
    inputs, _, kernel = operands.partition(",")
    spare = [chr(code) for code in range(0x100, 0x100 + ndim)]
    hidden = "".join(spare[: ndim - len(inputs.replace("...", ""))])
    inputs, output = inputs.replace("...", hidden), output.replace("...", hidden)
    if "..." in kernel or any(len(set(letters)) < len(letters) for letters in (inputs, kernel, output)):
        return None
    read = [c for c in kernel if c in inputs and c not in output]
    given = [c for c in kernel if c in output and c not in inputs]
    tokens = [[c for c in letters if c not in kernel] for letters in (inputs, output)]
    if not read or len(read) + len(given) < len(kernel) or tokens[0] != tokens[1]:
        return None

    def places(letters: list[str], within: str) -> tuple[int, ...]:
        return tuple(within.index(c) for c in letters)

    return Axes(places(read, kernel), places(given, kernel), places(read, inputs), places(given, output))


def _einsum_layer_axes(layer: Any, ndim: int, einsum_str: str | None = None) -> Axes | None:
    return einsum_axes(einsum_str or layer.einsum_str, ndim)


# How the call of each class is a matrix product: (layer, axes of the inputs, further arguments of the call) -> axes.
LINEN: dict[type, Callable[..., Axes | None]] = {
    nn.Dense: dense_axes,
    nn.DenseGeneral: general_axes,
    nn.Einsum: _einsum_layer_axes,
}


def nnx_classes() -> dict[type, Callable[..., Axes | None]]:
    """Return the same table for NNX; empty where the program has not imported NNX, whose import takes a while."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is None:
        return {}
    return {
        nnx.Linear: lambda layer, ndim, *args, **kwargs: dense_axes(layer, ndim),
        nnx.LinearGeneral: lambda layer, ndim, *args, **kwargs: general_axes(layer, ndim),
        nnx.Einsum: lambda layer, ndim, text=None, *, einsum_str=None, **kwargs: _einsum_layer_axes(
            layer, ndim, text or einsum_str
        ),
    }


@contextmanager
def intercept(visit: Visit) -> Iterator[None]:
    """Let `visit` compute every call of a linear layer; the context that was entered first sees a call first.

    >>> from flax import nnx
    >>> with intercept(lambda layer, inputs, plain, axes: 2 * plain(inputs)):
    ...     print(nnx.Linear(1, 1, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0))(jnp.ones((1, 1))))
    [[2.]]
    """
    with nn.intercept_methods(_linen_interceptor(visit)), _nnx_replaced():
        token = _VISITS.set((*_VISITS.get(), visit))
        try:
            yield
        finally:
            _VISITS.reset(token)


def _linen_interceptor(visit: Visit) -> Callable[..., Any]:
    def interceptor(next_fun: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        axes_of = next((LINEN[kind] for kind in LINEN if isinstance(context.module, kind)), None)
        if axes_of is None or context.method_name != "__call__":
            return next_fun(*args, **kwargs)
        inputs, *rest = args or (kwargs["inputs"],)
        named = {name: value for name, value in kwargs.items() if name != "inputs"}
        axes = axes_of(context.module, inputs.ndim, *rest, **named)
        return visit(context.module, inputs, lambda x: next_fun(x, *rest, **named), axes)

    return interceptor


# The visits of this thread's open contexts, the first one first.
_VISITS: ContextVar[tuple[Visit, ...]] = ContextVar("visits", default=())
_LOCK = threading.Lock()
# How many contexts are open in all threads, and the methods that the first of them replaced.
_OPEN: list[None] = []
_OWN: dict[type, Callable[..., Array]] = {}


@contextmanager
def _nnx_replaced() -> Iterator[None]:
    """Replace `__call__` of NNX's linear classes until the last open context of all threads is left."""
    with _LOCK:
        if not _OPEN:
            for kind, axes_of in nnx_classes().items():
                _OWN[kind] = kind.__call__
                kind.__call__ = _visited(kind.__call__, axes_of)  # type: ignore[method-assign]
        _OPEN.append(None)
    try:
        yield
    finally:
        with _LOCK:
            _OPEN.pop()
            if not _OPEN:
                for kind, own in _OWN.items():
                    kind.__call__ = own  # type: ignore[method-assign]
                _OWN.clear()


def _visited(own: Callable[..., Array], axes_of: Callable[..., Axes | None]) -> Callable[..., Array]:
    """Return the method that lets this thread's visits compute a call of `own`."""

    @functools.wraps(own)
    def call(layer: Any, inputs: Array, *args: Any, **kwargs: Any) -> Array:
        def through(visits: tuple[Visit, ...], x: Array) -> Array:
            if not visits:
                return own(layer, x, *args, **kwargs)
            axes = axes_of(layer, x.ndim, *args, **kwargs)
            return visits[0](layer, x, functools.partial(through, visits[1:]), axes)

        return through(_VISITS.get(), inputs)

    return call
