"""The best settings on fresh seeds after the end of a search: which, how many, and what it does not touch."""

import pytest
from support.search_landscape import evaluate, experiment
from support.search_runs import SMALL, Killed, facts, go, killed_after, renderings

from flyjax.report.html import write_report
from flyjax.search.confirmation import confirmation_size, confirmed, search_limit
from flyjax.search.journal.journal import read_journal
from flyjax.search.journal.state import fold
from flyjax.search.policy.measures import best_node
from flyjax.search.run.status import remaining

SHARE = 0.34  # of 12 nodes: four


def confirming(**search):
    return experiment(**{**SMALL, "confirm_share": SHARE, **search})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("confirmed")
    go(run_dir, confirming())
    return run_dir


def again(run_dir):
    """The nodes of the newest confirmation."""
    state = fold(read_journal(run_dir))
    return list(state.confirmations[max(state.confirmations)].nodes.values())


def test_it_is_the_last_thing_and_changes_nothing_of_the_search(whole, uninterrupted):
    assert facts(whole) == facts(uninterrupted)
    names = [e["event"] for e in read_journal(whole)]
    assert names[-6:] == ["iteration_started", *["node_finished"] * 4, "run_finished"]
    assert names[:-6] == [e["event"] for e in read_journal(uninterrupted)][:-1]
    started = [e for e in read_journal(whole) if e["event"] == "iteration_started"]
    assert [e.get("kind") for e in started] == [None] * 6 + ["confirmation"]
    assert started[-1]["simulation"] == started[-2]["simulation"]


def test_the_best_settings_of_the_last_simulation_get_fresh_seeds(whole):
    state, nodes = fold(read_journal(whole)), again(whole)
    assert [n.id for n in nodes] == [13, 14, 15, 16] and len({str(n.config) for n in nodes}) == 2
    assert all(state.nodes[n.parent].block == 2 and state.nodes[n.parent].config == n.config for n in nodes)
    seeds = [s for n in state.all_nodes for s in n.seeds]
    assert len(seeds) == len(set(seeds))
    assert best_node(state, 2).config in [n.config for n in nodes]


def test_the_winners_curse_is_what_luck_added(tmp_path):
    """Every training draws from the same distribution: the best of the search was lucky, its setting is not."""

    def luck(plan):
        out = {}
        for node in plan.nodes:
            seeds = [{"connectivity_R2": 0.5 + 0.1 * (s % 101 - 50) / 50} for s in node.seeds]
            mean = sum(m["connectivity_R2"] for m in seeds) / len(seeds)
            out[node.id] = {"metrics": {"connectivity_R2": mean}, "per_seed": seeds}
        return out

    state = go(tmp_path, confirming(confirm_share=1), trainer=luck).state
    found = confirmed(state)
    assert [c.n for c in found] == [4, 4, 4] and [c.n_search for c in found] != [0, 0, 0]
    top = max(found, key=lambda c: c.best_single)
    assert top.best_single > 0.55 and abs(top.mean - 0.5) < 0.1 and top.winners_curse > 0
    for c in found:
        assert c.winners_curse == pytest.approx(c.best_single - c.mean) and c.bound < c.mean
    lows = [c.bound for c in found]
    assert lows == sorted(lows, reverse=True), "the first is recommended"
    # Student's t with 9 degrees of freedom, the spread pooled over the three settings.
    values = [[v for i in c.repeated for n in again(tmp_path) if n.id == i for v in n.values] for c in found]
    squares = sum(sum((v - sum(one) / 4) ** 2 for v in one) for one in values)
    assert found[0].half_width == pytest.approx(1.8331 * (squares / 9) ** 0.5 / 2, rel=1e-3)


@pytest.mark.parametrize("objective", ["connectivity_R2", "blind"])
def test_intervals_stay_within_the_range_of_the_objective(tmp_path, objective):
    """Two trainings of each setting: Student's t would reach far beyond 0 and 1."""

    def unsteady(plan):
        values = {n.id: 0.99 if n.id // 2 % 2 else 0.01 * n.id for n in plan.nodes}
        return {i: {"metrics": dict.fromkeys(("connectivity_R2", "test_R2"), v)} for i, v in values.items()}

    found = confirmed(go(tmp_path, confirming(objective=objective), trainer=unsteady).state)
    assert any(c.mean + c.half_width > 1 for c in found) and any(c.mean - c.half_width < 0 for c in found)
    least = min(c.interval[0] for c in found)
    assert least == 0 if objective == "connectivity_R2" else least < 0, "a prediction may be worse than the mean"
    for c in found:
        assert c.interval[0] <= c.mean <= c.interval[1] <= 1
        assert c.winners_curse_interval[0] <= c.winners_curse <= c.winners_curse_interval[1]
        assert c.best_single - c.winners_curse_interval[0] <= 1
    bounds = [c.bound for c in found]
    assert bounds == sorted(bounds, reverse=True) and len(set(bounds)) > 1, "ranked also where both end at 0"


def test_a_setting_that_diverges_again_counts_as_zero(tmp_path):
    def failing(plan):
        return {n.id: {"metrics": None, "reason": "diverged"} for n in plan.nodes} if plan.kind else evaluate(plan)

    found = confirmed(go(tmp_path, confirming(), trainer=failing).state)
    assert [c.mean for c in found] == [0.0, 0.0] and found[0].winners_curse == found[0].best_single
    assert write_report(tmp_path).is_file()


def test_killed_anywhere_it_ends_the_same(whole, tmp_path, monkeypatch):
    total = len(read_journal(whole))
    for events in range(total - 8, total):
        run_dir = tmp_path / str(events)
        with monkeypatch.context() as patch:
            killed_after(patch, events, torn=(0, 17)[events % 2])
            with pytest.raises(Killed):
                go(run_dir, confirming())
        go(run_dir, confirming())
        assert facts(run_dir) == facts(whole) and again(run_dir) == again(whole), events
        assert renderings(run_dir) == renderings(whole), events


def test_limits_reserve_its_share(tmp_path):
    state = go(tmp_path, confirming(max_nodes=8)).state
    assert (len(state.nodes), len(state.all_nodes)) == (6, 8)
    for limit in range(1, 40):
        exp = confirming(max_nodes=limit, confirm_share=0.15)
        n = search_limit(exp, 0)
        assert n >= 1 and n + confirmation_size(exp, n) <= max(limit, 2)
        assert n + 1 + confirmation_size(exp, n + 1) > limit, "no node is left over"
    now = [1000.0]

    def slow(plan):
        now[0] += 5.0 * len(plan.nodes)
        return evaluate(plan)

    timed = go(tmp_path / "wall", confirming(max_wall_s=40), trainer=slow, clock=lambda: now[0]).state
    assert len(timed.nodes) == 4 and len(again(tmp_path / "wall")) == 1 and timed.wall_s <= 40


def test_a_run_that_goes_on_is_confirmed_again_at_its_new_end(tmp_path):
    go(tmp_path, confirming())
    before = read_journal(tmp_path)
    go(tmp_path, confirming())
    assert read_journal(tmp_path) == before, "started again it adds nothing"
    state = go(tmp_path, confirming(n_blocks=3)).state
    assert len(state.iterations) == 9 and sorted(state.confirmations) == [7, 10]
    ids = [n.id for n in state.all_nodes]
    assert len(ids) == len(set(ids)) and state.blocks[3].nodes[0] == 17
    assert {n.block for n in again(tmp_path)} == {3}


def test_a_finished_run_of_an_earlier_version_is_confirmed_where_that_is_asked_for(tmp_path):
    go(tmp_path, experiment(**SMALL))
    assert not go(tmp_path, experiment(**SMALL)).state.confirmations
    assert len(again_of(go(tmp_path, confirming()).state)) == 4


def again_of(state):
    return state.confirmations[max(state.confirmations)].nodes


def test_what_remains_counts_it(whole):
    exp, events = confirming(), read_journal(whole)
    assert remaining(exp, fold([])) == (16, 7) and remaining(exp, fold(events)) == (0, 0)
    started = next(k for k, e in enumerate(events) if e.get("kind"))
    assert remaining(exp, fold(events[:started])) == (4, 1)
    assert remaining(exp, fold(events[: started + 2])) == (3, 1), "one of its four nodes is done"


def test_it_may_be_declined_and_asked_for_again(tmp_path):
    out = go(tmp_path, confirming(), approve=lambda plan: not plan.kind)
    assert out.status == "paused" and not out.state.confirmations
    assert len(again_of(go(tmp_path, confirming()).state)) == 4


def test_report_and_log_state_it(whole):
    page = write_report(whole).read_text()
    curse = confirmed(fold(read_journal(whole)))[0].winners_curse
    assert f"{curse:.3f}" in page and f"{curse:+.3f}" in (whole / "analysis.md").read_text()
    assert 'id="node-13"' not in page, "its trainings are no nodes of the search"
