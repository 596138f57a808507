"""A run that is stopped, killed or in the way of another: it goes on to the very same bytes, or says why it cannot."""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hcnr_jax.restoration.run
from hcnr_jax.checkpoints import output_lock
from hcnr_jax.config import RestoreConfig
from hcnr_jax.errors import Stopped
from hcnr_jax.restoration.resume.signals import Stopping, resume_command
from tests.restoration.worlds import (
    Ended,
    World,
    call,
    copy_world,
    digests,
    edit_weights,
    make_world,
    record_of,
    restore,
    text_of,
)
from tests.tiny import honesty_rows, write_rows

# How often each run is killed before it may end; HCNR_KILLS=50 kills 50 runs once instead, and takes some minutes.
KILLS = [1] * int(os.environ.get("HCNR_KILLS", "0")) or [3]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("resume"))


def result_of(out: Path) -> tuple:
    """A folder's bytes, and its record but for times and the option --resume itself."""
    files, record = digests(out), record_of(out)
    for name in ("README.md", "report.html"):  # they name the folder, and the page has the seconds
        files.pop(name, None)
        record["outputs"].pop(name, None)
    del files["hcnr.json"], record["seconds"], record["config"]["resume"], record["config"]["out"]
    return files, record


def stopped_at(monkeypatch, world: World, out: Path, point: int, *options: object) -> Ended:
    """A run that a SIGTERM reaches at its `point`-th clean point."""
    seen = []

    def check(self) -> None:
        seen.append(self)
        if len(seen) == point:
            raise Stopped("stopped by SIGTERM", 143)

    with monkeypatch.context() as patch:
        patch.setattr(Stopping, "check", check)
        return call(*world.arguments("--out", out, *options))


METHODS = {
    "propagated": (),
    "local": ("--inputs", "local", "--compensation", "exact"),
    "streamed": ("--stream",),
    "none": ("--compensation", "none", "--granularity", "weight"),
}


@pytest.mark.parametrize("method", METHODS)
def test_stopped_anywhere_it_goes_on_to_the_same_bytes(world, tmp_path, monkeypatch, method) -> None:
    options = ("--microbatch", 4, *METHODS[method])
    expected = result_of(restore(world, tmp_path / "whole", *options))
    out, points = tmp_path / "out", 0
    for point in (1, 4, 6, 9):
        ended = stopped_at(monkeypatch, world, out, point, *options)
        if ended.code == 0:
            break
        points += 1
        assert ended.code == 143 and "hcnr restore: stopped by SIGTERM" in ended.err and not out.exists()
        if not (tmp_path / ".out.hcnr-work").exists():
            assert "no unfinished output is left" in ended.err
        ended = call(*world.arguments("--out", out, *options, "--resume"))
        assert ended.code == 0, ended.err
        assert result_of(out) == expected
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]
        shutil.rmtree(out)
    assert points >= 3


def test_a_stop_upon_a_stop(world, tmp_path, monkeypatch) -> None:
    expected = result_of(restore(world, tmp_path / "whole"))
    out = tmp_path / "out"
    codes = [stopped_at(monkeypatch, world, out, point, "--resume").code for point in (4, 5, 6)]
    assert codes == [143] * 3 and result_of(restore(world, out, "--resume")) == expected


# ---------------------------------------------------------------- what is left, and whose it is


@pytest.fixture
def interrupted(world, tmp_path, monkeypatch) -> tuple[World, Path]:
    """A copy of the world and a run on it that left scores, a selection and some kernels."""
    here, out = copy_world(world, tmp_path / "in"), tmp_path / "out"
    assert stopped_at(monkeypatch, here, out, 8).code == 143
    assert any((tmp_path / ".out.hcnr-work" / "kernels").iterdir())
    return here, out


def test_work_is_never_lost_unasked(interrupted) -> None:
    here, out = interrupted
    left = digests(out.parent)
    ended = call(*here.arguments("--out", out))
    assert ended.code == 2 and "--resume continues it" in ended.err and "scores-honesty" in ended.err
    assert digests(out.parent) == left
    shutil.rmtree(out.parent / ".out.hcnr-work")
    restore(here, out)


OTHERS = {
    "an option of the correction": (("--damping", 0.1), "the kernels in", "--damping is 0.01 there, 0.1 here"),
    "an option of the selection": (("--in-weight", 0.25), "the selection in", "--in-weight is 0.5 there, 0.25 here"),
    "an option of the scores": (("--loss", "sum"), "the scores in", "--loss is mean there, sum here"),
    "other rows": (("--task-samples", 6), "the scores in", "--task-samples"),
    "several": (("--loss", "sum", "--scores-at", "base"), "the scores in", "--scores-at is tuned there, base here"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_product_of_other_options_is_refused_by_name(interrupted, case) -> None:
    here, out = interrupted
    options, *words = OTHERS[case]
    ended = call(*here.arguments("--out", out, *options, "--resume"))
    assert ended.code == 2 and all(word in ended.err for word in words), ended.err
    assert any((out.parent / ".out.hcnr-work" / "kernels").iterdir()), "nothing is lost by a wrong option"


def test_options_that_nothing_kept_depends_on_may_change(interrupted) -> None:
    here, out = interrupted
    shutil.rmtree(out.parent / ".out.hcnr-work" / "kernels")
    (out.parent / ".out.hcnr-work" / "kernels").mkdir()
    restore(here, out, "--damping", 0.1, "--resume")
    assert result_of(out) == result_of(restore(here, out.parent / "whole", "--damping", 0.1))


def test_other_models_rows_and_versions_are_refused_by_name(interrupted) -> None:
    here, out = interrupted
    resumed = here.arguments("--out", out, "--resume")
    manifest = out.parent / ".out.hcnr-work" / "work.json"
    before = manifest.read_text()
    manifest.write_text(before.replace('"version of jax": "', '"version of jax": "0.'))
    assert "version of jax is 0." in call(*resumed).err
    manifest.write_text(before)
    rows = here.honesty.read_text()
    write_rows(here.honesty, honesty_rows(14)[2:])
    assert "honesty rows" in call(*resumed).err
    here.honesty.write_text(rows)
    edit_weights(here.base, lambda weights: weights["model.norm.weight"].__imul__(2))
    ended = call(*resumed)
    assert ended.code == 2 and "BASE is " in ended.err and "TUNED is" not in ended.err


def test_a_damaged_product_is_named(interrupted) -> None:
    here, out = interrupted
    kernel = sorted((out.parent / ".out.hcnr-work" / "kernels").iterdir())[0]
    whole = kernel.read_bytes()
    kernel.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    ended = call(*here.arguments("--out", out, "--resume"))
    assert ended.code == 2 and str(kernel) in text_of(ended.err) and "damaged" in ended.err
    kernel.unlink()
    assert result_of(restore(here, out, "--resume")) == result_of(restore(here, out.parent / "whole"))


def test_resume_where_there_is_nothing_to_resume_and_where_all_is_done(world, tmp_path) -> None:
    out = restore(world, tmp_path / "out", "--compensation", "none", "--resume")
    before = digests(out)
    ended = call(*world.arguments("--out", out, "--compensation", "none", "--resume"))
    assert ended.code == 0 and "is complete" in ended.err and digests(out) == before
    ended = call(*world.arguments("--out", out, "--compensation", "none", "--in-weight", 0.25, "--resume"))
    assert ended.code == 2 and "--in-weight is 0.5 there, 0.25 here" in ended.err and digests(out) == before
    (tmp_path / ".out.hcnr-lock").touch()  # as a kill leaves it between the output's appearance and the end
    assert call(*world.arguments("--out", out, "--compensation", "none", "--resume")).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (out / "hcnr.json").write_text("{}")
    assert "restored with other inputs or options" in call(*world.arguments("--out", out, "--resume")).err


def test_a_fault_keeps_what_is_done(world, tmp_path, monkeypatch) -> None:
    def broken(*arguments, **named):
        raise ZeroDivisionError("once")

    with monkeypatch.context() as patch:
        patch.setattr(hcnr_jax.restoration.run, "correct", broken)
        ended = call(*world.arguments("--out", tmp_path / "out"))
    assert ended.code == 1 and "what is done is kept (scores-honesty, scores-task, losses-base, selection)" in ended.err
    restore(world, tmp_path / "out", "--resume")


def test_a_second_writer_is_told_of_the_first(world, tmp_path) -> None:
    with output_lock(tmp_path / "out"):
        ended = call(*world.arguments("--out", tmp_path / "out"))
    assert ended.code == 2 and "another run is writing there" in ended.err
    assert f"process {os.getpid()} on " in ended.err and ", since 20" in ended.err
    assert list(tmp_path.iterdir()) == []


def test_the_command_that_resumes_is_the_run_itself() -> None:
    config = RestoreConfig(base="b a", tuned="t", honesty="h", task="k", out="o", seed=None, stream=True, damping=0.1)
    command = resume_command(config)
    assert command == ("hcnr restore 'b a' t --honesty h --task k --out o --damping 0.1 --seed none --stream --resume")


# ---------------------------------------------------------------- as processes


def start(world: World, out: Path, *options: object) -> subprocess.Popen:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "hcnr_jax.cli", *world.arguments("--out", out, *options)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> str:
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return err


def test_sigterm_says_how_to_go_on(world, tmp_path) -> None:
    out = tmp_path / "out"
    process = start(world, out, "--solver", "cg")
    for line in process.stderr:
        if line.startswith("score honesty"):
            process.send_signal(signal.SIGTERM)
            break
    _, err = process.communicate(timeout=600)
    assert process.returncode == 143 and "stopped by SIGTERM; what is done is kept (scores-honesty" in err, err
    command = err.split("continue with: ")[1].strip()
    assert command.startswith("hcnr restore") and command.endswith("--resume") and not out.exists()
    assert call(*shlex.split(command)[1:]).code == 0
    assert result_of(out) == result_of(restore(world, tmp_path / "whole", "--solver", "cg"))


def test_killed_at_random_moments(world, tmp_path) -> None:
    """docs/faults.md 11. Moments are drawn from the run's own length, so that every stage is hit."""
    options = ("--compilation-cache", tmp_path / "programs", "--microbatch", 2, "--resume")
    finish(start(world, tmp_path / "whole", *options))
    begun = time.monotonic()  # the second run has its programs at hand, as those that are killed
    finish(start(world, tmp_path / "again", *options))
    length, draw = time.monotonic() - begun, random.Random(0)
    expected, reached = result_of(tmp_path / "whole"), []
    for number, kills in enumerate(KILLS):
        out, left = tmp_path / f"out{number}", tmp_path / f".out{number}.hcnr-work"
        for _ in range(kills):
            process = start(world, out, *options)
            time.sleep(draw.uniform(0.3, 0.95) * length)
            process.kill()
            process.communicate()
            reached.append("all" if out.exists() else f"{len(list(left.rglob('*/blocks*')))} kernels, {left.exists()}")
            assert not out.exists() or result_of(out) == expected, "an output is whole or absent"
        finish(start(world, out, *options))
        assert result_of(out) == expected
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(f".out{number}.")]
    (tmp_path / "reached.json").write_text(json.dumps(reached))
