"""A reversion takes back a value of an ancestor; the record of a node agrees with what was changed and trained.

`tests/data/quickstart_0_1_0.jsonl` holds the nodes of the quickstart that version 0.1.0 recorded. It gave nodes 10 and
22, which change one learning rate of nodes 7 and 20, to siblings of those that had the rate by chance.
"""

import json
from dataclasses import replace

import pytest
from support.search_contexts import context, experiment
from support.search_landscape import TEMPLATE
from support.search_landscape import experiment as landscape
from support.search_runs import constant, go

from flyjax.search.journal.journal import read_journal
from flyjax.search.journal.state import fold
from flyjax.search.policy import moves
from flyjax.search.proposals.request import request_step
from flyjax.search.proposals.types import Proposal, Step
from flyjax.search.proposals.validation import check_step
from flyjax.search.proposers import make_proposer
from flyjax.search.proposers.rules import RulesProposer, observe

W = "learning_rate_W_start"
#: Node -> (the node that was changed, how many parameters, the gain over it).
TRUE = {10: (7, {W: 0.002}, -0.069), 20: (14, None, 0.002), 22: (20, {W: 0.002}, -0.619)}


@pytest.fixture(scope="module")
def recorded(root):
    lines = (root / "tests" / "data" / "quickstart_0_1_0.jsonl").read_text().splitlines()
    exp = experiment(n_candidates=4)
    started = {"event": "run_started", "time": 0.0, "experiment": exp.model_dump(mode="json")}
    events = [started | {"protocol": TEMPLATE.read_text()}, *map(json.loads, lines)]
    full = exp.training.model_dump(mode="json")
    for entry in (n for e in events if e["event"] == "iteration_started" for n in e["nodes"]):
        entry["config"] = full | entry["config"]
    return exp, events


def before(exp, events, node, run_dir):
    """The context of the step that proposed a node."""
    (number,) = [e["iteration"] for e in events if node in [n["node"] for n in e.get("nodes", ())]]
    end = next(k for k, e in enumerate(events) if e["event"] == "iteration_started" and e["iteration"] == number)
    base, state = context(run_dir, exp, iterations=2), fold(events[:end])
    return replace(base, state=state, block=state.iteration.block, new_nodes=state.iteration.nodes, n_proposals=1)


def corrected(exp, events, run_dir):
    """The events with the parents and changes that today's check gives the three nodes."""
    events = json.loads(json.dumps(events))
    for entry in (n for e in events if e["event"] == "iteration_started" for n in e["nodes"]):
        if entry["node"] in TRUE:
            ctx = before(exp, events, entry["node"], run_dir)
            named = ctx.state.nodes[TRUE[entry["node"]][0]]
            changes = {k: v for k, v in entry["config"].items() if v != named.config[k]}
            lines = dict.fromkeys(ctx.new_nodes, "line")
            given = (Proposal(named.id, changes, hypothesis=entry["hypothesis"]),)
            step = Step(given, ctx.new_nodes[0], activity=lines, observation=lines)
            checked = check_step(ctx, step)
            assert not checked.problems and not checked.reversions
            assert checked.candidates[0].config == entry["config"]
            entry |= {"parent": checked.candidates[0].parent, "changes": checked.candidates[0].changes}
    return events


@pytest.mark.parametrize("node", TRUE)
def test_the_nodes_of_the_quickstart_are_what_their_hypotheses_say(recorded, node, tmp_path):
    state = fold(corrected(*recorded, tmp_path))
    parent, changes, gain = TRUE[node]
    made = state.nodes[node]
    assert made.parent == parent and made.changes == (changes or made.changes)
    assert {**state.nodes[parent].config, **made.changes} == made.config
    tried = made.hypothesis.removeprefix("try ").split(", ")
    assert sorted(tried) == sorted(f"{k}={v:g}" for k, v in made.changes.items())
    assert made.reward - state.nodes[parent].reward == pytest.approx(gain, abs=1e-3)
    assert f"against node {parent}" in observe(state, made)
    origin = state.nodes[parent].config
    (move,) = [m for m in moves.moves(state, made.block) if (m.changes, m.origin) == (made.changes, origin)]
    assert move.gain == made.reward - state.nodes[parent].reward


def test_what_helped_and_hurt_is_counted_against_what_was_changed(recorded, tmp_path):
    exp, events = recorded
    state = fold(corrected(exp, events, tmp_path))
    ctx = replace(context(tmp_path, exp, iterations=6), state=state, new_nodes=state.iteration.nodes, block=2)
    step = RulesProposer(exp).step(ctx)
    hurt = step.block_summary.partition("hurt: ")[2]
    assert f"{W}=0.002 (-0.62)" in hurt, hurt
    assert "coeff_edge_diff=986" not in hurt and "coeff_W_L1=4.79e-05" not in hurt, "the best node's own changes"
    notes = [line for line in step.notes.splitlines() if "block 2" in line]
    assert not any("raising coeff_edge_diff would help" in line for line in notes)


def test_a_reversion_of_the_rules_is_recorded_and_its_gain_counted_from_the_changed_node(tmp_path, monkeypatch):
    """Node 3 goes back to node 1's value: node 1 is its parent, but node 2 is what was changed."""
    exp = landscape(n_candidates=1, n_iter_block=4, n_blocks=1)
    drafts = iter([{"batch_size": 2, "noise_model_level": 0.1}, {"noise_model_level": 0.05}, {"coeff_edge_norm": 3.0}])
    monkeypatch.setattr(moves, "exploit", lambda *args: iter([next(drafts)]))
    rewards = {1: 0.3, 2: 0.7, 3: 0.5, 4: 0.4}
    state = go(tmp_path, exp, trainer=lambda plan: constant(rewards[plan.nodes[0].id])(plan)).state
    assert [n.parent for n in state.nodes.values()][:3] == ["root", 1, 1]
    assert state.nodes[3].changes == {"batch_size": 2} and state.nodes[3].proposed_from == 2
    steps = [e for e in read_journal(tmp_path) if e["event"] == "proposal"]
    assert [len(e["reversions"]) for e in steps] == [0, 0, 1, 0, 0]
    assert "proposal_rejected" not in [e["event"] for e in read_journal(tmp_path)], "code is not asked twice"
    (move,) = [m for m in moves.moves(state, 1) if m.changes == {"noise_model_level": 0.05}]
    assert move.gain == pytest.approx(-0.2) and "-0.200 against node 2" in observe(state, state.nodes[3])
    # A replay of the journal takes the same steps and keeps the same record.
    again = go(tmp_path / "again", exp, make_proposer("replay", landscape(transcript=str(tmp_path)))).state
    assert [(n.parent, n.changes, n.proposed_from) for n in again.nodes.values()] == [
        (n.parent, n.changes, n.proposed_from) for n in state.nodes.values()
    ]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_no_order_of_the_slots_makes_a_sibling_an_ancestor(tmp_path, order):
    """Two nodes of one iteration, one of them with the value that the other's child takes."""
    ctx = context(tmp_path, experiment(n_candidates=2), iterations=2)
    pair = ctx.state.iterations[2].nodes
    has, other = pair[order[0]], pair[order[1]]
    ctx.state.nodes[has] = replace(ctx.state.nodes[has], config={**ctx.state.nodes[has].config, "batch_size": 2})
    ctx = replace(ctx, n_proposals=1)
    lines = dict.fromkeys(ctx.new_nodes, "line")
    step = Step((Proposal(other, {"batch_size": 2}),), ctx.new_nodes[0], activity=lines, observation=lines)

    class Once:
        name = "once"

        def step(self, context):
            return step

    refused = []
    got = request_step(ctx, Once(), lambda: ctx.state, lambda *args, **fields: refused.append(fields))
    assert got["proposals"][0]["parent"] == other and got["proposals"][0]["changes"] == {"batch_size": 2}
    assert got["reversions"] == ()
