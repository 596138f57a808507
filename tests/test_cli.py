"""The command line itself: what it parses, what its help says, how it ends. The runs are in tests/pipeline."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from hcnr_jax import __version__, cli
from hcnr_jax.cli import COMMANDS, main, parse
from hcnr_jax.config import ApplyConfig, EvaluateConfig, RestoreConfig
from hcnr_jax.errors import InputError, RunError
from tests.restoration.worlds import call, text_of

NEEDED = ["base", "tuned", "--honesty", "h.jsonl", "--task", "t.jsonl", "--out", "out"]
# The contract of docs/design.md, word for word.
CONTRACT = {
    "restore": "BASE TUNED --honesty --task --out --config --in-weight --cross-weight --priority --granularity "
    "--compensation --task-weight --inputs --solver --damping --scores-at --moments-at --loss --samples "
    "--honesty-samples --task-samples --max-length --seed --microbatch --mesh --dry-run",
    "apply": "PATCH MODEL --out --revert",
}


def restore_config(*options: object) -> RestoreConfig:
    return parse(RestoreConfig, [*NEEDED, *map(str, options)], "hcnr restore")


@pytest.mark.parametrize("command", CONTRACT)
def test_help_lists_every_option_of_the_contract(command, capsys) -> None:
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert set(CONTRACT[command].split()) <= set(re.findall(r"--[a-z-]+|\b[A-Z]{4,}\b", shown))
    for words in {"restore": ["{kl,raw,honesty,random}", "INT|none", "default: 0.5"], "apply": ["hcnr.patch"]}[command]:
        assert words in shown
    assert "None" not in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys) -> None:
    assert main([command, "--help"]) == 0
    assert f"usage: hcnr {command}" in capsys.readouterr().out


def test_overview_and_version(capsys) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name}" in shown for name in COMMANDS) and "--config FILE" in shown and "hcnr --version" in shown
    assert main([]) == 2 and "usage: hcnr COMMAND" in capsys.readouterr().out
    assert main(["--version"]) == 0 and capsys.readouterr().out.strip() == f"hcnr_jax {__version__}"


def test_options_are_the_fields() -> None:
    config = restore_config()
    assert config == RestoreConfig(base="base", tuned="tuned", honesty="h.jsonl", task="t.jsonl", out="out")
    config = restore_config("--in-weight", 0.25, "--priority=raw", "--samples", 4, "--dry-run", "--inputs", "local")
    assert (config.in_weight, config.priority, config.samples, config.inputs) == (0.25, "raw", 4, "local")
    assert config.dry_run and config.seed == 0
    assert parse(ApplyConfig, ["p", "m", "--out", "o", "--revert"], "hcnr apply").revert


def test_none_is_a_value_where_a_field_allows_it() -> None:
    for spelling in (["--seed", "none"], ["--seed=none"], ["--seed", "None"]):
        assert restore_config(*spelling).seed is None
    assert restore_config("--seed", 7).seed == 7
    assert restore_config("--microbatch", "none").microbatch is None
    # A method and a folder may be called none: the word stays a word there.
    assert restore_config("--compensation", "none").compensation == "none"
    assert parse(ApplyConfig, ["p", "none", "--out", "none"], "hcnr apply").model == "none"


def test_config_first_options_override(tmp_path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "base: b\ntuned: t\nhonesty: h\ntask: k\nout: o\nin_weight: 0.25\nseed: null\ncompensation: exact\n"
    )
    config = parse(RestoreConfig, ["--config", str(file)], "hcnr restore")
    assert (config.base, config.in_weight, config.seed, config.compensation) == ("b", 0.25, None, "exact")
    config = parse(RestoreConfig, ["x", f"--config={file}", "--seed", "5", "--in-weight", "0.75"], "hcnr restore")
    assert (config.base, config.tuned, config.in_weight, config.seed) == ("x", "t", 0.75, 5)
    with pytest.raises(InputError, match="--config: expected the path of a YAML file"):
        parse(RestoreConfig, ["--config"], "hcnr restore")


def test_config_names_a_file_once_or_a_preset(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert restore_config("--config", "paper").priority == "raw"
    Path("paper").write_text("priority: random\n")
    assert restore_config("--config", "paper").priority == "random"
    with pytest.raises(InputError, match=r"--config papers: .* no preset 'papers'; expected one of: .*paper, "):
        restore_config("--config", "papers")
    for second in (["--config", "no.yaml"], ["--config=no.yaml"]):
        with pytest.raises(InputError, match="--config is given 2 times"):
            restore_config("--config", "paper", *second)


EXAMPLES = {"restore": "in_weight: 0.5", "data": "samples: 128", "apply": "revert: false", "bench": "shape: 100m"}


@pytest.mark.parametrize("command", EXAMPLES)
def test_the_help_of_config_shows_a_key_of_the_command(command, capsys) -> None:
    assert main([command, "--help"]) == 0
    shown = text_of(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out))
    assert f"these options as keys ({EXAMPLES[command]})" in shown
    assert ("preset: ablation" in shown) == (command == "restore")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("restore", ["honesty_f1, refusal_delta, over_refusal, task_accuracy", '"over_refusal <= 5%"', "hub name"]),
        ("bench", ["restore, files, sweep, fisher, compensate"]),
    ],
)
def test_the_help_says(command, words, capsys) -> None:
    assert main([command, "--help"]) == 0
    shown = text_of(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out))
    assert all(word in shown for word in words)


@pytest.mark.parametrize("platform", ["foo", "cuda"])
def test_a_backend_that_is_not_there_is_named(platform, tmp_path) -> None:
    if platform == "cuda" and jax.default_backend() == "gpu":
        pytest.skip("there is a GPU here")
    command = [sys.executable, "-m", "hcnr_jax.cli", "demo", "--out", str(tmp_path / "d")]
    ended = subprocess.run(
        command, env=os.environ | {"JAX_PLATFORMS": platform}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2, ended.stderr
    said = text_of(ended.stderr)
    assert f"hcnr demo: JAX_PLATFORMS={platform}: that backend cannot be used here" in said
    assert re.search(r"usable here: [a-z, ]*cpu", said) and list(tmp_path.iterdir()) == []


def test_the_overview_needs_no_jax() -> None:
    code = "import sys; from hcnr_jax.cli import main; main(['--help']); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


WRONG = {
    "unknown option": (["--bogus", "3"], ["--bogus"]),
    "not a number": (["--in-weight", "abc"], ["--in-weight", "abc"]),
    "no such choice": (["--priority", "best"], ["--priority", "best", "kl", "random"]),
    "no value": (["--samples"], ["--samples"]),
    "one argument too many": (["extra"], ["extra"]),
    "out of range": (["--in-weight", "2"], ["--in-weight: expected less than or equal to 1, got 2.0"]),
    "several": (["--in-weight", "2", "--damping", "-1"], ["--in-weight: ", "--damping: "]),
    "a bad pair": (["--granularity", "weight"], ["--granularity weight", "--compensation none"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_names_the_option_as_typed(case) -> None:
    options, words = WRONG[case]
    ended = call("restore", *NEEDED, *options)
    assert ended.code == 2 and "Traceback" not in ended.err
    assert all(word in text_of(ended.err) for word in words)


def test_what_is_missing_is_named() -> None:
    ended = call("restore", "base")
    assert ended.code == 2 and all(name in ended.err for name in ("TUNED", "--task", "--out"))
    assert "unknown command 'restor'; expected one of: " in text_of(call("restor").err)
    with pytest.raises(InputError, match="--task is given 2 times; give all its values after one --task"):
        parse(EvaluateConfig, ["m", "--out", "o", "--task", "a=b", "--task", "c=d"], "hcnr evaluate")


def raising(error: BaseException):
    def function(config):
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InputError("rows.jsonl, line 3: [bold]wrong[/bold]"), 2, "hcnr apply: rows.jsonl, line 3: [bold]wrong[/bold]"),
        (RunError("the device failed"), 1, "hcnr apply: the run stopped: the device failed"),
        (KeyboardInterrupt(), 130, "hcnr apply: stopped by Ctrl-C"),
        (MemoryError(), 1, "an error that is not handled: MemoryError at test_cli.py:"),
    ],
)
def test_exit_codes(monkeypatch, error, code, words) -> None:
    monkeypatch.delenv(cli.TRACEBACK, raising=False)
    load = cli._load
    monkeypatch.setattr(cli, "_load", lambda place: raising(error) if place.endswith(":apply") else load(place))
    ended = call("apply", "p", "m", "--out", "o")
    assert ended.code == code and words in text_of(ended.err) and len(ended.err.splitlines()) == 1
