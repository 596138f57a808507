"""View the params of any Flax model, Linen or NNX, as the nested dict of matrices that the method's functions take.

The loss is traced once. The trace shows which kernels belong to linear layers, in which order data flows through them,
and which kernels read the very same input array. A `LinearView` then has three functions:

    split    params of the model -> nested dict of all leaves, in which each kernel is a matrix (*stack, in, out)
    join     the inverse, which also accepts taps beside the kernels
    loss     the user's loss, as a function of the nested dict

Kernels such as (d_model, heads, head_dim) are therefore plain matrices for every function of the method.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from hcnr_jax.errors import InputError
from hcnr_jax.method import taps
from hcnr_jax.method.neurons import Params, beside
from hcnr_jax.method.taps_layers import Axes

Example = Any
Loss = Callable[[Params, Example], Float[Array, ""]]

LAYERS = "nn.Dense, nn.DenseGeneral, nn.Einsum, nnx.Linear, nnx.LinearGeneral or nnx.Einsum"

# Each traced tree of taps has a number of its own, see `taps.Tapped`.
_TRACES = itertools.count()


class Layer(NamedTuple):
    """Describes the kernels of one leaf of the params.

    Attributes:
        stack: leading axes of the leaf, along which kernels are stacked by a scan or a vmap.
        axes: which axes of one kernel are inputs and which are outputs.
        shape: the shape of one kernel.
        group: the path of the first kernel that reads the same input array.
    """

    stack: tuple[int, ...]
    axes: Axes
    shape: tuple[int, ...]
    group: str

    @property
    def fan_in(self) -> int:
        """Return the number of input channels of one kernel."""
        return math.prod(self.shape[axis] for axis in self.axes.kernel_in)

    def to_matrix(self, leaf: Array) -> Array:
        """Turn the leaf into matrices (*stack, in, out)."""
        moved = jnp.transpose(leaf, self._order())
        return moved.reshape(*self.stack, self.fan_in, math.prod(self.shape) // self.fan_in)

    def to_leaf(self, matrix: Array) -> Array:
        """Turn matrices (*stack, in, out) into the leaf."""
        order = self._order()
        moved = matrix.reshape([(self.stack + self.shape)[axis] for axis in order])
        return jnp.transpose(moved, tuple(np.argsort(order).tolist()))

    def _order(self) -> tuple[int, ...]:
        """List the axes of the leaf: stack, in, out."""
        first = len(self.stack)
        return (*range(first), *(first + axis for axis in self.axes.kernel_in + self.axes.kernel_out))


@dataclass(frozen=True)
class LinearView:
    """Views a model's params as matrices. `view_linear` makes it; views of equal content are equal.

    Attributes:
        user_loss: (params, example) -> scalar.
        treedef: the structure of the params.
        names: the path of every leaf, in the order of the structure.
        layers: (path, layer) of every kernel, in the order of the calls.
        left_out: (path, reason) of every kernel that no function of the method can treat.
    """

    user_loss: Loss
    treedef: Any
    names: tuple[str, ...]
    layers: tuple[tuple[str, Layer], ...]
    left_out: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    @property
    def paths(self) -> tuple[str, ...]:
        """List the paths of the kernels in data-flow order."""
        return tuple(path for path, _ in self.layers)

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Return {first kernel: the kernels that read the same input array, the first among them}."""
        firsts = dict.fromkeys(layer.group for _, layer in self.layers)
        return {first: tuple(path for path, layer in self.layers if layer.group == first) for first in firsts}

    def split(self, params: Params) -> dict[str, Any]:
        """Turn the model's params into a nested dict of leaves, in which the kernels are matrices."""
        leaves: dict[str, Any] = dict(zip(self.names, jax.tree.leaves(params), strict=True))
        kernels = {path: layer.to_matrix(jnp.asarray(leaves[path])) for path, layer in self.layers}
        return unflatten_dict(leaves | kernels, sep="/")

    def join(self, nested: Mapping[str, Any]) -> Params:
        """Turn the nested dict into the model's params. Taps beside a kernel go into the kernel's leaf."""
        leaves = flatten_dict(nested, sep="/")
        found: dict[str, dict[str, Any]] = {}
        for path in leaves.keys() - set(self.names):
            found.setdefault(beside(path, "kernel"), {})[path.rpartition("/")[2]] = leaves[path]
        kernels = {path: layer.to_leaf(leaves[path]) for path, layer in self.layers}
        return join_tapped(self.treedef, {name: (leaves | kernels)[name] for name in self.names}, found)

    def loss(self, nested: Mapping[str, Any], example: Example) -> Float[Array, ""]:
        """Compute the user's loss from the nested dict."""
        return self.user_loss(self.join(nested), example)

    def tokens(self, params: Params, example: Example) -> dict[str, int]:
        """Count the tokens that each kernel reads of an example, by a trace without arithmetic."""
        leaves: dict[str, Any] = dict(zip(self.names, jax.tree.leaves(params), strict=True))
        calls = trace_calls(self.user_loss, self.treedef, leaves, self.paths, example=example)
        return {path: calls[path].tokens for path in self.paths}


class Seen(NamedTuple):
    """Holds the last traced call of a kernel: its axes, the kernel's shape, its inputs and their tokens."""

    axes: Axes | None
    shape: tuple[int, ...]
    inputs: Any
    tokens: int


def join_tapped(treedef: Any, leaves: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]) -> Params:
    """Build a model's params from its leaves, with the taps {kernel path: {name: tap}} inside the kernels' leaves."""
    trace = next(_TRACES)
    return treedef.unflatten(
        taps.Tapped(leaf, dict(found[path]), path, trace) if path in found else leaf for path, leaf in leaves.items()
    )


def name_leaves(params: Params) -> tuple[tuple[str, ...], Any]:
    """Return the path 'a/b/kernel' of every leaf, and the structure of the params.

    The field of a box, such as the value of an `nnx.Variable`, has no part in the path.

    Raises:
        InputError: two leaves have one path.

    >>> name_leaves({"q": {"kernel": 1.0}, "k": [2.0]})[0]
    ('k/0', 'q/kernel')
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)

    def parts(path: Any) -> list[str]:
        boxed = len(path) > 1 and isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value"
        return [jax.tree_util.keystr((key,), simple=True) for key in (path[:-1] if boxed else path)]

    names = tuple("/".join(parts(path)) for path, _ in leaves)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"params: two leaves have the path {twice!r}; expected one: rename a module or a dict key")
    return names, treedef


def trace_calls(
    loss: Loss, treedef: Any, leaves: Mapping[str, Any], paths: Sequence[str], *, example: Example
) -> dict[str, Seen]:
    """Trace the loss of one example, and return the last call of every kernel in the order of first calls.

    Args:
        loss: (params, example) -> scalar.
        treedef: the structure of the params.
        leaves: the leaves of the params by path.
        paths: the paths of the kernels.
        example: one example, without a batch axis.

    Raises:
        InputError: the loss is no scalar, or reads a kernel itself in a way that cannot be traced.
    """
    seen: dict[str, Seen] = {}

    def visit(call: taps.Call) -> Array:
        kernel = call.kernel
        if isinstance(kernel, taps.Tapped):
            rows = 0 if call.axes is None else _token_count(call.inputs, call.axes)
            seen[kernel.path] = Seen(call.axes, tuple(kernel.array.shape), call.inputs, rows)
        return call.plain(call.inputs)

    def run(leaves: Mapping[str, Any], example: Example) -> Any:
        # A tap shaped like the leaf lets a scan split it along any axis.
        marks = {path: {"mark": jnp.zeros(leaves[path].shape)} for path in paths}
        with taps.each_linear(visit):
            return loss(join_tapped(treedef, leaves, marks), example)

    try:
        out = jax.eval_shape(run, dict(leaves), example)
    except TypeError as error:
        if taps.Tapped.__name__ not in str(error):
            raise
        raise InputError(
            "loss: it reads a kernel outside the kernel's linear layer, in a way that cannot be traced; leave the "
            f"kernel out with `kernels`, or read its array (`kernel[...]`). JAX said: {str(error)[:200]}"
        ) from error
    if not (isinstance(out, jax.ShapeDtypeStruct) and out.shape == () and jnp.issubdtype(out.dtype, jnp.floating)):
        got = jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", out)
        raise InputError(
            f"loss: expected one floating-point number, shape (), for one example; got {got}. An example has no batch "
            "axis: return the mean or the sum over its tokens"
        )
    return seen


def _token_count(inputs: Any, axes: Axes) -> int:
    """Count the tokens of a layer's inputs."""
    return math.prod(size for axis, size in enumerate(inputs.shape) if axis not in axes.inputs)


def _may_be_kernel(path: str, leaf: Any) -> bool:
    named = path.rpartition("/")[2] == "kernel"
    return named and len(leaf.shape) >= 2 and bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def view_linear(loss: Loss, params: Params, example: Example, kernels: str = r".*") -> LinearView:
    """View a model's params as matrices.

    Args:
        loss: (params, example) -> scalar L. The loss of an NNX model merges its graph definition with `params`.
        params: the model's params: a nested dict, or an `nnx.State`.
        example: one example, without a batch axis; arrays, whose values are not read.
        kernels: regular expression that the full path of a kernel matches, such as 'blocks/.*'.

    Raises:
        InputError: the loss is no scalar, or no kernel of a linear layer matches.

    >>> from flax import linen as nn
    >>> model, x = nn.DenseGeneral((2, 3)), jnp.ones((5, 4))
    >>> params = model.init(jax.random.key(0), x)["params"]
    >>> view = view_linear(lambda params, x: jnp.sum(model.apply({"params": params}, x)), params, x)
    >>> view.paths, view.split(params)["kernel"].shape, view.join(view.split(params))["kernel"].shape
    (('kernel',), (4, 6), (4, 2, 3))
    """
    names, treedef = name_leaves(params)
    leaves: dict[str, Any] = dict(zip(names, jax.tree.leaves(params), strict=True))
    wanted = [path for path, leaf in leaves.items() if re.fullmatch(kernels, path) and _may_be_kernel(path, leaf)]
    seen = trace_calls(loss, treedef, leaves, wanted, example=example)
    left_out = {path: why for path in wanted if (why := _fault(seen.get(path), tuple(leaves[path].shape)))}
    layers = _layers({path: call for path, call in seen.items() if path not in left_out}, leaves)
    view = LinearView(loss, treedef, names, tuple(layers.items()))
    left_out |= _unequal_uses(view, leaves, example) if layers else {}
    layers = _layers({path: seen[path] for path in layers if path not in left_out}, leaves)
    if not layers:
        found = "; ".join(f"{path} {why}" for path, why in left_out.items()) or f"the leaves are {', '.join(names)}"
        raise InputError(
            f"kernels: no linear layer can be restored among those that match {kernels!r}: {found}. Expected leaves "
            f"called 'kernel' of {LAYERS}, each used once in the loss; `params` must be what the loss reads them from"
        )
    return LinearView(loss, treedef, names, tuple(layers.items()), tuple(left_out.items()))


def _layers(seen: Mapping[str, Seen], leaves: Mapping[str, Any]) -> dict[str, Layer]:
    """Describe the kernels, with those that read the very same array in one group."""
    layers: dict[str, Layer] = {}
    for path, call in seen.items():
        axes = call.axes
        if axes is None:
            continue
        same = (other for other in layers if seen[other].inputs is call.inputs)
        group = next((layers[other].group for other in same if layers[other].axes.inputs == axes.inputs), path)
        stack = tuple(leaves[path].shape)[: len(leaves[path].shape) - len(call.shape)]
        layers[path] = Layer(stack, axes, call.shape, group)
    return layers


def _fault(call: Seen | None, shape: tuple[int, ...]) -> str | None:
    """Say why a kernel cannot be treated, or return None."""
    if call is None:
        return f"is read by none of {LAYERS}"
    if call.axes is None:
        return "is no single matrix (batch axes, or an einsum that is no matrix product)"
    if shape[len(shape) - len(call.shape) :] != call.shape:
        return f"of shape {shape} is not stacked along its first axes: its layer reads {call.shape}"
    return None


def _unequal_uses(view: LinearView, leaves: Mapping[str, Any], example: Example) -> dict[str, str]:
    """Find the kernels that are not used exactly once in the loss, which have no score of their own."""

    def uses(leaves: Any, example: Example) -> Any:
        nested = view.split(view.treedef.unflatten(leaves.values()))

        def of_counters(counters: dict[str, Array]) -> Array:
            with taps.count("uses"):
                return view.loss(unflatten_dict({**flatten_dict(nested, sep="/"), **counters}, sep="/"), example)

        zeros = {beside(path, "uses"): jnp.zeros(layer.stack, jnp.float32) for path, layer in view.layers}
        return jax.grad(of_counters)(zeros)

    counted = jax.jit(uses)(dict(leaves), example)
    counts = {path: np.asarray(counted[beside(path, "uses")]).astype(int) for path in view.paths}
    return {
        path: f"is used {count.tolist()} times in the loss of one example, expected once"
        for path, count in counts.items()
        if not np.all(count == 1)
    }
