"""One of several processes on this machine: `one_of_several.py WHAT PORT PROCESS PROCESSES FOLDER [KIND]`.

WHAT is `meta_loop` or `sweep`, on FOLDER/config.yaml and FOLDER/run, or something smaller. `Processes` starts them.
"""

import importlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

sys.path.insert(0, str(ROOT / "scripts"))

import typer  # noqa: E402

from flyjax.cli.app import make_app, run  # noqa: E402

app = make_app()

PATIENT = 240  # s, for a machine that is busy with other things


class Processes:
    """This file as so many processes, with four devices in all."""

    def __init__(self, what, folder, kinds=("", ""), only=None, **env):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        env = os.environ | env | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // len(kinds)}"}
        env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        self.processes = [
            subprocess.Popen(
                [sys.executable, __file__, what, *map(str, (port, k, len(kinds), folder, kind))],
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

    def stop(self, process, how, when):
        """Send a signal to one of them once a condition holds."""
        end = time.monotonic() + PATIENT
        while not when():
            assert all(other.poll() is None for other in self.processes), self.ends()
            assert time.monotonic() < end
            time.sleep(0.02)
        self.processes[process].send_signal(how)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.communicate()


def call(script: str, port: str, process: str, processes: str, folder: str, kind: str) -> None:
    """A script as one of several. `kind`: `dies` before it journals its second step; another run directory."""
    from flyjax.search.journal.journal import Journal
    from flyjax.utils import distributed

    distributed.LOST_S = 10.0
    append, is_other = Journal.append, kind not in ("", "dies")

    def dying(self, event, **fields):
        if event == "proposal" and fields["iteration"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return append(self, event, **fields)

    if kind == "dies":
        Journal.append = dying
    several = ["--coordinator", f"127.0.0.1:{port}", "--process", process, "--processes", processes]
    run_dir = f"{folder}/{kind if is_other else 'run'}"
    sys.argv = [script, f"{folder}/config.yaml", "--run", run_dir, *several * (processes != "1")]
    run(importlib.import_module(script).app)


@app.command()
def main(
    what: str, port: int, process: int, processes: int, folder: Path, kind: Annotated[str, typer.Argument()] = ""
) -> None:
    """Connect and do something."""
    from flyjax.utils import distributed

    if what == "wait":
        distributed.LOST_S = 4.0
    elif what == "unreachable":
        distributed.CONNECT_S = 1
    distributed.connect(f"127.0.0.1:{port}", process, processes)
    if what == "wait":
        (folder / f"{process}").touch()
        if process:
            distributed.receive()
        else:
            time.sleep(100)
    elif kind == "late":
        now = time.time
        time.time = lambda: now() - 100
        distributed.check_same({"config": ""})
    else:
        distributed.check_same({"config": kind})


if __name__ == "__main__":
    if sys.argv[1] in ("meta_loop", "sweep"):
        call(*sys.argv[1:])
    run(app)
