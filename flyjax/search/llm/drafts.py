"""Drafts of an optimiser, some of which a language model may override: the text shown to it, and merging its answer."""

from __future__ import annotations

from dataclasses import replace

from flyjax.search.llm.results_text import pairs
from flyjax.search.proposals.types import Context, Problem, Step


def max_overrides(share: float, n: int) -> int:
    """How many of `n` drafts may be overridden: the share, at least one."""
    return min(n, max(1, round(share * n)))


def drafts_text(context: Context) -> str:
    """The drafts, as the request shows them; empty where there are none."""
    if not context.drafts:
        return ""
    head = f"Drafts of the optimiser ({context.drafts[0].by}) for the next iteration, trained unless you override them:"
    lines = [f"- slot {k}: parent {p.parent}, {pairs(p.changes)}" for k, p in enumerate(context.drafts, 1)]
    return "\n".join([head, *lines])


def wanted_text(context: Context) -> str:
    """How many proposals are wanted, where the drafts fill the rest."""
    return (
        f"Proposals wanted: 0 to {context.overrides}. Each replaces the draft that its `slot` names; give none to keep "
        "all drafts. Override a draft where you have a better experiment, and one that is not among the drafts already."
    )


def merge(step: Step, context: Context, by: str) -> Step:
    """The drafts with the step's proposals in the slots that they name.

    A proposal without a place is a warning: it goes back to the model, and if that does not help the draft stays.
    """
    if context.drafts is None:
        return step
    slots, n, warnings = list(context.drafts), len(context.drafts), list(step.warnings)
    taken: set[int] = set()
    for number, proposal in enumerate(step.proposals, 1):
        slot, why = proposal.slot, ""
        if isinstance(slot, bool) or not isinstance(slot, int) or not 1 <= slot <= n:
            why = f"slot {str(slot)[:20]} is none of the drafts, 1 to {n}"
        elif slot in taken:
            why = f"slot {slot} is overridden twice"
        elif len(taken) == context.overrides:
            why = f"at most {context.overrides} of the {n} drafts may be overridden"
        else:
            taken.add(slot)
            slots[slot - 1] = replace(proposal, by=by)
        if why:
            warnings.append(Problem("overrides", f"number {number}: {why}", remedy="the optimiser's draft stays"))
    return replace(step, proposals=tuple(slots), warnings=tuple(warnings))
