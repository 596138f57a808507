"""Single leaves of Orbax folders in every format that Orbax writes."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from hcnr_jax.checkpoints.foreign import open_orbax_tree
from hcnr_jax.errors import InputError


def tree():
    """Two leaves, one of them in parts on eight devices."""
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    kernel = jnp.arange(8 * 6 * 4, dtype=jnp.bfloat16).reshape(8, 6, 4)
    sharded = jax.device_put(kernel, NamedSharding(mesh, PartitionSpec("x", None, "y")))
    return {"decoder": {"kernel": sharded, "list": [jnp.ones(3), {"value": jnp.zeros((2, 1))}]}}


@pytest.mark.parametrize("ocdbt", [True, False])
@pytest.mark.parametrize("zarr3", [True, False])
def test_every_format_is_read(tmp_path, ocdbt, zarr3):
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt, use_zarr3=zarr3)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(tmp_path / "ckpt", args=ocp.args.PyTreeSave({**tree(), "rngs": {"key": jnp.uint32(3)}}))
    leaves = open_orbax_tree(tmp_path / "ckpt").leaves
    assert {path: leaf.shape for path, leaf in leaves.items()} == {
        "decoder/kernel": (8, 6, 4),
        "decoder/list/0": (3,),
        "decoder/list/1": (2, 1),
    }
    found = leaves["decoder/kernel"].read()
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, np.asarray(tree()["decoder"]["kernel"]))


def test_steps_and_items(tmp_path):
    with ocp.CheckpointManager(tmp_path / "root") as manager:
        for step in (2, 10):
            weights, moments = {"w": jnp.full(3, float(step))}, {"m": jnp.zeros(3)}
            items = {"model_params": ocp.args.PyTreeSave(weights), "optimizer_state": ocp.args.PyTreeSave(moments)}
            manager.save(step, args=ocp.args.Composite(**items))
    for place, step in ((tmp_path / "root", 10), (tmp_path / "root" / "2", 2)):
        np.testing.assert_array_equal(open_orbax_tree(place).leaves["w"].read(), np.full(3, float(step)))


def test_damaged_folders(tmp_path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "ckpt", {"w": jnp.ones(3)})
    (tmp_path / "ckpt" / "manifest.ocdbt").write_bytes(b"")
    with pytest.raises(InputError, match="leaf w cannot be opened"):
        open_orbax_tree(tmp_path / "ckpt")
    (tmp_path / "ckpt" / "_METADATA").write_text("{}")
    with pytest.raises(InputError, match="expected an object under tree_metadata; was the save interrupted"):
        open_orbax_tree(tmp_path / "ckpt")
    with pytest.raises(InputError, match="none is not a folder"):
        open_orbax_tree(tmp_path / "none")
    with pytest.raises(InputError, match="is in a bucket; copy one step here first"):
        open_orbax_tree("gs://bucket/run/checkpoints/100")
