"""Parameter trees through Orbax folders."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from hcnr_jax.checkpoints import load_orbax, load_params, open_checkpoint, save_orbax
from hcnr_jax.errors import InputError
from hcnr_jax.models.spec import spec_from_config
from tests.tiny import write_tiny_model


@pytest.fixture
def params(tmp_path):
    checkpoint = open_checkpoint(write_tiny_model(tmp_path / "m", dtype="bfloat16"))
    return load_params(checkpoint, spec_from_config(checkpoint.config, "m"))


def test_there_and_back(tmp_path, params):
    save_orbax(tmp_path / "ckpt", params)
    found = load_orbax(tmp_path / "ckpt")
    assert jax.tree.structure(found) == jax.tree.structure(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a).view("u2"), np.asarray(b).view("u2")), found, params
    )


def test_onto_a_mesh(tmp_path, params):
    save_orbax(tmp_path / "ckpt", params)
    mesh = jax.make_mesh((4, 2), ("x", "y"))

    def place(leaf):
        spec = PartitionSpec(None, "x") if leaf.ndim == 3 else PartitionSpec()
        return jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=NamedSharding(mesh, spec))

    like = jax.tree.map(place, params)
    found = load_orbax(tmp_path / "ckpt", like)
    for leaf, wanted, saved in zip(*map(jax.tree.leaves, (found, like, params)), strict=True):
        assert leaf.sharding == wanted.sharding and leaf.dtype == jnp.float32
        np.testing.assert_array_equal(leaf, np.asarray(saved).astype(np.float32))


def test_refusals(tmp_path, params):
    save_orbax(tmp_path / "ckpt", params)
    with pytest.raises(InputError, match="ckpt exists; nothing is overwritten"):
        save_orbax(tmp_path / "ckpt", params)
    with pytest.raises(InputError, match="none is not a folder; expected an Orbax checkpoint"):
        load_orbax(tmp_path / "none")
    with pytest.raises(InputError, match="cannot be read as an Orbax checkpoint of this model"):
        load_orbax(tmp_path / "m")
    with pytest.raises(InputError, match="cannot be read as an Orbax checkpoint of this model"):
        load_orbax(tmp_path / "ckpt", {"other": jax.ShapeDtypeStruct((2,), jnp.float32)})


@pytest.mark.parametrize("item", [None, "params"])
def test_the_root_of_a_checkpoint_manager_gives_its_latest_step(tmp_path, item):
    trees = {step: {"dense": {"kernel": jnp.full((2, 3), float(step))}} for step in (2, 10)}
    with ocp.CheckpointManager(tmp_path / "root") as manager:
        for step, tree in trees.items():
            saved = ocp.args.StandardSave(tree)
            manager.save(step, args=saved if item is None else ocp.args.Composite(**{item: saved}))
    for place, step in ((tmp_path / "root", 10), (tmp_path / "root" / "2", 2)):
        np.testing.assert_array_equal(load_orbax(place)["dense"]["kernel"], trees[step]["dense"]["kernel"])
