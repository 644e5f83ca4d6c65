"""What is accepted of several answers: the best of them, repaired part by part, each part under its author's name."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from support.search_contexts import context, experiment

from flyjax.search.llm.proposer import merge
from flyjax.search.proposals.request import request_step
from flyjax.search.proposals.types import BadAnswer, Problem, Proposal, ProtocolEdit, Step
from flyjax.search.proposers.samplers import with_drafts
from flyjax.search.protocol import revision

UNREADABLE = BadAnswer(["there was no tool call"])
DEFAULT = "| Default | **exploit** | Use highest UCB node, try new mutation |"


class Scripted:
    """One answer after the other, the last again and again; what could not be read is raised."""

    name = "llm"

    def __init__(self, *answers):
        self.answers, self.feedback = list(answers), []

    def step(self, ctx):
        self.feedback.append(ctx.feedback)
        answer = self.answers[min(len(self.feedback), len(self.answers)) - 1]
        if isinstance(answer, BadAnswer):
            raise answer
        return replace(merge(answer, ctx, self.name), raw=len(self.feedback))


def accepted(ctx, *answers, proposer=None):
    """(what was accepted, the errors of every answer that was refused)."""
    refused = []
    proposer = proposer or Scripted(*answers)
    got = request_step(ctx, proposer, lambda: ctx.state, lambda event, **fields: refused.append(fields["errors"]))
    return SimpleNamespace(**got), refused


def proposals(*values, parent=6):
    return tuple(Proposal(parent, {"coeff_edge_diff": float(v)}, "exploit", "h") for v in values)


def a_step(ctx, *values, **fields):
    known = {n: "line" for n in ctx.new_nodes}
    parent = "root" if ctx.next_opens_block else 6
    return Step(
        **{
            "proposals": proposals(*values, parent=parent),
            "chosen": ctx.new_nodes[-1],
            "reason": "r",
            "activity": known,
            "observation": known,
            **fields,
        }
    )


def values(got):
    return [p["changes"].get("coeff_edge_diff") for p in got.proposals]


def ending(ctx, **fields):
    same = {"visual_input_type": "scenes_texture", "n_frames": 2000, "delta_t": 0.02}
    edit = ProtocolEdit("", "", "branching 50 %, no plateau")
    return a_step(ctx, 11, 22, **{"block_summary": "s", "next_simulation": same, "protocol_edit": edit, **fields})


def test_proposals_outlive_a_missing_log_line(tmp_path):
    ctx = context(tmp_path, iterations=2)
    got, refused = accepted(ctx, a_step(ctx, 11, 22, 33, activity={}, observation={4: "seen"}), UNREADABLE)
    assert values(got) == [11, 22, 33] and got.by == "llm" and {p["by"] for p in got.proposals} == {"llm"}
    assert "log: node 4 has no activity" in refused[0] and got.observation[4] == "seen" and got.activity[4]
    assert "log: node 5 has no observation; replaced by the rules" in got.fallbacks
    assert got.fallbacks[0] == "answer: there was no tool call; the answer before it counts"


def test_a_lawful_answer_is_not_given_up_for_a_worse_correction(tmp_path):
    """The first is lawful, with another parent by the reversion check in one slot; the corrections break that slot."""
    ctx = context(tmp_path, iterations=2)
    nodes = ctx.state.nodes
    nodes[6] = replace(nodes[6], config={**nodes[6].config, "coeff_edge_norm": 3.0})
    back = nodes[1].config["coeff_edge_diff"]
    broken = a_step(ctx, 99_999, 22, 33)
    got, refused = accepted(ctx, a_step(ctx, back, 22, 33), broken)
    assert "reversion check" in refused[0][0] and "outside its range" in refused[1][0]
    assert (
        [p["by"] for p in got.proposals] == ["llm"] * 3 and len(got.reversions) == 1 and got.proposals[0]["parent"] == 1
    )
    assert values(got)[1:] == [22, 33] and got.fallbacks[0].endswith("the answer before it counts")
    # Of two that are equally bad the newest counts, and what it cost is the last answer's.
    got, _ = accepted(ctx, a_step(ctx, 11, 99_999, 33), a_step(ctx, 99_999, 44, 55), UNREADABLE)
    assert values(got)[1:] == [44, 55] and got.proposals[0]["by"] == "rules"


@pytest.mark.parametrize(
    ("edit", "by", "made"),
    [
        (ProtocolEdit(DEFAULT, DEFAULT + "\n\nSmall steps.", "steps were large"), "llm", True),
        (ProtocolEdit("nowhere", "x", "steps were large"), "rules", True),
        (ProtocolEdit("", "", "branching 50 %, no plateau"), "llm", False),
        (ProtocolEdit("", "", "No changes needed."), "rules", False),
    ],
)
def test_an_edit_is_its_authors_and_none_stays_none(tmp_path, monkeypatch, edit, by, made):
    monkeypatch.setattr(revision, "CHANCE", 1.0)  # so that the rules edit after a short block
    ctx = context(tmp_path, iterations=3)
    got, _ = accepted(ctx, ending(ctx, protocol_edit=edit))
    assert got.by == "llm" and got.edit_by == by and bool(got.protocol_edit["old"]) == made
    if not made and by == "rules":
        reason = got.protocol_edit["reason"]
        assert reason.startswith("No changes needed: 3 iterations")
        assert "branching rate 0%" in reason and "improvement" in reason
    got, _ = accepted(ctx, UNREADABLE)
    assert got.by == got.edit_by == "rules"


def test_a_simulation_with_fields_missing_goes_back_and_then_keeps_its_values(tmp_path):
    ctx = context(tmp_path, iterations=3)
    missing = Problem("next_simulation", "delta_t is missing, every field is wanted", remedy="it keeps its value")
    got, refused = accepted(ctx, ending(ctx, next_simulation={"n_frames": 3000}, warnings=(missing,)))
    assert len(refused) == 2 and any("delta_t is missing" in line for line in refused[0])
    assert (
        got.simulation["n_frames"] == 3000
        and got.simulation["visual_input_type"] == "scenes_texture"
        and values(got) == [11, 22]
    )
    assert "next_simulation: delta_t is missing, every field is wanted; it keeps its value" in got.fallbacks


# --- an optimiser's drafts ---


class Drafting(Scripted):
    name = "hybrid"

    def with_drafts(self, ctx):
        return with_drafts(ctx)


def override(slot, value):
    return Proposal(6, {"coeff_edge_diff": value}, "exploit", "mine", slot=slot)


@pytest.fixture
def drafted(tmp_path):
    pytest.importorskip("cmaes")
    return context(tmp_path, experiment(n_candidates=4), iterations=2)


def test_where_an_override_fails_the_draft_stays(drafted):
    ctx = replace(drafted, new_nodes=())
    drafts = with_drafts(ctx).drafts
    got, refused = accepted(
        ctx, proposer=Drafting(a_step(drafted, proposals=(override(3, 99_999.0),), activity={}, chosen=None))
    )
    assert refused[0][0].startswith("slot 3: coeff_edge_diff=") and len(refused) == 2
    assert [p["by"] for p in got.proposals] == ["cmaes"] * 4 and got.by == "hybrid"
    assert [p["changes"] for p in got.proposals] == [p.changes for p in drafts]
    assert any("slot 3" in line and "the optimiser's draft" in line for line in got.fallbacks)
    # An answer that cannot be read costs the optimiser nothing either.
    got, _ = accepted(ctx, proposer=Drafting(UNREADABLE))
    assert [p["changes"] for p in got.proposals] == [p.changes for p in drafts] and got.by == "rules"


def test_all_that_was_missed_is_recorded(drafted):
    """An override without a place and a log line that is missing: neither record takes the other's place."""
    answer = a_step(drafted, proposals=(override(9, 123.0),), observation={})
    got, _ = accepted(drafted, proposer=Drafting(answer))
    assert any(
        "slot 9 is none of the drafts" in line and line.endswith("the optimiser's draft stays")
        for line in got.fallbacks
    )
    assert sum("has no observation; replaced by the rules" in line for line in got.fallbacks) == len(drafted.new_nodes)
