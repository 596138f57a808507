"""Meshes as the user types them."""

import pytest

from hcnr_jax.errors import InputError
from hcnr_jax.sharding import check_mesh, parse_mesh


def test_axes_and_sizes() -> None:
    assert parse_mesh("") == {}
    assert parse_mesh("data=2,model=4") == {"data": 2, "model": 4}
    assert parse_mesh(" fsdp=3 ") == {"fsdp": 3}


@pytest.mark.parametrize("text", ["data", "data=0", "data=x", "rows=2", "data=-1", "data=2,data=2"])
def test_what_is_not_understood_is_refused_by_name(text: str) -> None:
    with pytest.raises(InputError, match=f"--mesh {text}"):
        parse_mesh(text)


def test_one_device_is_all_there_is() -> None:
    check_mesh("data=1,model=1")
    with pytest.raises(InputError, match="64 devices are asked for, 8 are here"):
        check_mesh("data=64")
    with pytest.raises(InputError, match="one device"):
        check_mesh("data=2")
