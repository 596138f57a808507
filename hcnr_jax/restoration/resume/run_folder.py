"""Manages a run's output folder: the lock, the work folder of an interrupted run, and the end of the run."""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Iterator, Mapping

from hcnr_jax.checkpoints.checkpoint import RECORD
from hcnr_jax.config import RestoreConfig
from hcnr_jax.data.chat import set_date
from hcnr_jax.errors import InputError, Stopped
from hcnr_jax.report.console import Reporter
from hcnr_jax.restoration.microbatches import Shape
from hcnr_jax.restoration.resume.fingerprint import Fingerprint, differences
from hcnr_jax.restoration.resume.folder import MANIFEST, Work, is_left, work_path
from hcnr_jax.restoration.resume.signals import resume_command
from hcnr_jax.runtime.distributed import is_first
from hcnr_jax.runtime.files import output_lock
from hcnr_jax.runtime.spill import spill_folder


def check_leftover(config: RestoreConfig) -> None:
    """Refuse to start over an interrupted run unless --resume is given, so that no work is lost by accident."""
    folder = work_path(config.out)
    if not config.resume and is_left(folder):
        kept = Work(config.out, {}, ()).describe()
        raise InputError(
            f"--out {config.out}: a run was interrupted here and left its work ({kept}); --resume continues it, with "
            f"the same options; remove {folder} to begin anew"
        )


def fix_date(config: RestoreConfig) -> None:
    """Fix the date that chat templates print: today, or with --resume the day on which the run began.

    Without it a run that is resumed on another day would read other rows.
    """
    kept = (work_path(config.out) / MANIFEST, config.out / RECORD) if config.resume else ()
    for path in kept:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            set_date(datetime.datetime.fromisoformat(json.loads(path.read_text("utf-8"))["template_date"]))
            return
    set_date(datetime.datetime.now().replace(hour=0, minute=0, second=0, microsecond=0))


def is_finished(config: RestoreConfig, stages: Mapping[str, Fingerprint]) -> bool:
    """Return whether --resume is given and the output is already complete.

    Raises:
        InputError: the output was made with other inputs or options, which the message names.
    """
    if not (config.resume and (config.out / RECORD).is_file()):
        return False
    try:
        found = json.loads((config.out / RECORD).read_text("utf-8")).get("fingerprint") or {}
    except (OSError, ValueError, AttributeError):
        found = {}
    other = differences(found, stages["kernels"])
    if other:
        raise InputError(
            f"--out {config.out}: a model restored with other inputs or options is there ({'; '.join(other)}); choose "
            "another folder"
        )
    return True


def clear_leftovers(config: RestoreConfig) -> None:
    """Remove the work folder, spill folder and lock of a run that was killed after its output was complete."""
    if not is_first():
        return
    with output_lock(config.out), spill_folder(config.out):
        Work(config.out, {}, ()).clear()


@contextlib.contextmanager
def session(
    config: RestoreConfig, stages: Mapping[str, Fingerprint], shapes: tuple[Shape, ...], *, reporter: Reporter
) -> Iterator[Work]:
    """Lock the output folder, and yield the work folder.

    The work folder is removed after a successful run, and after an InputError unless --resume is given. After a signal
    or a fault the work folder stays, and the user is told the command that continues the run.

    Args:
        config: the options of the run.
        stages: cache key of every stage.
        shapes: of the microbatches.
        reporter: prints which results are kept.
    """
    with output_lock(config.out) if is_first() else contextlib.nullcontext():
        work = Work(config.out, stages, shapes)
        try:
            if config.resume:
                work.open()
                reporter.say(f"resumed: {work.describe()} kept from before")
            yield work
        except InputError:
            if not config.resume:
                work.clear()
            raise
        except BaseException as error:
            _leave(work, config, error, reporter)
            raise
        work.clear()


def _leave(work: Work, config: RestoreConfig, error: BaseException, reporter: Reporter) -> None:
    """Tell the user which results are kept and how to continue.

    After a signal the text is added to the `Stopped` error, which its handler prints.
    """
    with contextlib.suppress(Exception):
        work.settle()
    if not is_left(work.folder):
        work.clear()
        if isinstance(error, Stopped):
            error.args = (f"{error}; no unfinished output is left",)
        return
    how = f"what is done is kept ({work.describe()}); continue with: {resume_command(config)}"
    if isinstance(error, Stopped):
        error.args = (f"{error}; {how}",)
    else:
        reporter.say(how)
