"""Edits of a run's protocol: by users, by the proposer, and taken back."""

import subprocess
import sys
from dataclasses import replace

import pytest
from support.search_landscape import ROOT, experiment
from support.search_runs import FORCE_BRANCH_ROW, SMALL, Scripted, constant, go

from flyjax.search import loop as session
from flyjax.search.journal.journal import read_journal
from flyjax.search.journal.state import fold
from flyjax.search.proposals.types import ProtocolEdit
from flyjax.search.run.user_files import revert_protocol
from flyjax.utils.errors import UserError


def test_rules_edited_by_hand_act_and_edits_outside_are_refused(tmp_path):
    exp = experiment(**SMALL)

    def editing(state, number):
        if number == 1:
            path = tmp_path / "protocol.md"
            path.write_text(path.read_text().replace("| Default |", f"{FORCE_BRANCH_ROW}\n| Default |", 1))

    state = go(tmp_path, exp, on_iteration=editing).state
    event = next(e for e in read_journal(tmp_path) if e["event"] == "protocol_edited")
    assert event["by"] == "user" and FORCE_BRANCH_ROW in event["diff"] and FORCE_BRANCH_ROW in state.protocol
    assert "force-branch" in {state.nodes[i].strategy for i in (5, 6)}
    assert "edited by hand" in (tmp_path / "analysis.md").read_text()
    path = tmp_path / "protocol.md"
    path.write_text(path.read_text().replace("0 to 0.2", "0 to 20"))
    with pytest.raises(UserError, match="outside the markers"):
        go(tmp_path, experiment(**{**SMALL, "n_blocks": 3}))
    path.unlink()
    go(tmp_path, experiment(**{**SMALL, "n_blocks": 3}))
    assert path.read_text() == fold(read_journal(tmp_path)).protocol


def test_an_earlier_version_put_back_by_hand_counts(tmp_path):
    exp = experiment(**SMALL)

    def editing(state, number):
        path = tmp_path / "protocol.md"
        if number == 1:
            path.write_text(path.read_text().replace("### First moves", FORCE_BRANCH_ROW + "\n\n### First moves"))
        if number == 2:
            assert len(state.protocols) == 2
            path.write_text(state.protocols[0])

    state = go(tmp_path, exp, Scripted(), on_iteration=editing).state
    assert [e["by"] for e in state.edits][:2] == ["user", "user"] and state.protocols[2] == state.protocols[0]


def test_an_edit_outside_the_markers_stops_no_block_end(tmp_path):
    exp, warned = experiment(**SMALL), []

    def editing(state, number):
        path = tmp_path / "protocol.md"
        path.write_text(path.read_text() + "\nA remark.\n")

    outcome = go(tmp_path, exp, Scripted(), on_iteration=editing, warn=warned.append)
    assert outcome.status == "finished" and any("outside the markers" in line for line in warned)


def test_an_edit_of_the_model_acts_in_the_next_block(tmp_path):
    default = "| Default | **exploit** | Use highest UCB node, try new mutation |"

    class Editing(Scripted):
        def step(self, context):
            step = super().step(context)
            if context.is_block_end and context.block == 1:
                step = replace(
                    step, protocol_edit=ProtocolEdit(default, f"{default}\n{FORCE_BRANCH_ROW}", "branch at once")
                )
            return step

    state = go(tmp_path, experiment(**SMALL), Editing()).state
    assert "force-branch" in {state.nodes[i].strategy for i in (9, 10)}
    assert "branch at once" in (tmp_path / "analysis.md").read_text()
    assert f"+{FORCE_BRANCH_ROW}" in (tmp_path / "protocol" / "block_001.diff").read_text()
    assert FORCE_BRANCH_ROW in (tmp_path / "protocol" / "block_001.md").read_text()


def test_edits_are_taken_back_one_by_one(tmp_path):
    exp = experiment(n_candidates=1, n_iter_block=4, n_blocks=2)
    go(tmp_path, exp, trainer=constant(0.5))
    versions = fold(read_journal(tmp_path)).protocols
    assert len(versions) == 3, "both blocks edited"
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "journal.jsonl").write_bytes((tmp_path / "journal.jsonl").read_bytes())
    command = [
        sys.executable,
        str(ROOT / "scripts" / "meta_loop.py"),
        "--run",
        str(tmp_path / "copy"),
        "--revert-protocol",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("protocol.md: taken back: ") and done.stdout.count("\n") == 1
    assert (tmp_path / "copy" / "protocol.md").read_text() == versions[1]
    for k in (1, 0):
        undone = revert_protocol(tmp_path)
        assert (tmp_path / "protocol.md").read_text() == versions[k] and undone["diff"].startswith("--- a/protocol.md")
        assert undone["reason"].startswith("taken back: ")
    with pytest.raises(UserError, match="no edit to take back"):
        revert_protocol(tmp_path)
    command = [sys.executable, str(ROOT / "scripts" / "meta_loop.py"), "--run", str(tmp_path), "--revert-protocol"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (
        done.returncode == 2
        and done.stderr.strip().endswith("has no edit to take back")
        and done.stderr.count("\n") == 1
    )
    assert "taken back: " in (tmp_path / "analysis.md").read_text()
    with pytest.raises(UserError, match="no journal"):
        revert_protocol(tmp_path / "elsewhere")
    go(tmp_path, exp)
    assert (tmp_path / "protocol.md").read_text() == versions[0]


def test_an_edit_asked_for_at_a_second_end_is_made(tmp_path):
    """One block more: the last step is taken again, and what it says of the protocol is not lost."""
    one = experiment(**{**SMALL, "n_blocks": 1, "simulations": ()})
    assert go(tmp_path, one, Scripted()).reason == "1 blocks done"
    row = "| Plateau for 3+ iterations | **explore** | Use an older node |"

    def with_row(step):
        old = next(line for line in fold(read_journal(tmp_path)).protocol.splitlines() if line.startswith("| Default"))
        return replace(step, protocol_edit=ProtocolEdit(old, f"{old}\n{row}", "older nodes are forgotten"))

    state = go(tmp_path, experiment(**{**SMALL, "simulations": ()}), Scripted(with_row)).state
    assert state.finished == "2 blocks done" and row in state.protocol
    assert [e["reason"] for e in state.edits].count("older nodes are forgotten") == 1


def edits_of(run_dir):
    return [e for e in read_journal(run_dir) if e["event"] == "protocol_edited"]


def test_an_edit_not_read_yet_is_not_thrown_away_by_taking_one_back(tmp_path):
    exp = experiment(n_candidates=1, n_iter_block=4, n_blocks=2)
    go(tmp_path, exp, trainer=constant(0.5))
    path, before = tmp_path / "protocol.md", len(read_journal(tmp_path))
    mine = path.read_text().replace("| Default |", f"{FORCE_BRANCH_ROW}\n| Default |", 1)
    path.write_text(mine)
    with pytest.raises(UserError, match="was edited by hand and the run has not read it yet") as error:
        revert_protocol(tmp_path)
    assert "\n" not in str(error.value) and path.read_text() == mine and len(read_journal(tmp_path)) == before
    path.unlink()
    revert_protocol(tmp_path)
    assert FORCE_BRANCH_ROW not in path.read_text()


def test_an_earlier_version_restored_while_the_run_stands_still_is_an_edit(tmp_path):
    exp = experiment(n_candidates=1, n_iter_block=4, n_blocks=2)
    flat = constant(0.5)

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


def test_an_edit_that_the_rules_replaced_is_theirs(tmp_path, monkeypatch):
    real, row = session.request_step, "| Plateau for 3+ iterations | **explore** | Use an older node |"

    def replaced(*args, **kwargs):
        answer = real(*args, **kwargs)
        if args[0].is_block_end:
            old = next(line for line in args[0].protocol.splitlines() if line.startswith("| Default"))
            edit = {"old": old, "new": f"{old}\n{row}", "reason": "by the rules"}
            answer |= {"protocol_edit": edit, "edit_by": "rules"}
        return answer

    monkeypatch.setattr(session, "request_step", replaced)
    go(tmp_path, experiment(**{**SMALL, "n_blocks": 1}), Scripted())
    assert [e["by"] for e in edits_of(tmp_path)] == ["rules"]
    assert {e["edit_by"] for e in read_journal(tmp_path) if e["event"] == "proposal" and e["iteration"] == 3} == {
        "rules"
    }
