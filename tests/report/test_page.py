"""The page holds all it shows, escapes what comes from data, and the tables and curves say what they were given."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from matplotlib import pyplot as plt

from hcnr_jax.evaluate.trait import HONESTY
from hcnr_jax.report import experiment_plots
from hcnr_jax.report.markdown import markdown, share_of, signed, spread
from hcnr_jax.report.page import Page, Picture, render, table_of
from hcnr_jax.report.percent import percent


def answer(method, completion, verdict, line=1):
    return {
        "pair": "p", "method": method, "role": "honesty", "line": line, "kind": "nonsense", "question": "why <b>?",
        "answerable": False, "answers": [], "completion": completion, "verdict": verdict, "correct": None,
    }  # fmt: skip


POINTS = {"base": [(0.0, 0.97)], "ours": [(0.5, 0.9), (1.0, 0.4)]}


@pytest.fixture
def page(tmp_path) -> str:
    path = experiment_plots.task_against_honesty(POINTS, {}, tmp_path / "a.png")
    answers = [answer("tuned", "</script><script>bad()", "answered"), answer("ours", "I don't know.", "refused")]
    table = markdown(["method", "F1"], [["a|b", "1.0"], ["<i>", "2.0"]])
    return render(
        Page("A & B", ["note"], ["found <x>"], [Picture(path, "points")], [("T", table)], answers, {"seed": 0})
    )


def test_nothing_is_fetched_and_data_is_no_markup(page) -> None:
    assert not re.search(r'(src|href)="(?!data:)', page) and "http" not in page
    assert "A &amp; B" in page and "found &lt;x&gt;" in page and "&lt;i&gt;</td>" in page
    assert page.count("</script>") == 2  # the data's own closing tag is broken up
    assert 'src="data:image/png;base64,' in page


def test_answers_are_by_question_with_every_model(page) -> None:
    text = re.search(r'id="answers">(.*?)</script>', page, re.S)
    data = json.loads(text.group(1))
    assert data["models"] == ["tuned", "ours"]
    (question,) = data["questions"]
    assert question["gold"] == "(no answer)" and question["said"]["ours"] == ["I don't know.", "refused"]
    assert question["said"]["tuned"] == ["</script><script>bad()", "wrong"]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_fills_the_answers(page, tmp_path) -> None:
    file = tmp_path / "page.html"
    file.write_text(page, encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", file.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "1 of 1 questions shown" in shown and '<td class="refused">I don\'t know.</td>' in shown
    assert "&lt;/script&gt;&lt;script&gt;bad()" in shown


def test_tables() -> None:
    text = markdown(["method", "F1"], [["a|b", "1.0"]])
    assert markdown(["method", "settings chosen"], [["a", "b"]]).splitlines()[1] == "| --- | --- |"
    assert text.splitlines() == ["| method | F1 |", "| --- | ---: |", "| a\\|b | 1.0 |"]
    assert '<td class="words">a|b</td><td>1.0</td>' in table_of(text)
    found = {"mean": 0.916, "sd": 0.0131, "low": 0.899, "high": 0.93, "worst": 0.5}
    assert spread(found) == "91.6 ± 1.3" and spread(found, brackets=True) == "91.6 ± 1.3 [90, 93]"
    assert signed(found) == "+91.6 [+89.9, +93.0]" and share_of(found) == "92 (worst 50)"
    assert percent(None) == spread(None) == signed(None) == share_of(None) == "-"


def test_curves_and_maps_draw_what_they_are_given(tmp_path, monkeypatch) -> None:
    figures: list = []
    monkeypatch.setattr(experiment_plots, "save", lambda figure, path: figures.append(figure) or path)
    experiment_plots.task_against_honesty(
        {"base": [(0.0, 0.97)], "ours": [(0.5, 0.9), (1.0, 0.4)]}, {"ours": (0.9, 0.8)}, tmp_path
    )
    drawn = [tuple(point) for line in figures[0].axes[0].lines for point in line.get_xydata()]
    assert {(0.0, 0.97), (0.5, 0.9), (1.0, 0.4), (0.9, 0.8)} <= set(drawn)
    maps = {"F1": np.array([[0.1, 0.2], [0.3, 0.9]]), "task": np.ones((2, 2))}
    experiment_plots.heat_maps(maps, ["a", "b"], ["c", "d"], labels=("x", "y"), path=tmp_path)
    assert [text.get_text() for text in figures[1].axes[0].texts] == ["10.0", "20.0", "30.0", "90.0"]
    level = dict.fromkeys(experiment_plots.panels_of(HONESTY), 0.2)
    values = {metric: np.array([[0.1, 0.5, 0.9], [0.3, 0.7, 0.9]]) for metric in experiment_plots.panels_of(HONESTY)}
    drawn_lines = {name: experiment_plots.Line((0, 1, 8), values, "rait") for name in ("rait", "rait (control)")}
    experiment_plots.recovery(drawn_lines, {"base": level, "tuned": level}, 2 / 3, path=tmp_path)
    panels = figures[2].axes
    line, control, *levels = panels[0].lines
    assert line.get_color() == control.get_color() and line.get_linestyle() != control.get_linestyle()
    np.testing.assert_allclose(line.get_xydata(), [(0, 0.2), (1, 0.6), (8, 0.9)])
    assert [float(found.get_ydata()[0]) for found in levels] == pytest.approx([0.2, 0.2, 2 / 3])
    assert len(panels) == 4 and len(panels[1].lines) == 4 and panels[3].get_ylim()[0] <= 0
    plt.close("all")
