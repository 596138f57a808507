"""The journal of a run: what a kill leaves is taken up, what is another run's is refused by name."""

import json

import pytest

from hcnr_jax.errors import InputError
from hcnr_jax.evaluate.ask.journal import Journal, fingerprint
from hcnr_jax.evaluate.ask.likelihoods import Branch, Likelihood, Refusing
from hcnr_jax.evaluate.ask.runner import plain_output

MADE_OF = {"model": "a" * 64, "questions": "b" * 64, "max_new_tokens": "64"}


def filled(path):
    with Journal(path, MADE_OF) as journal:
        journal.add("completions", "honesty/kuq/1", "I don't know é\u2028.")
        journal.add("choices", "task/m/1", plain_output([Likelihood(-1.5, 2), Likelihood(-2.0, 1)]))
        journal.add("refusals", "honesty/kuq/1", plain_output(Refusing([Branch("x", -1.0)], [-2.0, float("-inf")])))
    return path


def test_outputs_come_back_as_they_were(tmp_path):
    path = filled(tmp_path / "j")
    with Journal(path, MADE_OF) as journal:
        assert journal.resumed == 3
        assert journal.outputs.completions == {"honesty/kuq/1": "I don't know é\u2028."}
        assert journal.outputs.choices == {"task/m/1": [Likelihood(-1.5, 2), Likelihood(-2.0, 1)]}
        assert journal.outputs.refusals == {"honesty/kuq/1": Refusing([Branch("x", -1.0)], [-2.0, float("-inf")])}


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_line_cut_by_a_kill_is_dropped_and_written_anew(tmp_path, cut):
    path = filled(tmp_path / "j")
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(path, MADE_OF) as journal:
        assert journal.resumed == 2
        journal.add("completions", "task/m/1", "again")
    lines = path.read_text().split("\n")
    assert len(lines) == 5 and all(json.loads(line) for line in lines[:-1])


def test_a_kill_before_the_first_line_leaves_a_fresh_start(tmp_path):
    (tmp_path / "j").write_text('{"fingerp')
    with Journal(tmp_path / "j", MADE_OF) as journal:
        assert journal.resumed == 0
    assert json.loads((tmp_path / "j").read_text()) == {"fingerprint": MADE_OF}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "c" * 64}, "model aaaaaaaaaaaa... there, cccccccccccc... here"),
        ({"max_new_tokens": "32"}, "max_new_tokens 64 there, 32 here"),
        ({"dtype": "float32"}, "dtype absent there, float32 here"),
    ],
)
def test_another_runs_outputs_are_refused_by_name(tmp_path, change, message):
    path = filled(tmp_path / "j")
    before = path.read_bytes()
    with pytest.raises(InputError, match=message), Journal(path, MADE_OF | change):
        pass
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["not json\n", '{"other": 1}\n', '{"fingerprint": {}}\n[1]\n'])
def test_a_file_that_is_no_journal_is_left_alone(tmp_path, text):
    (tmp_path / "j").write_text(text)
    with pytest.raises(InputError, match="expected the records of an unfinished evaluation"):
        Journal(tmp_path / "j", MADE_OF).__enter__()
    assert (tmp_path / "j").read_text() == text


def test_the_fingerprint_sees_settings_and_model():
    one = fingerprint("m", [], {"max_new_tokens": 8})
    assert one != fingerprint("n", [], {"max_new_tokens": 8}) and one != fingerprint("m", [], {"max_new_tokens": 9})
