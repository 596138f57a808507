"""Processes that wait for each other: the one that does not come, dies or hangs is named by the others."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from hcnr_jax.runtime.heartbeat import LastSeen, ProcessFailure

PROCESS = """
import os, sys, time
import jax
jax.config.update("jax_platforms", "cpu")
from hcnr_jax.runtime import distributed
from hcnr_jax.runtime import heartbeat
from hcnr_jax.errors import InputError, RunError, Stopped
heartbeat.INTERVAL, heartbeat.TIMEOUT = 0.2, 3.0
(what, _, which), port, number = sys.argv[1].partition("-"), sys.argv[2], int(sys.argv[3])
distributed.start(f"localhost:{port},3,{number}")
distributed.barrier("together", 60)
print("together", flush=True)
if what == "barrier" and number != 1:
    try:
        distributed.barrier("written", 2)
    except RunError as error:
        print(error, flush=True)
    time.sleep(3 if number == 0 else 0)  # the store goes with it
    os._exit(0)
if what == "gone" and number == int(which):
    sys.exit(0)
ends = {"input": InputError("row 3 is odd"), "stop": Stopped("stopped by SIGTERM", 143), "gone": None}
if what in ends:
    try:
        with heartbeat.propagate_failure():
            if number == int(which):
                raise ends[what]
            distributed.barrier("written", 100)
    except (InputError, Stopped) as error:
        print(error, file=sys.stderr)
        heartbeat.exit_process(getattr(error, "code", 2))
time.sleep(0 if what == "leave" and number == 1 else 5 if what == "leave" else 100)
"""


def launch(what: str) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", PROCESS, what, port]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen([*command, str(number)], **pipes) for number in range(3)]
    for process in started:
        assert process.stdout.readline() == "together\n"
    return started


def test_a_process_that_does_not_come_to_a_barrier_is_named() -> None:
    first, missing, third = launch("barrier")
    for process in (first, third):
        assert "process 1 did not come to 'written' within 2 s" in process.communicate(timeout=60)[0]
    missing.kill()
    missing.communicate()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_dies_or_hangs_ends_the_others_with_its_name(how) -> None:
    first, lost, third = launch("wait")
    begun = time.monotonic()
    os.kill(lost.pid, how)
    for process in (first, third):
        said = process.communicate(timeout=60)[1]
        assert f"process 1 (on {socket.gethostname()}, pid {lost.pid}) has not answered" in said
        assert process.returncode == 1 and "the same command with --resume goes on" in said
    assert time.monotonic() - begun < 30
    lost.kill()
    lost.communicate()


@pytest.mark.parametrize(
    ("what", "code", "message"), [("input", 2, "row 3 is odd"), ("stop", 143, "stopped by SIGTERM")]
)
@pytest.mark.parametrize("number", [0, 1])
def test_a_process_that_fails_ends_the_others_with_its_reason_and_code(what, code, message, number) -> None:
    begun = time.monotonic()
    processes = launch(f"{what}-{number}")
    for place, process in enumerate(processes):
        said = process.communicate(timeout=60)[1]
        assert process.returncode == code and message in said
        assert place == number or f"process {number} ended: {message}" in said
    assert time.monotonic() - begun < 40


def test_a_process_that_leaves_before_the_end_is_named() -> None:
    processes = launch("gone-1")
    for process in (processes[0], processes[2]):
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 1 and "process 1 ended before the run did" in said
    processes[1].kill()
    processes[1].communicate()


def test_a_process_that_ends_well_is_not_missed() -> None:
    processes = launch("leave")
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    for process in processes:
        assert "not answered" not in process.communicate()[1]


def test_a_silent_process_is_named_with_its_last_heartbeat() -> None:
    seen = LastSeen(3, 0, now=0.0, timeout=10.0)
    assert seen.update({0: "1 on a, pid 5", 1: "1 on b, pid 6"}, 5.0) is None
    assert seen.update({1: "2 on b, pid 6", 2: "1 on c, pid 7"}, 12.0) is None
    assert seen.update({1: "2 on b, pid 6", 2: "exited"}, 21.0) is None
    silent = seen.update({1: "2 on b, pid 6", 2: "exited"}, 23.0)
    assert silent == ProcessFailure("process 1 (on b, pid 6) has not answered for 11 s: it died or hangs", 1)
    never = ProcessFailure("process 1 (no heartbeat seen) has not answered for 11 s: it died or hangs", 1)
    assert LastSeen(2, 0, 0.0, timeout=10.0).update({}, 11.0) == never


def test_a_process_that_exited_is_a_failure_only_where_it_is_needed() -> None:
    seen = LastSeen(2, 0, now=0.0, timeout=10.0)
    assert seen.update({1: "exited"}, 5.0, needed=False) is None
    assert seen.update({1: "exited"}, 100.0, needed=False) is None
    assert seen.update({1: "exited"}, 105.0) is None
    assert seen.update({1: "exited"}, 111.0) == ProcessFailure("process 1 ended before the run did", 1)


def test_a_failure_is_told_at_once_with_its_code() -> None:
    seen = LastSeen(2, 0, now=0.0, timeout=10.0)
    assert seen.update({1: "failed 2 row 3 is odd"}, 0.1) == ProcessFailure("process 1 ended: row 3 is odd", 2)
