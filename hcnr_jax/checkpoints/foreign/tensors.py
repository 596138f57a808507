"""Presents the leaves of another trainer's tree as a lazy mapping from Hugging Face names to tensors."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from hcnr_jax.checkpoints.foreign.axes import Source, axis_sizes, fits, leaf_shape, take
from hcnr_jax.checkpoints.foreign.orbax_leaves import OrbaxTree
from hcnr_jax.checkpoints.safetensors_file import DTYPE_NAMES
from hcnr_jax.errors import InputError
from hcnr_jax.models.spec import ModelSpec

Finish = Callable[[str, np.ndarray], np.ndarray]


class ForeignTensors(Mapping[str, np.ndarray]):
    """Reads a Hugging Face tensor from another trainer's tree when its name is looked up.

    A leaf that holds several tensors, such as one of all layers, is read once and dropped after its last tensor.

    Args:
        tree: the opened leaves.
        spec: BASE's description, which gives the sizes.
        sources: maps a Hugging Face name to the tensor's place in the tree.
        finish: last change to a tensor, given its name; None for none.

    Raises:
        InputError: a leaf is missing or has another shape. The message names up to five leaves.
    """

    def __init__(
        self, tree: OrbaxTree, spec: ModelSpec, sources: Mapping[str, Source], finish: Finish | None = None
    ) -> None:
        self._tree, self._sources, self._finish = tree, sources, finish
        self._sizes = axis_sizes(spec)
        self._uses = Counter(source.path for source in sources.values())
        self._left = dict(self._uses)
        self._held: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()
        check_leaves(tree, sources, self._sizes, spec)

    def __getitem__(self, name: str) -> np.ndarray:
        source = self._sources[name]
        tensor = take(self._leaf(source.path), source, self._sizes)
        return tensor if self._finish is None else self._finish(name, tensor)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def __contains__(self, name: object) -> bool:
        return name in self._sources

    def dtype(self, name: str) -> str:
        """Return the safetensors dtype name of a tensor, without reading it."""
        return DTYPE_NAMES[self._tree.leaves[self._sources[name].path].dtype]

    def _leaf(self, path: str) -> np.ndarray:
        with self._lock:
            if path not in self._held:
                self._held[path] = self._tree.leaves[path].read()
            leaf = self._held[path]
            self._left[path] -= 1
            if self._left[path] <= 0:
                del self._held[path]
                self._left[path] = self._uses[path]
        return leaf


def check_leaves(tree: OrbaxTree, sources: Mapping[str, Source], sizes: Mapping[str, int], spec: ModelSpec) -> None:
    """Check that the tree has the leaves of `sources`, in their shapes, and no others.

    Args:
        tree: the opened leaves.
        sources: maps a Hugging Face name to the tensor's place in the tree.
        sizes: size of every axis letter.
        spec: BASE's description, for messages.

    Raises:
        InputError: a leaf is missing, unexpected or misshapen. The message names up to five leaves.
    """
    expected = {source.path: source for source in sources.values()}
    missing = [path for path in expected if path not in tree.leaves]
    extra = [path for path in tree.leaves if path not in expected]
    if missing or extra:
        found = [f"missing {few(missing)}"] if missing else []
        found += [f"unexpected {few(extra)}"] if extra else []
        raise InputError(
            f"{tree.folder}: the leaves are not those of a {spec.family} model of {spec.num_layers} layers with "
            f"{'tied' if spec.tie_embeddings else 'untied'} embeddings, as --like says: {'; '.join(found)}; is it "
            "another base's?"
        )
    wrong = [
        f"{path} (expected {leaf_shape(source, sizes)}, found {tree.leaves[path].shape})"
        for path, source in expected.items()
        if not fits(source, tree.leaves[path].shape, sizes)
    ]
    if wrong:
        raise InputError(f"{tree.folder}: shapes are not those of the base in --like: {few(wrong)}")


def few(names: list[str]) -> str:
    """Return up to five names in one line, and the number of further names."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
