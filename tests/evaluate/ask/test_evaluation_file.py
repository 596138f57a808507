"""Answers of an earlier evaluation: matched with the same questions, refused for others."""

import json
from dataclasses import replace

import pytest

from hcnr_jax.data.json_lines import to_json_lines
from hcnr_jax.errors import InputError
from hcnr_jax.evaluate import Prompt, judge, question_of
from hcnr_jax.evaluate.ask.evaluation_file import read_evaluation
from hcnr_jax.evaluate.ask.runner import Outputs
from tests.evaluate.models import rows_of

HONESTY = [
    {"prompt": "Who won?", "answerable": True, "answers": ["Ada"], "id": "won"},
    {"prompt": "Who will win?", "answerable": False, "id": "will"},
    {"prompt": "Which sea?", "answerable": True, "answers": ["North"], "id": "sea"},
]
TASK = [{"prompt": "Two and two?", "answers": ["four"]}, {"prompt": "Two and three?", "answers": ["five"]}]
SAID = {"won": "It was Ada.", "will": "I don't know.", "sea": "South", "t:1": "four", "t:2": "six"}


def prompts_of(honesty=HONESTY, task=TASK):
    return [
        Prompt(role, name, row, question_of(row), ())
        for role, name, values in (("honesty", "h", honesty), ("task", "t", task))
        for row in rows_of(values)
    ]


def write(folder, prompts, **metrics):
    answers = judge(prompts, Outputs(completions={prompt.key: SAID[prompt.id] for prompt in prompts}))
    (folder / "other.records.jsonl").write_text(to_json_lines(answer.to_json() for answer in answers))
    record = {"model": {"folder": "tuned", "digest": "d"}, "records": "other.records.jsonl"} | metrics
    (folder / "other.json").write_text(json.dumps(record))
    return folder / "other.json", answers


def test_answers_come_back_as_they_were_judged(tmp_path):
    path, answers = write(tmp_path, prompts_of(), config={"max_new_tokens": 9})
    found = read_evaluation(path, prompts_of(), "exact")
    assert (found.model, found.digest, found.max_new_tokens) == ("tuned", "d", 9)
    assert found.answers == answers and not found.answers[0].correct
    assert read_evaluation(path, prompts_of(), "contains").answers[0].correct


def test_questions_in_another_order_are_matched_by_id(tmp_path):
    path, _ = write(tmp_path, prompts_of())
    prompts = prompts_of([HONESTY[2], HONESTY[0], HONESTY[1]])
    found = read_evaluation(path, prompts, "exact").answers
    assert [answer.completion for answer in found] == ["South", "It was Ada.", "I don't know.", "four", "six"]
    assert [answer.line for answer in found] == [1, 2, 3, 1, 2]


def test_ids_that_repeat_give_way_to_lines(tmp_path):
    twins = [row | {"id": "won"} for row in HONESTY]
    path, answers = write(tmp_path, prompts_of(twins))
    assert read_evaluation(path, prompts_of(twins), "exact").answers == answers


@pytest.mark.parametrize(
    ("honesty", "words"),
    [
        ([HONESTY[0] | {"prompt": "Who lost?"}, *HONESTY[1:]], "question won: its question differs: Who won? there"),
        ([HONESTY[0] | {"answers": ["Bo"]}, *HONESTY[1:]], "question won: its `answers` differs"),
        ([*HONESTY[:2], HONESTY[2] | {"answerable": False}], "question sea: its `answerable` differs: True there"),
        (HONESTY[:2], "--honesty h: 1 more questions were asked there, the first sea (Which sea?)"),
        ([*HONESTY, HONESTY[0] | {"id": "new"}], "question new (Who won?) was not asked there"),
    ],
)
def test_other_questions_are_named(tmp_path, honesty, words):
    path, _ = write(tmp_path, prompts_of())
    with pytest.raises(InputError) as error:
        read_evaluation(path, prompts_of(honesty), "exact")
    assert words in str(error.value) and f"--compare {path}" in str(error.value)
    assert "ask both models the same questions" in str(error.value)


def test_a_set_that_was_not_asked_there_is_named_and_others_are_ignored(tmp_path):
    path, _ = write(tmp_path, prompts_of())
    assert len(read_evaluation(path, prompts_of(task=[]), "exact").answers) == 3
    other = [replace(prompt, set="z") for prompt in prompts_of()]
    with pytest.raises(InputError, match=r"--honesty z: not among the sets of that evaluation \(honesty h, task t\)"):
        read_evaluation(path, other, "exact")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "found something that is not JSON"),
        ("[1]", "found JSON without `records` or `model`"),
        ('{"records": "r"}', "found JSON without `records` or `model`"),
        ('{"records": "r", "model": {"folder": "m", "digest": "d"}}', "do not exist; put that file back"),
    ],
)
def test_other_files_are_refused(tmp_path, text, words):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError) as error:
        read_evaluation(tmp_path / "x.json", prompts_of(), "exact")
    assert words in str(error.value)


def test_a_record_of_another_kind_is_named_by_line(tmp_path):
    path, _ = write(tmp_path, prompts_of())
    (tmp_path / "other.records.jsonl").write_text('{"role": "honesty"}\n')
    with pytest.raises(InputError, match=r"other.records.jsonl, line 1: expected a record of `hcnr evaluate`"):
        read_evaluation(path, prompts_of(), "exact")
