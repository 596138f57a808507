"""Converts a checkpoint of tunix or MaxText into a Hugging Face model or a PEFT adapter."""

from pathlib import Path
from typing import NamedTuple

from hcnr_jax.checkpoints.checkpoint import Checkpoint
from hcnr_jax.checkpoints.foreign.lora import check_frozen, is_lora, lora_tensors, write_adapter
from hcnr_jax.checkpoints.foreign.maxtext import is_maxtext, maxtext_sources, plain_tree
from hcnr_jax.checkpoints.foreign.maxtext_heads import HeadsFinish, heads_finish
from hcnr_jax.checkpoints.foreign.orbax_leaves import OrbaxTree, open_orbax_tree
from hcnr_jax.checkpoints.foreign.tensors import ForeignTensors, few
from hcnr_jax.checkpoints.foreign.tunix import is_tunix, tunix_sources
from hcnr_jax.checkpoints.foreign.write_model import write_model
from hcnr_jax.checkpoints.tensor_checks import check_tensors
from hcnr_jax.errors import InputError
from hcnr_jax.models.spec import ModelSpec, spec_from_config
from hcnr_jax.runtime.files import check_output


class Converted(NamedTuple):
    """Describes a conversion.

    Attributes:
        out: the written folder.
        source: the tree that was read, one item of one step.
        format: the program that wrote the tree.
        kind: "model" or "adapter".
        tensors: number of written tensors.
        notes: lines for the user.
    """

    out: Path
    source: Path
    format: str
    kind: str
    tensors: int
    notes: tuple[str, ...] = ()


def convert_checkpoint(
    folder: str | Path,
    base: Checkpoint,
    out: str | Path,
    *,
    layout: str = "auto",
    lora_alpha: float | None = None,
) -> Converted:
    """Convert an Orbax checkpoint of a model that was tuned from BASE.

    Args:
        folder: the Orbax folder: the root of the steps, one step, or one item of a step.
        base: BASE as a Hugging Face folder, which gives config, tokenizer, names and shapes.
        out: the folder to write, which does not exist yet or is empty.
        layout: "tunix" or "maxtext"; "auto" tells by the names of the leaves.
        lora_alpha: LoRA's alpha, which a LoRA checkpoint does not store; None for a full one.

    Raises:
        InputError: the checkpoint cannot be read, or does not fit BASE, or alpha is missing or too much. The message
            names the leaf.
    """
    check_output(out, [*base.sources, folder])
    spec = spec_from_config(base.config, str(base.folder / "config.json"))
    check_tensors(base, spec)
    tree = open_orbax_tree(folder)
    found = layout_of(tree) if layout == "auto" else layout
    if found == "maxtext":
        return _from_maxtext(plain_tree(tree), spec, base, out, lora_alpha)
    sources = tunix_sources(spec, tree.leaves)
    if is_lora(tree) != (lora_alpha is not None):
        raise InputError(_alpha_advice(tree))
    if lora_alpha is not None:
        halves = lora_tensors(tree, spec, sources)
        check_frozen(tree, spec, sources, base)
        written = write_adapter(base, halves, lora_alpha, out, tree.folder)
        return Converted(written, tree.folder, found, "adapter", len(halves))
    tensors = ForeignTensors(tree, spec, sources)
    return Converted(write_model(base, tensors, out, tree.folder), tree.folder, found, "model", len(tensors))


def _from_maxtext(
    tree: OrbaxTree, spec: ModelSpec, base: Checkpoint, out: str | Path, lora_alpha: float | None
) -> Converted:
    """Convert a tree of MaxText; LoRA leaves are refused."""
    if is_lora(tree) or lora_alpha is not None:
        raise InputError(
            f"{tree.folder}: LoRA checkpoints of MaxText are not read; MaxText's own "
            "maxtext.checkpoint_conversion.to_huggingface writes them as a PEFT adapter"
        )
    sources = maxtext_sources(spec, tree.leaves)
    finish = heads_finish(base, spec, lambda change: ForeignTensors(tree, spec, sources, change))
    tensors = ForeignTensors(tree, spec, sources, finish)
    written = write_model(base, tensors, out, tree.folder)
    return Converted(written, tree.folder, "maxtext", "model", len(tensors), tuple(_maxtext_notes(finish)))


def _maxtext_notes(finish: HeadsFinish) -> list[str]:
    """Say what was decided and changed beyond a move of values."""
    notes = []
    if finish.spec.family == "llama":
        order = "interleaved" if finish.interleaved else "in halves, as in Hugging Face models"
        notes.append(f"rotary channels in the checkpoint: {order} (nearer to BASE's keys so)")
    if taken := sum(finish.taken.values()):
        names = [name for name in finish.taken if finish.taken[name]]
        notes.append(
            f"{taken:,} entries of {len(names)} query kernels were one unit in the last place from BASE's, as rounding "
            "of MaxText's scale leaves them, and are BASE's own now"
        )
    return notes


def _alpha_advice(tree: OrbaxTree) -> str:
    if is_lora(tree):
        return (
            f"{tree.folder} holds LoRA leaves, and tunix does not store their alpha: give --lora-alpha, the "
            "number that the training's LoRA configuration named (the update is scaled by alpha / rank)"
        )
    return f"{tree.folder} holds no LoRA leaves (their names end in _lora_a and _lora_b): leave out --lora-alpha"


def layout_of(tree: OrbaxTree) -> str:
    """Return the program that wrote a tree, by the names of its leaves.

    Raises:
        InputError: the names are of no program that is handled.
    """
    if is_maxtext(tree.leaves):
        return "maxtext"
    if is_tunix(tree.leaves):
        return "tunix"
    raise InputError(
        f"{tree.folder}: the leaves are named neither as tunix names them (such as layers/0/attn/q_proj/w) nor as "
        f"MaxText does (such as params/params/decoder/layers/mlp/wo/kernel): {few(sorted(tree.leaves))}"
    )
