"""Fisher scores of neurons: per-example squared gradients, summed over each neuron's weights.

    s_k = mean over examples of sum_o (dL/dW[k, o])^2                       (paper, stage 1; granularity `input`)

No weight gradient is needed for it. With a linear layer's inputs X (T x in) and output cotangents G (T x out),
dL/dW = X^T G, hence

    input channel   s_k = sum_t X[t,k] (G G^T X)[t,k]
    output channel  s_o = sum_t G[t,o] (X X^T G)[t,o]

at T^2 (in + out) multiplications instead of T in out; where rows are long, the gradient itself is cheaper and is made a
few output channels at a time. A *tap* is a dummy argument of the linear op, one number per
neuron, whose cotangent is defined to be s. Then `jax.vmap(jax.grad(loss wrt taps))` returns per-example scores,
through `nn.scan` and `nn.remat` alike. `taps.replace` swaps the op in, so that any Linen model made of `nn.Dense` can
be scored without touching its code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hcnr_jax.errors import InputError
from hcnr_jax.method import taps
from hcnr_jax.method.neurons import (
    Granularity,
    Leaves,
    Params,
    beside,
    get_leaves,
    neuron_shape,
    put_leaves,
    stack_shape,
    wide,
)
from hcnr_jax.method.sums import Sums, init_sums, update_sums

Example = Any
Loss = Callable[[Params, Example], Float[Array, ""]]

TAPS: dict[Granularity, str] = {"input": "input_tap", "output": "output_tap", "weight": "weight_tap"}

# Output channels of a weight gradient that are alive at a time, for each example of a batch.
CHANNELS = 256


def input_scores(x: Float[Array, "t i"], g: Float[Array, "t o"]) -> Float[Array, " i"]:
    """s_k = sum_o (X^T G)[k,o]^2 of one example, by the cheaper of the two forms (the shapes decide).

    x and g share a dtype; the scores are in `neurons.wide` of it.

    >>> print(input_scores(jnp.asarray([[1.0, 2.0]]), jnp.ones((1, 3))))
    [ 3. 12.]
    """
    if _materialising_is_cheaper(x, g):
        return _chunked_input_scores(x, g)
    gram, x_wide = _einsum("to,so->ts", g, g), x.astype(wide(x.dtype))
    product = jnp.einsum("ts,si->ti", gram, x_wide, precision=_precision(x))
    # A sum of squares, but not computed as one: where it cancels, rounding may leave it below 0.
    return jnp.maximum(jnp.sum(x_wide * product, axis=0), 0)


def _chunked_input_scores(x: Float[Array, "t i"], g: Float[Array, "t o"]) -> Float[Array, " i"]:
    """The same from the gradient, CHANNELS of its columns at a time: under vmap too, no example's is ever whole."""
    whole, rest = divmod(g.shape[1], CHANNELS)

    def add(total: Array, start: Array) -> tuple[Array, None]:
        part = jax.lax.dynamic_slice_in_dim(g, start, CHANNELS, axis=1)
        return total + jnp.sum(weight_scores(x, part), axis=1), None

    total = jnp.sum(weight_scores(x, g[:, g.shape[1] - rest :]), axis=1)
    return jax.lax.scan(add, total, CHANNELS * jnp.arange(whole))[0] if whole else total


def output_scores(x: Float[Array, "t i"], g: Float[Array, "t o"]) -> Float[Array, " o"]:
    """s_o = sum_i (X^T G)[i,o]^2 of one example: the same with X and G exchanged.

    >>> print(output_scores(jnp.asarray([[1.0, 2.0]]), jnp.ones((1, 3))))
    [5. 5. 5.]
    """
    return input_scores(g, x)


def weight_scores(x: Float[Array, "t i"], g: Float[Array, "t o"]) -> Float[Array, "i o"]:
    """(X^T G)^2 of one example: single weights have no shortcut."""
    return jnp.square(_einsum("ti,to->io", x, g))


SCORES: dict[Granularity, Callable[..., Array]] = {
    "input": input_scores,
    "output": output_scores,
    "weight": weight_scores,
}


def _einsum(letters: str, left: Array, right: Array) -> Array:
    """A product accumulated, and given, in `wide` of the operands' dtype."""
    return jnp.einsum(letters, left, right, precision=_precision(left), preferred_element_type=wide(left.dtype))


def _precision(x: Array) -> jax.lax.Precision:
    """Float32 operands are multiplied as float32 on every device, never as TF32. Factors that were 16-bit hold no more
    digits than TF32 keeps."""
    return jax.lax.Precision.DEFAULT if jnp.dtype(x.dtype).itemsize == 2 else jax.lax.Precision.HIGHEST


def _materialising_is_cheaper(x: Array, g: Array) -> bool:
    (tokens, fan_in), fan_out = x.shape, g.shape[1]
    return tokens * (fan_in + fan_out) > fan_in * fan_out


@jax.custom_vjp
def tapped_linear(x: Array, kernel: Array, given: dict[Granularity, Array]) -> Array:
    """x (..., in) @ kernel (in, out). The cotangent of `given[g]` is not a derivative but the score s at granularity
    g.

    All leading axes of x count as the tokens of ONE example; batches go through `jax.vmap`. The other cotangents are
    the
    true ones; that of the kernel is never computed unless asked for.
    """
    return x @ kernel


def _tapped_forward(x: Array, kernel: Array, given: dict[Granularity, Array]) -> tuple[Array, Any]:
    return x @ kernel, (x, kernel, given)


def _tapped_backward(residual: Any, cotangent: Array) -> tuple[Array, Array, dict[Granularity, Array]]:
    x, kernel, given = residual
    tokens = x.reshape(-1, x.shape[-1])
    cotangents = cotangent.reshape(-1, cotangent.shape[-1])
    scores = {g: SCORES[g](tokens, cotangents).astype(tap.dtype) for g, tap in given.items()}
    return cotangent @ kernel.T, tokens.T @ cotangents, scores


tapped_linear.defvjp(_tapped_forward, _tapped_backward)


def tapped() -> AbstractContextManager[None]:
    """Compute every `nn.Dense` that has Fisher taps beside its kernel through `tapped_linear`."""

    def compute(call: taps.Call, found: Leaves) -> Array:
        given: dict[Granularity, Array] = {g: found[name] for g, name in TAPS.items() if name in found}
        return call.through(lambda x, kernel: tapped_linear(x, kernel, given))

    return taps.replace(tuple(TAPS.values()), compute)


def make_taps(params: Params, paths: Sequence[str], granularities: Sequence[Granularity]) -> Leaves:
    """Make zero taps for the kernels at `paths`, keyed by their own paths beside the kernels; float32, or float64 for
    such kernels."""
    leaves = get_leaves(params, paths)
    return {
        beside(path, TAPS[g]): jnp.zeros(stack_shape(leaf) + neuron_shape(leaf, g), wide(leaf.dtype))
        for path, leaf in leaves.items()
        for g in granularities
    }


def tapped_loss(loss: Loss, params: Params) -> Callable[[Leaves, Example], Float[Array, ""]]:
    """The loss as a function of (taps, example): its gradient in the taps is that example's neuron scores."""

    def of_taps(leaves: Leaves, example: Example) -> Float[Array, ""]:
        with tapped():
            return loss(put_leaves(params, leaves), example)

    return of_taps


def example_scores(
    loss: Loss,
    params: Params,
    paths: Sequence[str],
    batch: Example,
    granularities: Sequence[Granularity] = ("input",),
) -> tuple[dict[Granularity, Leaves], Float[Array, " b"]]:
    """Per-example scores {granularity: {path: (b, *stack, n)}} and losses (b,).

    loss: (params, example) -> scalar, example = `batch` without its leading axis b. Each kernel must be used once per
    example (`check_uses`): for a shared kernel the square of the summed gradient is not the sum of squares.

    Args:
      loss: (params, example) -> scalar L.
      params: the nested dict of the Linen model's parameters.
      paths: of the kernels W to score.
      batch: examples stacked along a leading axis b.
      granularities: the kinds of neuron k that get a score s_k.

    >>> from flax import linen as nn
    >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
    >>> def loss(params, x):
    ...     return jnp.sum(nn.Dense(3).apply({"params": params}, x))
    >>> scores, losses = example_scores(loss, params, ["kernel"], jnp.asarray([[[1.0, 2.0]]]))
    >>> print(scores["input"]["kernel"], losses)
    [[ 3. 12.]] [9.]
    """
    zeros = make_taps(params, paths, granularities)
    losses, scores = jax.vmap(jax.value_and_grad(tapped_loss(loss, params)), in_axes=(None, 0))(zeros, batch)
    return {g: {path: scores[beside(path, TAPS[g])] for path in paths} for g in granularities}, losses


def score_batch(
    loss: Loss,
    params: Params,
    paths: Sequence[str],
    batch: Example,
    weights: Float[Array, " b"],
    sums: Sums,
    granularities: Sequence[Granularity] = ("input",),
) -> tuple[Sums, Float[Array, " b"]]:
    """One microbatch added to the streamed scores; rows of weight 0 are padding. `mean_sums` reads the scores.

    Weight scores are as large as the weights, so that only one example's are alive at a time.
    """
    if "weight" not in granularities:
        scores, losses = example_scores(loss, params, paths, batch, granularities)
        return update_sums(sums, scores, weights), losses

    def one(carry: Sums, row: tuple[Example, Array]) -> tuple[Sums, Array]:
        example, weight = jax.tree.map(lambda leaf: leaf[None], row)
        scores, losses = example_scores(loss, params, paths, example, granularities)
        return update_sums(carry, scores, weight), losses[0]

    return jax.lax.scan(one, sums, (batch, weights))


def init_scores(params: Params, paths: Sequence[str], granularities: Sequence[Granularity] = ("input",)) -> Sums:
    """Zero sums for `score_batch`."""
    zeros = make_taps(params, paths, granularities)
    return init_sums({g: {path: zeros[beside(path, TAPS[g])] for path in paths} for g in granularities})


def materialised_scores(
    loss: Loss,
    params: Params,
    paths: Sequence[str],
    batch: Example,
    granularities: Sequence[Granularity] = ("input",),
) -> dict[Granularity, Leaves]:
    """The plain reference: vmapped per-example gradients of the kernels, squared and summed. Same result, all the
    memory."""

    def of_kernels(kernels: Leaves, example: Example) -> Float[Array, ""]:
        return loss(put_leaves(params, kernels), example)

    gradients = jax.vmap(jax.grad(of_kernels), in_axes=(None, 0))(get_leaves(params, paths), batch)
    axis: dict[Granularity, tuple[int, ...]] = {"input": (-1,), "output": (-2,), "weight": ()}
    return {
        g: {path: jnp.sum(jnp.square(leaf), axis=axis[g]) for path, leaf in gradients.items()} for g in granularities
    }


def count_uses(loss: Loss, params: Params, paths: Sequence[str], *, example: Example) -> Leaves:
    """How often each kernel is used in the forward pass of one example: {path: (*stack,)}; 1 is what scoring needs.

    Costs no arithmetic: the cotangent of the counter is the constant 1 per use, so XLA drops the model around it.
    """

    def of_counters(counters: Leaves) -> Float[Array, ""]:
        with taps.count("uses"):
            return loss(put_leaves(params, counters), example)

    kernels = get_leaves(params, paths)
    counters = {beside(path, "uses"): jnp.zeros(stack_shape(leaf), jnp.float32) for path, leaf in kernels.items()}
    uses = jax.jit(jax.grad(of_counters))(counters)
    return {path: uses[beside(path, "uses")] for path in paths}


def check_uses(loss: Loss, params: Params, paths: Sequence[str], *, example: Example) -> None:
    """InputError unless every kernel at `paths` is an nn.Dense used exactly once per example."""
    for path, uses in count_uses(loss, params, paths, example=example).items():
        if not bool(jnp.all(uses == 1)):
            raise InputError(
                f"kernel {path}: used {uses.astype(int).tolist()} times per example, expected once. A kernel that no "
                "nn.Dense uses cannot be scored, and a shared one has no per-use score: leave it out of `paths`."
            )
