"""Searches and sweeps of several processes: what one process writes, also after a process was lost and on other numbers
of processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import yaml
from support.messages_api_server import KEY, MessagesServer, Player
from support.one_of_several import PATIENT, Processes

from flyjax.cli.app import commit
from flyjax.config import Training
from flyjax.experiments import workers
from flyjax.search.journal.journal import read_journal
from flyjax.training.grouping import Group, Lane
from flyjax.training.hparams import static_of
from flyjax.utils.run_directory import RunDirectory

TINY = {
    "name": "tiny",
    "simulation": {"extent": 0, "visual_input_type": "scenes_texture", "n_frames": 120, "n_test_frames": 60},
    "model": {"variant": "known_ode"},
    "training": {"checkpoint_every": 250, "data_augmentation_loop": 20},
    "search": {
        "proposer": "llm",
        "n_candidates": 2,
        "n_iter_block": 2,
        "n_blocks": 1,
        "confirm_share": 0,
        "ranges": {"coeff_edge_diff": {"min": 1, "max": 1000, "scale": "log"}},
        "simulation_ranges": {},
    },
    "sweep": {"grid": {"learning_rate_W_start": [0.001, 0.002, 0.003]}},
}
#: Events other than those of a session and of calls of the language model.
DECIDED = {"proposal", "iteration_started", "node_finished", "choice", "block_ended", "run_finished"}
CLOCKS = {"time", "wall_s", "frames_per_s", "startup_s", "crashed_session_s"}


def without_clocks(content):
    if isinstance(content, dict):
        return {k: without_clocks(v) for k, v in content.items() if k not in CLOCKS}
    return [without_clocks(v) for v in content] if isinstance(content, list) else content


def prepare(folder, model=TINY["model"], **changes):
    folder.mkdir(parents=True, exist_ok=True)
    training = TINY["training"] | changes
    (folder / "config.yaml").write_text(yaml.safe_dump(TINY | {"model": model, "training": training}))
    return folder


def newest(run_dir):
    """Chunks that the newest complete checkpoint holds."""
    found = (run_dir / "checkpoints").glob("*/[0-9]*/_CHECKPOINT_METADATA")
    return max((int(path.parent.name) for path in found if path.parent.name.isdigit()), default=0)


def assert_equal_nodes(folder):
    for node in (1, 2, 3):
        run, one = (folder / name / f"nodes/{node:04d}/metrics.json" for name in ("run", "one"))
        assert without_clocks(json.loads(run.read_text())) == without_clocks(json.loads(one.read_text()))


def test_four_processes_journal_as_one_does_also_where_process_0_died_with_an_answer(tmp_path, script, monkeypatch):
    """Killed when it had the answer but not journaled it, it asks again."""
    folder = prepare(tmp_path)
    with MessagesServer(Player()) as server:
        service = {"ANTHROPIC_BASE_URL": server.url, "ANTHROPIC_API_KEY": KEY}
        with Processes("meta_loop", folder, ("dies", ""), **service) as two:
            (died, *_), (code, _, line) = two.ends()
        assert died == -signal.SIGKILL and code == 75 and "process 0" in line
        asked = len(server.requests)
        with Processes("meta_loop", folder, ("",) * 4, **service) as four:
            ends = four.ends()
        assert [code for code, *_ in ends] == [0] * 4, ends
        assert len(server.requests) == asked + 2  # the answer that was lost, and the end of the block
        for name, value in service.items():
            monkeypatch.setenv(name, value)
        assert script("meta_loop", folder / "config.yaml", "--run", folder / "one")[0] == 0
    run, one = (
        [event for event in without_clocks(read_journal(folder / name)) if event["event"] in DECIDED]
        for name in ("run", "one")
    )
    assert run == one and len(run) == 13


def test_a_sweep_goes_on_from_four_processes_to_one_to_two(tmp_path, script):
    """One of the four is killed in the training, the one is stopped; each projects W of its own lanes."""
    folder = prepare(tmp_path, {"width": 4}, data_augmentation_loop=150, n_projections=6)
    run_dir = folder / "run"
    with Processes("sweep", folder, ("",) * 4) as four:
        four.stop(2, signal.SIGKILL, lambda: newest(run_dir))
        began = time.monotonic()
        ends = four.ends()
    assert [code for code, *_ in ends] == [75, 75, -signal.SIGKILL, 75], ends
    assert all(f"process 2 ({socket.gethostname()})" in ends[k][2] for k in (0, 1, 3)), ends
    assert time.monotonic() - began < 60
    before = newest(run_dir)
    with Processes("sweep", folder, ("",)) as one:
        one.stop(0, signal.SIGTERM, lambda: newest(run_dir) > before)
        assert one.ends()[0][0] == 143
    with Processes("sweep", folder) as two:
        ends = two.ends()
    assert [code for code, *_ in ends] == [0, 0], ends
    assert script("sweep", folder / "config.yaml", "--run", folder / "one")[0] == 0
    assert_equal_nodes(folder)


@pytest.mark.parametrize("problem", ["in use", "not shared"])
def test_a_run_directory_that_cannot_be_used_by_all_ends_them_in_one_line(tmp_path, problem):
    folder = prepare(tmp_path)
    if problem == "in use":
        with RunDirectory(folder / "run", "sweep"), Processes("sweep", folder) as both:
            ends = both.ends()
    else:
        with Processes("sweep", folder, ("", "elsewhere")) as both:
            ends = both.ends()
    assert [code for code, *_ in ends] == [2, 2], ends
    wrong = "run" if problem == "in use" else "elsewhere"
    assert all(line.startswith("error: ") and str(folder / wrong) in line for *_, line in ends), ends
    assert not (folder / "run" / "nodes").exists()


def test_a_sweep_by_workers_one_of_which_is_killed_gives_what_one_process_gives(tmp_path, script, root):
    pytest.importorskip("distributed", reason="the extra workers is not installed")
    folder, env = (
        prepare(tmp_path, data_augmentation_loop=150),
        os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
    )
    calls = {"sweep": (folder / "config.yaml", "--run", folder / "run", "--workers", 2), "worker": (folder / "run",)}
    lead, first, second = (
        subprocess.Popen([sys.executable, root / "scripts" / f"{name}.py", *map(str, calls[name])], env=env)
        for name in ("sweep", "worker", "worker")
    )
    try:
        end = time.monotonic() + PATIENT
        while not newest(folder / "run") and time.monotonic() < end:
            time.sleep(0.02)
        first.kill()
        assert [lead.wait(PATIENT), first.wait(), second.wait(PATIENT)] == [0, -signal.SIGKILL, 0]
    finally:
        for process in (lead, first, second):
            process.kill()
            process.wait()
    assert script("sweep", folder / "config.yaml", "--run", folder / "one")[0] == 0
    assert_equal_nodes(folder)
    assert not (folder / "run" / workers.FILE_NAME).exists()


@pytest.mark.parametrize("fact", ["version of JAX", "version of flyjax", "commit", "kind or number of devices"])
def test_a_worker_that_would_compute_something_else_is_refused(tmp_path, script, fact):
    pytest.importorskip("distributed", reason="the extra workers is not installed")
    content = {"address": "", "facts": workers._facts(commit()) | {fact: "another"}, "security": {}}
    (tmp_path / workers.FILE_NAME).write_text(json.dumps(content))
    code, _, errors = script("worker", tmp_path)
    assert code == 2 and errors.count("\n") == 1 and fact in errors


def test_a_worker_without_a_run_ends_in_one_line(tmp_path, script, monkeypatch):
    pytest.importorskip("distributed", reason="the extra workers is not installed")
    monkeypatch.setattr(workers, "WAIT_S", 0.0)
    code, _, errors = script("worker", tmp_path)
    assert code == 2 and str(tmp_path) in errors


def test_parts_of_a_program_keep_the_lanes_of_a_device():
    static = static_of(Training())
    lanes = tuple(Lane(k, 0, k, 250, 0.05) for k in range(7))
    found = list(workers.parts([Group(static, lanes, 4), Group(static, lanes[:1], 1)], 2))
    assert [[lane.candidate for lane in part] for part in found] == [[0, 1, 2, 3], [4, 5, 6], [0]]


@pytest.mark.parametrize(
    ("code", "task", "requeued"), [(138, "1", "3_1"), (75, "", "3"), (2, "1", None)], ids=["USR1", "lost", "error"]
)
def test_the_slurm_recipe_queues_its_own_task_again_and_no_other(tmp_path, root, code, task, requeued):
    """The last task of an array has the job id of the array, by which all of its tasks would be queued again."""
    for name, body in {"srun": f"exit {code}", "scontrol": f'echo "$@" > {tmp_path}/called'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    array = {"SLURM_ARRAY_JOB_ID": "3", "SLURM_ARRAY_TASK_ID": task} if task else {}
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "3", "SLURM_SUBMIT_DIR": str(tmp_path)} | array
    assert subprocess.run(["bash", root / "recipes" / "slurm.sbatch"], env=env).returncode == code
    called = tmp_path / "called"
    assert (called.read_text() if called.exists() else None) == (f"requeue {requeued}\n" if requeued else None)
