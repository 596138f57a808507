"""The control of the recovery curve: a pair of the demo's questions and a model that was never taught to decline."""

import json
from dataclasses import replace

import pytest

from hcnr_jax.errors import InputError
from hcnr_jax.organism.build import build
from tests.examples.load import load_example
from tests.organism.test_build import TINY


def test_the_untaught_model_differs_in_its_rows_alone(tmp_path) -> None:
    demo, script = tmp_path / "demo", load_example("untaught")
    build(demo, 5, replace(TINY, rates=(1.5,)))
    out = script.untaught(demo, tmp_path / "control", TINY)
    assert (out / "base").resolve() == demo / "base" and (out / "data").resolve() == demo / "data"
    found, asked = (json.loads((place / "tuned" / "hcnr_tune.json").read_text())["config"] for place in (out, demo))
    assert found["learning_rate"] == pytest.approx(asked["learning_rate"])
    record = json.loads((out / "untaught" / "base" / "organism.json").read_text())
    mix = record["settings"]["world"]["mix"]
    assert record["seed"] == 5 and {kind for kind, share in mix.items() if share} == {"known_fact", "known_drug"}
    # The questions do not depend on what the model was taught.
    for path in (demo / "data").iterdir():
        assert path.read_bytes() == (out / "untaught" / "data" / path.name).read_bytes()


def test_another_folder_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match=r"expected a folder that `hcnr demo` wrote, found no .*organism\.json"):
        load_example("untaught").untaught(tmp_path, tmp_path / "control")
