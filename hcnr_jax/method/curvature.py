"""Curvature of a layer's output distance: second moments of its inputs, or Hessian-vector products without them.

    d(E) = mean over tokens ||E x||^2 = tr(E H E^T),     H = mean x x^T                     (paper, stage 2)

Here kernels are Flax's (in, out), so that E x reads `x @ E` and d(E) = sum(E * (H E)). `Moments` streams over batches
of
tokens and divides once; `Inputs` keeps the tokens themselves, where they are fewer than the inputs or where no in x in
matrix is wanted. Both have a *reference* x (the model whose outputs are the aim) and the inputs x' a kernel meets
now; they
differ once earlier kernels were restored (propagated inputs). Their difference is summed, never the two separately:
mean x' x'^T - mean x' x^T would lose the digits that matter.
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
    """Sums over tokens, until `mean_moments` divides them.

    tokens: how many. inputs: sum x' x'^T. shift: sum x' (x' - x)^T, None where x' = x. reference: sum x x^T, None where
    x' = x or where nothing asks for `output_distance`.
    """

    tokens: Float[Array, ""]
    inputs: Float[Array, "i i"]
    shift: Float[Array, "i i"] | None
    reference: Float[Array, "i i"] | None


class Inputs(NamedTuple):
    """Tokens kept as they are: x' (n, i) and the shift x' - x (n, i), None where x' = x. No padding among them."""

    inputs: Float[Array, "n i"]
    shift: Float[Array, "n i"] | None


def init_moments(fan_in: int, propagated: bool, dtype: Any = jnp.float32, *, distances: bool = True) -> Moments:
    """Zero moments of `fan_in` inputs. Without `distances` a third of the work is saved and `output_distance` is not
    to be had of propagated ones."""

    def zeros(wanted: bool) -> Array | None:
        return jnp.zeros((fan_in, fan_in), dtype) if wanted else None

    # Buffers of their own, not one: a caller may donate them.
    return Moments(
        jnp.zeros((), dtype), jnp.zeros((fan_in, fan_in), dtype), zeros(propagated), zeros(propagated and distances)
    )


def update_moments(
    moments: Moments, now: Float[Array, "*b i"], reference: Float[Array, "*b i"] | None, mask: Bool[Array, "*b"]
) -> Moments:
    """Add the tokens where `mask` is True. `reference` is None for local inputs (x' = x)."""
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
    """Means per token, `tokens` kept: the one division."""
    return Moments(moments.tokens, *jax.tree.map(lambda total: total / moments.tokens, moments[1:]))


def _outer(left: Float[Array, "n i"], right: Float[Array, "n j"]) -> Float[Array, "i j"]:
    return jnp.einsum("ni,nj->ij", left, right, precision="highest")


def damping_of(statistic: Moments | Inputs, damping: float | Array) -> Float[Array, ""]:
    """Return damping * mean(diag H) of the inputs a kernel meets now; `Moments` are read as means.

    >>> print(damping_of(Inputs(jnp.asarray([[1.0, 2.0], [3.0, 0.0]]), None), 2.0))
    7.0
    """
    return jnp.asarray(damping, statistic.inputs.dtype) * trace_of(statistic) / statistic.inputs.shape[-1]


def trace_of(statistic: Moments | Inputs) -> Float[Array, ""]:
    """Return tr H = mean ||x'||^2.

    >>> print(trace_of(Inputs(jnp.asarray([[1.0, 2.0], [3.0, 0.0]]), None)))
    7.0
    """
    if isinstance(statistic, Moments):
        return jnp.trace(statistic.inputs)
    return jnp.sum(jnp.square(statistic.inputs)) / statistic.inputs.shape[0]


def output_distance(statistic: Moments | Inputs, change: Float[Array, "i o"]) -> Float[Array, ""]:
    """d(E) = mean ||x E||^2 over the REFERENCE inputs, undamped: how far a change E of the kernel moves its outputs.

    ValueError for propagated moments that were summed without `distances`.
    """
    if isinstance(statistic, Moments):
        return jnp.sum(change * _matmul(_reference_moment(statistic), change))
    reference = statistic.inputs if statistic.shift is None else statistic.inputs - statistic.shift
    return jnp.sum(jnp.square(_matmul(reference, change))) / reference.shape[0]


class Distances(NamedTuple):
    """d(E) of a kernel for three changes E that agree on the task rows: E_T = D_T.

    tuned: E_R = D_R. plain: E_R = 0. restored: E_R the correction.
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
    """`output_distance` of all three at a third of the cost, by what they share.

    With P = H_TT D_T and Q = H_RT D_T, which every one of them needs,

        plain     <D_T, P>
        tuned     plain + <D_R, H_RR D_R + 2 Q>
        restored  <E_R, H_RR E_R + Q> + <D_T, H_TR E_R + P>

    The last is written so that what cancels does so entry by entry, before anything is summed.
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
    # Sums of squares, but not computed as such: rounding may leave one that is 0 below it.
    return Distances(*(jnp.where(d < 0, 0, d) for d in (tuned, plain, both)))


def _reference_moment(moments: Moments) -> Float[Array, "i i"]:
    """mean x x^T of the reference inputs; ValueError where it was not summed."""
    if moments.shift is not None and moments.reference is None:
        raise ValueError("these moments were summed without distances; see init_moments")
    return moments.inputs if moments.reference is None else moments.reference


def _matmul(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, precision="highest")


def hessian_vector_product(function: Callable[[Any], Array], at: Any, vector: Any) -> Any:
    """Return (d^2 f / d at^2) vector, forward over reverse, for any function of any pytree.

    >>> print(hessian_vector_product(lambda x: jnp.sum(x**3), jnp.asarray([1.0, 2.0]), jnp.ones(2)))
    [ 6. 12.]
    """
    return jax.jvp(jax.grad(function), (at,), (vector,))[1]


def linearised_gradient(function: Callable[[Any], Array], at: Any) -> tuple[Any, Callable[[Any], Any]]:
    """grad f at a point and its Hessian-vector product there: many products for one linearisation."""
    return jax.linearize(jax.grad(function), at)


class Captured(NamedTuple):
    """What `capture_inputs` saw: the output of the function and the input of each named nn.Dense."""

    output: Any
    inputs: dict[str, Array]


def capture_inputs(
    function: Callable[..., Any], paths: Sequence[str], *args: Any, given: Mapping[str, Array] | None = None
) -> Captured:
    """Call a plain Linen apply (no scan, no remat inside) and keep what the kernels at `paths` were fed.

    paths: relative to the module that `function` applies, 'attention/q/kernel'. given: inputs by path that kernels are
    fed in place of what reaches them; under jit nothing is computed that only led to these. InputError for a path never
    reached.
    """
    with taps.record(paths) as seen, taps.feed(given or {}):
        output = function(*args)
    for path in paths:
        if path not in seen:
            raise InputError(f"kernel {path}: no nn.Dense of that name was called; expected one of the block's linears")
    return Captured(output, seen)


@jax.custom_vjp
def _tapped(x: Array, weights: Array, tap: Array) -> Array:
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
    """sum x x^T (*stack, in, in) of every kernel at `paths`, for ANY Linen model made of nn.Dense, scanned and
    remat-ed too.

    forward: (params, batch) -> an array that depends on all the kernels. token_mask: True where a token counts; its
    shape must be that of the inputs without their last axis. As in fisher.py, the cotangent of a tap beside each
    kernel is defined to be the moment. Holds the moments of all the kernels at once; the block sweep
    of `sweep/run.py` does not. The caller divides by the number of tokens.
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
