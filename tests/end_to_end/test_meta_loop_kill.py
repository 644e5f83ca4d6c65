"""The command itself, killed in the middle of real trainings: the same command gives the same tree."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from flyjax.search.journal.journal import read_journal
from flyjax.search.journal.state import fold

ROOT = Path(__file__).resolve().parents[2]

#: Two iterations of one candidate with two seeds on the smallest circuit; 1,600 steps, a checkpoint every 250.
TINY = {
    "name": "tiny",
    "simulation": {"extent": 0, "visual_input_type": "scenes_texture", "n_frames": 320, "n_test_frames": 100},
    "model": {"width": 8},
    "training": {"checkpoint_every": 250, "n_seeds": 2},
    "search": {
        "proposer": "rules",
        "n_candidates": 1,
        "n_iter_block": 2,
        "n_blocks": 1,
        "confirm_share": 0,
        "ranges": {"learning_rate_W_start": {"min": 1e-4, "max": 1e-2, "scale": "log"}},
        "simulation_ranges": {},
    },
}


PATIENT = 240  # s, for a machine that is busy with other things; a test that works takes a minute


class Command:
    """`meta_loop.py` on one run directory, as a process."""

    running: list["Command"] = []

    def __init__(self, folder: Path, run_dir: Path, *more: str):
        self.run_dir, self.output = run_dir, folder / f"output_{time.monotonic_ns()}"
        outside = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "ANTHROPIC_API_KEY")}
        env = outside | {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        env["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"
        command = [
            sys.executable,
            str(ROOT / "scripts" / "meta_loop.py"),
            str(folder / "tiny.yaml"),
            "--run",
            str(run_dir),
            *more,
        ]
        with open(self.output, "wb") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=out, env=env, cwd=folder, start_new_session=True
            )
        self.running.append(self)

    def until(self, condition, seconds=PATIENT):
        """Wait for a state of the run directory, seen from outside."""
        end = time.monotonic() + seconds
        while not condition(self.run_dir):
            assert self.process.poll() is None, f"ended too early: {self.text}"
            assert time.monotonic() < end, f"waited in vain: {self.text}"
            time.sleep(0.01)
        return self

    def stop(self, how) -> int:
        self.process.send_signal(how)
        return self.process.wait(PATIENT)

    def kill_after(self, seconds: float) -> None:
        time.sleep(seconds)
        assert self.process.poll() is None, f"ended before it was killed: {self.text}"
        assert self.stop(signal.SIGKILL) == -signal.SIGKILL

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    @property
    def last_line(self) -> str:
        return self.text.strip().splitlines()[-1]


def count(event):
    def seen(run_dir):
        path = run_dir / "journal.jsonl"
        return path.read_text(errors="replace").count(f'"event": "{event}"') if path.exists() else 0

    return seen


def checkpoints(run_dir):
    """Finished checkpoints of the iteration in training."""
    return [p for p in (run_dir / "checkpoints").glob("*/*") if p.name.isdigit()]


def tree(run_dir):
    """Everything decided and measured, without times."""
    state = fold(read_journal(run_dir))
    clocks = ("wall_s", "frames_per_s")
    nodes = {
        i: (
            n.parent,
            n.config,
            n.changes,
            n.seeds,
            n.reward,
            n.spread,
            n.activity,
            {k: v for k, v in n.metrics.items() if k not in clocks},
        )
        for i, n in state.nodes.items()
    }
    return nodes, state.iterations, state.choices, state.protocol, state.notes, state.finished


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    yield folder
    for command in Command.running:
        command.process.kill()
        command.process.wait()


def test_two_kills_and_an_interrupt_in_real_trainings_leave_the_tree_as_it_would_be(folder):
    whole, run_dir = folder / "whole", folder / "run"
    reference = Command(folder, whole).until(
        checkpoints
    )  # goes on beside the others, undisturbed; they find its programs
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"moments drawn with seed {seed}")
    rng = random.Random(seed)

    # 1: in the first training, after a checkpoint.
    first = Command(folder, run_dir).until(checkpoints)
    second = Command(folder, run_dir)
    time.sleep(rng.uniform(0, 0.1))
    os.kill(first.process.pid, signal.SIGSTOP)  # so that it still holds the run when the second one asks
    assert second.process.wait(PATIENT) == 2 and "in use by another process" in second.last_line
    assert "Traceback" not in second.text
    assert first.stop(signal.SIGKILL) == -signal.SIGKILL
    assert count("node_finished")(run_dir) == 0 and checkpoints(run_dir)

    # 2: in the second iteration. tests/search/test_interruptions.py kills a search at every event.
    Command(folder, run_dir).until(lambda d: count("iteration_started")(d) == 2).kill_after(rng.uniform(0, 0.5))

    # Ctrl-C: the run pauses and says how to go on.
    interrupted = Command(folder, run_dir).until(lambda d: count("run_resumed")(d) == 2)
    time.sleep(rng.uniform(0.3, 0.8))
    assert interrupted.stop(signal.SIGINT) == 130
    assert interrupted.last_line.startswith("stopped") and "Traceback" not in interrupted.text
    assert read_journal(run_dir)[-1]["event"] == "run_paused"

    last = Command(folder, run_dir)
    assert last.process.wait(PATIENT) == 0, last.text
    assert reference.process.wait(PATIENT) == 0, reference.text
    assert tree(run_dir) == tree(whole)
    assert (run_dir / "report.html").is_file() and not (run_dir / "checkpoints").exists()
    assert count("run_finished")(run_dir) == 1
    for node in fold(read_journal(run_dir)).nodes:  # drawn beside the training, and after a kill by whoever continues
        assert (run_dir / "nodes" / f"{node:04d}" / "figures" / "activity.png").is_file()
    assert not list((run_dir / "nodes").glob("*.npz"))
