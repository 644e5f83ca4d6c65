"""Drafts of an optimiser, some of which a language model may override: what `hybrid` asks and how its answer is read."""

from __future__ import annotations

from dataclasses import replace

from flyjax.search.llm.results_text import pairs
from flyjax.search.proposals.types import Context, Problem, Proposal, Step


def allowed(share: float, n: int) -> int:
    """How many of `n` drafts may be overridden: the share, one at least."""
    return min(n, max(1, round(share * n)))


def drafts_text(context: Context) -> str:
    """The drafts, as the request shows them; empty where there are none."""
    if not context.drafts:
        return ""
    lines = [
        f"Drafts of the optimiser ({context.drafts[0].by}) for the next iteration, trained as they are unless you override them:"
    ]
    lines += [f"- slot {k}: parent {p.parent}, {pairs(p.changes)}" for k, p in enumerate(context.drafts, 1)]
    return "\n".join(lines)


def wanted_text(context: Context) -> str:
    """How many proposals are wanted, where the drafts fill the rest."""
    return (
        f"Proposals wanted: 0 to {context.overrides}. Each takes the place of the draft that its `slot` names; give none to leave "
        "the optimiser its way. Override a draft where you have a better experiment, and one that it does not hold already."
    )


def _refused(context: Context, given: tuple[Proposal, ...]) -> dict[int, str]:
    """Index of each override that no draft can make place for -> why."""
    n, out, seen = len(context.drafts or ()), {}, set()
    for k, proposal in enumerate(given):
        slot = proposal.slot
        if isinstance(slot, bool) or not isinstance(slot, int) or not 1 <= slot <= n:
            out[k] = f"number {k + 1}: slot {str(slot)[:20]} is none of the drafts, 1 to {n}"
        elif slot in seen:
            out[k] = f"number {k + 1}: slot {slot} is overridden twice"
        elif len(seen) == context.overrides:
            out[k] = f"number {k + 1}: at most {context.overrides} of the {n} drafts may be overridden"
        else:
            seen.add(slot)
    return out


def merge(step: Step, context: Context, by: str) -> Step:
    """The drafts with the step's proposals in the slots that they name.

    What cannot be placed is a flaw: it goes back to the model, and where that does not help the draft stands.
    """
    if context.drafts is None:
        return step
    refused = _refused(context, step.proposals)
    slots = list(context.drafts)
    for k, proposal in enumerate(step.proposals):
        if k not in refused:
            slots[proposal.slot - 1] = replace(proposal, by=by)
    flaws = tuple(Problem("overrides", why, remedy="the optimiser's draft stands") for why in refused.values())
    return replace(step, proposals=tuple(slots), flaws=(*step.flaws, *flaws))
