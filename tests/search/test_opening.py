"""A run begins over nothing of others, and goes on with the config it began with."""

import json
import shutil

import pytest
from support.search_landscape import evaluate, experiment
from support.search_runs import (
    SMALL,
    facts,
    go,
)

from flyjax.config import parse_experiment
from flyjax.search.journal.heartbeat import FILE_NAME
from flyjax.search.journal.journal import Journal, read_journal
from flyjax.search.loop import Provenance
from flyjax.utils.errors import UserError


def everything(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ["checkpoints/model.pt", "nodes/0001/metrics.json", "analysis.md", "report.html"])
def test_no_run_begins_over_what_is_there(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError) as error:
        go(tmp_path, experiment(**SMALL))
    assert "\n" not in str(error.value) and name.partition("/")[0] in str(error.value)
    assert everything(tmp_path) == {name: b"mine"}, "nothing was written"


def test_instructions_may_be_there_before_the_run(tmp_path):
    (tmp_path / "user_input.md").write_text("Try more noise.")
    go(tmp_path, experiment(**SMALL, max_nodes=2))
    assert "Try more noise." in (tmp_path / "user_input.md").read_text()


@pytest.mark.parametrize("name", ["user_input.md", "protocol.md", "memory.md", "analysis.md", "journal.jsonl", "nodes"])
def test_a_run_with_a_link_in_it_does_not_go_on(tmp_path, name):
    run, target = tmp_path / "run", tmp_path / "secret"
    go(run, experiment(**SMALL, max_nodes=4))
    target.write_bytes((run / name).read_bytes() if (run / name).is_file() else b"mine")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(target)
    before = everything(tmp_path)
    with pytest.raises(UserError, match=name):
        go(run, experiment(**SMALL))
    assert everything(tmp_path) == before


def test_a_run_of_a_version_without_markers_goes_on(uninterrupted, tmp_path):
    (tmp_path / "journal.jsonl").write_bytes((uninterrupted / "journal.jsonl").read_bytes())
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "model.pt").write_text("mine")
    assert go(tmp_path, experiment(**SMALL)).status == "finished"
    assert (tmp_path / "checkpoints" / "model.pt").read_text() == "mine"


def test_a_run_whose_journal_was_lost_is_not_begun_anew(tmp_path):
    go(tmp_path, experiment(**SMALL, max_nodes=4))
    kept = (tmp_path / "journal.jsonl").read_bytes()
    for harm in (b"", kept[:30], None):
        (tmp_path / "journal.jsonl").unlink(missing_ok=True)
        if harm is not None:
            (tmp_path / "journal.jsonl").write_bytes(harm)
        before = everything(tmp_path)
        with pytest.raises(UserError, match="journal.jsonl"):
            go(tmp_path, experiment(**SMALL))
        assert everything(tmp_path) == before
    (tmp_path / "journal.jsonl").write_bytes(kept)
    assert go(tmp_path, experiment(**SMALL)).status == "finished"


def test_a_journal_without_its_beginning_is_refused(tmp_path):
    (tmp_path / "journal.jsonl").write_text(json.dumps({"schema": 1, "event": "run_paused", "time": 1.0}) + "\n")
    with pytest.raises(UserError, match="journal.jsonl"):
        go(tmp_path, experiment(**SMALL))


@pytest.mark.parametrize("name", ["analysis.md", "user_input.md", "protocol.md"])
def test_a_directory_in_the_place_of_a_file_is_one_line(tmp_path, name):
    go(tmp_path, experiment(**SMALL, max_nodes=4))
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{name} .*directory") as error:
        go(tmp_path, experiment(**SMALL))
    assert "\n" not in str(error.value)
    (tmp_path / name).rmdir()
    assert go(tmp_path, experiment(**SMALL)).status == "finished"


def test_two_processes_one_directory(tmp_path):
    with Journal(tmp_path):
        with pytest.raises(UserError, match=tmp_path.name):
            go(tmp_path, experiment(**SMALL))


def test_an_edited_config_is_refused_and_budgets_may_change(uninterrupted, tmp_path):
    (tmp_path / "journal.jsonl").write_bytes((uninterrupted / "journal.jsonl").read_bytes())
    with pytest.raises(UserError, match="search.ucb_c was 1.414, is 2.0; restore it, or choose another --run"):
        go(tmp_path, experiment(**SMALL, ucb_c=2.0))
    with pytest.raises(UserError, match="n_candidates was 2"):
        go(tmp_path, experiment(**{**SMALL, "n_candidates": 3}))
    # One more block goes on from the end; what was there stays.
    out = go(tmp_path, experiment(**{**SMALL, "n_blocks": 3}))
    before, after = facts(uninterrupted)[0], facts(tmp_path)[0]
    assert len(after) == 18 and all(after[i] == before[i] for i in list(before)[:-2])
    assert out.state.blocks[3].nodes[0] == 13 and out.state.nodes[13].parent == "root"
    assert out.state.blocks[3].simulation["delta_t"] == 0.02, "the simulations come round again"
    ends = [e["block"] for e in read_journal(tmp_path) if e["event"] == "block_ended"]
    assert ends == [1, 2, 3]


def test_stimuli_that_are_missing_are_named_before_anything_starts(tmp_path):
    two = experiment(
        **{**SMALL, "simulations": ({"visual_input_type": "DAVIS"}, {"visual_input_type": "optical_flow"})}
    )
    with pytest.raises(UserError, match="block 2 shows 'optical_flow', which is not on this machine; there is: DAVIS"):
        go(tmp_path, two, available_stimuli=("DAVIS",))
    go(
        tmp_path,
        experiment(**SMALL),
        available_stimuli=("DAVIS",),
        provenance=Provenance(stimulus_fallbacks={"optical_flow": "scenes_flow"}),
    )
    assert "optical_flow is not on this machine: scenes_flow stands in" in (tmp_path / "analysis.md").read_text()


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


def test_an_older_journal_beside_a_newer_protocol_is_no_edit(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path / "run")
    whole = read_journal(uninterrupted)
    edits = [k for k, e in enumerate(whole) if e["event"] == "protocol_edited"]
    assert edits, "the rules edit the protocol of this run"
    lines = (uninterrupted / "journal.jsonl").read_bytes().splitlines(True)
    (tmp_path / "run" / "journal.jsonl").write_bytes(b"".join(lines[: edits[0]]))
    go(tmp_path / "run", experiment(**SMALL))
    assert facts(tmp_path / "run") == facts(uninterrupted)


def test_the_heartbeat_of_a_session_killed_after_the_end_is_removed(tmp_path):
    exp = experiment(**SMALL, max_nodes=4)
    go(tmp_path, exp)
    (tmp_path / FILE_NAME).write_text("1.0")
    before = (tmp_path / "journal.jsonl").read_bytes()
    assert go(tmp_path, exp).status == "finished" and not (tmp_path / FILE_NAME).exists()
    assert (tmp_path / "journal.jsonl").read_bytes() == before


def test_a_machine_without_a_further_thread_searches_all_the_same(tmp_path, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", refuse)
    assert go(tmp_path, experiment(**SMALL, max_nodes=4)).status == "finished"
