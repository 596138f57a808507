"""Every example of the how-to pages runs as it is printed."""

import pytest

from hcnr_jax.cli import COMMANDS
from hcnr_jax.evaluate.trait import TRAITS
from tests.docs.pages import blocks, pages, run


@pytest.mark.parametrize("path", pages("how-to"), ids=lambda path: path.stem)
def test_the_page_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands, traits = dict(COMMANDS), dict(TRAITS)
    run(path)
    assert (commands, traits) == (COMMANDS, TRAITS)


def test_blocks_are_found_with_their_lines(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("# Page\n\n```python\nx = 1\n```\n\n```sh\nls\n```\n\n```python\ny = x + 1\n```\n")
    assert blocks(path) == [(4, "x = 1\n"), (12, "y = x + 1\n")]
    assert run(path).y == 2


def test_a_fault_names_the_page_and_its_line(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("# Page\n\n```python\nx = 1\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as caught:
        run(path)
    assert caught.traceback[-1].lineno + 1 == 5 and str(caught.traceback[-1].path) == str(path)
