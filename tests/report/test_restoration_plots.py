"""Pictures: the numbers given are the numbers drawn, on axes that hide nothing."""

from pathlib import Path

import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from hcnr_jax.report import restoration_plots


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures as they were when saved."""
    figures: list[Figure] = []
    monkeypatch.setattr(restoration_plots, "save", lambda figure, path: figures.append(figure) or path)
    return figures


def test_points_lie_where_they_are_said_to(drawn: list[Figure], tmp_path: Path) -> None:
    spans = {"tuned": {"task": (0.9, 1.0), "f1": (0.1, 0.3)}}
    restoration_plots.honesty_against_task({"base": (0.0, 0.97), "tuned": (0.98, 0.2)}, spans, tmp_path / "a.png")
    (axes,) = drawn[0].axes
    assert {tuple(line.get_xydata()[0]) for line in axes.lines if line.get_marker() == "o"} == {(0, 0.97), (0.98, 0.2)}
    assert axes.get_ylim()[0] == 0 and axes.get_xlabel() and axes.get_ylabel() and axes.get_title()
    plt.close("all")


def test_every_layer_is_drawn_from_zero_with_chance_marked(drawn: list[Figure], tmp_path: Path) -> None:
    restoration_plots.probe_by_layer({"base": [0.5, 0.9, 0.99], "tuned": [0.5, 0.8, 0.7]}, 2, tmp_path / "b.png")
    (axes,) = drawn[0].axes
    assert [list(line.get_ydata()) for line in axes.lines[:2]] == [[0.5, 0.9, 0.99], [0.5, 0.8, 0.7]]
    assert axes.get_ylim()[0] == 0 and "chance" in axes.get_legend_handles_labels()[1]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["embedding", "1", "2"]
    plt.close("all")


def test_neuron_map_has_blocks_down_and_kernels_across(drawn: list[Figure], tmp_path: Path) -> None:
    records = [{"neurons": 10, "neurons_restored": k % 10, "perturbation": 0.01 * k} for k in range(14)]
    none = [{"neurons": 10, "neurons_restored": 0, "perturbation": 0.5} for _ in range(14)]
    restoration_plots.neuron_map({"paper": records, "restored": none}, tmp_path / "c.png")
    moved, paper, restored = (axes for axes in drawn[0].axes if axes.get_xlabel() == "kernel")
    shares = paper.images[0].get_array()
    assert shares.shape == (2, 7) and shares[1, 2] == 0.9
    assert moved.images[0].get_array()[1, 6] == 0.13 and not restored.images[0].get_array().any()
    assert paper.images[0].get_clim() == restored.images[0].get_clim() == (0, 1)
    assert "paper" in paper.get_title() and "restored" in restored.get_title() and "paper" in moved.get_title()
    plt.close("all")


def test_a_picture_is_written_as_png(tmp_path: Path) -> None:
    path = restoration_plots.probe_by_layer({"base": [0.5, 0.9]}, 1, tmp_path / "deep" / "d.png")
    assert path.read_bytes().startswith(b"\x89PNG")
