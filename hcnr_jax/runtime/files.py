"""All or nothing: an output folder is written beside its place, made durable, and renamed into it in one step.

At any moment before the rename the output does not exist; what a killed run leaves is a hidden `.NAME.hcnr-partial`
folder that the next run to the same place clears. A lock file, with its owner in it, keeps two runs off one output.
"""

import contextlib
import datetime
import errno
import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from hcnr_jax.errors import InputError


def check_output(out: str | Path, inputs: Iterable[str | Path] = ()) -> Path:
    """The resolved path of an output folder that may be written, checked before any work.

    Raises InputError when it is or lies inside one of `inputs`, exists and is not an empty folder, is a mount point
    (nothing can be renamed onto one), or its parent cannot be written.
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
    """InputError unless a folder can be written, or made where its nearest existing parent can: by trying, since what
    permissions say does not hold for the superuser, nor on /proc. option: what asked, as typed."""
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
    """Where an output is written before it appears."""
    path = Path(out).expanduser().resolve()
    return path.parent / f".{path.name}.hcnr-partial"


@contextlib.contextmanager
def staged_folder(
    out: str | Path, inputs: Iterable[str | Path] = (), needed_bytes: int = 0, lock: bool = True
) -> Iterator[Path]:
    """A temporary folder to write into, which becomes `out` when the block ends without an error.

    Args:
        out: the folder to appear; the rules of `check_output` hold.
        inputs: folders that must not be written to.
        needed_bytes: refuse at once where the disk has less room.
        lock: take the output's lock; False for a caller that already holds `output_lock`.

    Raises:
        InputError: a place that cannot be used, too little room, another run at work on it, a disk that failed or
            filled up while writing (another place is the remedy). Nothing is left behind in any of these cases.
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
    """Hold the one lock on an output place; InputError, with the owner's process, host and start, when it is held.

    The lock file is removed on release; a run that took hold of a removed file sees so by its inode and tries again.
    The system lets go of a killed run's lock, whatever its file still says.
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


def write_durably(path: Path, content: bytes) -> None:
    """A file in one step, over what is there: a hidden sibling is written, synced and renamed."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync(path.parent)


def sync_folder(folder: Path) -> None:
    """Make every file and folder below durable."""
    for place, _, files in os.walk(folder):
        for file in files:
            _sync(Path(place) / file)
        _sync(Path(place))


def _commit(partial: Path, path: Path) -> None:
    """Make all durable, then rename; an empty folder already at `path` is replaced by the rename."""
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
    """Turn an operating system's error about the output into one that names it, its cause and the remedy."""
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
