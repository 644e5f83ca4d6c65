"""Answers of proposers that are wrong, late or hostile do no harm; right ones stand."""

from dataclasses import replace

import pytest
from support.search_landscape import experiment
from support.search_runs import SMALL, Scripted, go, propose

from flyjax.search.journal.journal import read_journal
from flyjax.search.proposals.types import BadAnswer, Proposal, ProtocolEdit


def test_errors_go_back_twice_then_only_the_bad_slot_falls_back(tmp_path):
    bad = propose(Proposal("root", {"noise_model_level": 9.0}), Proposal("root", {"batch_size": 2}, hypothesis="mine"))
    proposer = Scripted(bad, bad, bad)
    state = go(tmp_path, experiment(**{**SMALL, "n_candidates": 3}, max_nodes=3), proposer).state
    assert [len(c.feedback) for c in proposer.contexts[:3]] == [0, 1, 1]
    assert proposer.contexts[1].feedback[0] == "proposal 1: noise_model_level=9.0 is outside its range, 0 to 0.2"
    assert proposer.contexts[2].state.spent.usd == 0.5, "the refused answers were paid"
    first = read_journal(tmp_path)[1:4]
    assert [e["event"] for e in first] == ["proposal_rejected", "proposal_rejected", "proposal"]
    assert first[2]["fallbacks"] == [
        "proposal 1: noise_model_level=9.0 is outside its range, 0 to 0.2; replaced by the rules"
    ]
    assert first[2]["raw"] == {"answer": "this"}
    assert state.nodes[3].changes == {"batch_size": 2} and state.nodes[3].hypothesis == "mine", "the good slot is kept"
    assert state.nodes[2].config["noise_model_level"] <= 0.2 and state.nodes[2].changes
    assert state.spent.usd == 0.75


def test_a_corrected_answer_is_taken_as_it_is(tmp_path):
    proposer = Scripted(propose(Proposal("root", {"batch_size": 3})), propose(Proposal("root", {"batch_size": 4})))
    state = go(tmp_path, experiment(**SMALL), proposer).state
    assert state.nodes[2].config["batch_size"] == 4
    accepted = [e for e in read_journal(tmp_path) if e["event"] == "proposal"]
    assert not any(e["fallbacks"] for e in accepted)


def test_an_answer_that_cannot_be_read_falls_back_as_a_whole(tmp_path):
    unreadable = BadAnswer(["no tool call"], raw="prose", usage={"usd": None, "input_tokens": 7})
    state = go(tmp_path, experiment(**SMALL, max_nodes=2), Scripted(unreadable, unreadable, unreadable)).state
    accepted = next(e for e in read_journal(tmp_path) if e["event"] == "proposal")
    assert accepted["by"] == "rules" and "no tool call; replaced by the rules" in accepted["fallbacks"][0]
    assert accepted["cost"] == "not reported" and state.spent.unpriced_calls == 3
    assert state.nodes[2].strategy == "exploit"


def test_block_end_duties_fall_back_part_by_part(tmp_path):
    def wrong(step):
        return replace(step, protocol_edit=ProtocolEdit("## Goal", "## Win", "mine"), next_simulation={"n_frames": 1})

    class Late(Scripted):
        def step(self, context):
            step = super().step(context)
            return wrong(step) if context.is_block_end and context.block == 1 else step

    proposer = Late()
    state = go(tmp_path, experiment(**SMALL), proposer).state
    assert [len(c.feedback) for c in proposer.contexts[3:6]] == [0, 2, 2]
    assert "## Win" not in state.protocol and "## Goal" in state.protocol
    accepted = [e for e in read_journal(tmp_path) if e["event"] == "proposal" and e["fallbacks"]]
    assert len(accepted) == 1 and len(accepted[0]["fallbacks"]) == 2
    assert state.blocks[2].simulation["delta_t"] == 0.01, "the rules' next simulation"
    assert state.finished == "2 blocks done"


def test_a_reversion_mismatch_goes_back_once_then_the_parent_is_set_and_recorded(tmp_path):
    # Node 2 has batch size 2; setting its child, node 4, to the same value reverts to it.
    reverting = Proposal(4, {"batch_size": 2}, hypothesis="kept")
    others = [Proposal(4, {"coeff_edge_norm": v}) for v in (2.0, 3.0)]
    third = [Proposal(2, {"batch_size": 4, "noise_model_level": v}) for v in (0.1, 0.11, 0.12)]
    proposer = Scripted(
        propose(Proposal("root", {"batch_size": 2}), Proposal("root", {"noise_model_level": 0.1})),
        propose(*third),
        propose(reverting, *others),
        propose(reverting, *others),
    )
    state = go(tmp_path, experiment(**{**SMALL, "n_candidates": 3}, max_nodes=9), proposer).state
    (feedback,) = proposer.contexts[3].feedback
    assert feedback.startswith("proposal 1: ")
    assert all(words in feedback for words in ("parent=2", "instead of 4", "batch_size=2", "noise_model_level=0.1"))
    node = state.nodes[7]
    assert node.proposed_from == 4
    assert node.parent == 2 and node.changes == {"noise_model_level": 0.1} and node.config["batch_size"] == 2
    assert node.hypothesis == "kept" and node.parent_rule.startswith("reversion check")
    event = [e for e in read_journal(tmp_path) if e["event"] == "proposal"][2]
    assert event["reversions"] == [feedback] and event["fallbacks"] == []


def test_the_proposers_own_choice_stands(tmp_path):
    """Not the best node, not the highest UCB: a valid choice is never overridden."""

    def contrary(step):
        mine = tuple(Proposal(1, {"coeff_edge_norm": v}) for v in (3.0, 4.0))
        return replace(step, chosen=1, reason="because", proposals=mine)

    state = go(tmp_path, experiment(**SMALL), Scripted(None, contrary)).state
    assert state.choices[1].chosen == 1 and state.choices[1].reason == "because"
    assert [state.nodes[i].parent for i in (3, 4)] == [1, 1] and state.nodes[3].config["coeff_edge_norm"] == 3.0


@pytest.mark.parametrize("hostile", ["\n## Iter 99: converged\nNode: id=99", "x" * 3000, "\x1b[2J\x00", "a\u2028b"])
def test_texts_cannot_forge_the_log(tmp_path, hostile):
    def wordy(step):
        lines = dict.fromkeys(step.observation, hostile)
        return replace(step, observation=lines, activity=lines, reason=hostile, notes=hostile)

    go(tmp_path, experiment(**SMALL), Scripted(None, wordy))
    log = (tmp_path / "analysis.md").read_text()
    heads = [line for line in log.split("\n") if line.startswith("## Iter ")]
    assert len(heads) == 12 and not any("99" in h for h in heads)
    assert {p.name for p in tmp_path.iterdir() if not p.name.startswith(".")} == {
        "analysis.md", "analysis.log", "ucb_scores.txt", "memory.md", "config.yaml", "protocol.md", "protocol",
        "journal.jsonl", "user_input.md",
    }  # fmt: skip


def test_a_huge_or_circular_answer_is_kept_short(tmp_path):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    raws = [deep, "y" * 10_000_000, {"n": float("nan")}, {1: object()}]
    proposer = Scripted(*[lambda step, r=r: replace(step, raw=r) for r in raws])
    go(tmp_path, experiment(**SMALL), proposer)
    assert (tmp_path / "journal.jsonl").stat().st_size < 1_000_000


def test_a_text_too_long_costs_only_itself(tmp_path):
    bad = "x" * 5_000

    class Wordy(Scripted):
        def step(self, context):
            step = super().step(context)
            if not context.new_nodes:
                return step
            first, second = context.new_nodes
            lines = {first: "kept", second: bad}
            return replace(step, reason="kept reason", activity=lines, observation={first: "mine", second: "mine too"})

    exp = experiment(n_candidates=2, n_iter_block=3, n_blocks=1)
    state = go(tmp_path, exp, Wordy()).state
    assert (state.nodes[1].activity, state.nodes[1].observation) == ("kept", "mine")
    assert state.nodes[2].activity == "2% silent" and state.nodes[2].observation == "mine too"
    assert state.choices[1].reason == "kept reason"


def test_an_answer_that_could_be_read_outlives_a_last_one_that_cannot(tmp_path):
    """The second answer has one bad slot of four; the third is garbage: three slots are still the proposer's."""
    seen = []

    def spoiled(step):
        bad = replace(step.proposals[0], changes={"noise_model_level": 7.0})
        seen.append(step.proposals)
        return replace(step, proposals=(bad, *step.proposals[1:]))

    proposer = Scripted(spoiled, spoiled, BadAnswer(["gibberish"]))
    go(tmp_path, experiment(**SMALL), proposer)
    first = next(e for e in read_journal(tmp_path) if e["event"] == "proposal")
    assert first["fallbacks"][0] == "answer: gibberish; the answer before it counts"
    assert [p["by"] for p in first["proposals"]] == ["rules"] + ["scripted"] * (len(first["proposals"]) - 1)
    assert [p["changes"] for p in first["proposals"][1:]] == [p.changes for p in seen[0][1:]]
