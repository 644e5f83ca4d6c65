"""A search from its beginning to its end: its record, its rewards, and the protocol at K = 1."""

import pytest
from support.search_landscape import evaluate, experiment
from support.search_runs import SMALL, facts, go, renderings

from flyjax.config import parse_experiment
from flyjax.search.journal.journal import read_journal
from flyjax.search.journal.state import fold
from flyjax.search.policy.measures import noise_floor
from flyjax.search.policy.ucb import scores


def test_events_come_in_order(uninterrupted):
    names = [e["event"] for e in read_journal(uninterrupted)]
    iteration = ["iteration_started", "node_finished", "node_finished", "proposal", "choice"]
    edits = [e["block"] for e in read_journal(uninterrupted) if e["event"] == "protocol_edited"]
    blocks = []
    for block in (1, 2):
        blocks += iteration * 3 + ["block_ended"] + ["protocol_edited"] * (block in edits)
    assert 1 in edits and names == ["run_started", "proposal", *blocks, "run_finished"]
    assert all(e["schema"] == 1 and e["time"] > 0 for e in read_journal(uninterrupted))
    assert "NaN" not in (uninterrupted / "journal.jsonl").read_text()
    finished = next(e for e in read_journal(uninterrupted) if e["event"] == "node_finished")
    assert {"node", "parent", "metrics"} <= set(finished)
    proposal = next(e for e in read_journal(uninterrupted) if e["event"] == "proposal")
    assert proposal["by"] == "rules" and proposal["cost"] == 0.0 and {"raw", "proposals", "usage"} <= set(proposal)


def test_every_block_begins_at_the_root_and_stays_in_its_simulation(uninterrupted):
    state = fold(read_journal(uninterrupted))
    assert [b.nodes[0] for b in state.blocks.values()] == [1, 7]
    for block in state.blocks.values():
        first = [state.nodes[i] for i in block.nodes[:2]]
        assert [n.parent for n in first] == ["root", "root"] and first[0].changes == {}
        assert all(isinstance(state.nodes[i].parent, int) for i in block.nodes[2:])
        assert all(state.nodes[i].parent in block.nodes for i in block.nodes[2:])
    assert [b.simulation["delta_t"] for b in state.blocks.values()] == [0.02, 0.01]
    # The roots are run twice, so that their spread says what noise is; no seed comes twice.
    assert [len(n.seeds) for n in state.nodes.values()] == [2, 1, 1, 1, 1, 1] * 2
    assert len({s for n in state.nodes.values() for s in n.seeds}) == len(state.nodes) + 2
    assert "noise floor 0.00" in (uninterrupted / "analysis.md").read_text()


def test_renderings_are_rebuilt_from_the_journal_alone(uninterrupted, tmp_path):
    (tmp_path / "journal.jsonl").write_bytes((uninterrupted / "journal.jsonl").read_bytes())
    go(tmp_path, experiment(**SMALL), trainer=None)
    assert renderings(tmp_path) == renderings(uninterrupted)
    assert facts(tmp_path) == facts(uninterrupted)
    # A finished run that is started again adds nothing.
    assert read_journal(tmp_path) == read_journal(uninterrupted)


def test_a_seed_without_a_result_counts_as_zero_in_the_reward(tmp_path):
    def half(plan):
        out = {}
        for node in plan.nodes:
            values = [0.9] + [None] * (len(node.seeds) - 1) if node.id != 2 else [0.4, 0.5]
            known = [v for v in values if v is not None]
            metrics = {"connectivity_R2": sum(known) / len(known), "reasons": {}}
            out[node.id] = {"metrics": metrics, "per_seed": [{"connectivity_R2": v} for v in values]}
        return out

    base = experiment(n_candidates=2, n_iter_block=2, n_blocks=1).model_dump(mode="json")
    exp = parse_experiment({**base, "training": {**base["training"], "n_seeds": 2}})
    state = go(tmp_path, exp, trainer=half).state
    root, other = state.nodes[1], state.nodes[2]
    assert (
        root.metrics["connectivity_R2"] == 0.9
        and root.reward == 0.45
        and root.spread["min"] == 0
        and root.spread["failed_seeds"] == 1
    )
    assert other.reward == pytest.approx(0.45) and "failed_seeds" not in other.spread
    assert noise_floor(state, 1) == pytest.approx(0.05), "of two seeds each; a failed seed does not measure the noise"
    log = (tmp_path / "analysis.md").read_text()
    assert "R2 0.450 (1 of 2 seeds without a result count as 0), the root" in log
    assert "R2=0.450" in "".join(s.line for s in scores(state, 1))


def test_small_gains_are_called_noise_in_log_and_measures(tmp_path):
    def trainer(plan):
        out = {}
        for node in plan.nodes:
            values = [0.50, 0.54] if node.strategy == "root" else [0.52 + (0.03 if node.id < 4 else 0.3)]
            out[node.id] = {
                "metrics": {"connectivity_R2": sum(values) / len(values)},
                "per_seed": [{"connectivity_R2": v} for v in values],
            }
        return out

    state = go(tmp_path, experiment(n_candidates=1, n_iter_block=4, n_blocks=1), trainer=trainer).state
    assert noise_floor(state, 1) == pytest.approx(0.04 / 2**0.5)  # so 0.03 is noise, 0.27 is not
    assert "within twice the spread" in state.nodes[2].observation and "within twice" not in state.nodes[4].observation
    assert "repetitions spread by 0.028" in state.nodes[1].observation
    text = state.blocks[1].ended["measures"]["text"]
    assert (
        "improvement rate 67%" in text
        and "1 of the improvements noise" in text
        and text in (tmp_path / "analysis.md").read_text()
    )


def test_failed_nodes_do_not_stop_the_run(tmp_path):
    def failing(plan):
        out = evaluate(plan)
        for node in plan.nodes:
            if node.id % 3 == 2:
                out[node.id] = {"metrics": None, "reason": "the loss was not finite at step 12"}
            if node.id % 5 == 4:
                del out[node.id]
            if node.id == 7:
                out[node.id]["metrics"]["connectivity_R2"] = float("nan")
        return out

    out = go(tmp_path, experiment(n_candidates=3, n_iter_block=3), trainer=failing)
    state = out.state
    assert out.status == "finished" and len(state.nodes) == 18
    assert state.nodes[2].status == "failed" and "step 12" in state.nodes[2].reason and state.nodes[2].metrics is None
    assert "no result" in state.nodes[4].reason
    ends = [e for e in read_journal(tmp_path) if e["event"] in ("node_failed", "node_finished")]
    assert [(e["node"], e["parent"]) for e in ends] == [(n.id, n.parent) for n in state.nodes.values()]
    assert state.nodes[7].status == "finished" and state.nodes[7].reward is None
    assert "connectivity_R2=null" in (tmp_path / "analysis.md").read_text()
    everything = go(tmp_path / "all", experiment(**SMALL), trainer=lambda plan: {}).state
    assert all(n.status == "failed" for n in everything.nodes.values()) and everything.finished == "2 blocks done"


def test_one_candidate_follows_the_protocol_line_by_line(tmp_path):
    """Values played by hand; parents, strategies and score lines as the protocol's own rules give them."""
    values = iter([0.5, 0.95, 0.94, 0.3, 0.93, 0.2, 0.92, 0.91])

    def played(plan):
        assert len(plan.nodes) == 1
        return {plan.nodes[0].id: {"metrics": {"connectivity_R2": next(values)}}}

    scores = {}

    def look(state, number):
        scores[number] = (tmp_path / "ucb_scores.txt").read_text()

    exp = experiment(n_candidates=1, n_iter_block=8, n_blocks=1)
    state = go(tmp_path, exp, trainer=played, on_iteration=look).state
    got = [(n.id, n.parent, n.strategy) for n in state.nodes.values()]
    assert got == [
        (1, "root", "root"),
        (2, 1, "exploit"),
        (3, 2, "robustness-test"),  # node 2 is the best good config
        (4, 1, "explore"),  # two successes in a row; nodes 2 and 3 are of the last n/4 = 2 iterations
        (5, 3, "exploit"),  # the highest UCB: a leaf of R2 0.94
        (6, 5, "exploit"),
        (7, 5, "exploit"),  # 0.93 + 1.414 sqrt(ln 6 / 2) = 2.27 against 2.19 for leaf 4 and 2.09 for leaf 6
        (8, 7, "exploit"),
    ]
    assert scores[1] == "Node 1: UCB=0.500, parent=root, visits=1, R2=0.500 [CURRENT]\n"
    assert scores[2].splitlines() == [
        "Node 2: UCB=2.127, parent=1, visits=1, R2=0.950 [CURRENT]",
        "Node 1: UCB=1.332, parent=root, visits=2, R2=0.500",
    ]
    assert scores[8] == "", "empty at the block boundary"
    assert state.nodes[3].changes == {} and state.nodes[3].seeds != state.nodes[2].seeds
    log = (tmp_path / "analysis.md").read_text()
    assert log.count("\n## Iter ") == 8 and "## Simulation Block 1 Summary (iters 1-8)" in log
