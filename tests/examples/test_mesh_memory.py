"""Memory of a device, compiled against computed, on a small shape."""

import pytest

from tests.examples.load import load_example


def test_weights_take_what_the_split_says_and_fall_with_the_mesh() -> None:
    example = load_example("mesh_memory")
    whole, *_ = example.row("tiny", "data=2", 8, 16)
    for mesh in ("fsdp=8", "data=2,fsdp=2,model=2"):
        computed, given, _ = example.row("tiny", mesh, 8, 16)
        assert computed < whole / 2
        # Beside the weights: sums of scores (twice a number for each neuron), rows, masks.
        assert computed < given < computed + 20_000
    with pytest.raises(ValueError, match="more than one device"):
        example.row("tiny", "", 8, 16)
