"""Several processes on this machine: the same numbers as one, and an end in one line where one is lost."""

import signal
import socket
import time

import pytest
from support.one_of_several import PATIENT, Processes


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_others_by_name(tmp_path, lost):
    with Processes("wait", tmp_path) as both:
        end = time.monotonic() + PATIENT
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < end:
            time.sleep(0.1)
        time.sleep(1)
        began = time.monotonic()
        both.processes[lost].send_signal(signal.SIGKILL)
        code, _, line = both.ends()[1 - lost]
    assert code == 75
    assert f"process {lost} ({socket.gethostname()})" in line
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("kind, named", [("other", "config"), ("late", "clock")])
def test_processes_of_unequal_configs_or_clocks_end_in_one_line(tmp_path, kind, named):
    with Processes("check", tmp_path, ("", kind)) as both:
        ends = both.ends()
    assert [code for code, *_ in ends] == [2, 2]
    assert all("process 1" in line and named in line for _, _, line in ends)


def test_an_unreachable_coordinator_is_an_error(tmp_path):
    with Processes("unreachable", tmp_path, only=1) as alone:
        ((code, _, line),) = alone.ends()
    assert code == 2 and line.startswith("error: ") and "127.0.0.1:" in line


@pytest.mark.parametrize(
    "options", [("--process", 1), ("--coordinator", "a:1"), ("--coordinator", "a:1", "--process", 2, "--processes", 2)]
)
def test_incomplete_options_are_an_error(script, options, tmp_path):
    for name in ("meta_loop", "sweep"):
        code, _, errors = script(name, "--run", tmp_path / "run", *options)
        assert code == 2 and "--process" in errors
    assert not (tmp_path / "run").exists()
