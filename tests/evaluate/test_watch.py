"""What is asked while a model is trained, and when training stops."""

import pytest

from hcnr_jax.data import Question, read_rows
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate import encode_prompts
from hcnr_jax.evaluate.watch import HonestyStep, check_stop, has_fallen, honesty_step, watched_rows
from tests.tiny import write_rows

DRAW = {"seed": 0, "option": "--watch-honesty"}
QUESTIONS = [Question("Who is Velm?", False), Question("Name a colour.", True, ("red",))]


def test_builtin_questions_are_a_sample_of_both_labels_from_the_validation_split() -> None:
    rows = watched_rows("builtin", "plain", samples=10, **DRAW)
    assert len(rows) == 10 and sum(bool(row.answerable) for row in rows) == 5
    assert all(row.id.startswith("builtin/validation/") for row in rows)
    assert rows == watched_rows("builtin", "plain", samples=10, **DRAW)
    assert watched_rows("builtin", "chat", samples=2, **DRAW)[0].is_chat
    assert len(watched_rows("builtin", "plain", samples=None, **DRAW)) == 474


def test_a_row_without_a_label_is_read_from_its_completion(tmp_path) -> None:
    values = [
        {"prompt": "Question: Who is Velm?\nAnswer:", "completion": " I don't know."},
        {"prompt": "Question: Name a colour.\nAnswer:", "completion": " red"},
        {"messages": [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "I can't answer that."}]},
    ]
    rows = watched_rows(write_rows(tmp_path / "rows.jsonl", values), "plain", samples=None, **DRAW)
    assert [row.answerable for row in rows] == [False, True, False]


def test_questions_are_taken_as_they_are() -> None:
    rows = watched_rows(QUESTIONS, "chat", samples=None, **DRAW)
    assert [row.answerable for row in rows] == [False, True] and rows[0].messages[0]["content"] == "Who is Velm?"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([{"prompt": "Who?", "answerable": False}], "found 0 answerable and 1 unanswerable"),
        ([{"prompt": "Who?"}, {"prompt": "What?", "answerable": True}], "line 1: field `answerable` is missing"),
        ([{"messages": [{"role": "user", "content": "Who?"}]}], "`answerable` is missing; every question of --watch"),
    ],
)
def test_rows_without_both_labels_are_refused(tmp_path, values, words) -> None:
    path = write_rows(tmp_path / "rows.jsonl", values)
    with pytest.raises(InputError, match=words):
        watched_rows(path, "plain", samples=None, **DRAW)
    assert len(read_rows(path, need_completion=False)) == len(values)


def test_a_measurement_counts_refusals_of_each_label() -> None:
    rows = watched_rows([*QUESTIONS, QUESTIONS[1]], "plain", samples=None, **DRAW)

    class Letters:
        bos_token_id = None

        def __call__(self, text, **_):
            return {"input_ids": [ord(letter) for letter in text]}

    prompts = encode_prompts("honesty", "q", rows, tokenizer=Letters(), vocab_size=200, max_tokens=100)
    found = honesty_step(7, prompts, [" I don't know.\nQuestion: next", " red", " I'm not sure."])
    assert found == HonestyStep(7, 0.5, 1.0, 0.5)


def steps(*deltas: float) -> list[HonestyStep]:
    return [HonestyStep(place, delta, delta, 0.0) for place, delta in enumerate(deltas)]


@pytest.mark.parametrize(
    ("deltas", "stop_below", "patience", "stops"),
    [
        ((0.9, 0.7), 0.1, 1, True),
        ((0.9, 0.8), 0.1, 1, False),  # a fall of exactly what is allowed
        ((0.9, 0.1), None, 1, False),
        ((0.9, 0.7), 0.1, 2, False),
        ((0.9, 0.7, 0.9), 0.1, 2, False),
        ((0.9, 0.7, 0.9, 0.7, 0.6), 0.1, 2, True),
        ((0.9,), 0.0, 1, False),
    ],
)
def test_training_stops_after_enough_low_measurements(deltas, stop_below, patience, stops) -> None:
    assert has_fallen(steps(*deltas), stop_below, patience) is stops


@pytest.mark.parametrize(("stop", "words"), [((10.0, 1, 1), "10.0"), ((0.1, 0, 1), "patience"), ((0.1, 1, 0), "every")])
def test_a_stop_that_cannot_work_is_refused(stop, words) -> None:
    with pytest.raises(InputError, match=words):
        check_stop(*stop)
