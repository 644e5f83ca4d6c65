"""hybrid: an optimiser drafts every slot, the language model may override a share of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.search_contexts import context, experiment

from flyjax.search.llm.prompt import render_prompt
from flyjax.search.llm.proposer import merge
from flyjax.search.llm.schema import read, tools
from flyjax.search.proposals.types import Proposal, Step
from flyjax.search.proposals.validation import check_step
from flyjax.search.proposers.samplers import with_drafts

pytest.importorskip("cmaes")


@pytest.fixture
def asked(tmp_path):
    """A context of four slots, drafted."""
    return with_drafts(context(tmp_path, experiment(n_candidates=4)))


def override(slot, value=123.0, parent=1):
    return Proposal(parent, {"coeff_edge_diff": value}, "exploit", "mine", slot=slot)


def test_the_share_is_one_slot_at_least_and_never_more_than_there_are(tmp_path):
    for share, n, most in ((0.5, 4, 2), (0.5, 1, 1), (0.01, 8, 1), (1.0, 3, 3), (0.5, 0, 0)):
        asked = context(tmp_path, experiment(n_candidates=8, llm={"share": share}), n_proposals=n)
        assert with_drafts(asked).overrides == most


def test_the_prompt_lists_the_drafts_and_how_many_may_be_overridden(asked):
    text = render_prompt(asked)
    assert "Proposals wanted: 0 to 2." in text and "Drafts of the optimiser (cmaes)" in text
    for k, draft in enumerate(asked.drafts, 1):
        assert f"- slot {k}: parent {draft.parent}, " in text
    assert "slots that the table assigns" not in text  # the optimiser fills them
    slot = tools(asked.experiment, drafted=True)[1]["input_schema"]["properties"]["proposals"]["items"]["properties"]
    assert "slot" in slot and "slot" not in str(tools(asked.experiment))


def test_an_override_takes_its_slot_and_the_drafts_keep_theirs(asked):
    step = merge(Step((override(3),)), asked, "llm")
    assert [p.by for p in step.proposals] == ["cmaes", "cmaes", "llm", "cmaes"] and not step.warnings
    assert step.proposals[2].changes == {"coeff_edge_diff": 123.0}
    assert [p for k, p in enumerate(step.proposals) if k != 2] == [p for k, p in enumerate(asked.drafts) if k != 2]
    assert not check_step(replace(asked, new_nodes=()), step).problems
    assert merge(Step(()), asked, "llm").proposals == asked.drafts  # none is an answer


@pytest.mark.parametrize(
    "given, why",
    [
        ((override(0),), "slot 0 is none of the drafts, 1 to 4"),
        ((override(5),), "slot 5 is none of the drafts"),
        ((override(None),), "slot None is none of the drafts"),
        ((override(True),), "slot True is none of the drafts"),
        ((override("2" * 900),), "slot 22222222222222222222 is none of the drafts"),
        ((override(2), override(2, 200.0)), "slot 2 is overridden twice"),
        ((override(1), override(2, 200.0), override(3, 300.0)), "at most 2 of the 4 drafts may be overridden"),
    ],
)
def test_an_override_without_a_place_goes_back_and_the_draft_stays(asked, given, why):
    step = merge(Step(given), asked, "llm")
    assert any(why in str(warning) and warning.remedy == "the optimiser's draft stays" for warning in step.warnings)
    assert any(why in str(p) for p in check_step(replace(asked, new_nodes=()), step).problems)
    assert len(step.proposals) == 4 and sum(p.by == "llm" for p in step.proposals) == len(given) - 1


def test_the_slot_is_read_from_the_answer(asked):
    wanted = {
        "slot": 2.0,
        "parent": "1",
        "changes": [{"name": "coeff_edge_diff", "value": 7}],
        "strategy": "explore",
        "hypothesis": "h",
    }
    arguments = {"proposals": [wanted], "notes": "", "log": [], "chosen": 1, "reason": "r"}
    answer = {"stop_reason": "tool_use", "content": [{"type": "tool_use", "name": "submit_step", "input": arguments}]}
    assert read(answer, asked).proposals[0].slot == 2
