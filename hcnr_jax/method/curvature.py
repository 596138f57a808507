"""Compute the curvature of a layer's output distance, from input moments or from Hessian-vector products.

    d(E) = mean over tokens ||E x||^2 = tr(E H E^T),     H = mean x x^T                     (paper, stage 2)

The equation has the paper's (out, in) kernels. In code kernels are Flax's (in, out), so that E x reads `x @ E` and
d(E) = sum(E * (H E)).

`Moments` sums over batches of tokens, and `mean_moments` divides once. `Inputs` keeps the tokens themselves. `Inputs`
serves where tokens are fewer than input channels, or where no (in, in) matrix is wanted.

Both hold two kinds of inputs. The *reference* inputs x come from the model whose outputs are the aim. The inputs x' are
those that the kernel receives now. x' differs from x once earlier kernels were restored (propagated inputs). The
difference x' - x is summed directly, since mean x' x'^T - mean x' x^T would lose the digits that matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from hcnr_jax.errors import InputError
from hcnr_jax.method import taps
from hcnr_jax.method.neurons import Leaves, Params, beside, get_leaves, put_leaves, stack_shape, wide

MOMENT_TAP = "moment_tap"


class Moments(NamedTuple):
    """Holds the second moments of a kernel's inputs, as sums over tokens or as means after `mean_moments`.

    Attributes:
        tokens: the number of tokens, a scalar.
        inputs: sum x' x'^T, (in, in).
        shift: sum x' (x' - x)^T, (in, in), or None where x' = x.
        reference: sum x x^T, (in, in). None where x' = x, or where no caller needs `output_distance`.
    """

    tokens: Float[Array, ""]
    inputs: Float[Array, "i i"]
    shift: Float[Array, "i i"] | None
    reference: Float[Array, "i i"] | None


class Inputs(NamedTuple):
    """Holds the inputs of a kernel token by token, without padding.

    Attributes:
        inputs: x' of n tokens, (n, in).
        shift: x' - x of the same tokens, (n, in), or None where x' = x.
    """

    inputs: Float[Array, "n i"]
    shift: Float[Array, "n i"] | None


def init_moments(fan_in: int, propagated: bool, dtype: Any = jnp.float32, *, distances: bool = True) -> Moments:
    """Make zero moments for a kernel.

    Args:
        fan_in: the number of input channels, `in`.
        propagated: whether x' differs from x, so that `shift` is summed.
        dtype: the dtype of the sums.
        distances: whether to sum `reference` for propagated inputs. Without `reference` a third of the work is saved,
            and `output_distance` refuses propagated moments.

    >>> init_moments(2, False).inputs.tolist()
    [[0.0, 0.0], [0.0, 0.0]]
    >>> init_moments(2, True, distances=False).reference is None
    True
    """

    def zeros(wanted: bool) -> Array | None:
        return jnp.zeros((fan_in, fan_in), dtype) if wanted else None

    # Each field has its own buffer, since a caller may donate the buffers.
    return Moments(
        jnp.zeros((), dtype), jnp.zeros((fan_in, fan_in), dtype), zeros(propagated), zeros(propagated and distances)
    )


def update_moments(
    moments: Moments, now: Float[Array, "*b i"], reference: Float[Array, "*b i"] | None, mask: Bool[Array, "*b"]
) -> Moments:
    """Add a batch of tokens to the sums.

    Args:
        moments: the sums so far.
        now: x', the inputs that the kernel receives now, (*b, in).
        reference: x, the reference inputs, (*b, in), or None for local inputs (x' = x).
        mask: True for each token that counts, (*b).

    >>> x = jnp.asarray([[1.0, 2.0], [9.0, 9.0]])
    >>> moments = update_moments(init_moments(2, False), x, None, jnp.asarray([True, False]))
    >>> print(moments.tokens, moments.inputs.tolist())
    1.0 [[1.0, 2.0], [2.0, 4.0]]
    """
    dtype = moments.inputs.dtype
    keep = mask.reshape(-1, 1)
    now = jnp.where(keep, now.reshape(-1, now.shape[-1]), 0).astype(dtype)
    tokens = moments.tokens + jnp.sum(mask).astype(dtype)
    inputs = moments.inputs + _outer(now, now)
    if reference is None or moments.shift is None:
        return Moments(tokens, inputs, moments.shift, moments.reference)
    reference = jnp.where(keep, reference.reshape(-1, reference.shape[-1]), 0).astype(dtype)
    shift = moments.shift + _outer(now, now - reference)
    second = None if moments.reference is None else moments.reference + _outer(reference, reference)
    return Moments(tokens, inputs, shift, second)


def mean_moments(moments: Moments) -> Moments:
    """Divide the sums by the number of tokens; the field `tokens` is kept.

    >>> mean_moments(Moments(jnp.asarray(2.0), jnp.asarray([[4.0, 0.0], [0.0, 2.0]]), None, None)).inputs.tolist()
    [[2.0, 0.0], [0.0, 1.0]]
    """
    return Moments(moments.tokens, *jax.tree.map(lambda total: total / moments.tokens, moments[1:]))


def _outer(left: Float[Array, "n i"], right: Float[Array, "n j"]) -> Float[Array, "i j"]:
    """Return the sum over tokens of the outer products; float32 is never multiplied as TF32."""
    return jnp.einsum("ni,nj->ij", left, right, precision="highest")


def damping_of(statistic: Moments | Inputs, damping: float | Array) -> Float[Array, ""]:
    """Return damping * mean(diag H), with H of the inputs x' that the kernel receives now.

    `Moments` must be means, as `mean_moments` returns them.

    >>> print(damping_of(Inputs(jnp.asarray([[1.0, 2.0], [3.0, 0.0]]), None), 2.0))
    7.0
    """
    return jnp.asarray(damping, statistic.inputs.dtype) * trace_of(statistic) / statistic.inputs.shape[-1]


def trace_of(statistic: Moments | Inputs) -> Float[Array, ""]:
    """Return tr H = mean ||x'||^2, for `Moments` that are means.

    >>> print(trace_of(Inputs(jnp.asarray([[1.0, 2.0], [3.0, 0.0]]), None)))
    7.0
    """
    if isinstance(statistic, Moments):
        return jnp.trace(statistic.inputs)
    return jnp.sum(jnp.square(statistic.inputs)) / statistic.inputs.shape[0]


def output_distance(statistic: Moments | Inputs, change: Float[Array, "i o"]) -> Float[Array, ""]:
    """Return d(E) = mean ||x E||^2, the mean squared distance by which a kernel change E moves the outputs.

    The mean is over the reference inputs x, without damping. `Moments` must be means.

    Raises:
        ValueError: the moments are propagated and were summed without `distances`.

    >>> print(output_distance(Inputs(jnp.asarray([[1.0, 2.0], [3.0, 0.0]]), None), jnp.asarray([[1.0], [0.0]])))
    5.0
    """
    if isinstance(statistic, Moments):
        return jnp.sum(change * _matmul(_reference_moment(statistic), change))
    reference = statistic.inputs if statistic.shift is None else statistic.inputs - statistic.shift
    return jnp.sum(jnp.square(_matmul(reference, change))) / reference.shape[0]


class Distances(NamedTuple):
    """Holds d(E) of a kernel for three changes E that all have E_T = D_T in the rows of the task neurons.

    Attributes:
        tuned: d(E) with E_R = D_R, which is TUNED's kernel.
        plain: d(E) with E_R = 0, which is plain restoration.
        restored: d(E) with E_R equal to the correction.
    """

    tuned: Float[Array, ""]
    plain: Float[Array, ""]
    restored: Float[Array, ""]


def distances(
    statistic: Moments | Inputs,
    delta: Float[Array, "i o"],
    correction: Float[Array, "r o"],
    restored: Int[Array, " r"],
    task: Int[Array, " t"],
) -> Distances:
    """Compute `output_distance` of all three changes at a third of the cost of three calls.

    All three distances need P = H_TT D_T and Q = H_RT D_T, which are computed once:

        plain     <D_T, P>
        tuned     plain + <D_R, H_RR D_R + 2 Q>
        restored  <E_R, H_RR E_R + Q> + <D_T, H_TR E_R + P>

    In the last formula, opposite terms cancel entry by entry before the sum.

    Args:
        statistic: the inputs of the kernel, or their means, which give H = mean x x^T.
        delta: D = W_tuned - W_base, (in, out).
        correction: E_R, (r, out).
        restored: the indices R of the restored neurons, (r,).
        task: the indices T of the task neurons, (t,).

    Raises:
        ValueError: the moments are propagated and were summed without `distances`.

    >>> inputs = Inputs(jnp.asarray([[1.0, 2.0], [3.0, 0.0]]), None)
    >>> found = distances(inputs, jnp.ones((2, 1)), jnp.asarray([[-0.5]]), jnp.asarray([1]), jnp.asarray([0]))
    >>> print(*found)
    9.0 5.0 4.5
    """
    delta_task, delta_restored = delta[task], delta[restored]
    if isinstance(statistic, Inputs):
        reference = statistic.inputs if statistic.shift is None else statistic.inputs - statistic.shift
        kept, changed = _matmul(reference[:, task], delta_task), reference[:, restored]
        outputs = (kept + _matmul(changed, delta_restored), kept, kept + _matmul(changed, correction))
        return Distances(*(jnp.sum(jnp.square(y)) / reference.shape[0] for y in outputs))
    second = _reference_moment(statistic)
    inner, cross = second[restored][:, restored], second[restored][:, task]
    p, q = _matmul(second[task][:, task], delta_task), _matmul(cross, delta_task)
    plain = jnp.sum(delta_task * p)
    tuned = plain + jnp.sum(delta_restored * (_matmul(inner, delta_restored) + 2 * q))
    both = jnp.sum(correction * (_matmul(inner, correction) + q)) + jnp.sum(
        delta_task * (_matmul(cross.T, correction) + p)
    )
    # Each distance is a sum of squares, but is not computed as one: rounding may turn a 0 into a negative number.
    return Distances(*(jnp.where(d < 0, 0, d) for d in (tuned, plain, both)))


def _reference_moment(moments: Moments) -> Float[Array, "i i"]:
    """Return mean x x^T of the reference inputs.

    Raises:
        ValueError: the moments are propagated and were summed without `distances`.
    """
    if moments.shift is not None and moments.reference is None:
        raise ValueError("these moments were summed without distances; see init_moments")
    return moments.inputs if moments.reference is None else moments.reference


def _matmul(left: Array, right: Array) -> Array:
    """Multiply two matrices; float32 is never multiplied as TF32."""
    return jnp.matmul(left, right, precision="highest")


def hessian_vector_product(function: Callable[[Any], Array], at: Any, vector: Any) -> Any:
    """Return (d^2 f / d at^2) vector, by forward-over-reverse differentiation of any function of a pytree.

    >>> print(hessian_vector_product(lambda x: jnp.sum(x**3), jnp.asarray([1.0, 2.0]), jnp.ones(2)))
    [ 6. 12.]
    """
    return jax.jvp(jax.grad(function), (at,), (vector,))[1]


def linearised_gradient(function: Callable[[Any], Array], at: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Return the gradient of f at a point, and a function that computes Hessian-vector products there.

    All the products share one linearisation.

    >>> gradient, product = linearised_gradient(lambda x: jnp.sum(x**3), jnp.asarray([1.0, 2.0]))
    >>> print(gradient, product(jnp.ones(2)))
    [ 3. 12.] [ 6. 12.]
    """
    return jax.linearize(jax.grad(function), at)


class Captured(NamedTuple):
    """Holds the result of `capture_inputs`.

    Attributes:
        output: the output of the function.
        inputs: the inputs of each named nn.Dense, (..., in), by the path of its kernel.
    """

    output: Any
    inputs: dict[str, Array]


def capture_inputs(
    function: Callable[..., Any], paths: Sequence[str], *args: Any, given: Mapping[str, Array] | None = None
) -> Captured:
    """Call a Linen apply and keep the inputs of the kernels at `paths`.

    The applied module must contain no `nn.scan` and no `nn.remat`.

    Args:
        function: the apply of a module.
        paths: the kernels' paths relative to the applied module, such as 'attention/q/kernel'.
        *args: the arguments of `function`.
        given: inputs by path, (..., in), that replace the kernels' own inputs. Under jit, XLA drops the computations
            that only led to the replaced inputs.

    Raises:
        InputError: no `nn.Dense` was called at one of the paths.

    >>> from flax import linen as nn
    >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
    >>> captured = capture_inputs(nn.Dense(3).apply, ["kernel"], {"params": params}, jnp.asarray([[1.0, 2.0]]))
    >>> print(captured.output, captured.inputs["kernel"])
    [[3. 3. 3.]] [[1. 2.]]
    """
    with taps.record(paths) as seen, taps.feed(given or {}):
        output = function(*args)
    for path in paths:
        if path not in seen:
            raise InputError(f"kernel {path}: no nn.Dense of that name was called; expected one of the block's linears")
    return Captured(output, seen)


@jax.custom_vjp
def _tapped(x: Array, weights: Array, tap: Array) -> Array:
    """Return x unchanged; the cotangent of `tap` is defined as sum x x^T over the tokens of positive weight."""
    return x


def _tapped_backward(residual: Any, cotangent: Array) -> tuple[Array, Array, Array]:
    x, weights, tap = residual
    kept = jnp.where(weights[..., None] > 0, x, 0).reshape(-1, x.shape[-1]).astype(tap.dtype)
    return cotangent, jnp.zeros_like(weights), _outer(kept, kept)


_tapped.defvjp(lambda x, weights, tap: (x, (x, weights, tap)), _tapped_backward)


def input_moments(
    forward: Callable[[Params, Any], Array],
    params: Params,
    paths: Sequence[str],
    *,
    batch: Any,
    token_mask: Bool[Array, "*b"],
) -> Leaves:
    """Compute sum x x^T, of shape (*stack, in, in), for every kernel at `paths` of any Linen model made of `nn.Dense`.

    The model may use `nn.scan` and `nn.remat`. As in fisher.py, each kernel has a tap whose cotangent is defined as the
    moment. The moments of all the kernels are in memory at once, unlike in the block sweep of `sweep/run.py`. The
    caller divides by the number of tokens.

    Args:
        forward: (params, batch) -> an array that depends on all the kernels.
        params: the nested dict of the model's parameters.
        paths: the paths of the kernels.
        batch: the second argument of `forward`.
        token_mask: True for each token that counts, (*b), where every kernel has inputs x of shape (*b, in).

    Raises:
        InputError: the inputs of a kernel do not have the shape of `token_mask` before their last axis.
        InputError: `params` has no leaf at one of the paths.

    >>> from flax import linen as nn
    >>> params, x = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}, jnp.asarray([[1.0, 2.0], [3.0, 0.0]])
    >>> def forward(params, batch):
    ...     return nn.Dense(3).apply({"params": params}, batch)
    >>> moments = input_moments(forward, params, ["kernel"], batch=x, token_mask=jnp.asarray([True, True]))
    >>> moments["kernel"].tolist()
    [[10.0, 2.0], [2.0, 4.0]]
    """
    weights = token_mask.astype(jnp.float32)

    def compute(call: taps.Call, found: Leaves) -> Array:
        x = call.inputs
        if x.shape[:-1] != weights.shape:
            raise InputError(
                f"kernel {call.path}: its inputs have shape {x.shape}, expected "
                f"{(*weights.shape, x.shape[-1])} to match `token_mask`"
            )
        return call.plain(_tapped(x, weights, found[MOMENT_TAP]))

    def of_taps(leaves: Leaves) -> Array:
        with taps.replace([MOMENT_TAP], compute):
            return jnp.sum(forward(put_leaves(params, leaves), batch))

    zeros = {
        beside(path, MOMENT_TAP): jnp.zeros(stack_shape(leaf) + (leaf.shape[-2],) * 2, wide(leaf.dtype))
        for path, leaf in get_leaves(params, paths).items()
    }
    moments = jax.grad(of_taps)(zeros)
    return {path: moments[beside(path, MOMENT_TAP)] for path in paths}
