"""`hcnr convert`, alone and before a restoration."""

import json

import numpy as np
import pytest

from hcnr_jax.cli import main
from tests.checkpoints.foreign.trees import lora_tree, maxtext_tree, tunix_tree, write_orbax
from tests.tiny import honesty_rows, read_weights, task_rows, write_rows, write_tiny_model


@pytest.fixture
def pair(tmp_path):
    """BASE and TUNED as Hugging Face folders."""
    base = write_tiny_model(tmp_path / "base")
    return base, write_tiny_model(tmp_path / "tuned", base=base, seed=5)


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def restored(tmp_path, base, tuned, name):
    """The tensors of a small restoration."""
    rows = [
        f"--honesty={write_rows(tmp_path / 'h.jsonl', honesty_rows(6))}",
        f"--task={write_rows(tmp_path / 't.jsonl', task_rows(6))}",
    ]
    small = ["--samples=4", "--microbatch=4", "--no-check"]
    assert main(["restore", str(base), str(tuned), *rows, *small, f"--out={tmp_path / name}"]) == 0
    return read_weights(tmp_path / name)


def test_restoring_a_tunix_checkpoint_is_restoring_its_model(tmp_path, pair, capsys):
    base, tuned = pair
    checkpoint = write_orbax(tmp_path / "ckpt", tunix_tree(read_weights(tuned), config_of(tuned)))
    options = [str(checkpoint), f"--like={base}", f"--out={tmp_path / 'hf'}"]
    assert main(["convert", *options]) == 0
    assert f"model: {tmp_path / 'hf'}" in " ".join(capsys.readouterr().err.replace("\n", "").split())
    ours, theirs = (restored(tmp_path, base, model, f"r-{model.name}") for model in (tmp_path / "hf", tuned))
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor, err_msg=name)
    assert main(["convert", *options]) == 2  # nothing is overwritten
    assert main(["convert", str(tmp_path / "r-hf"), "--to=tunix", f"--out={tmp_path / 'tunix'}"]) == 0
    assert main(["convert", str(tmp_path / "tunix"), f"--like={base}", f"--out={tmp_path / 'back'}"]) == 0
    for name, tensor in read_weights(tmp_path / "back").items():
        np.testing.assert_array_equal(ours[name], tensor, err_msg=name)


def test_a_restoration_of_an_orbax_folder_names_the_command(tmp_path, pair, capsys):
    base, tuned = pair
    checkpoint = write_orbax(tmp_path / "ckpt", tunix_tree(read_weights(tuned), config_of(tuned)))
    task = write_rows(tmp_path / "t.jsonl", task_rows(6))
    assert main(["restore", str(base), str(checkpoint), f"--task={task}", f"--out={tmp_path / 'out'}"]) == 2
    assert f"hcnr convert {checkpoint} --like {base} --out FOLDER" in capsys.readouterr().err.replace("\n", "")


def test_restoring_a_lora_of_tunix_writes_an_adapter(tmp_path, pair, capsys):
    base, _ = pair
    checkpoint = write_orbax(tmp_path / "ckpt", lora_tree(config_of(base), rank=4))
    assert main(["convert", str(checkpoint), f"--like={base}", "--lora-alpha=8", f"--out={tmp_path / 'lora'}"]) == 0
    before = read_weights(tmp_path / "lora")
    after = restored(tmp_path, base, tmp_path / "lora", "restored")
    assert set(before) <= set(after)  # the patch lies beside them
    assert any(not np.array_equal(after[name], before[name]) for name in before)
    options = ["convert", str(tmp_path / "restored"), "--to=tunix", f"--out={tmp_path / 'tunix'}"]
    assert main(options) == 2
    assert "is a LoRA adapter: give --like" in capsys.readouterr().err.replace("\n", "")
    assert main([*options, f"--like={base}"]) == 0
    assert "alpha is 8" in capsys.readouterr().err


def test_options_that_do_not_go_together(tmp_path, capsys):
    assert main(["convert", "ckpt", f"--out={tmp_path / 'out'}"]) == 2
    assert "--like: required, since an Orbax checkpoint has no config" in capsys.readouterr().err
    assert main(["convert", "model", "--to=tunix", "--lora-alpha=8", f"--out={tmp_path / 'out'}"]) == 2
    assert "leave out --format and --lora-alpha" in capsys.readouterr().err


def test_converting_a_maxtext_checkpoint_says_what_was_changed(tmp_path, pair, capsys):
    base, tuned = pair
    tree = maxtext_tree(read_weights(tuned), config_of(tuned))
    checkpoint = write_orbax(tmp_path / "ckpt", tree, item="items")
    options = [str(checkpoint), f"--like={base}", f"--out={tmp_path / 'hf'}"]
    assert main(["convert", *options, "--format=tunix"]) == 2
    assert "missing embedder/input_embedding" in capsys.readouterr().err.replace("\n", "")
    assert main(["convert", *options]) == 0
    said = capsys.readouterr().err
    assert "rotary channels in the checkpoint: interleaved" in said and "written by maxtext: 21 tensors" in said
