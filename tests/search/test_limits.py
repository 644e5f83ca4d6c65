"""What ends a run, and what happens where a limit is raised or lowered."""

import pytest
from support.search_landscape import evaluate, experiment
from support.search_runs import SMALL, Killed, constant, go, killed_after

from flyjax.search.journal.journal import read_journal
from flyjax.search.journal.state import fold


def test_max_nodes_and_max_wall(tmp_path):
    out = go(tmp_path / "nodes", experiment(**SMALL, max_nodes=5))
    assert (out.status, out.reason, len(out.state.nodes)) == ("finished", "search.max_nodes=5 reached", 5)
    assert len(out.state.choices) == 3, "the last iteration has its step"
    out = go(tmp_path / "nodes", experiment(**SMALL))
    assert len(out.state.nodes) == 11 and out.reason == "2 blocks done"

    now = [1000.0]

    def slow(plan):
        now[0] += 10.0
        return evaluate(plan)

    # A third iteration of 10 s would end after 30 s: it does not begin.
    out = go(tmp_path / "wall", experiment(**SMALL, max_wall_s=25), trainer=slow, clock=lambda: now[0])
    assert len(out.state.iterations) == 2 and out.state.wall_s == 20.0
    assert out.reason == "search.max_wall_s=25: after 20 s the next iteration would take about 10 s more"
    assert out.state.iteration.number in out.state.choices, "the last iteration has its step"
    now[0] += 5000.0  # a pause does not count
    out = go(tmp_path / "wall", experiment(**SMALL, max_wall_s=40), trainer=slow, clock=lambda: now[0])
    assert len(out.state.iterations) == 4 and out.state.wall_s == 40.0 and out.reason == "search.max_wall_s=40 reached"
    out = go(tmp_path / "short", experiment(**SMALL, max_wall_s=5), trainer=slow, clock=lambda: now[0])
    assert len(out.state.iterations) == 1, "how long the first one takes nobody knows"


def test_a_target_ends_the_run_and_a_higher_one_reopens_it(tmp_path):
    exp = experiment(n_candidates=3, n_iter_block=4, n_blocks=2, target=0.85)
    out = go(tmp_path, exp)
    rewards = [n.reward for n in out.state.nodes.values()]
    newest = out.state.iteration.nodes
    first = next(i for i, r in enumerate(rewards, 1) if r >= 0.85)
    assert out.status == "finished" and first in newest, "stopped at the first iteration that reached it"
    assert out.reason.startswith("search.target=0.85 reached by node ") and out.state.iteration.number < 8
    assert out.state.iteration.number in out.state.choices, "the last iteration has its step"
    before = read_journal(tmp_path)
    go(tmp_path, exp)
    assert read_journal(tmp_path) == before, "started again it adds nothing"
    higher = go(tmp_path, experiment(n_candidates=3, n_iter_block=4, n_blocks=2, target=0.99))
    assert higher.reason == "2 blocks done" and len(higher.state.iterations) == 8


def flat(plan):
    """Whatever is tried, the same with a little noise: seed by seed."""
    out = {}
    for node in plan.nodes:
        per_seed = [{"connectivity_R2": 0.5 + 0.02 * (seed % 7)} for seed in node.seeds]
        out[node.id] = {
            "metrics": {"connectivity_R2": sum(m["connectivity_R2"] for m in per_seed) / len(per_seed)},
            "per_seed": per_seed,
        }
    return out


def test_patience_ends_a_run_that_stands_still(tmp_path):
    exp = experiment(n_candidates=2, n_iter_block=8, n_blocks=2, patience=3)
    still = go(tmp_path, exp, trainer=constant(0.5))
    assert still.reason == "search.patience=3: 3 iterations without an improvement beyond noise"
    assert len(still.state.iterations) == 4, "the first one, then three that brought nothing"
    more = go(tmp_path, experiment(n_candidates=2, n_iter_block=8, n_blocks=2, patience=5), trainer=flat)
    assert len(more.state.iterations) > 4
    climbing = go(
        tmp_path / "up",
        exp,
        trainer=lambda plan: {n.id: {"metrics": {"connectivity_R2": plan.number / 20}} for n in plan.nodes},
    )
    assert climbing.reason == "2 blocks done"


def test_a_limit_raised_after_a_kill_before_the_last_line_counts(tmp_path):
    short = experiment(**SMALL, max_nodes=5)
    assert len(go(tmp_path, short).state.nodes) == 5
    journal = tmp_path / "journal.jsonl"
    lines = journal.read_text().splitlines(True)
    assert '"event": "run_finished"' in lines[-1]
    journal.write_text("".join(lines[:-1]))
    assert len(go(tmp_path, experiment(**SMALL, max_nodes=9)).state.nodes) == 9


@pytest.mark.parametrize("limit", [{"max_nodes": 4}, {"target": 0.01}, {"max_wall_s": 0.0}, {"patience": 1}])
def test_a_limit_lowered_between_stop_and_resume_begins_nothing(tmp_path, monkeypatch, limit):
    still = constant(0.5)
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
