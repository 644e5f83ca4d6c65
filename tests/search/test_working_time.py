"""Seconds of work: of killed sessions too, without waiting and pauses."""

import time

import pytest
from support.search_landscape import evaluate, experiment
from support.search_runs import SMALL, Killed, go

from flyjax.search import loop as session
from flyjax.search.journal import heartbeat
from flyjax.search.journal.journal import read_journal
from flyjax.search.run.user_files import revert_protocol


def test_a_killed_training_counts_in_max_wall(tmp_path, monkeypatch):
    now = [1000.0]

    def killed(plan):
        now[0] += 3600.0
        (tmp_path / heartbeat.FILE_NAME).write_text(f"{now[0] - 5:.3f}\n")  # the last heartbeat
        raise Killed

    exp = experiment(**SMALL, max_wall_s=4 * 3600)
    for _ in range(4):
        with monkeypatch.context() as patch:
            patch.setattr(heartbeat.Heartbeat, "start", lambda self: None)  # so that a kill leaves the file as it is
            with pytest.raises(Killed):
                go(tmp_path, exp, trainer=killed, clock=lambda: now[0])
        now[0] += 50_000.0  # nobody there
    out = go(tmp_path, exp, trainer=evaluate, clock=lambda: now[0])
    assert out.state.wall_s == pytest.approx(4 * 3595) and out.state.iterations[1].wall_s == pytest.approx(4 * 3595)
    assert len(out.state.iterations) == 1 and "search.max_wall_s" in out.reason


def test_the_start_of_every_process_is_work(tmp_path):
    exp, now = experiment(**SMALL, max_wall_s=60), 1000.0

    def interrupted(plan):
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path, exp, trainer=interrupted, clock=lambda: now, provenance=session.Provenance(startup_s=20.0))
    out = go(tmp_path, exp, clock=lambda: now, provenance=session.Provenance(startup_s=30.0))
    assert out.state.wall_s == pytest.approx(70.0) and "search.max_wall_s" in out.reason


def test_the_seconds_of_a_crashed_session_are_bounded(tmp_path):
    assert heartbeat.crashed_session_seconds(tmp_path, 10.0, 20.0) == 0.0
    for alive, seconds in (("15.0", 5.0), ("5.0", 0.0), ("1e9", 10.0), ("", 0.0), ("x", 0.0), ("nan", 0.0)):
        (tmp_path / heartbeat.FILE_NAME).write_text(alive)
        assert heartbeat.crashed_session_seconds(tmp_path, 10.0, 20.0) == seconds, alive


def test_a_session_writes_its_heartbeat_and_removes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "INTERVAL_S", 0.01)

    def waiting(plan):
        end = time.monotonic() + 30
        while not (tmp_path / heartbeat.FILE_NAME).exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        assert abs(float((tmp_path / heartbeat.FILE_NAME).read_text()) - time.time()) < 30
        return evaluate(plan)

    go(tmp_path, experiment(**SMALL, max_nodes=2), trainer=waiting)
    assert not list(tmp_path.glob(heartbeat.FILE_NAME + "*"))


def test_a_folder_in_the_place_of_the_heartbeat_stays_and_ends_no_run(tmp_path):
    (tmp_path / heartbeat.FILE_NAME / "mine").mkdir(parents=True)
    beat = heartbeat.Heartbeat(tmp_path, time.time)
    beat.start()
    beat.stop()
    assert heartbeat.crashed_session_seconds(tmp_path, 10.0, 20.0) == 0.0
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == [".alive", ".alive/mine"]


def test_waiting_for_approval_is_no_work(tmp_path, monkeypatch):
    now, answers = [1000.0], [True, True, KeyboardInterrupt, False, Killed, True]

    def trainer(plan):
        now[0] += 10.0
        return {n.id: {"metrics": {"connectivity_R2": 0.5}} for n in plan.nodes}

    def approve(plan):
        now[0] += 86_400.0
        answer = answers.pop(0)
        if answer in (True, False):
            return answer
        raise answer

    def play():
        return go(
            tmp_path,
            experiment(**SMALL, max_wall_s=1000, max_nodes=6),
            trainer=trainer,
            approve=approve,
            clock=lambda: now[0],
        )

    with pytest.raises(KeyboardInterrupt):
        play()
    assert play().reason == "not approved"
    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "pause", lambda *a: None)  # a real kill writes nothing down
        with pytest.raises(Killed):
            play()
    state = play().state
    assert (
        len(state.iterations) == 3 and state.wall_s == 30.0 and {i.wall_s for i in state.iterations.values()} == {10.0}
    )
    assert [e["waited_s"] for e in read_journal(tmp_path) if "waited_s" in e] == [86_400.0] * 5


def test_a_waiting_session_writes_no_heartbeat(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "INTERVAL_S", 0.01)
    path, beat = tmp_path / heartbeat.FILE_NAME, heartbeat.Heartbeat(tmp_path, time.time)
    beat.start()
    with beat.paused():
        time.sleep(0.3)  # a sign that was being written is there now
        path.unlink(missing_ok=True)
        time.sleep(0.2)
        assert not path.exists()
    end = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    beat.stop()


def test_an_edit_taken_back_days_later_is_no_work(tmp_path):
    exp, now = experiment(n_candidates=1, n_iter_block=4, n_blocks=2, max_wall_s=1000), [1000.0]

    def trainer(plan):
        now[0] += 10.0
        return {n.id: {"metrics": {"connectivity_R2": 0.5}} for n in plan.nodes}

    def stopping(plan):
        if plan.block == 2:
            raise KeyboardInterrupt
        return trainer(plan)

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, exp, trainer=stopping, clock=lambda: now[0])
    now[0] += 86_400.0
    revert_protocol(tmp_path, clock=lambda: now[0])
    out = go(tmp_path, exp, trainer=trainer, clock=lambda: now[0])
    assert out.reason == "2 blocks done" and out.state.wall_s == 80.0
