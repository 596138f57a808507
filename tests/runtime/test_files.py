"""An output folder or file appears whole or not at all."""

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from hcnr_jax.checkpoints import check_output, output_lock, staged_folder
from hcnr_jax.errors import InputError, RunError
from hcnr_jax.runtime.files import check_writable, write_file, write_new_text, write_result


def fill(out: Path, **kwargs) -> None:
    with staged_folder(out, **kwargs) as stage:
        (stage / "sub").mkdir()
        (stage / "sub" / "a.txt").write_text("a")


def test_appears_in_one_step(tmp_path):
    out = tmp_path / "new" / "out"
    with staged_folder(out) as stage:
        (stage / "a.txt").write_text("a")
        assert not out.exists() and stage.parent == out.parent
    assert (out / "a.txt").read_text() == "a"
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    (tmp_path / "plain").mkdir()
    assert out.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    fill(tmp_path / "out")
    assert (tmp_path / "out" / "sub" / "a.txt").exists()


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), InputError("x"), SystemExit(1)])
def test_an_error_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)), staged_folder(tmp_path / "out") as stage:
        (stage / "a.txt").write_text("a")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_refused_places(tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    (tmp_path / "link").symlink_to(base)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}")
    for place in (base, tmp_path / "base" / "sub" / "out", tmp_path / "link", tmp_path / "x" / ".." / "base"):
        with pytest.raises(InputError, match=r"(is|lies inside) the input .*base; inputs are never written to"):
            check_output(place, [rows, base])
    with pytest.raises(InputError, match=r"rows.jsonl is the input"):
        check_output(rows, [rows])
    with pytest.raises(InputError, match=r"rows.jsonl is a file; expected a folder"):
        check_output(rows)
    out.mkdir()
    (out / "something").touch()
    with pytest.raises(InputError, match="exists and is not empty; nothing is overwritten"):
        check_output(out)
    with pytest.raises(InputError, match="cannot be written to"):
        check_output(rows / "out")
    assert check_output(tmp_path / "deep" / "er", [base, "org/model"]) == tmp_path / "deep" / "er"
    assert not (tmp_path / "deep").exists()


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="/proc is not mounted here")
def test_a_place_that_only_trying_shows_to_be_unwritable(tmp_path):
    with pytest.raises(InputError, match="--out /proc/x/y: /proc cannot be written to"):
        check_output("/proc/x/y")
    with pytest.raises(InputError, match="--out /proc/x: "), output_lock("/proc/x"):
        pass
    check_writable(tmp_path / "a" / "b", "--out b")
    assert list(tmp_path.iterdir()) == []


def test_mount_point(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    with pytest.raises(InputError, match="is a mount point"):
        check_output(tmp_path / "out")


def test_unwritable_parent(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *args: False)
    with pytest.raises(InputError, match=r"cannot be written to \(no permission\); choose another place"):
        check_output(tmp_path / "out")


def test_too_little_room_is_seen_before_writing(tmp_path):
    with pytest.raises(InputError, match=r"bytes free, 1,000,000,000,000,000,000 are needed"):
        fill(tmp_path / "out", needed_bytes=10**18)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "No space left on device.*free some space"),
        (errno.EDQUOT, "raise the quota"),
        (errno.EROFS, "choose a place that can be written"),
        (errno.EIO, "see to the cause"),
    ],
)
def test_a_disk_that_fails_while_writing(tmp_path, code, words):
    with pytest.raises(InputError, match=words) as caught, staged_folder(tmp_path / "out") as stage:
        (stage / "a.txt").write_text("a")
        raise OSError(code, os.strerror(code), "a.txt")
    assert all(word in str(caught.value) for word in ("--out", "a.txt", "writing failed", "nothing is left there"))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_at_the_rename(tmp_path, monkeypatch):
    def rename(self, target):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(InputError, match="writing failed"):
        fill(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_filled_by_another_run_in_the_meantime(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match="was filled by another run"), staged_folder(out):
        out.mkdir()
        (out / "theirs").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (out / "theirs").exists()


def test_two_runs_at_once(tmp_path):
    out = tmp_path / "out"
    with output_lock(out):
        with pytest.raises(InputError, match="another run is writing there"):
            fill(out)
        fill(out, lock=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def _write_for_ever(out: Path) -> None:
    with staged_folder(out) as stage:
        (stage / "config.json").write_text("{}")
        time.sleep(60)


def test_killed_while_writing(tmp_path):
    out = tmp_path / "out"
    process = multiprocessing.get_context("spawn").Process(target=_write_for_ever, args=(out,))
    process.start()
    partial = tmp_path / ".out.hcnr-partial"
    for _ in range(600):
        if (partial / "config.json").exists():
            break
        time.sleep(0.1)
    with pytest.raises(InputError, match="another run is writing there"):
        fill(out)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not out.exists() and partial.exists()
    fill(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and not (out / "config.json").exists()


@pytest.mark.parametrize("content", ["Où\r\nici\u2028\n", "Où\r\nici\u2028\n".encode()])
def test_a_file_is_created_and_replaced_byte_for_byte(tmp_path, content):
    path = tmp_path / "f"
    for before in (None, "old and longer than the new content"):
        if before:
            path.write_text(before)
        write_file(path, content)
        assert path.read_bytes() == "Où\r\nici\u2028\n".encode()
        assert [item.name for item in tmp_path.iterdir()] == ["f"]
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_file_that_cannot_be_replaced_stays_as_it_was(tmp_path, monkeypatch, step):
    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "f").write_text("old")
    monkeypatch.setattr(os if step == "fsync" else Path, step, fail)
    with pytest.raises(OSError, match="No space left on device"):
        write_file(tmp_path / "f", "new")
    with pytest.raises(RunError, match=r"f: cannot be written \(No space left on device\); nothing is left there"):
        write_result(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "old" and [item.name for item in tmp_path.iterdir()] == ["f"]


def test_write_result_replaces_in_one_step(tmp_path):
    (tmp_path / "f").write_text("old")
    write_result(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "new" and [item.name for item in tmp_path.iterdir()] == ["f"]


def test_write_new_text_never_overwrites(tmp_path):
    write_new_text(tmp_path / "f", "mine")
    with pytest.raises(InputError, match="exists already"):
        write_new_text(tmp_path / "f", "other")
    assert (tmp_path / "f").read_text() == "mine" and [item.name for item in tmp_path.iterdir()] == ["f"]


def test_write_new_text_into_an_absent_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        write_new_text(tmp_path / "absent" / "rows.jsonl", "x")


def _write_without_end(path: Path) -> None:
    number = 0
    while True:
        number += 1
        write_file(path, f"{number}\n" * 200_000)


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    path = tmp_path / "f"
    process = multiprocessing.get_context("spawn").Process(target=_write_without_end, args=(path,))
    process.start()
    for _ in range(600):
        if path.exists():
            break
        time.sleep(0.1)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    lines = path.read_text().split("\n")
    assert len(lines) == 200_001 and len(set(lines[:-1])) == 1
