"""Visits and UCB scores, against brute force and numbers worked by hand."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.search_events import block_events, chain_state

from flyjax.search.journal.state import fold
from flyjax.search.policy import ucb


def test_the_protocols_two_lines():
    state = chain_state(0.934, 0.997)
    assert ucb.ucb_lines(state) == [
        "Node 2: UCB=2.174, parent=1, visits=1, R2=0.997 [CURRENT]",
        "Node 1: UCB=1.766, parent=root, visits=2, R2=0.934",
    ]
    assert ucb.ucb(0.934, 2, 2, c=math.sqrt(2)) == pytest.approx(1.7665, abs=1e-4)


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
    state = fold(block_events(lawful))
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
    state = fold(block_events([[("root", 0.5), ("root", None)]]))
    failed = state.nodes[2]
    assert failed.reward is None and failed.metrics is None and ucb.score(failed) == 0.0
    assert "R2=0.000" in ucb.ucb_lines(state)[1]
    rows = block_events([[("root", 0.5)]])
    rows[-1]["metrics"] = {"connectivity_R2": None}
    assert fold(rows).nodes[1].reward is None


def test_the_file_is_empty_at_block_boundaries_and_lists_all_of_an_iteration_as_current():
    assert ucb.ucb_lines(chain_state(0.1, 0.2, n_iter_block=2)) == []
    assert ucb.ucb_lines(chain_state(0.1, n_iter_block=2)) != []
    lines = ucb.ucb_lines(fold(block_events([[("root", 0.1)], [(1, 0.2), (1, 0.3)]])))
    assert [line.endswith("[CURRENT]") for line in lines] == [True, True, False]
