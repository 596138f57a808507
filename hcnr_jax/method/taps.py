"""Intercept calls of linear layers in any Flax model, Linen or NNX: `replace`, `observe`, `record`, `feed`, `count`.

Each function returns a context manager, to be entered around the model's call. The layers are those of
`taps_layers`: `nn.Dense`, `nn.DenseGeneral`, `nn.Einsum`, and `nnx.Linear`, `nnx.LinearGeneral`, `nnx.Einsum`. A *tap*
is an array that travels with a kernel, through `scan`, `vmap` and `remat` alike:

- In Linen a tap may be a leaf beside the kernel in `params`. A separate collection would be invisible inside a user's
  `nn.scan`.
- In both a tap may lie inside the kernel's leaf, as a `Tapped` kernel. NNX refuses leaves that its graph lacks, so that
  there is no place beside a kernel.

`replace`, `observe` and `count` find a layer by its taps; `record` and `feed` find a Linen layer by its path.

The context manager entered first sees each call first. `with record(paths) as seen, feed(given)` therefore records the
model's own inputs, not the fed inputs.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array

from hcnr_jax.errors import InputError
from hcnr_jax.method.taps_layers import Axes, as_rows, intercept

Statistic = Callable[[Array, Array], Array]
"""(inputs X (n, in), cotangents of the outputs G (n, out)) -> the cotangent of a tap."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["array", "taps"], meta_fields=["path", "trace"])
@dataclasses.dataclass(frozen=True)
class Tapped:
    """Holds a kernel with its taps as one leaf of a model's params. Code that reads the kernel gets the array.

    Attributes:
        array: the kernel.
        taps: {name: tap}, with the kernel's stack axes first, so that a scan splits both.
        path: the path of the kernel in the params.
        trace: a number that no other tree of taps has. A function that the model jits is then traced again, with this
            tree's taps, instead of called as it was traced before.

    >>> kernel = Tapped(jnp.ones((2, 3)), {"tap": jnp.zeros(2)}, "q/kernel", 0)
    >>> (jnp.ones((1, 2)) @ kernel).shape, kernel.shape, kernel[...].shape
    ((1, 3), (2, 3), (2, 3))
    """

    array: Any
    taps: dict[str, Any]
    path: str
    trace: int

    def __jax_array__(self) -> Array:
        return self.array

    def __getitem__(self, index: Any) -> Array:
        return self.array[index]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "array":
            raise AttributeError(name)
        return getattr(self.array, name)


for _name in ("add", "sub", "mul", "truediv", "matmul", "neg"):
    _operator = getattr(operator, _name)
    setattr(Tapped, f"__{_name}__", lambda self, *other, _operator=_operator: _operator(self.array, *other))


class Call(NamedTuple):
    """Holds one intercepted call of a linear layer.

    Attributes:
        layer: the layer: a bound Linen module, or an NNX module.
        inputs: the inputs x of the call, (..., in).
        plain: the layer's own computation, from inputs to outputs (..., out).
        axes: how the call is a matrix product; None if it is none.
    """

    layer: Any
    inputs: Array
    plain: Callable[[Array], Array]
    axes: Axes | None

    @property
    def path(self) -> str:
        """Return the layer's path, such as 'attention/q', from the applied Linen module or in the params with taps."""
        kernel = self.kernel
        if isinstance(kernel, Tapped):
            return kernel.path.rpartition("/")[0]
        return "/".join(self.layer.path) if self.is_linen else type(self.layer).__name__

    @property
    def is_linen(self) -> bool:
        """Return whether the layer is a Linen module."""
        return isinstance(self.layer, nn.Module)

    @property
    def kernel(self) -> Any:
        """Return the kernel: an array, or a `Tapped` kernel."""
        if not self.is_linen:
            return self.layer.kernel.get_raw_value()
        kernel = self.layer.get_variable("params", "kernel")
        return kernel.value if isinstance(kernel, nn.Partitioned) else kernel

    def leaf(self, name: str) -> Array:
        """Return the leaf called `name` beside a Linen layer's kernel."""
        return self.layer.get_variable("params", name)

    def found(self, names: Sequence[str]) -> dict[str, Array]:
        """Return the taps among `names` that the kernel has, beside it or inside its leaf."""
        kernel = self.kernel
        inside = kernel.taps if isinstance(kernel, Tapped) else {}
        beside = {name: self.leaf(name) for name in names if self.is_linen and self.layer.has_variable("params", name)}
        return beside | {name: inside[name] for name in names if name in inside}

    def through(self, linear: Callable[[Array, Array], Array]) -> Array:
        """Compute the output of an `nn.Dense` with `linear(x, kernel)` in place of `x @ kernel`.

        The dtypes and the bias are the layer's own.
        """
        bias: Array | None = self.layer.get_variable("params", "bias")
        x, kernel, bias = promote_dtype(self.inputs, self.leaf("kernel"), bias, dtype=self.layer.dtype)
        y = linear(x, kernel)
        return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


def replace(names: Sequence[str], compute: Callable[[Call, dict[str, Array]], Array]) -> AbstractContextManager[None]:
    """Compute every linear layer that has a tap of `names` with `compute(call, found)`.

    `found` maps each name that the layer has to its tap.

    >>> x, layer = jnp.ones((1, 2)), nn.Dense(3)
    >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3), "gain": jnp.asarray(5.0)}
    >>> with replace(["gain"], lambda call, taps: taps["gain"] * call.plain(call.inputs)):
    ...     print(layer.apply({"params": params}, x))
    [[10. 10. 10.]]
    """

    def visit(call: Call) -> Array:
        found = call.found(names)
        return compute(call, found) if found else call.plain(call.inputs)

    return each_linear(visit)


def observe(statistics: Mapping[str, Statistic]) -> AbstractContextManager[None]:
    """Make the cotangent of each tap named in `statistics` what its function returns for (X, G).

    X (n, in) are the layer's inputs and G (n, out) the cotangents of its outputs, in the dtype of the outputs. The
    layer computes its outputs itself, whatever its dtypes and biases.

    >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
    >>> def total(tap):
    ...     with observe({"tap": lambda x, g: jnp.sum(x, axis=0) * jnp.sum(g)}):
    ...         return jnp.sum(nn.Dense(3).apply({"params": params | {"tap": tap}}, jnp.asarray([[1.0, 2.0]])))
    >>> print(jax.grad(total)(jnp.zeros(2)))
    [3. 6.]
    """

    def compute(call: Call, found: dict[str, Array]) -> Array:
        axes = call.axes
        if axes is None:
            raise InputError(f"kernel {call.path}: its layer is no matrix product; leave it out of the kernels")
        y = call.plain(call.inputs)

        def rule(x: Array, g: Array, taps: dict[str, Array]) -> dict[str, Array]:
            rows = as_rows(x, axes.inputs), as_rows(g, axes.outputs)
            return {name: statistics[name](*rows).astype(tap.dtype) for name, tap in taps.items()}

        return _observed(rule, call.inputs.astype(y.dtype), y, found)

    return replace(tuple(statistics), compute)


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

    with each_linear(visit):
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

    return each_linear(visit)


def count(name: str) -> AbstractContextManager[None]:
    """Make the cotangent of each tap called `name` the number of its kernel's uses.

    >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
    >>> def twice(uses):
    ...     with count("uses"):
    ...         return 2 * jnp.sum(nn.Dense(3).apply({"params": params | {"uses": uses}}, jnp.ones((1, 2))))
    >>> print(jax.grad(twice)(jnp.zeros(())))
    1.0
    """
    return replace([name], lambda call, taps: _counted(call.plain(call.inputs), taps[name]))


def each_linear(visit: Callable[[Call], Array]) -> AbstractContextManager[None]:
    """Let `visit` compute every call of a linear layer."""
    return intercept(lambda *call: visit(Call(*call)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _observed(rule: Callable[..., dict[str, Array]], x: Array, y: Array, taps: dict[str, Array]) -> Array:
    return y


def _observed_backward(rule: Callable[..., dict[str, Array]], residual: Any, cotangent: Array) -> tuple[Any, ...]:
    x, taps = residual
    return None, cotangent, rule(x, cotangent, taps)


_observed.defvjp(lambda rule, x, y, taps: (y, (x, taps)), _observed_backward)


@jax.custom_vjp
def _counted(y: Array, counter: Array) -> Array:
    return y


def _counted_backward(counter: Array, cotangent: Array) -> tuple[Array, Array]:
    return cotangent, jnp.ones_like(counter)


_counted.defvjp(lambda y, counter: (y, counter), _counted_backward)
