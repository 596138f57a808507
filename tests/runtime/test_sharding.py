"""Meshes as the user types them, and where arrays lie on them."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from hcnr_jax.errors import InputError
from hcnr_jax.runtime.sharding import Layout, check_mesh, make_layout, make_mesh, parse_mesh


def test_axes_and_sizes() -> None:
    assert parse_mesh("") == {}
    assert parse_mesh("data=2,model=4") == {"data": 2, "model": 4}
    assert parse_mesh(" fsdp=3 ") == {"fsdp": 3}


@pytest.mark.parametrize("text", ["data", "data=0", "data=x", "rows=2", "data=-1", "data=2,data=2"])
def test_what_is_not_understood_is_refused_by_name(text: str) -> None:
    with pytest.raises(InputError, match=f"--mesh {text}"):
        parse_mesh(text)


def test_sizes_are_one_or_more() -> None:
    for text in ("data=0", "model=2,data=-1"):
        with pytest.raises(InputError, match=r"sizes are 1 or more, got 'data=(0|-1)'"):
            parse_mesh(text)


def test_a_mesh_takes_the_first_devices_and_no_more_than_there_are() -> None:
    check_mesh("data=1,model=1")
    assert make_mesh("data=1,model=1") is None
    mesh = make_mesh("model=3,data=2")
    assert mesh is not None and dict(mesh.shape) == {"data": 2, "fsdp": 1, "model": 3}
    assert list(mesh.devices.flat) == jax.devices()[:6]
    with pytest.raises(InputError, match="64 devices are asked for, 8 are here"):
        check_mesh("data=64")


def layout(text: str) -> Layout:
    mesh = make_mesh(text)
    assert mesh is not None
    axes = {"embed": ("vocab", "embed"), "blocks/up/kernel": ("layers", "embed", "mlp")}
    return make_layout(mesh, axes, {"embed": (64, 32), "blocks/up/kernel": (2, 32, 48)})


def test_weights_are_split_by_fsdp_and_model() -> None:
    here = layout("data=2,fsdp=2,model=2")
    assert here.params()["embed"].spec == P("model", "fsdp")
    assert here.params()["blocks/up/kernel"].spec == P(None, "fsdp", "model")
    assert here.kernel("blocks/up/kernel").spec == P("fsdp", "model")
    assert here.row_count == 4 and here.warnings() == []


def test_what_does_not_divide_is_whole_and_said() -> None:
    here = layout("fsdp=5")
    assert here.params()["embed"].spec == P("model", None)
    assert here.warnings() == [
        "--mesh: fsdp=5 does not divide the 32 of embed (embed): those weights are replicated along fsdp"
    ]


def test_arrays_go_onto_the_mesh_and_come_back() -> None:
    here = layout("data=2,fsdp=2,model=2")
    values = np.arange(16.0).reshape(8, 2)
    rows = here.put_rows(values)
    assert rows.sharding.spec == P(("data", "fsdp")) and rows.addressable_shards[0].data.shape == (2, 2)
    for number in range(9):
        back = here.local({"a": rows, "b": None}, number)
        assert back["b"] is None and back["a"].devices() == {jax.devices()[number % 8]}
        np.testing.assert_array_equal(back["a"], values)
