"""Compute Fisher scores of neurons: per-example squared gradients, summed over each neuron's weights.

    s_k = mean over examples of sum_o (dL/dW[k, o])^2                       (paper, stage 1; granularity `input`)

The score needs no stored weight gradient. Let X (T, in) be a linear layer's inputs and G (T, out) its output
cotangents, for an example of T tokens. Then dL/dW = X^T G, hence

    input channel   s_k = sum_t X[t,k] (G G^T X)[t,k]
    output channel  s_o = sum_t G[t,o] (X X^T G)[t,o]

These forms take T^2 (in + out) multiplications, and the weight gradient takes T in out. For long examples the weight
gradient is cheaper, and is computed a few output channels at a time.

A *tap* is a dummy argument of the linear layer, with one number per neuron. The cotangent of the tap is defined as the
score s. `jax.vmap` of `jax.grad` with respect to the taps therefore returns per-example scores, also through `nn.scan`
and `nn.remat`. `taps.observe` makes every linear layer with a tap compute its scores, so that no model code changes.
The functions below take the params of a Linen model made of `nn.Dense`. `one_call.linear_view` turns any other Flax
model, NNX included, into such params.
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

# The number of output channels of a weight gradient in memory at a time, for each example of a batch.
CHANNELS = 256


def input_scores(x: Float[Array, "t i"], g: Float[Array, "t o"]) -> Float[Array, " i"]:
    """Compute s_k = sum_o (X^T G)[k,o]^2 of one example; the shapes decide which of the two forms is cheaper.

    X is `x` and G is `g`, of the same dtype. The scores have the dtype `neurons.wide(x.dtype)`.

    >>> print(input_scores(jnp.asarray([[1.0, 2.0]]), jnp.ones((1, 3))))
    [ 3. 12.]
    """
    if _materialising_is_cheaper(x, g):
        return _chunked_input_scores(x, g)
    gram, x_wide = _einsum("to,so->ts", g, g), x.astype(wide(x.dtype))
    product = jnp.einsum("ts,si->ti", gram, x_wide, precision=_precision(x))
    # The score is a sum of squares, but is not computed as one: where terms cancel, rounding may leave it below 0.
    return jnp.maximum(jnp.sum(x_wide * product, axis=0), 0)


def _chunked_input_scores(x: Float[Array, "t i"], g: Float[Array, "t o"]) -> Float[Array, " i"]:
    """Compute the input scores from the weight gradient, CHANNELS of its columns at a time.

    No example's gradient is ever whole in memory, under `jax.vmap` either.
    """
    whole, rest = divmod(g.shape[1], CHANNELS)

    def add(total: Array, start: Array) -> tuple[Array, None]:
        part = jax.lax.dynamic_slice_in_dim(g, start, CHANNELS, axis=1)
        return total + jnp.sum(weight_scores(x, part), axis=1), None

    total = jnp.sum(weight_scores(x, g[:, g.shape[1] - rest :]), axis=1)
    return jax.lax.scan(add, total, CHANNELS * jnp.arange(whole))[0] if whole else total


def output_scores(x: Float[Array, "t i"], g: Float[Array, "t o"]) -> Float[Array, " o"]:
    """Compute s_o = sum_i (X^T G)[i,o]^2 of one example, by `input_scores` with X and G exchanged.

    >>> print(output_scores(jnp.asarray([[1.0, 2.0]]), jnp.ones((1, 3))))
    [5. 5. 5.]
    """
    return input_scores(g, x)


def weight_scores(x: Float[Array, "t i"], g: Float[Array, "t o"]) -> Float[Array, "i o"]:
    """Compute s_io = (X^T G)[i,o]^2 of one example, from the whole weight gradient.

    Single weights have no cheaper form.

    >>> weight_scores(jnp.asarray([[1.0, 2.0]]), jnp.ones((1, 3))).tolist()
    [[1.0, 1.0, 1.0], [4.0, 4.0, 4.0]]
    """
    return jnp.square(_einsum("ti,to->io", x, g))


SCORES: dict[Granularity, Callable[..., Array]] = {
    "input": input_scores,
    "output": output_scores,
    "weight": weight_scores,
}


def _einsum(letters: str, left: Array, right: Array) -> Array:
    """Compute a product that is accumulated and returned in `wide` of the operands' dtype."""
    return jnp.einsum(letters, left, right, precision=_precision(left), preferred_element_type=wide(left.dtype))


def _precision(x: Array) -> jax.lax.Precision:
    """Return the precision that multiplies float32 operands as float32 on every device, never as TF32.

    16-bit operands keep the default precision, since they hold no more digits than TF32.
    """
    return jax.lax.Precision.DEFAULT if jnp.dtype(x.dtype).itemsize == 2 else jax.lax.Precision.HIGHEST


def _materialising_is_cheaper(x: Array, g: Array) -> bool:
    """Return whether the weight gradient takes fewer multiplications than the form without the gradient."""
    (tokens, fan_in), fan_out = x.shape, g.shape[1]
    return tokens * (fan_in + fan_out) > fan_in * fan_out


def tapped() -> AbstractContextManager[None]:
    """Make the cotangent of every Fisher tap the neuron scores of its linear layer.

    The cotangent of a tap is not a derivative, but the score s at the tap's granularity. All leading axes of a layer's
    inputs count as the tokens of one example; batches go through `jax.vmap`. All other cotangents are true derivatives.

    >>> from flax import linen as nn
    >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
    >>> def loss(tap):
    ...     with tapped():
    ...         return jnp.sum(nn.Dense(3).apply({"params": params | {"input_tap": tap}}, jnp.asarray([[1.0, 2.0]])))
    >>> print(jax.grad(loss)(jnp.zeros(2)))
    [ 3. 12.]
    """
    return taps.observe({TAPS[granularity]: score for granularity, score in SCORES.items()})


def make_taps(params: Params, paths: Sequence[str], granularities: Sequence[Granularity]) -> Leaves:
    """Make zero taps for the kernels at `paths`, as a dict from the tap's path beside its kernel to the tap.

    A tap has shape (*stack, n), or (*stack, in, out) at granularity `weight`. Its dtype is `neurons.wide` of the
    kernel's dtype.

    Raises:
        InputError: `params` has no leaf at one of the paths.

    >>> make_taps({"q": {"kernel": jnp.ones((2, 3))}}, ["q/kernel"], ["input"])["q/input_tap"].tolist()
    [0.0, 0.0]
    """
    leaves = get_leaves(params, paths)
    return {
        beside(path, TAPS[g]): jnp.zeros(stack_shape(leaf) + neuron_shape(leaf, g), wide(leaf.dtype))
        for path, leaf in leaves.items()
        for g in granularities
    }


def tapped_loss(loss: Loss, params: Params) -> Callable[[Leaves, Example], Float[Array, ""]]:
    """Return the loss as a function of (taps, example), whose gradient in the taps is the example's neuron scores.

    >>> from flax import linen as nn
    >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
    >>> def loss(params, x):
    ...     return jnp.sum(nn.Dense(3).apply({"params": params}, x))
    >>> taps, example = {"input_tap": jnp.zeros(2)}, jnp.asarray([[1.0, 2.0]])
    >>> print(jax.grad(tapped_loss(loss, params))(taps, example)["input_tap"])
    [ 3. 12.]
    """

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
    """Compute per-example scores {granularity: {path: (b, *stack, n)}} and losses (b,).

    Each kernel must be used once per example (`check_uses`). For a shared kernel, the square of the summed gradient is
    not the sum of the squares.

    Args:
        loss: (params, example) -> scalar L, where an example is one entry of `batch` along the axis b.
        params: the nested dict of the Linen model's parameters.
        paths: the paths of the kernels W to score.
        batch: a pytree of examples, stacked along a leading axis b.
        granularities: the kinds of neuron k that get a score s_k.

    Raises:
        InputError: `params` has no leaf at one of the paths.

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
    """Add the scores of one microbatch to `sums`, and return the new sums with the losses (b,).

    `mean_sums` then gives the scores s_k. At granularity `weight` the scores are as large as the kernels. Such scores
    are therefore in memory for one example at a time.

    Args:
        loss: (params, example) -> scalar L, where an example is one entry of `batch` along the axis b.
        params: the nested dict of the Linen model's parameters.
        paths: the paths of the kernels W to score.
        batch: a pytree of examples, stacked along a leading axis b.
        weights: the weight of each example in the mean, (b,), where 0 marks padding.
        sums: the sums so far, first from `init_scores` with the same paths and granularities.
        granularities: the kinds of neuron k that get a score s_k.

    Raises:
        InputError: `params` has no leaf at one of the paths.

    >>> from flax import linen as nn
    >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
    >>> def loss(params, x):
    ...     return jnp.sum(nn.Dense(3).apply({"params": params}, x))
    >>> batch, weights = jnp.asarray([[[1.0, 2.0]], [[9.0, 9.0]]]), jnp.asarray([1.0, 0.0])
    >>> sums, losses = score_batch(loss, params, ["kernel"], batch, weights, init_scores(params, ["kernel"]))
    >>> print(sums.total["input"]["kernel"] / sums.weight, losses)
    [ 3. 12.] [ 9. 54.]
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
    """Make zero sums for `score_batch`.

    Raises:
        InputError: `params` has no leaf at one of the paths.

    >>> init_scores({"kernel": jnp.ones((2, 3))}, ["kernel"]).total["input"]["kernel"].tolist()
    [0.0, 0.0]
    """
    zeros = make_taps(params, paths, granularities)
    return init_sums({g: {path: zeros[beside(path, TAPS[g])] for path in paths} for g in granularities})


def materialised_scores(
    loss: Loss,
    params: Params,
    paths: Sequence[str],
    batch: Example,
    granularities: Sequence[Granularity] = ("input",),
) -> dict[Granularity, Leaves]:
    """Compute the scores of `example_scores` from whole per-example kernel gradients, squared and summed.

    This plain reference gives the same scores up to rounding. It holds the kernel gradients of all b examples in
    memory.

    Args:
        loss: (params, example) -> scalar L, where an example is one entry of `batch` along the axis b.
        params: the nested dict of the Linen model's parameters.
        paths: the paths of the kernels W to score.
        batch: a pytree of examples, stacked along a leading axis b.
        granularities: the kinds of neuron k that get a score s_k.

    Raises:
        InputError: `params` has no leaf at one of the paths.

    >>> from flax import linen as nn
    >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
    >>> def loss(params, x):
    ...     return jnp.sum(nn.Dense(3).apply({"params": params}, x))
    >>> print(materialised_scores(loss, params, ["kernel"], jnp.asarray([[[1.0, 2.0]]]))["input"]["kernel"])
    [[ 3. 12.]]
    """

    def of_kernels(kernels: Leaves, example: Example) -> Float[Array, ""]:
        return loss(put_leaves(params, kernels), example)

    gradients = jax.vmap(jax.grad(of_kernels), in_axes=(None, 0))(get_leaves(params, paths), batch)
    axis: dict[Granularity, tuple[int, ...]] = {"input": (-1,), "output": (-2,), "weight": ()}
    return {
        g: {path: jnp.sum(jnp.square(leaf), axis=axis[g]) for path, leaf in gradients.items()} for g in granularities
    }


def count_uses(loss: Loss, params: Params, paths: Sequence[str], *, example: Example) -> Leaves:
    """Count how often each kernel is used in the forward pass of one example, as {path: (*stack,)}.

    Scoring needs a count of 1. Counting costs no arithmetic. The cotangent of a counter is the constant 1 per use, so
    XLA drops the model around the counters.

    Args:
        loss: (params, example) -> scalar L.
        params: the nested dict of the Linen model's parameters.
        paths: the paths of the kernels.
        example: one example, without a batch axis.

    Raises:
        InputError: `params` has no leaf at one of the paths.

    >>> from flax import linen as nn
    >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
    >>> def loss(params, x):
    ...     return jnp.sum(nn.Dense(3).apply({"params": params}, x))
    >>> print(count_uses(loss, params, ["kernel"], example=jnp.ones((1, 2)))["kernel"])
    1.0
    """

    def of_counters(counters: Leaves) -> Float[Array, ""]:
        with taps.count("uses"):
            return loss(put_leaves(params, counters), example)

    kernels = get_leaves(params, paths)
    counters = {beside(path, "uses"): jnp.zeros(stack_shape(leaf), jnp.float32) for path, leaf in kernels.items()}
    uses = jax.jit(jax.grad(of_counters))(counters)
    return {path: uses[beside(path, "uses")] for path in paths}


def check_uses(loss: Loss, params: Params, paths: Sequence[str], *, example: Example) -> None:
    """Check that every kernel at `paths` belongs to an `nn.Dense` and is used exactly once per example.

    Args:
        loss: (params, example) -> scalar L.
        params: the nested dict of the Linen model's parameters.
        paths: the paths of the kernels.
        example: one example, without a batch axis.

    Raises:
        InputError: a kernel is shared or unused, or `params` has no leaf at one of the paths.

    >>> from flax import linen as nn
    >>> def loss(params, x):
    ...     apply = nn.Dense(2, use_bias=False).apply
    ...     return jnp.sum(apply({"params": params}, apply({"params": params}, x)))
    >>> check_uses(loss, {"kernel": jnp.ones((2, 2))}, ["kernel"], example=jnp.ones((1, 2)))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    hcnr_jax.errors.InputError: kernel kernel: used 2 times per example, expected once...
    """
    for path, uses in count_uses(loss, params, paths, example=example).items():
        if not bool(jnp.all(uses == 1)):
            raise InputError(
                f"kernel {path}: used {uses.astype(int).tolist()} times per example, expected once. A kernel that no "
                "nn.Dense uses cannot be scored, and a shared one has no per-use score: leave it out of `paths`."
            )
