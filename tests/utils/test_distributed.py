"""Several processes on this machine: the same numbers as one, and an end in one line where one is lost."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from support import one_of_several

PATIENT = 240  # s, for a machine that is busy with other things


class Processes:
    """`one_of_several.py` as so many processes."""

    def __init__(self, what, folder, kinds=("", ""), only=None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        env = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // len(kinds)}"}
        env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        self.processes = [
            subprocess.Popen(
                [sys.executable, one_of_several.__file__, what, *map(str, (port, k, len(kinds), folder, kind))],
                env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for k, kind in enumerate(kinds)
            if only is None or k == only
        ]  # fmt: skip

    def ends(self):
        """(exit code, output, last line of the errors) of each."""
        found = []
        for process in self.processes:
            out, errors = process.communicate(timeout=PATIENT)
            found.append((process.returncode, out, (errors.strip().splitlines() or [""])[-1]))
        return found

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.communicate()


def test_one_process_resumes_what_two_began_and_ends_as_one_alone(tmp_path):
    with Processes("train", tmp_path / "stopped", ("1", "")) as both:
        assert [code for code, *_ in both.ends()] == [2, 2]
    assert any((tmp_path / "stopped" / "checkpoints").glob("*/1/commit_success.txt")), "the first chunk is saved"
    assert one_of_several.train(tmp_path / "stopped") == one_of_several.train(tmp_path / "one")


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


def test_processes_of_unequal_configs_end_in_one_line(tmp_path):
    with Processes("check", tmp_path, ("a", "b")) as both:
        ends = both.ends()
    assert [code for code, *_ in ends] == [2, 2]
    assert all("process 1" in line and "config" in line for _, _, line in ends)


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
