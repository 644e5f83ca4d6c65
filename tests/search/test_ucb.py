"""Visits, UCB and the measures of a block, against brute force and numbers worked by hand."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyjax.search.journal.state import fold
from flyjax.search.policy import ucb
from flyjax.search.policy.moves import moves
from flyjax.search.proposers.rules import observe


def events(rows, n_iter_block=12, choices=None):
    """Events of one block: rows of iterations, each a list of (parent, reward or None)."""
    out = [
        {"event": "run_started", "time": 0.0, "experiment": {"search": {"n_iter_block": n_iter_block}}, "protocol": ""}
    ]
    node = 0
    for number, row in enumerate(rows, 1):
        nodes = []
        for parent, _ in row:
            node += 1
            nodes.append(
                {
                    "node": node,
                    "parent": parent,
                    "changes": {},
                    "config": {"x": node},
                    "strategy": "exploit",
                    "seeds": [1],
                }
            )
        base = {"iteration": number, "block": 1, "time": 0.0}
        out.append({"event": "iteration_started", "iter_in_block": number, "simulation": {}, "nodes": nodes, **base})
        for entry, (_, reward) in zip(nodes, row):
            name = "node_failed" if reward is None else "node_finished"
            out.append(
                {"event": name, "node": entry["node"], "metrics": reward and {"connectivity_R2": reward}, **base}
            )
        if choices and number in choices:
            out.append({"event": "choice", "chosen": choices[number], "reason": "", "next_parents": [], **base})
    return out


def chain(*values, **kwargs):
    """One node per iteration, each the child of the one before."""
    return fold(events([[(k or "root", v)] for k, v in enumerate(values)], **kwargs))


def test_the_protocols_two_lines():
    state = chain(0.934, 0.997)
    assert ucb.ucb_lines(state) == [
        "Node 2: UCB=2.174, parent=1, visits=1, R2=0.997 [CURRENT]",
        "Node 1: UCB=1.766, parent=root, visits=2, R2=0.934",
    ]
    assert ucb.ucb(0.934, 2, 2, c=math.sqrt(2)) == pytest.approx(1.7665, abs=1e-4)


def test_no_result_is_never_better_than_a_bad_one():
    state = fold(events([[("root", 0.3)], [(1, None), (1, -0.8)], [(2, -0.2)]]))
    assert ucb.worths(state.nodes.values()) == {1: 0.3, 2: -0.8, 3: -0.8, 4: -0.2}
    assert ucb.worths(chain(0.3, None).nodes.values()) == {1: 0.3, 2: 0.0} and ucb.worths([]) == {}
    assert [move.gain for move in moves(with_changes(state), 1)] == pytest.approx([0.6, -1.1, -1.1])


def with_changes(state):
    """The state with a change for every node, so that its gain counts as a move's."""
    nodes = {i: replace(n, changes={"x": i}, strategy="root" if i == 1 else n.strategy) for i, n in state.nodes.items()}
    return replace(state, nodes=nodes)


TREES = st.lists(
    st.lists(st.tuples(st.integers(0, 10**6), st.one_of(st.none(), st.floats(0, 1))), min_size=1, max_size=3),
    min_size=1,
    max_size=6,
)


@settings(max_examples=80, deadline=None)
@given(rows=TREES)
def test_visits_and_scores_equal_brute_force(rows):
    count, lawful = 0, []
    for row in rows:
        lawful.append([("root" if not count else 1 + pick % count, reward) for pick, reward in row])
        count += len(row)
    state = fold(events(lawful))
    nodes = state.block_nodes(1)
    parents = {n.id: n.parent for n in nodes}

    def descends(a, b):
        while a != b and a in parents:
            a = parents[a]
        return a == b

    expected = {n.id: sum(descends(m.id, n.id) for m in nodes) for n in nodes}
    assert ucb.visits(nodes) == expected
    ranked = ucb.scores(state, 1)
    assert [s.ucb for s in ranked] == sorted((s.ucb for s in ranked), reverse=True)
    for s in ranked:
        r2 = s.node.reward or 0.0
        assert s.ucb == pytest.approx(r2 + 1.414 * math.sqrt(math.log(len(nodes)) / expected[s.node.id]))
        assert s.current == (s.node.iteration == len(rows))


def test_a_failed_or_nan_node_counts_zero_in_ucb_only():
    state = fold(events([[("root", 0.5), ("root", None)]]))
    failed = state.nodes[2]
    assert failed.reward is None and failed.metrics is None and ucb.score(failed) == 0.0
    assert "R2=0.000" in ucb.ucb_lines(state)[1]
    rows = events([[("root", 0.5)]])
    rows[-1]["metrics"] = {"connectivity_R2": None}
    assert fold(rows).nodes[1].reward is None


def test_the_file_is_empty_at_block_boundaries_and_lists_all_of_an_iteration_as_current():
    assert ucb.ucb_lines(chain(0.1, 0.2, n_iter_block=2)) == []
    assert ucb.ucb_lines(chain(0.1, n_iter_block=2)) != []
    lines = ucb.ucb_lines(fold(events([[("root", 0.1)], [(1, 0.2), (1, 0.3)]])))
    assert [line.endswith("[CURRENT]") for line in lines] == [True, True, False]


def test_quarter():
    assert [ucb.quarter(n) for n in (1, 4, 8, 9, 12, 13, 40)] == [2, 2, 2, 3, 3, 4, 10]


def test_branching_counts_iterations_whose_parent_is_not_the_node_chosen_before():
    assert ucb.branching_rate(chain(0.1, 0.2, 0.3), 1, 3) == 0.0
    rows = [[("root", 0.1)], [(1, 0.2)], [(1, 0.3)], [(3, 0.4)]]
    assert ucb.branching_rate(fold(events(rows)), 1, 4) == pytest.approx(1 / 3)
    assert ucb.branching_rate(fold(events(rows)), 1, 2) == pytest.approx(1 / 2)
    assert ucb.branching_rate(fold(events(rows)), 1, 1) == 0.0
    assert ucb.branching_rate(chain(0.1), 1, 2) is None
    # With K = 2 the chosen node counts, not the best one.
    rows = [[("root", 0.1), ("root", 0.2)], [(2, 0.3), (1, 0.2)]]
    assert ucb.branching_rate(fold(events(rows, choices={1: 2, 2: 3})), 1, 2) == 0.0
    assert ucb.branching_rate(fold(events(rows, choices={1: 2, 2: 4})), 1, 2) == 1.0


def test_improvement_plateau_and_successes():
    assert ucb.improvement_rate([0.5]) is None
    assert ucb.improvement_rate([0.5, 0.6, 0.55, 0.7]) == pytest.approx(2 / 3)
    assert ucb.plateau([0.2, 0.80, 0.85, 0.90]) == 3
    assert ucb.plateau([0.2, 0.80, 0.85, 0.91]) == 2
    assert ucb.plateau([0.5] * 4, 0.0) == 4 and ucb.plateau([]) == 0
    assert ucb.successes([0.95, 0.1, 0.9, 0.95]) == 2
    measures = ucb.measure(chain(0.5, 0.6, 0.62, 0.63), 1)
    assert (measures.branching, measures.improvement, measures.plateau, measures.successes) == (0.0, 1.0, 3, 0)
    assert measures.describe() == "branching rate 0%, improvement rate 100%, plateau 3 iterations"


def test_the_noise_floor_pools_repetitions():
    rows = events([[("root", 0.5), ("root", 0.6), ("root", 0.8)]])
    for entry in rows[1]["nodes"][:2]:
        entry["config"] = {"x": 0}
    assert ucb.noise_floor(fold(rows), 1) == pytest.approx(math.sqrt(0.005))
    assert ucb.noise_floor(chain(0.1, 0.2), 1) is None
    rows = events([[("root", 0.5)]])
    rows[-1]["per_seed"] = [{"connectivity_R2": v} for v in (0.4, 0.5, 0.6)]
    state = fold(rows)
    assert state.nodes[1].spread == pytest.approx({"n": 3, "min": 0.4, "std": 0.1, "cv": 0.2})
    assert ucb.noise_floor(state, 1) == pytest.approx(0.1)


def test_the_best_configuration_is_the_best_on_average():
    rows = events([[("root", 0.95), ("root", 0.35), ("root", 0.8), ("root", None)]])
    for entry in rows[1]["nodes"][:2]:
        entry["config"] = {"x": 0}
    state = fold(rows)
    assert ucb.best_node(state).id == 1 and ucb.best_configuration(state).id == 3
    assert ucb.best_configuration(fold(events([[("root", None)]]))) is None


def test_an_iteration_improves_only_beyond_noise():
    assert [ucb.stale(chain(*[0.5, 0.6, 0.6, 0.55, 0.7][:k])) for k in range(1, 6)] == [0, 0, 1, 2, 0]
    rows = events([[("root", 0.5)], [(1, 0.53)], [(2, 0.56)], [(3, 0.59)]])
    # Two seeds of the root spread by 0.02: less than 0.04 is noise, but small steps add up.
    first = next(e for e in rows if e.get("node") == 1)
    first["per_seed"] = [{"connectivity_R2": 0.5 + d / 2**0.5} for d in (-0.02, 0.02)]
    ends = [k for k, e in enumerate(rows) if e["event"] == "node_finished"]
    assert [ucb.stale(fold(rows[: k + 1])) for k in ends] == [0, 1, 0, 1]
    assert ucb.measure(fold(rows), 1).noise == 3
    assert "improvement rate 100% (3 of the improvements noise)" in ucb.measure(fold(rows), 1).describe()


def test_patience_and_measures_know_rewards_below_zero():
    """As held-out prediction has them: a failed node is no improvement on -2, and no best to be beaten."""
    rows = events([[("root", -2.0)], [(1, None)], [(1, -1.5)], [(3, -1.0)]])
    ends = [k for k, e in enumerate(rows) if e["event"] in ("node_finished", "node_failed")]
    assert [ucb.stale(fold(rows[: k + 1])) for k in ends] == [0, 1, 0, 0]
    state = fold(rows)
    assert ucb.rewards(state, 1) == [-2.0, -2.0, -1.5, -1.0]
    assert ucb.measure(state, 1).improvement == pytest.approx(2 / 3)
    assert ucb.best_configuration(fold(events([[("root", -2.0), ("root", None)]]))).id == 1


def test_a_lost_seed_is_never_better_than_the_worst():
    rows = events([[("root", -5.0), ("root", -5.0), ("root", 0.5)]])
    for event, seeds in zip(rows[2:], ([-5.0, None], [-5.0, -5.0], [0.5, None])):
        event["per_seed"] = [{"connectivity_R2": v} for v in seeds]
    nodes = fold(rows).nodes
    assert [n.reward for n in nodes.values()] == [-5.0, -5.0, 0.25]
    assert "1 of 2 seeds without a result count as -5" in observe(fold(rows), nodes[1])


def test_a_block_is_measured_against_itself_its_first_iteration_against_the_run():
    first, second = events([[("root", 0.8)]]), events([[("root", 0.5)], [(2, 0.6)], [(3, 0.6)]])
    moved = []
    for event in second[1:]:
        event = {**event, "iteration": event["iteration"] + 1, "block": 2}
        if "nodes" in event:
            shift = [{**n, "node": n["node"] + 1} for n in event["nodes"]]
            event["nodes"] = shift
        else:
            event["node"] += 1
        moved.append(event)
    whole = first + moved
    ends = [k for k, e in enumerate(whole) if e["event"] == "node_finished"]
    assert [ucb.stale(fold(whole[: k + 1])) for k in ends] == [0, 1, 0, 1]
