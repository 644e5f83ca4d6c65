"""Measures of a block: branching, improvement, plateau, noise; and the comparable reward of a failed node."""

import math
import statistics
from dataclasses import replace

import pytest
from support.search_events import block_events, chain_state

from flyjax.search.journal.state import fold
from flyjax.search.policy import measures, ucb
from flyjax.search.policy.moves import moves
from flyjax.search.proposers.rules import observe


def test_no_result_is_never_better_than_a_bad_one():
    state = fold(block_events([[("root", 0.3)], [(1, None), (1, -0.8)], [(2, -0.2)]]))
    assert measures.comparable_rewards(state.nodes.values()) == {1: 0.3, 2: -0.8, 3: -0.8, 4: -0.2}
    assert (
        measures.comparable_rewards(chain_state(0.3, None).nodes.values()) == {1: 0.3, 2: 0.0}
        and measures.comparable_rewards([]) == {}
    )
    assert [move.gain for move in moves(with_changes(state), 1)] == pytest.approx([0.6, -1.1, -1.1])


def with_changes(state):
    """The state with a change for every node, so that its gain counts as a move's."""
    nodes = {i: replace(n, changes={"x": i}, strategy="root" if i == 1 else n.strategy) for i, n in state.nodes.items()}
    return replace(state, nodes=nodes)


def test_quarter():
    assert [measures.quarter(n) for n in (1, 4, 8, 9, 12, 13, 40)] == [2, 2, 2, 3, 3, 4, 10]


def test_branching_counts_iterations_whose_parent_is_not_the_node_chosen_before():
    assert measures.branching_rate(chain_state(0.1, 0.2, 0.3), 1, 3) == 0.0
    rows = [[("root", 0.1)], [(1, 0.2)], [(1, 0.3)], [(3, 0.4)]]
    assert measures.branching_rate(fold(block_events(rows)), 1, 4) == pytest.approx(1 / 3)
    assert measures.branching_rate(fold(block_events(rows)), 1, 2) == pytest.approx(1 / 2)
    assert measures.branching_rate(fold(block_events(rows)), 1, 1) == 0.0
    assert measures.branching_rate(chain_state(0.1), 1, 2) is None
    # With K = 2 the chosen node counts, not the best one.
    rows = [[("root", 0.1), ("root", 0.2)], [(2, 0.3), (1, 0.2)]]
    assert measures.branching_rate(fold(block_events(rows, choices={1: 2, 2: 3})), 1, 2) == 0.0
    assert measures.branching_rate(fold(block_events(rows, choices={1: 2, 2: 4})), 1, 2) == 1.0


def test_improvement_plateau_and_successes():
    assert measures.improvement_rate([0.5]) is None
    assert measures.improvement_rate([0.5, 0.6, 0.55, 0.7]) == pytest.approx(2 / 3)
    assert measures.plateau([0.2, 0.80, 0.85, 0.90]) == 3
    assert measures.plateau([0.2, 0.80, 0.85, 0.91]) == 2
    assert measures.plateau([0.5] * 4, 0.0) == 4 and measures.plateau([]) == 0
    assert measures.consecutive([0.95, 0.1, 0.9, 0.95], lambda value: value >= 0.9) == 2
    found = measures.measure(chain_state(0.5, 0.6, 0.62, 0.63), 1)
    assert (found.branching, found.improvement, found.plateau, found.successes) == (0.0, 1.0, 3, 0)
    for number in (
        "4 iterations",
        "branching rate 0% (p 0.12",
        "improvement rate 100% (p 0.042",
        "plateau 3",
        "p 0.25",
    ):
        assert number in found.describe()


def test_the_noise_floor_pools_repetitions():
    rows = block_events([[("root", 0.5), ("root", 0.6), ("root", 0.8)]])
    for entry in rows[1]["nodes"][:2]:
        entry["config"] = {"x": 0}
    assert measures.noise_floor(fold(rows), 1) == pytest.approx(math.sqrt(0.005))
    assert measures.noise_floor(chain_state(0.1, 0.2), 1) is None
    rows = block_events([[("root", 0.5)]])
    rows[-1]["per_seed"] = [{"connectivity_R2": v} for v in (0.4, 0.5, 0.6)]
    state = fold(rows)
    assert state.nodes[1].spread == pytest.approx({"n": 3, "min": 0.4, "std": 0.1, "cv": 0.2})
    assert measures.noise_floor(state, 1) == pytest.approx(0.1)


def test_the_best_configuration_is_the_best_on_average():
    rows = block_events([[("root", 0.95), ("root", 0.35), ("root", 0.8), ("root", None)]])
    for entry in rows[1]["nodes"][:2]:
        entry["config"] = {"x": 0}
    state = fold(rows)
    assert measures.best_node(state).id == 1 and measures.best_configuration(state.nodes.values()).id == 3
    assert measures.best_configuration(fold(block_events([[("root", None)]])).nodes.values()) is None


def test_an_iteration_improves_only_beyond_noise():
    assert [
        measures.iterations_without_improvement(chain_state(*[0.5, 0.6, 0.6, 0.55, 0.7][:k])) for k in range(1, 6)
    ] == [0, 0, 1, 2, 0]
    rows = block_events([[("root", 0.5)], [(1, 0.53)], [(2, 0.56)], [(3, 0.59)]])
    # Two seeds of the root spread by 0.02: less than 0.04 is noise, but small steps add up.
    first = next(e for e in rows if e.get("node") == 1)
    first["per_seed"] = [{"connectivity_R2": 0.5 + d / 2**0.5} for d in (-0.02, 0.02)]
    ends = [k for k, e in enumerate(rows) if e["event"] == "node_finished"]
    assert [measures.iterations_without_improvement(fold(rows[: k + 1])) for k in ends] == [0, 1, 0, 1]
    assert measures.measure(fold(rows), 1).noise == 3
    found = measures.measure(fold(rows), 1)
    assert "3 of the improvements noise" in found.describe()
    assert found.p_many == pytest.approx(1) and found.p_few == pytest.approx(1), "no improvement is more than noise"


def test_improvements_by_chance():
    """Of three equal draws both later ones are records in one of six orders, none in two, exactly one in three."""
    assert measures.chance_of_improvements(3) == pytest.approx([1 / 3, 1 / 2, 1 / 6])
    assert sum(k * p for k, p in enumerate(measures.chance_of_improvements(3))) / 2 == pytest.approx(0.4167, abs=1e-3)
    assert measures.chance_of_improvements(1) == measures.chance_of_improvements(0) == [1.0]
    assert measures.chance_of_improvements(12)[0] == pytest.approx(1 / 12)
    found = measures.measure(chain_state(0.5, 0.6, 0.4), 1)
    assert (found.p_few, found.p_many) == (pytest.approx(5 / 6), pytest.approx(2 / 3))
    assert found.iterations == 3 and found.p_sequential == 0.25


def seeds(rows, of):
    """The events with the results of several seeds for some nodes."""
    for event in rows:
        if event.get("node") in of and event["event"] == "node_finished":
            event["per_seed"] = [{"connectivity_R2": v} for v in of[event["node"]]]
    return rows


@pytest.mark.parametrize("root_seeds", [(0.865, 0.991), (0.93, 0.999)])
def test_the_noise_of_good_configurations_is_not_that_of_the_root(root_seeds):
    """As in the quickstart of version 0.1.0: the root's seeds differ by 0.13, good ones by 0.003."""
    rows = seeds(block_events([[("root", 0.93), ("root", 0.994)], [(2, 0.991)], [(3, 0.985)]]), {1: root_seeds})
    nodes = [n for e in rows if "nodes" in e for n in e["nodes"]]
    nodes[0]["strategy"], nodes[2]["config"] = "root", nodes[1]["config"]
    state = fold(rows)
    floor, freedom = measures.noise_estimate(state, 1)
    assert floor == pytest.approx(0.003 / 2**0.5) and freedom == 1
    good, root, later = state.nodes[2], state.nodes[1], state.nodes[4]
    assert measures.clear_gain(state, 1, later, good) == pytest.approx(2 * floor)
    spread = root_seeds[1] - root_seeds[0]
    assert measures.clear_gain(state, 1, root, good) == pytest.approx(spread), "twice the std of a mean of two seeds"
    assert "noise" in observe(state, good) and "noise" not in observe(state, later)
    # A poor configuration that spreads is not pooled either; one that is about as good is.
    for reward, same, expected in ((0.4, 0.8, 0.003), (0.98, 0.99, (0.003**2 / 2 + 0.01**2 / 2) ** 0.5)):
        rows = block_events([[("root", 0.994), ("root", 0.991)], [(2, reward), (2, same)]])
        nodes = [n for e in rows if "nodes" in e for n in e["nodes"]]
        nodes[1]["config"], nodes[3]["config"] = nodes[0]["config"], nodes[2]["config"]
        assert measures.noise_floor(fold(rows), 1) == pytest.approx(expected / 2**0.5)


def test_seeds_and_nodes_measure_the_same_noise():
    """With two seeds per node a reward is a mean of two: its noise is less, whichever way it was measured."""
    one = seeds(block_events([[("root", 0.5), ("root", 0.6)]]), {1: (0.4, 0.6), 2: (0.6, 0.6)})
    two = seeds(block_events([[("root", 0.55), ("root", 0.55)]]), {1: (0.4, 0.7), 2: (0.5, 0.6)})
    for rows in (one, two):
        rows[0]["experiment"] = {**rows[0]["experiment"], "training": {"n_seeds": 2}}
        rows[1]["nodes"][1]["config"] = rows[1]["nodes"][0]["config"]
        values = [m["connectivity_R2"] for e in rows for m in e.get("per_seed", ())]
        floor, freedom = measures.noise_estimate(fold(rows), 1)
        assert freedom == 3 and floor == pytest.approx(statistics.stdev(values) / 2**0.5)


def test_patience_and_measures_know_rewards_below_zero():
    """As held-out prediction has them: a failed node is no improvement on -2, and no best to be beaten."""
    rows = block_events([[("root", -2.0)], [(1, None)], [(1, -1.5)], [(3, -1.0)]])
    ends = [k for k, e in enumerate(rows) if e["event"] in ("node_finished", "node_failed")]
    assert [measures.iterations_without_improvement(fold(rows[: k + 1])) for k in ends] == [0, 1, 0, 0]
    state = fold(rows)
    assert measures.iteration_rewards(state, 1) == [-2.0, -2.0, -1.5, -1.0]
    assert measures.measure(state, 1).improvement == pytest.approx(2 / 3)
    assert measures.best_configuration(fold(block_events([[("root", -2.0), ("root", None)]])).nodes.values()).id == 1


def test_a_lost_seed_is_never_better_than_the_worst():
    rows = block_events([[("root", -5.0), ("root", -5.0), ("root", 0.5)]])
    for event, seeds in zip(rows[2:], ([-5.0, None], [-5.0, -5.0], [0.5, None])):
        event["per_seed"] = [{"connectivity_R2": v} for v in seeds]
    nodes = fold(rows).nodes
    assert [n.reward for n in nodes.values()] == [-5.0, -5.0, 0.25]
    assert "1 of 2 seeds without a result count as -5" in observe(fold(rows), nodes[1])


def test_a_block_is_measured_against_itself_its_first_iteration_against_the_run():
    first, second = block_events([[("root", 0.8)]]), block_events([[("root", 0.5)], [(2, 0.6)], [(3, 0.6)]])
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
    assert [measures.iterations_without_improvement(fold(whole[: k + 1])) for k in ends] == [0, 1, 0, 1]


def test_an_iteration_counts_with_the_reward_of_its_chosen_node():
    """Not with that of its best node: a step may choose another."""
    rows = [[("root", 0.2), ("root", 0.95)], [(1, 0.6), (1, 0.3)], [(4, 0.4), (4, 0.9)]]
    state = fold(block_events(rows, choices={1: 1, 2: 4, 3: 5}))
    assert measures.iteration_rewards(state, 1) == [0.2, 0.3, 0.4]
    found = measures.measure(state, 1)
    assert (found.improvement, found.successes, found.branching) == (1.0, 0, 0.0)
    assert found.best == 0.95, "the best node is another matter"
    undecided = fold(block_events(rows, choices={1: 1, 2: 4}))
    assert measures.iteration_rewards(undecided, 1) == [0.2, 0.3, 0.9], "before its step the best node stands for it"


@pytest.mark.parametrize(
    "r2, expected",
    [(0.9, "partial"), (0.9000001, "converged"), (0.1, "partial"), (0.0999999, "failed"), (None, "failed")],
)
def test_a_node_is_converged_above_0_9_and_failed_below_0_1(r2, expected):
    assert chain_state(r2).nodes[1].classification == expected


@pytest.mark.parametrize("objective, name", [("connectivity_R2", "connectivity_R2"), ("blind", "test_R2")])
def test_a_block_is_measured_by_its_own_nodes_and_objective(objective, name):
    """Two blocks whose best nodes differ by metric and by block."""
    truth, held_out = {1: 0.9, 2: 0.5, 3: 0.2, 4: 0.3}, {1: 0.1, 2: 0.8, 3: 0.4, 4: 0.35}
    search = {"n_iter_block": 2, "objective": objective}
    rows = [{"event": "run_started", "time": 0.0, "experiment": {"search": search}, "protocol": ""}]
    for number, nodes in ((1, (1, 2)), (2, (3, 4))):
        place = {"iteration": number, "block": number, "time": 0.0}
        planned = [
            {"node": n, "parent": "root", "changes": {}, "config": {"x": n}, "strategy": "root", "seeds": [n]}
            for n in nodes
        ]
        rows.append({"event": "iteration_started", "iter_in_block": 1, "simulation": {}, "nodes": planned, **place})
        for n in nodes:
            metrics = {"connectivity_R2": truth[n], "test_R2": held_out[n]}
            rows.append({"event": "node_finished", "node": n, "metrics": metrics, **place})
    state, values = fold(rows), truth if name == "connectivity_R2" else held_out
    assert {n.id: n.reward for n in state.nodes.values()} == values
    for block, nodes in ((1, (1, 2)), (2, (3, 4))):
        best = max(nodes, key=values.get)
        assert measures.best_node(state, block).id == best and measures.measure(state, block).best == values[best]
        assert [s.node.id for s in ucb.scores(state, block)] == sorted(nodes, key=values.get, reverse=True)
        assert {s.ucb for s in ucb.scores(state, block)} == {ucb.ucb(values[n], 1, 2) for n in nodes}
    assert measures.best_node(state).id == max(values, key=values.get)
