"""Killed anywhere, a search goes on as if nothing had happened."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from support.search_landscape import ROOT, evaluate, experiment
from support.search_runs import SMALL, Killed, constant, facts, go, killed_after, renderings

from flyjax.search.journal.journal import read_journal
from flyjax.utils.run_directory import MARKER


def test_killed_at_every_event_boundary_the_tree_is_the_same(uninterrupted, tmp_path, monkeypatch):
    exp = experiment(**SMALL)
    total, expected, shown = len(read_journal(uninterrupted)), facts(uninterrupted), renderings(uninterrupted)
    for events in range(total):
        run_dir = tmp_path / str(events)
        with monkeypatch.context() as patch:
            killed_after(patch, events, torn=(0, 1, 17, 40)[events % 4])
            with pytest.raises(Killed):
                go(run_dir, exp)
        lines = []
        go(run_dir, exp, warn=lines.append)
        assert facts(run_dir) == expected, f"killed after event {events}"
        assert renderings(run_dir) == shown, f"killed after event {events}"
        assert bool(events % 4) == any("cut off" in line for line in lines)


def test_killed_twice_in_a_row(uninterrupted, tmp_path, monkeypatch):
    exp = experiment(**SMALL)
    for events in (7, 5, 9, 3):
        with monkeypatch.context() as patch:
            killed_after(patch, events, torn=9)
            with pytest.raises(Killed):
                go(tmp_path, exp)
    go(tmp_path, exp)
    assert facts(tmp_path) == facts(uninterrupted)


def test_a_journal_cut_off_at_any_byte(uninterrupted, tmp_path):
    exp, data = experiment(**SMALL), (uninterrupted / "journal.jsonl").read_bytes()
    for k, cut in enumerate(range(1, len(data), len(data) // 25)):
        run_dir = tmp_path / str(k)
        run_dir.mkdir()
        (run_dir / "journal.jsonl").write_bytes(data[:cut])
        shutil.copy(uninterrupted / MARKER, run_dir)
        go(run_dir, exp)
        assert facts(run_dir) == facts(uninterrupted), cut


SCRIPT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
from support.search_landscape import evaluate, experiment
from support.search_runs import SMALL, go
from pathlib import Path
run, events, waiting = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])


def slow(plan):
    # Wait for the signal, however late it comes on a busy machine.
    if (run / "journal.jsonl").read_bytes().count(b"\\n") >= events:
        waiting.touch()
        time.sleep(600)
    return evaluate(plan)
go(run, experiment(**SMALL), trainer=slow)
"""


def test_a_real_kill_and_an_interrupt_leave_a_resumable_run(uninterrupted, tmp_path_factory):
    code, tmp_path = SCRIPT.format(root=str(ROOT)), tmp_path_factory.mktemp("run")
    for sent, events in ((signal.SIGKILL, 5), (signal.SIGINT, 14)):
        waiting = tmp_path_factory.mktemp("waiting") / "here"
        call = [sys.executable, "-c", code, str(tmp_path), str(events), str(waiting)]
        process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while process.poll() is None and not waiting.exists():
            time.sleep(0.01)
        time.sleep(0.2)  # asleep by then
        os.kill(process.pid, sent)
        error = process.communicate(timeout=60)[1].decode()
        assert process.returncode in (-signal.SIGKILL, -signal.SIGINT, 1, 130), error
    assert any(e["event"] == "run_paused" and e["reason"] == "interrupted" for e in read_journal(tmp_path))
    go(tmp_path, experiment(**SMALL))
    assert facts(tmp_path) == facts(uninterrupted)


def test_a_trainer_that_resumes_sees_the_same_plan(tmp_path):
    plans = []

    def stopping(plan):
        plans.append(plan)
        if len(plans) == 2:
            raise KeyboardInterrupt
        return evaluate(plan)

    exp = experiment(**SMALL)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, exp, trainer=stopping)
    go(tmp_path, exp, trainer=stopping)
    assert plans[1] == plans[2] and plans[1].number == 2


@pytest.mark.parametrize("n_journaled", [0, 1, 2])
def test_a_node_that_is_in_the_journal_is_not_trained_or_journaled_again(tmp_path, monkeypatch, n_journaled):
    """Killed when some nodes of the second iteration are journaled: their results stay, whatever is measured now."""
    exp, plans = experiment(**{**SMALL, "n_candidates": 3}, max_nodes=6), []
    first_iteration = 1 + 1 + 1 + 3 + 1 + 1  # run_started, proposal, iteration_started, 3 nodes, proposal, choice
    with monkeypatch.context() as patch:
        killed_after(patch, first_iteration + 1 + n_journaled)
        with pytest.raises(Killed):
            go(tmp_path, exp, trainer=constant(0.3))
    before = [e for e in read_journal(tmp_path) if e["event"] == "node_finished"]
    assert [e["node"] for e in before] == [1, 2, 3, 4, 5, 6][: 3 + n_journaled]

    def other(plan):
        plans.append(plan)
        return constant(0.7)(plan)

    state = go(tmp_path, exp, trainer=other).state
    finished = [e["node"] for e in read_journal(tmp_path) if e["event"] == "node_finished"]
    assert finished == [1, 2, 3, 4, 5, 6], "each node once"
    rewards = [node.reward for node in state.nodes.values()]
    assert rewards == [0.3] * (3 + n_journaled) + [0.7] * (3 - n_journaled)
    (plan,) = plans
    assert plan.number == 2 and plan.done == (4, 5, 6)[:n_journaled], "the trainer knows which results are there"


def test_an_iteration_whose_nodes_are_all_journaled_is_not_trained_again(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        killed_after(patch, 5)  # run_started, proposal, iteration_started, both nodes
        with pytest.raises(Killed):
            go(tmp_path, experiment(**SMALL))
    plans = []
    go(tmp_path, experiment(**SMALL), trainer=lambda plan: plans.append(plan.number) or evaluate(plan))
    assert plans == [2, 3, 4, 5, 6]


def test_a_journal_removed_during_the_run_is_complete_at_its_end(uninterrupted, tmp_path):
    warned = []

    def removing(plan):
        if plan.number in (2, 4):
            (tmp_path / "journal.jsonl").unlink()
        return evaluate(plan)

    go(tmp_path, experiment(**SMALL), trainer=removing, warn=warned.append)
    assert facts(tmp_path) == facts(uninterrupted) and sum("written again" in line for line in warned) == 2
