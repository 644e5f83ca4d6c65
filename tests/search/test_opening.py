"""A run that begins or goes on: over nothing of others, with the config it began with, its time and bills counted."""

import json
import time
from dataclasses import replace

import pytest
from search.test_loop import ROW, SMALL, Killed, Scripted, facts, go, killed_after, whole  # noqa: F401 (a fixture)
from support.search_landscape import evaluate, experiment

from flyjax.config import parse_experiment
from flyjax.search import loop
from flyjax.search.journal import heartbeat
from flyjax.search.journal.journal import Journal, read_journal
from flyjax.search.journal.state import fold
from flyjax.search.loop import revert_protocol
from flyjax.search.proposals.types import ProtocolEdit
from flyjax.search.run.opening import WRITTEN
from flyjax.utils.errors import UserError


def everything(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- whose directory ---


@pytest.mark.parametrize("name", WRITTEN)
def test_no_run_begins_over_what_is_there(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"holds {name} but no journal.jsonl") as error:
        go(tmp_path, experiment(**SMALL))
    assert "\n" not in str(error.value) and "choose another --run, or restore" in str(error.value)
    assert everything(tmp_path) == {name: b"mine"}, "nothing was written"


def test_a_run_whose_journal_was_lost_is_not_begun_anew(tmp_path):
    go(tmp_path, experiment(**SMALL, max_nodes=4))
    kept = (tmp_path / "journal.jsonl").read_bytes()
    for harm in (b"", kept[:30], None):
        (tmp_path / "journal.jsonl").unlink(missing_ok=True)
        if harm is not None:
            (tmp_path / "journal.jsonl").write_bytes(harm)
        before = everything(tmp_path)
        with pytest.raises(UserError, match="no journal.jsonl with a run in it"):
            go(tmp_path, experiment(**SMALL))
        assert everything(tmp_path) == before
    (tmp_path / "journal.jsonl").write_bytes(kept)
    assert go(tmp_path, experiment(**SMALL)).status == "finished"


def test_instructions_may_be_there_before_the_run(tmp_path):
    (tmp_path / "user_input.md").write_text("Try more noise.")
    (tmp_path / "recordings").mkdir()
    assert go(tmp_path, experiment(**SMALL), Scripted()).state.acknowledged == ((0, "Try more noise."),)


def test_a_journal_without_its_beginning_is_refused(tmp_path):
    (tmp_path / "journal.jsonl").write_text(json.dumps({"schema": 1, "event": "run_paused", "time": 1.0}) + "\n")
    with pytest.raises(UserError, match="does not tell how its run began"):
        go(tmp_path, experiment(**SMALL))


@pytest.mark.parametrize("name", ["analysis.md", "user_input.md", "protocol.md"])
def test_a_directory_in_the_place_of_a_file_is_one_line(tmp_path, name):
    go(tmp_path, experiment(**SMALL, max_nodes=4))
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"cannot use .*{name} .*directory.*mend it") as error:
        go(tmp_path, experiment(**SMALL))
    assert "\n" not in str(error.value)
    (tmp_path / name).rmdir()
    assert go(tmp_path, experiment(**SMALL)).status == "finished"


# --- which config ---


def older(run_dir, edit):
    """The run as if another version had begun it."""
    lines = (run_dir / "journal.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    edit(first["experiment"])
    (run_dir / "journal.jsonl").write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n")


def test_what_an_earlier_version_did_not_know_had_its_default(tmp_path):
    go(tmp_path, experiment(**SMALL, max_nodes=4))
    older(tmp_path, lambda e: e["training"].pop("coeff_edge_bend"))
    assert go(tmp_path, experiment(**SMALL)).status == "finished"
    older(tmp_path, lambda e: e["training"].update(coeff_of_tomorrow=1.0))
    journal = (tmp_path / "journal.jsonl").read_bytes()
    resumed = [k for k, e in enumerate(read_journal(tmp_path)) if e["event"] == "run_resumed"]
    (tmp_path / "journal.jsonl").write_bytes(b"".join(journal.splitlines(True)[: resumed[0]]))
    with pytest.raises(UserError, match="unknown key 'training.coeff_of_tomorrow'"):
        go(tmp_path, experiment(**SMALL))


def test_what_changes_no_result_may_change(tmp_path):
    def with_paths(path, every, **search):
        base = experiment(**SMALL, **search).model_dump(mode="json")
        sections = {
            "simulation": {**base["simulation"], "data_path": path},
            "training": {**base["training"], "checkpoint_every": every},
        }
        return parse_experiment({**base, **sections})

    plans = []

    def trainer(plan):
        plans.append(plan)
        if len(plans) == 2:
            raise KeyboardInterrupt
        return evaluate(plan)

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, with_paths("/old/videos", 2000), trainer=trainer)
    go(tmp_path, with_paths("/new/videos", 500), trainer=trainer)
    assert [p.simulation["data_path"] for p in plans[:3]] == ["/old/videos", "/old/videos", "/new/videos"]
    assert {p.simulation["data_path"] for p in plans[2:]} == {"/new/videos"} and plans[1].number == plans[2].number
    with pytest.raises(UserError, match="simulation.n_frames was 32000"):
        base = with_paths("/new/videos", 500).model_dump(mode="json")
        go(tmp_path, parse_experiment({**base, "simulation": {**base["simulation"], "n_frames": 64000}}))


# --- limits that are lowered ---


@pytest.mark.parametrize("limit", [{"max_nodes": 4}, {"target": 0.01}, {"max_wall_s": 0.0}, {"patience": 1}])
def test_a_limit_lowered_between_stop_and_resume_begins_nothing(tmp_path, monkeypatch, limit):
    still = lambda plan: {n.id: {"metrics": {"connectivity_R2": 0.5}} for n in plan.nodes}  # noqa: E731
    with monkeypatch.context() as patch:
        killed_after(patch, 12)  # the second step is taken, the third iteration not begun
        with pytest.raises(Killed):
            go(tmp_path, experiment(**SMALL), trainer=still)
    assert [e["event"] for e in read_journal(tmp_path)][-2:] == ["proposal", "choice"]
    out = go(tmp_path, experiment(**SMALL, **limit), trainer=still)
    name = next(iter(limit))
    assert out.status == "finished" and len(out.state.nodes) == 4 and out.reason.startswith(f"search.{name}=")
    # Raised again, the step that was taken is carried out: nobody is asked for it twice.
    steps = sum(e["event"] == "proposal" for e in read_journal(tmp_path))
    again = go(tmp_path, experiment(**SMALL, max_nodes=6), trainer=still)
    assert len(again.state.nodes) == 6 and sum(e["event"] == "proposal" for e in read_journal(tmp_path)) == steps + 1


def test_a_limit_lowered_within_a_step_cuts_it_short(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        killed_after(patch, 12)
        with pytest.raises(Killed):
            go(tmp_path, experiment(**SMALL))
    assert go(tmp_path, experiment(**SMALL, max_nodes=5)).reason == "search.max_nodes=5 reached"
    assert len(fold(read_journal(tmp_path)).nodes) == 5


# --- time ---


def test_a_killed_training_counts_in_max_wall(tmp_path, monkeypatch):
    now = [1000.0]

    def killed(plan):
        now[0] += 3600.0
        (tmp_path / heartbeat.FILE_NAME).write_text(f"{now[0] - 5:.3f}\n")  # the last sign of life
        raise Killed

    exp = experiment(**SMALL, max_wall_s=4 * 3600)
    for _ in range(4):
        with monkeypatch.context() as patch:
            patch.setattr(heartbeat.Heartbeat, "stop", lambda self: None)  # a real kill cleans nothing up
            with pytest.raises(Killed):
                go(tmp_path, exp, trainer=killed, clock=lambda: now[0])
        now[0] += 50_000.0  # nobody there
    out = go(tmp_path, exp, trainer=evaluate, clock=lambda: now[0])
    assert out.state.wall_s == pytest.approx(4 * 3595) and out.state.iterations[1].wall_s == pytest.approx(4 * 3595)
    assert len(out.state.iterations) == 1 and "search.max_wall_s" in out.reason


def test_what_is_unseen_is_bounded(tmp_path):
    assert heartbeat.crashed_session_seconds(tmp_path, 10.0, 20.0) == 0.0
    for alive, seconds in (("15.0", 5.0), ("5.0", 0.0), ("1e9", 10.0), ("", 0.0), ("x", 0.0), ("nan", 0.0)):
        (tmp_path / heartbeat.FILE_NAME).write_text(alive)
        assert heartbeat.crashed_session_seconds(tmp_path, 10.0, 20.0) == seconds, alive


def test_a_session_shows_signs_of_life_and_leaves_none(tmp_path, monkeypatch):
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
        patch.setattr(loop._Loop, "pause", lambda *a: None)  # a real kill writes nothing down
        with pytest.raises(Killed):
            play()
    state = play().state
    assert (
        len(state.iterations) == 3 and state.wall_s == 30.0 and {i.wall_s for i in state.iterations.values()} == {10.0}
    )
    assert [e["waited_s"] for e in read_journal(tmp_path) if "waited_s" in e] == [86_400.0] * 5


def test_a_session_that_waits_shows_no_sign_of_life(tmp_path, monkeypatch):
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


# --- money, and errors nobody foresaw ---


class Calling(Scripted):
    """Says before each call what it may cost, as a language model's client does; its bill is lower."""

    def step(self, context):
        context.calling({"calls": 1, "usd": 0.5})
        return replace(super().step(context), usage={"calls": 1, "usd": 0.1})


def test_killed_at_every_event_boundary_no_call_is_forgotten(tmp_path, monkeypatch):
    exp = experiment(**{**SMALL, "n_blocks": 1, "n_iter_block": 2})
    go(tmp_path / "whole", exp, Calling())
    expected, total = facts(tmp_path / "whole"), len(read_journal(tmp_path / "whole"))
    paid = fold(read_journal(tmp_path / "whole")).spent
    for events in range(total):
        run_dir = tmp_path / str(events)
        with monkeypatch.context() as patch:
            killed_after(patch, events, torn=events % 2 * 9)
            with pytest.raises(Killed):
                go(run_dir, exp, Calling())
        state = go(run_dir, exp, Calling()).state
        assert facts(run_dir) == expected, f"killed after event {events}"
        names = [e["event"] for e in read_journal(run_dir)][:events]
        cut = bool(names) and names[-1] == "call_started"
        assert state.spent.calls == paid.calls + cut and state.spent.usd == pytest.approx(paid.usd + 0.5 * cut)


@pytest.mark.parametrize(
    "stop",
    [KeyboardInterrupt, OSError(28, "No space left on device"), RuntimeError("RESOURCE_EXHAUSTED: a\nlong story")],
)
def test_a_call_answered_but_not_journaled_is_paid(tmp_path, monkeypatch, stop):
    append = Journal.append

    def failing(self, event, **fields):
        if event == "proposal" and fields["iteration"] == 1:
            raise stop
        return append(self, event, **fields)

    exp = experiment(**SMALL, max_nodes=4)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", failing)
        with pytest.raises((KeyboardInterrupt, UserError, RuntimeError)):
            go(tmp_path, exp, Calling())
    last = read_journal(tmp_path)[-1]
    assert last["event"] == "run_paused" and last["usage"] is None
    spent = fold(read_journal(tmp_path)).spent
    assert spent.calls == 2 and spent.usd == pytest.approx(0.1 + 0.5), (
        "the answer's bill was lost: it counts as the most it can be"
    )
    assert go(tmp_path, exp, Calling()).status == "finished"


UNFORESEEN = [RuntimeError("INTERNAL: sk-secret-0123456789\nallocating"), TimeoutError("no answer"), AssertionError()]


@pytest.mark.parametrize("error", UNFORESEEN)
def test_an_error_nobody_foresaw_pauses_the_run_and_is_shown(tmp_path, monkeypatch, error):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret-0123456789")

    def failing(plan):
        if plan.number == 2:
            raise error
        return evaluate(plan)

    with pytest.raises(type(error)):
        go(tmp_path, experiment(**SMALL), trainer=failing)
    last = read_journal(tmp_path)[-1]
    assert (
        last["event"] == "run_paused"
        and last["reason"].startswith(f"stopped by {type(error).__name__}: ")
        and "\n" not in last["reason"]
    )
    assert b"sk-secret-0123456789" not in (tmp_path / "journal.jsonl").read_bytes()
    assert go(tmp_path, experiment(**SMALL)).status == "finished"


def test_no_key_is_told_of_what_can_be_mended(tmp_path, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret-0123456789")

    def refusing(plan):
        raise PermissionError(13, "Permission denied", "at/sk-secret-0123456789")

    with pytest.raises(UserError, match="cannot use at/.redacted. .Permission denied"):
        go(tmp_path, experiment(**SMALL), trainer=refusing)
    assert b"sk-secret" not in (tmp_path / "journal.jsonl").read_bytes()


def test_a_journal_removed_while_the_run_goes_is_whole_at_its_end(whole, tmp_path):  # noqa: F811
    warned = []

    def removing(plan):
        if plan.number in (2, 4):
            (tmp_path / "journal.jsonl").unlink()
        return evaluate(plan)

    go(tmp_path, experiment(**SMALL), trainer=removing, warn=warned.append)
    assert facts(tmp_path) == facts(whole) and sum("written again" in line for line in warned) == 2


# --- the protocol in people's hands ---


def edits_of(run_dir):
    return [e for e in read_journal(run_dir) if e["event"] == "protocol_edited"]


def test_an_edit_not_read_yet_is_not_thrown_away_by_taking_one_back(tmp_path):
    exp = experiment(n_candidates=1, n_iter_block=4, n_blocks=2)
    go(tmp_path, exp, trainer=lambda plan: {n.id: {"metrics": {"connectivity_R2": 0.5}} for n in plan.nodes})
    path, before = tmp_path / "protocol.md", len(read_journal(tmp_path))
    mine = path.read_text().replace("| Default |", f"{ROW}\n| Default |", 1)
    path.write_text(mine)
    with pytest.raises(UserError, match="was edited by hand and the run has not read it yet") as error:
        revert_protocol(tmp_path)
    assert "\n" not in str(error.value) and path.read_text() == mine and len(read_journal(tmp_path)) == before
    path.unlink()
    revert_protocol(tmp_path)
    assert ROW not in path.read_text()


def test_an_earlier_version_restored_while_the_run_stands_still_is_an_edit(tmp_path):
    exp = experiment(n_candidates=1, n_iter_block=4, n_blocks=2)
    flat = lambda plan: {n.id: {"metrics": {"connectivity_R2": 0.5}} for n in plan.nodes}  # noqa: E731

    def stopping(plan):
        if plan.block == 2:
            raise KeyboardInterrupt
        return flat(plan)

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, exp, trainer=stopping)
    versions = fold(read_journal(tmp_path)).protocols
    assert len(versions) == 2 and (tmp_path / "protocol.md").read_text() == versions[1]
    (tmp_path / "protocol.md").write_text(versions[0])
    state = go(tmp_path, exp, trainer=flat).state
    assert [e["by"] for e in state.edits][:2] == ["rules", "user"] and state.protocols[2] == versions[0]


def test_a_protocol_deleted_while_the_run_goes_comes_back(tmp_path):
    seen = []

    def deleting(state, number):
        path = tmp_path / "protocol.md"
        seen.append(path.is_file())
        path.unlink()

    go(tmp_path, experiment(**SMALL), on_iteration=deleting)
    assert all(seen) and len(edits_of(tmp_path)) == len([e for e in edits_of(tmp_path) if e["by"] != "user"])


def test_who_wrote_an_edit_is_told(tmp_path, monkeypatch):
    """A step of the model whose edit was mended by the rules is the rules' edit."""
    real, row = loop.ask, "| Plateau for 3+ iterations | **explore** | Use an older node |"

    def mended(*args, **kwargs):
        answer = real(*args, **kwargs)
        if args[0].is_block_end:
            old = next(line for line in args[0].protocol.splitlines() if line.startswith("| Default"))
            answer = replace(
                answer, step=replace(answer.step, protocol_edit=ProtocolEdit(old, f"{old}\n{row}", "mended"))
            )
            object.__setattr__(answer, "edit_by", "rules")
        return answer

    monkeypatch.setattr(loop, "ask", mended)
    go(tmp_path, experiment(**{**SMALL, "n_blocks": 1}), Scripted())
    assert [e["by"] for e in edits_of(tmp_path)] == ["rules"]
    assert {e["edit_by"] for e in read_journal(tmp_path) if e["event"] == "proposal" and e["iteration"] == 3} == {
        "rules"
    }
