"""Describes where a Hugging Face tensor lies in another trainer's tree, by the letters of its axes.

A letter is one size of the model: D hidden, F intermediate, H head, K key/value heads, L layers, N query heads, V
vocabulary, and for flat biases Q = N H and P = K H. A digit is an axis of that size. `DNH` stored as `NH,D` reads: the
leaf has axes (D, N, H), and the Hugging Face weight is (N H, D).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from hcnr_jax.models.spec import ModelSpec


@dataclass(frozen=True)
class Source:
    """Says where a Hugging Face tensor lies in a tree, and how the tensor's axes are stored there.

    Attributes:
        path: path of the leaf, with slashes.
        axes: letters of the leaf's axes.
        stored: letters of the Hugging Face tensor's axes, with a comma between outputs and inputs. The letters on
            either side of the comma make one axis.
        picks: maps a letter of `axes` to the index at which this tensor lies on that axis.
        padded: letters of `axes` that may be longer in the leaf, of which the first entries count.
    """

    path: str
    axes: str
    stored: str
    picks: Mapping[str, int] = field(default_factory=dict)
    padded: str = ""


def axis_sizes(spec: ModelSpec) -> dict[str, int]:
    """Return the size of every letter."""
    n, k, h = spec.num_heads, spec.num_kv_heads, spec.head_dim
    sizes = {"D": spec.hidden_size, "F": spec.intermediate_size, "H": h, "K": k, "L": spec.num_layers, "N": n}
    return sizes | {"V": spec.vocab_size, "Q": n * h, "P": k * h} | {digit: int(digit) for digit in "0123456789"}


def leaf_shape(source: Source, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Return the shape of a leaf without padding."""
    return tuple(sizes[letter] for letter in source.axes)


def fits(source: Source, found: tuple[int, ...], sizes: Mapping[str, int]) -> bool:
    """Return whether a leaf of shape `found` can hold the tensor."""
    expected = leaf_shape(source, sizes)
    return len(found) == len(expected) and all(
        have == want or (letter in source.padded and have > want)
        for letter, have, want in zip(source.axes, found, expected, strict=True)
    )


def take(leaf: np.ndarray, source: Source, sizes: Mapping[str, int]) -> np.ndarray:
    """Return the Hugging Face tensor that a leaf holds."""
    kept = _kept(source)
    part = leaf[_index(source, sizes)].transpose([kept.index(letter) for letter in _letters(source)])
    sides = source.stored.split(",")
    return np.ascontiguousarray(part).reshape([math.prod(sizes[letter] for letter in side) for side in sides])


def put(leaf: np.ndarray, tensor: np.ndarray, source: Source, sizes: Mapping[str, int]) -> None:
    """Write a Hugging Face tensor into its place in a leaf. This function is the inverse of `take`.

    Args:
        leaf: the leaf to write into, of the axes `source.axes`.
        tensor: the Hugging Face tensor, of the axes `source.stored`.
        source: where the tensor lies in the leaf.
        sizes: of `axis_sizes`.
    """
    letters = _letters(source)
    whole = tensor.reshape([sizes[letter] for letter in letters])
    leaf[_index(source, sizes)] = whole.transpose([letters.index(letter) for letter in _kept(source)])


def _index(source: Source, sizes: Mapping[str, int]) -> tuple[int | slice, ...]:
    return tuple(source.picks.get(letter, slice(sizes[letter])) for letter in source.axes)


def _kept(source: Source) -> str:
    return "".join(letter for letter in source.axes if letter not in source.picks)


def _letters(source: Source) -> str:
    return source.stored.replace(",", "")
