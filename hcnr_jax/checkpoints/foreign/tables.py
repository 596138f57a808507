"""Turns a program's tables of leaf names and axes into the place of every tensor of BASE."""

from collections.abc import Callable, Mapping

from hcnr_jax.checkpoints.foreign.axes import Source
from hcnr_jax.checkpoints.names import tensor_names
from hcnr_jax.errors import InputError
from hcnr_jax.models.spec import ModelSpec

Table = dict[str, tuple[str, str, str]]
"""Maps a leaf of the parameter tree to a program's path, the axes there, and the axes of the Hugging Face tensor."""


def named_sources(
    spec: ModelSpec, program: str, outer: Table, blocks: Mapping[str, Table], place: Callable[..., Source]
) -> dict[str, Source]:
    """Return a map from every tensor name of BASE to its place, as one program's tables say.

    Args:
        spec: BASE's description.
        program: the program's name, for messages.
        outer: maps a leaf outside the blocks to the program's path, the leaf's axes, and Hugging Face's axes.
        blocks: maps a family to the same table of a block's leaves.
        place: makes the place of path, axes, Hugging Face's axes and layer (None outside the blocks).

    Raises:
        InputError: the program has no model of BASE's family, or none with BASE's biases.
    """
    if spec.family not in blocks:
        raise InputError(
            f"{program} checkpoints over a base of model_type {spec.family!r} are not handled; expected one of "
            f"{', '.join(blocks)}"
        )
    sources = {}
    for name, where in tensor_names(spec).items():
        path = where.path.removeprefix("blocks/")
        table = outer if where.layer is None else blocks[spec.family]
        if path not in table:
            raise InputError(f"{program} has no {spec.family} model with {name}, which the base in --like has")
        sources[name] = place(*table[path], where.layer)
    return sources
