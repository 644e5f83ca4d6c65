"""Replace what is wrong with a step, part by part: by an optimiser's drafts where there are any, else by the rules."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flyjax.search.policy.measures import measure
from flyjax.search.proposals.space import Candidate, next_simulation
from flyjax.search.proposals.types import Context, Problem, Proposal, ProtocolEdit, Step
from flyjax.search.proposals.validation import Checked, check_step, is_line, new_candidate, noun
from flyjax.search.proposers.rules import RulesProposer


def repair_step(context: Context, step: Step | None, problems: list[Problem]) -> tuple[Step, Checked, list[str]]:
    """(the repaired step, its check, a line for each repair).

    Without a readable `step` the rules answer. There are fewer proposals than wanted only where the space
    holds no new configuration.
    """
    rules = RulesProposer(context.experiment)
    lines = [f"{p}; {p.remedy or _remedy(context, step, p)}" for p in problems]
    reference = rules.step(replace(context, feedback=()))
    out = reference
    if step is None and context.drafts:  # the drafts do not depend on the answer
        out = replace(reference, proposals=_fill_slots(context, rules, reference, {})[0])
    elif step is not None:
        parts = {p.part for p in problems if not p.remedy}
        out = replace(step, **_replaced_parts(context, step, reference, parts), warnings=())
        if parts & {"proposals", "next_simulation"}:
            refused = {p.slot for p in problems if p.part == "proposals"}
            good = {k: p for k, p in enumerate(step.proposals[: context.n_proposals]) if k not in refused}
            proposals, more = _fill_slots(context, rules, out, good)
            out, lines = replace(out, proposals=proposals), lines + more
    checked = check_step(replace(context, n_proposals=len(out.proposals)), out)
    if not checked.problems or out is reference:
        return out, checked, lines
    lines.append("the remaining parts of the answer did not fit together; the rules answered instead")
    return reference, check_step(context, reference), lines


def _replaced_parts(context: Context, step: Step, reference: Step, parts: set[str]) -> dict[str, Any]:
    """Field of the step -> its replacement, for every bad part but the proposals."""
    names = ("chosen", "reason", "next_simulation", "protocol_edit", "block_summary", "notes")
    out = {name: getattr(reference, name) for name in names if name in parts}
    edit = step.protocol_edit
    if "protocol_edit" in parts and isinstance(edit, ProtocolEdit) and not edit.is_edit and context.is_block_end:
        # No edit was wanted, and none is made: the measures are the reason.
        measures = measure(context.state, context.block).describe()
        out["protocol_edit"] = replace(edit, reason=f"No changes needed: {measures}")
    for part in parts & {"activity", "observation"}:
        given = getattr(step, part)
        good = {n: text for n, text in given.items() if is_line(text)} if isinstance(given, Mapping) else {}
        out[part] = {**getattr(reference, part), **good}
    return out


def _remedy(context: Context, step: Step | None, problem: Problem) -> str:
    if problem.part == "proposals" and problem.slot is None and step and len(step.proposals) > context.n_proposals:
        return "the surplus is omitted"
    if problem.part == "proposals" and problem.slot is not None and context.drafts:
        return "replaced by the optimiser's draft, else by the rules"
    return "replaced by the rules"


def _fill_slots(
    context: Context, rules: RulesProposer, step: Step, good: Mapping[int, Proposal]
) -> tuple[tuple[Proposal, ...], list[str]]:
    """(the good proposals in their slots, in the others the optimiser's drafts, then the rules' proposals; a line
    for each slot that had to change although no problem named it)."""
    lines, word, simulation = [], noun(context), next_simulation(context, step)
    placed: dict[int, Proposal] = {}
    taken: dict[str, dict[str, Any]] = {}

    def place(slot: int, proposal: Proposal) -> None:
        candidate: Candidate = new_candidate(context, proposal, simulation, taken)
        placed[slot], taken[f"{word} {slot + 1}"] = proposal, candidate.config

    for slot, proposal in good.items():
        try:  # another simulation may have made it a repetition
            place(slot, proposal)
        except ValueError as error:
            lines.append(f"{word} {slot + 1}: {error}; replaced by the rules")
    for slot, draft in enumerate(context.drafts or ()):
        if slot not in placed and slot < context.n_proposals:
            with contextlib.suppress(ValueError):
                place(slot, draft)
    fresh = iter(rules.propose(context, context.n_proposals - len(placed), list(taken.values()), simulation))
    slots = [placed.get(k) or next(fresh, None) for k in range(context.n_proposals)]
    lines += [f"proposal {k + 1}: the space holds nothing new; it is omitted" for k, p in enumerate(slots) if p is None]
    return tuple(p if k in placed else replace(p, by="rules") for k, p in enumerate(slots) if p is not None), lines
