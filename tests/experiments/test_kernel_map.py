"""Selections as maps of blocks and kernels: shares of what is kept, means over pairs of like depth."""

import numpy as np
import pytest

from hcnr_jax.experiments.kernel_map import kernel_map, map_picture, mean_map
from hcnr_jax.method.neurons import Kernel
from hcnr_jax.models.families.llama import LLAMA
from hcnr_jax.report import restoration_plots
from hcnr_jax.restoration.select import Selection


def selection(kept: str, layers: int = 2) -> Selection:
    """One kernel of the last block kept, a quarter of its neurons restored; d_j counts up."""
    masks = {path: np.zeros((layers, 8), bool) for path in LLAMA.kernels}
    masks[kept][-1, :2] = True
    moved = {Kernel(path, (at,)): at + place / 10 for at in range(layers) for place, path in enumerate(LLAMA.kernels)}
    return Selection(masks, moved, [Kernel(kept, (layers - 1,))])


def record(pair: str, **fields) -> dict:
    return {"pair": pair, "method": "paper"} | fields


def test_a_kernel_that_was_not_kept_has_no_share() -> None:
    found = kernel_map(selection(LLAMA.kernels[2]), LLAMA.kernels)
    assert found["share"] == [[0] * 7, [0, 0, 0.25, 0, 0, 0, 0]]
    assert found["moved"][1] == pytest.approx([1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6])


def test_maps_are_means_over_pairs(tmp_path, monkeypatch) -> None:
    records = [
        record(name, kernels=kernel_map(selection(LLAMA.kernels[k]), LLAMA.kernels)) for name, k in (("p", 0), ("q", 6))
    ]
    found = mean_map(records, "paper")
    assert found is not None
    np.testing.assert_allclose(found["share"][1], [0.125, 0, 0, 0, 0, 0, 0.125])
    drawn: list = []
    monkeypatch.setattr(restoration_plots, "kernel_maps", lambda maps, path: drawn.append(maps) or path)
    (picture,) = map_picture(tmp_path, records, ["paper", "wise_ft", "paper"])
    assert picture.path.name == "neurons.png" and "over 2 pairs" in picture.caption
    assert list(drawn[0]) == ["paper: share of neurons restored", "paper: kernel perturbation d"]
    assert [top for _, top in drawn[0].values()] == pytest.approx([1.0, 1.6])


def test_the_caption_counts_the_pairs_of_what_is_drawn(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(restoration_plots, "kernel_maps", lambda maps, path: path)
    made = kernel_map(selection(LLAMA.kernels[0]), LLAMA.kernels)
    records = [record(name, kernels=made) for name in "pqr"]
    records += [record(name, kernels=made) | {"method": "budget"} for name in "pq"]
    captions = [map_picture(tmp_path, records, names)[0].caption for names in (["budget"], ["paper", "budget"])]
    assert "means over 2 pairs:" in captions[0] and "means over pairs (paper 3, budget 2):" in captions[1]


def test_models_of_different_depths_have_no_mean(tmp_path) -> None:
    records = [record(str(n), kernels=kernel_map(selection(LLAMA.kernels[0], layers=n), LLAMA.kernels)) for n in (2, 3)]
    assert mean_map(records, "paper") is None
    assert map_picture(tmp_path, records, ["paper"]) == [] == map_picture(tmp_path, [record("p")], ["paper"])
