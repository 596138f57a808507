"""Intercept the calls of `nn.Dense` in any Linen model with `replace`, `record`, `feed` and `count`.

Each of the four functions returns a context manager, to be entered around the model's `apply`. A *tap* is a leaf put
beside a kernel in `params`, where `nn.scan` and `nn.remat` carry the leaf along. A separate collection would be
invisible inside a user's `nn.scan`. `replace` and `count` find a layer by its tap; `record` and `feed` find a layer by
its path.

The context manager entered first sees each call first. `with record(paths) as seen, feed(given)` therefore records the
model's own inputs, not the fed inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array


class Call(NamedTuple):
    """Holds one intercepted call of an `nn.Dense`.

    Attributes:
        layer: the bound `nn.Dense`.
        inputs: the inputs x of the call, (..., in).
        plain: the layer's own computation, from inputs to outputs (..., out).
    """

    layer: Any
    inputs: Array
    plain: Callable[[Array], Array]

    @property
    def path(self) -> str:
        """Return the layer's path from the applied module, such as 'attention/q'."""
        return "/".join(self.layer.path)

    def leaf(self, name: str) -> Array:
        """Return the leaf called `name` beside the kernel."""
        return self.layer.get_variable("params", name)

    def through(self, linear: Callable[[Array, Array], Array]) -> Array:
        """Compute the layer's output with `linear(x, kernel)` in place of `x @ kernel`.

        The dtypes and the bias are the layer's own.
        """
        bias: Array | None = self.layer.get_variable("params", "bias")
        x, kernel, bias = promote_dtype(self.inputs, self.leaf("kernel"), bias, dtype=self.layer.dtype)
        y = linear(x, kernel)
        return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


def replace(names: Sequence[str], compute: Callable[[Call, dict[str, Array]], Array]) -> AbstractContextManager[None]:
    """Compute every `nn.Dense` that has a leaf of `names` beside its kernel with `compute(call, found)`.

    `found` maps each name that the layer has to its leaf.

    >>> x, layer = jnp.ones((1, 2)), nn.Dense(3)
    >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3), "gain": jnp.asarray(5.0)}
    >>> with replace(["gain"], lambda call, taps: taps["gain"] * call.plain(call.inputs)):
    ...     print(layer.apply({"params": params}, x))
    [[10. 10. 10.]]
    """

    def visit(call: Call) -> Array:
        found = {name: call.leaf(name) for name in names if call.layer.has_variable("params", name)}
        return compute(call, found) if found else call.plain(call.inputs)

    return _each_dense(visit)


@contextmanager
def record(paths: Sequence[str]) -> Iterator[dict[str, Array]]:
    """Yield a dict from path to inputs, filled when the kernels at `paths` are called.

    A kernel that is never called stays absent.

    >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
    >>> with record(["kernel"]) as seen:
    ...     _ = nn.Dense(3).apply({"params": params}, jnp.ones((1, 2)))
    >>> seen["kernel"].shape
    (1, 2)
    """
    wanted = {path.rpartition("/")[0]: path for path in paths}
    seen: dict[str, Array] = {}

    def visit(call: Call) -> Array:
        if call.path in wanted:
            seen[wanted[call.path]] = call.inputs
        return call.plain(call.inputs)

    with _each_dense(visit):
        yield seen


def feed(given: Mapping[str, Array]) -> AbstractContextManager[None]:
    """Replace the inputs of the kernels at the paths of `given` with the arrays of `given`.

    Under jit, XLA drops the computations that only led to the replaced inputs.

    >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
    >>> with feed({"kernel": jnp.zeros((1, 2))}):
    ...     print(nn.Dense(3).apply({"params": params}, jnp.ones((1, 2))))
    [[0. 0. 0.]]
    """
    inputs = {path.rpartition("/")[0]: value for path, value in given.items()}

    def visit(call: Call) -> Array:
        fed = inputs[call.path].astype(call.inputs.dtype) if call.path in inputs else call.inputs
        return call.plain(fed)

    return _each_dense(visit)


def count(name: str) -> AbstractContextManager[None]:
    """Make the cotangent of each leaf called `name` beside a kernel the number of the kernel's uses.

    >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
    >>> def twice(uses):
    ...     with count("uses"):
    ...         return 2 * jnp.sum(nn.Dense(3).apply({"params": params | {"uses": uses}}, jnp.ones((1, 2))))
    >>> print(jax.grad(twice)(jnp.zeros(())))
    1.0
    """
    return replace([name], lambda call, taps: _counted(call.plain(call.inputs), taps[name]))


def _each_dense(visit: Callable[[Call], Array]) -> AbstractContextManager[None]:
    """Let `visit` compute every call of an `nn.Dense`."""

    def interceptor(next_fun: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        if not isinstance(context.module, nn.Dense) or context.method_name != "__call__":
            return next_fun(*args, **kwargs)
        return visit(Call(context.module, args[0] if args else kwargs["inputs"], next_fun))

    return nn.intercept_methods(interceptor)


@jax.custom_vjp
def _counted(y: Array, counter: Array) -> Array:
    return y


def _counted_backward(counter: Array, cotangent: Array) -> tuple[Array, Array]:
    return cotangent, jnp.ones_like(counter)


_counted.defvjp(lambda y, counter: (y, counter), _counted_backward)
