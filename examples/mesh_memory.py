"""Shows the memory that scoring takes on each device, by mesh; it compiles for simulated devices without weights.

    python examples/mesh_memory.py [SHAPE] [ROWS] [TOKENS]

SHAPE is one of `hcnr bench --shape`. `weights, computed` are the bytes of weights on a device by the sharding alone.
`arguments` and `temporaries` are XLA's count for the compiled program. Temporaries on a CPU differ from those of an
accelerator, but shrink with the mesh in the same way.
"""

import math
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from hcnr_jax.bench.model_shapes import spec_of
from hcnr_jax.bench.sections.fisher import window_of
from hcnr_jax.models import abstract_params
from hcnr_jax.restoration.decoder_blocks import layout_of
from hcnr_jax.restoration.microbatches import Shape
from hcnr_jax.restoration.score import Scoring, scoring_memory
from hcnr_jax.runtime.sharding import Layout, make_mesh

MESHES = ("data=2", "data=8", "fsdp=8", "model=8", "fsdp=4,model=2", "data=2,fsdp=2,model=2")


def weight_bytes(layout: Layout, itemsize: int) -> int:
    """Compute the bytes of weights on one device, from the sharding alone."""
    shardings = layout.params()
    return sum(itemsize * math.prod(shardings[path].shard_shape(shape)) for path, _, shape in layout.axes)


def row(shape: str, mesh: str, rows: int, tokens: int) -> tuple[int, int, int]:
    """Compute (weights, arguments, temporaries) of one device in bytes.

    Args:
        shape: name of the model shape.
        mesh: text of `--mesh`.
        rows, tokens: sizes of the batch.
    """
    spec, devices = spec_of(shape), make_mesh(mesh)
    if devices is None:
        raise ValueError(f"mesh {mesh}: expected more than one device")
    layout = layout_of(devices, spec)
    how = Scoring(spec, dtype="float32", layout=layout, window=window_of(tokens))
    found = scoring_memory(how, Shape(tokens, rows), abstract_params(spec, jnp.bfloat16))
    return weight_bytes(layout, 2), *found


def main(arguments: Sequence[str]) -> None:
    """Print a table."""
    shape = arguments[0] if arguments else "llama-3.2-1b"
    rows, tokens = (int(text) for text in (*arguments[1:], "16", "256")[:2])
    spec = spec_of(shape)
    total = 2 * sum(leaf.size for leaf in jax.tree.leaves(abstract_params(spec)))
    print(f"{shape}: {total / 1e9:.3f} GB of bfloat16 weights; {rows} rows of {tokens} tokens; GB on each device\n")
    print("| mesh | weights, computed | arguments, compiled | temporaries, compiled |\n|---|---|---|---|")
    for mesh in MESHES:
        computed, given, beside = row(shape, mesh, rows, tokens)
        print(f"| `{mesh}` | {computed / 1e9:.3f} | {given / 1e9:.3f} | {beside / 1e9:.3f} |", flush=True)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    main(sys.argv[1:])
