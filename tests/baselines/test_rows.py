"""What the training rivals learn from, and the prompts of in-context refusals."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from hcnr_jax.baselines import BASELINES, label
from hcnr_jax.baselines.fine_tuning import fit, fit_curve, fit_preferences, referenced
from hcnr_jax.baselines.prompting import choose_examples, with_examples
from hcnr_jax.baselines.table import training_grid
from hcnr_jax.baselines.training_rows import mixed_rows, preference_rows, refusal_rows, said
from hcnr_jax.checkpoints import load_params, open_checkpoint
from hcnr_jax.config import RestoreConfig, build, read_yaml
from hcnr_jax.data import encode_rows, load_tokenizer, parse_row
from hcnr_jax.errors import InputError
from hcnr_jax.models import spec_from_config
from hcnr_jax.presets import preset
from hcnr_jax.training.trainer import TrainSettings
from tests.tiny import honesty_rows, task_rows, write_tiny_model


def rows_of(values):
    return [parse_row(value, "f.jsonl", line) for line, value in enumerate(values, start=1)]


KNOWN = {"prompt": "question : the sky ? answer :", "completion": " blue.", "answerable": True, "answers": ["blue"]}
HONESTY = rows_of([*honesty_rows(3), KNOWN])
TASK = rows_of(task_rows(2))


def test_refusals_are_the_rows_without_an_answer() -> None:
    assert [row.line for row in refusal_rows(HONESTY)] == [1, 2, 3]
    assert len(mixed_rows(HONESTY, TASK)) == 6
    with pytest.raises(InputError, match=r"f\.jsonl: expected rows that are not answerable"):
        refusal_rows(HONESTY[3:])


def test_preferences_go_both_ways() -> None:
    chosen, rejected = preference_rows(HONESTY, TASK, ["the cat.", "", "I don't know."], seed=0)
    # The empty bluff and the one that is a refusal make no pair; every answered row makes one.
    assert [said(row) for row in chosen] == ["I don't know.", "blue.", *(said(row) for row in TASK)]
    assert [said(row) for row in rejected] == ["the cat.", *["I don't know."] * 3]
    assert all(left.prompt == right.prompt for left, right in zip(chosen, rejected, strict=True))


def test_examples_come_in_turn_and_before_the_question() -> None:
    examples = choose_examples(HONESTY, 3)
    assert [row.answerable for row in examples] == [False, True, False]
    assert len(choose_examples(HONESTY, 9)) == 4
    asked = with_examples(TASK[0], examples[:2])
    assert asked.prompt == f"{HONESTY[0].prompt} I don't know.\n{KNOWN['prompt']} blue.\n{TASK[0].prompt}"
    assert with_examples(TASK[0], []) is TASK[0]


def test_examples_of_a_chat_are_turns_after_the_system_message() -> None:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    shown = [
        {"role": "system", "content": "t"},
        {"role": "user", "content": "p"},
        {"role": "assistant", "content": "a"},
    ]
    row, example = (parse_row({"messages": messages}, "f", 1, need_completion=False) for messages in (turns, shown))
    assert [turn["content"] for turn in with_examples(row, [example]).messages] == ["s", "p", "a", "q"]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = write_tiny_model(tmp_path_factory.mktemp("fit") / "model", scale=2.0)
    checkpoint = open_checkpoint(folder)
    spec = spec_from_config(checkpoint.config, str(folder))
    tokenizer = load_tokenizer(folder)
    encoded = {name: encode_rows(rows, tokenizer, 64) for name, rows in (("honesty", HONESTY), ("task", TASK))}
    return spec, load_params(checkpoint, spec), encoded


def test_training_moves_all_weights_and_leaves_the_start_alone(opened) -> None:
    spec, params, encoded = opened
    before = jax.tree.map(np.array, params)
    settings = TrainSettings(learning_rate=0.003, steps=5, batch_size=4, seed=3)
    trained, log = fit(spec, params, [*encoded["honesty"], *encoded["task"]], settings=settings)
    assert log.losses[-1] < log.losses[0]
    assert all(bool((x != y).any()) for x, y in zip(jax.tree.leaves(trained), jax.tree.leaves(params), strict=True))
    jax.tree.map(np.testing.assert_array_equal, before, params)
    pairs = referenced(spec, params, encoded["honesty"][:2], rejected=encoded["task"], rows=2)
    _, log = fit_preferences(spec, params, pairs, objective="dpo", beta=0.1, settings=settings)
    assert log.losses[0] == pytest.approx(np.log(2), abs=1e-4) and log.losses[-1] < log.losses[0]


def test_a_curve_is_one_run_whatever_its_length(opened) -> None:
    spec, params, encoded = opened
    settings = TrainSettings(learning_rate=0.003, steps=5, batch_size=4, end_fraction=1.0, seed=3)
    whole = dict(fit_curve(spec, params, encoded["honesty"], settings=settings, stops=(0, 2, 5)))
    assert list(whole) == [0, 2, 5] and whole[0] is params
    trained, _ = fit(spec, params, encoded["honesty"], settings=settings)
    jax.tree.map(np.testing.assert_array_equal, whole[5], trained)
    # With one rate at every step a run cut short is the beginning of a longer one.
    short = dict(fit_curve(spec, params, encoded["honesty"], settings=replace(settings, steps=2), stops=(2,)))
    jax.tree.map(np.testing.assert_array_equal, whole[2], short[2])


@pytest.mark.parametrize("name", BASELINES)
def test_every_setting_of_the_table_is_a_legal_one(name) -> None:
    baseline = BASELINES[name]
    assert baseline.source and (baseline.grid or baseline.kind == "train")
    labels = [label(setting) for setting in baseline.grid]
    assert len(set(labels)) == len(labels)
    if baseline.kind == "restore":
        paths = {"base": "b", "tuned": "t", "honesty": "h", "task": "k", "out": "o"}
        for setting in baseline.grid:
            values = read_yaml(RestoreConfig, preset(baseline.preset)) | dict(baseline.fixed) | dict(setting) | paths
            build(RestoreConfig, values)


def test_labels_and_grids() -> None:
    assert label({"alpha": 0.5}) == "alpha=0.5" and label({}) == "as it is"
    assert [label(setting) for setting in training_grid([1e-4, 3e-4], [30])] == [
        "rate=0.0001, steps=30",
        "rate=0.0003, steps=30",
    ]
