"""What a report says of the use of the map: that of the time, and what came out."""

from dataclasses import replace

import numpy as np
import pytest
from support.search_landscape import evaluate, experiment
from support.search_runs import go

from flyjax.report.html import write_report
from flyjax.report.map_use import REGIONS, foreseen, use_blocks
from flyjax.search.journal.journal import read_journal
from flyjax.search.journal.state import fold
from flyjax.search.policy.run_map import run_map
from flyjax.search.proposers import make_proposer
from flyjax.search.proposers.replay import ReplayProposer


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A run of 36 draws from the ranges; its map has skill before it ends."""
    folder, exp = tmp_path_factory.mktemp("drawn"), experiment(n_iter_block=9, n_blocks=1, proposer="random")
    go(folder, exp, make_proposer("random", exp))
    return folder


def test_what_is_stated_is_the_map_of_the_time_and_does_not_change_later(drawn):
    events = read_journal(drawn)
    whole, state = foreseen(fold(events)), fold(events)
    assert len(whole) >= 8 and whole[-1].node == 36
    last = [k for k, e in enumerate(events) if e["event"] == "iteration_started"][-1]
    before = fold(events[:last])
    assert foreseen(before) == [row for row in whole if row.node in before.nodes]
    found = run_map(before, 1)
    for row in (row for row in whole if row.node not in before.nodes):
        config = state.nodes[row.node].config
        assert row.expected == pytest.approx(found.predict([config]).mean[0])
        assert row.probabilities is None or np.allclose(row.probabilities, found.class_probabilities([config])[0])
        assert row.found == state.nodes[row.node].reward and 0 <= row.low <= row.expected <= row.high <= 1
        assert row.region in REGIONS and row.n_before == sum(len(n.values) for n in before.nodes.values())
        assert ("failed", "partial", "converged")[row.label] == state.nodes[row.node].classification


def test_the_report_states_predictions_results_and_their_calibration(drawn):
    rows = foreseen(fold(read_journal(drawn)))
    inside = sum(row.low <= row.found <= row.high for row in rows)
    page = write_report(drawn).read_text()
    assert f"({inside} of {len(rows)})" in page and f"{rows[-1].expected:.2f} ({rows[-1].low:.2f} to" in page
    (table,) = [b for b in use_blocks(fold(read_journal(drawn))) if b.kind == "table"]
    assert [int(row[1]) for row in table.rows] == [row.node for row in rows]


def test_it_says_which_candidates_the_map_chose(drawn):
    state = fold(read_journal(drawn))
    changed = {
        34: {"by": "rules", "strategy": "explore"},
        35: {"by": "llm", "hypothesis": "noise 0.15: the map is uncertain there"},
        36: {"by": "rules", "strategy": "exploit"},
    }
    nodes = {i: replace(node, **changed.get(i, {})) for i, node in state.nodes.items()}
    (table,) = [b for b in use_blocks(replace(state, nodes=nodes)) if b.kind == "table"]
    reasons = {int(row[1]): row[table.columns.index("because of the map")] for row in table.rows}
    assert (reasons.pop(34), reasons.pop(35)) == ("chosen", "named") and len(set(reasons.values())) == 1


def test_a_candidate_at_the_recommended_setting_is_named_so(drawn):
    state = fold(read_journal(drawn))
    best = run_map(state, 1).recommended.settings
    last = state.nodes[36]
    follower = replace(last, id=37, iteration=10, config={**last.config, **best})
    iteration = replace(state.iterations[9], number=10, nodes=(37,))
    state = replace(state, nodes={**state.nodes, 37: follower}, iterations={**state.iterations, 10: iteration})
    assert {row.node: row.region for row in foreseen(state)}[37] == "recommended"


@pytest.mark.parametrize("name", ["quickstart_llm", "trainings_0_llm"])
def test_a_transcript_has_an_account(root, tmp_path, name):
    search = (
        {"n_candidates": 4, "n_iter_block": 3, "n_blocks": 2} if "quick" in name else {"n_iter_block": 4, "n_blocks": 1}
    )
    exp = experiment(**search, proposer="replay")
    proposer = ReplayProposer(exp, tmp_path, root / "experiments" / "transcripts" / f"{name}.jsonl")
    state = go(tmp_path, exp, proposer, trainer=evaluate).state
    blocks = use_blocks(state)
    assert blocks and all(row.node in state.nodes for row in foreseen(state))
    assert write_report(tmp_path).is_file()


def test_the_recorded_quickstart_has_too_few_nodes_for_a_map(root):
    state = fold(read_journal(root / "experiments" / "results" / "quickstart"))
    assert foreseen(state) == [] and len(use_blocks(state)) == 1
