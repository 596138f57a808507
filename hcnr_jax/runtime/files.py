"""Atomic writes: a folder or a file is written under a hidden name beside its place, synced, and renamed.

Before the rename the output does not exist, or the old file is unchanged. A killed run leaves a hidden
`.NAME.hcnr-partial` folder, which the next run to the same place removes. A lock file that names its owner keeps two
runs from writing one output folder. Every other module writes through this file.
"""

import contextlib
import datetime
import errno
import fcntl
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from hcnr_jax.errors import InputError, RunError


def check_output(out: str | Path, inputs: Iterable[str | Path] = ()) -> Path:
    """Check, before any work, that an output folder can be written; return its resolved path.

    Raises InputError where the path is or lies inside one of `inputs`, exists and is not an empty folder, is a mount
    point (which a rename cannot replace), or has a parent that cannot be written.
    """
    path = Path(out).expanduser().resolve()
    for source in inputs:
        place = Path(source).resolve()
        if place.exists() and path.is_relative_to(place):
            where = "is" if path == place else "lies inside"
            raise InputError(
                f"--out {out} {where} the input {source}; inputs are never written to: choose another folder"
            )
    if path.exists() and not path.is_dir():
        raise InputError(f"--out {out} is a file; expected a folder that does not exist yet")
    if path.is_dir() and any(path.iterdir()):
        raise InputError(f"--out {out} exists and is not empty; nothing is overwritten: choose another or remove it")
    if path.is_dir() and os.path.ismount(path):
        raise InputError(f"--out {out} is a mount point, which cannot be replaced in one step; give a folder inside it")
    check_writable(path.parent, f"--out {out}")
    return path


def check_writable(folder: Path, option: str) -> None:
    """Raise InputError unless the folder, or its nearest existing parent, can be written.

    The check makes and removes a folder, because permissions do not bind the superuser and do not apply on /proc.
    option: the option and its value as typed, for the message.
    """
    place = folder.expanduser().resolve()
    while not place.exists():
        place = place.parent
    why = "" if place.is_dir() else "is no folder"
    if not why and not os.access(place, os.W_OK | os.X_OK):
        why = "no permission"
    if not why:
        try:
            Path(tempfile.mkdtemp(prefix=".hcnr-", dir=place)).rmdir()
        except OSError as error:
            why = error.strerror or str(error)
    if why:
        raise InputError(f"{option}: {place} cannot be written to ({why}); choose another place")


def partial_path(out: str | Path) -> Path:
    """Return the hidden folder in which an output is written before the rename."""
    path = Path(out).expanduser().resolve()
    return path.parent / f".{path.name}.hcnr-partial"


@contextlib.contextmanager
def staged_folder(
    out: str | Path, inputs: Iterable[str | Path] = (), needed_bytes: int = 0, *, lock: bool = True
) -> Iterator[Path]:
    """Yield a temporary folder to write into; it becomes `out` when the block ends without an error.

    Args:
        out: the output folder; the rules of `check_output` hold.
        inputs: folders that must not be written to.
        needed_bytes: free bytes that the disk must have at the start.
        lock: take the output's lock; a caller that already holds `output_lock` passes False.

    Raises:
        InputError: the place cannot be used, the disk has too little room, another run holds the lock, or the disk
            failed or filled up while writing. Nothing is left behind in any of these cases.
    """
    path = check_output(out, inputs)
    partial = partial_path(path)
    with contextlib.ExitStack() as stack:
        with explained(out):
            path.parent.mkdir(parents=True, exist_ok=True)
            if lock:
                stack.enter_context(output_lock(out))
            free = shutil.disk_usage(path.parent).free
            if free < needed_bytes:
                raise InputError(f"--out {out}: the disk has {free:,} bytes free, {needed_bytes:,} are needed")
            if partial.exists():
                shutil.rmtree(partial)
            partial.mkdir()
        try:
            with explained(out):
                yield partial
                _commit(partial, path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextlib.contextmanager
def output_lock(out: str | Path) -> Iterator[None]:
    """Hold the lock of an output folder. InputError names the owner's process, host and start where another run has it.

    The lock file is removed on release. A run that locked a removed file notices by the inode and tries again. The
    system releases the lock of a killed run, whatever the lock file still says.
    """
    path = Path(out).expanduser().resolve()
    name = path.parent / f".{path.name}.hcnr-lock"
    with explained(out):
        path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with explained(out):
            handle = os.open(name, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(handle, 200, 0).decode(errors="replace").strip()
            os.close(handle)
            raise InputError(
                f"--out {out}: another run is writing there{f' ({owner})' if owner else ''}; wait for it or choose "
                "another folder"
            ) from error
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(handle).st_ino == name.stat().st_ino:
                break
        os.close(handle)
    try:
        started = datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds")
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}, since {started}\n".encode(), 0)
        yield
    finally:
        name.unlink(missing_ok=True)
        os.close(handle)


def write_file(path: Path, content: bytes | str) -> None:
    """Write one file in one step, replacing an existing one; text is written as UTF-8.

    A hidden sibling is written, synced and renamed, so that a killed process leaves the old file or the new one. The
    sibling's name is random: two processes that write the same file do not mix their bytes. OSError where the disk
    fails; the sibling is then removed.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.hcnr-partial")
    try:
        with temporary.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_new_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` in one step; the path must not exist.

    Raises:
        InputError: the path exists already, or its folder is missing or cannot be written.
    """
    path = Path(path)
    if path.exists():
        raise InputError(f"{path}: exists already; choose another path or remove it first")
    try:
        write_file(path, text)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); check the folder and the free space"
        ) from error


def write_result(path: Path, text: str) -> None:
    """Write a result of the run to `path` in one step, replacing an existing file. RunError where the disk fails."""
    try:
        write_file(path, text)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror}); nothing is left there") from error


def sync_folder(folder: Path) -> None:
    """Sync a folder and every file and folder below it to the disk."""
    for place, _, files in os.walk(folder):
        for file in files:
            _sync(Path(place) / file)
        _sync(Path(place))


def _commit(partial: Path, path: Path) -> None:
    """Sync the folder, then rename it; the rename replaces an empty folder at `path`."""
    sync_folder(partial)
    partial.rename(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def explained(out: str | Path) -> Iterator[None]:
    """Turn an OSError about the output into an InputError that names the output, the cause and the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise InputError(
                f"--out {out} was filled by another run in the meantime; nothing was written: choose another folder"
            ) from error
        remedy = {
            errno.ENOSPC: "free some space or choose another disk",
            errno.EDQUOT: "raise the quota or choose another disk",
            errno.EROFS: "choose a place that can be written",
            errno.EACCES: "choose a place that can be written",
            errno.EXDEV: "choose a folder whose parent is an ordinary folder of one disk",
        }.get(error.errno or 0, "see to the cause and run again")
        where = f": {error.filename}" if error.filename else ""
        cause = f"{error.strerror or error}{where}"
        raise InputError(f"--out {out}: writing failed ({cause}); nothing is left there; {remedy}") from error
