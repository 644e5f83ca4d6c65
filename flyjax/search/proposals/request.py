"""Request a step from a proposer and make sure that it can be carried out.

Errors go back to the proposer at most twice; what is still wrong then is replaced part by part, by an optimiser's
drafts where there are any, else by the rules, and recorded. A valid choice is never overridden; the one change that
code makes is the parent that the reversion check names, after the proposer was informed once.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from flyjax.search.journal.state import State
from flyjax.search.memory_notes import demote
from flyjax.search.policy.measures import measure
from flyjax.search.policy.ucb import scores
from flyjax.search.proposals.types import ROOT, BadAnswer, Context, Problem, Proposal, Proposer, Step
from flyjax.search.proposals.validation import (
    MAX_TEXT,
    Candidate,
    Checked,
    check_step,
    new_candidate,
    next_simulation,
    noun,
)
from flyjax.search.proposers.rules import RulesProposer
from flyjax.search.sanitize import clean_raw, one_line


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
    if "protocol_edit" in parts and edit and not edit.is_edit and context.is_block_end:
        # No edit was wanted, and none is made: the measures are the reason.
        measures = measure(context.state, context.block).describe()
        out["protocol_edit"] = replace(edit, reason=f"No changes needed: {measures}")
    for part in ("activity", "observation"):
        good = {n: text for n, text in getattr(step, part).items() if 0 < len(text) <= MAX_TEXT}
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


RETRIES = 2  # corrections a proposer may make


def request_step(
    context: Context,
    proposer: Proposer,
    state_now: Callable[[], State],
    record: Callable[..., None],
    silent: bool = False,
) -> dict[str, Any]:
    """A step that can be carried out, as the fields of its event: the proposer's, repaired where two corrections did
    not help.

    **Arguments:** `state_now` gives the journal's state, which grows by the refused answers; `record`
    journals; `silent` skips the proposer where there is nothing to decide.

    **Raises:** whatever the proposer raises beyond `BadAnswer` (`Paused`, `UserError`: the run stops).
    """
    if silent:
        return _accept(context, Step(()), check_step(context, Step(())), proposer.name, None)
    number = context.state.number
    context = replace(
        context, on_call=lambda usage: record("call_started", iteration=number, by=proposer.name, usage=usage)
    )
    if hasattr(proposer, "with_drafts"):  # an optimiser's drafts, the same for every attempt
        context = proposer.with_drafts(context)
    feedback: tuple[str, ...] = ()
    # Of a parent that the reversion check replaces; code would only give the same answer again.
    informed = not getattr(proposer, "corrects_answers", True)
    best: tuple[Step, Checked] | None = None  # the readable answer with the fewest problems, of several the newest
    for attempt in range(1 + RETRIES):
        step = None
        try:
            step = proposer.step(replace(context, state=state_now(), feedback=feedback))
            checked, usage, raw = check_step(context, step), step.usage, clean_raw(step.raw)
            if best is None or len(checked.problems) <= len(best[1].problems):
                best = step, checked
        except BadAnswer as bad:
            checked = Checked([Problem("answer", e) for e in bad.errors], {})
            usage, raw = bad.usage, clean_raw(bad.raw)
        if step is not None and not checked.problems and (not checked.reversions or informed or attempt == RETRIES):
            return _accept(context, step, checked, proposer.name, raw)
        informed = informed or not checked.problems
        feedback = tuple(map(str, checked.problems)) or checked.reversions
        if attempt < RETRIES:
            errors = list(feedback)
            record("proposal_rejected", iteration=number, by=proposer.name, errors=errors, raw=raw, usage=usage or {})
    fallbacks: list[str] = []
    by = proposer.name if best is not None else "rules"
    if best is not None and step is not best[0]:
        fallbacks.append(f"{checked.problems[0]}; the answer before it counts")
    found, checked = best or (None, checked)
    repaired, checked, lines = repair_step(context, found, checked.problems)
    own_edit = found is not None and repaired.protocol_edit is found.protocol_edit
    edit_by = by if own_edit else "rules"
    return _accept(
        context, replace(repaired, usage=usage or {}), checked, by, raw, (*fallbacks, *lines), edit_by=edit_by
    )


def _accept(
    context: Context,
    step: Step,
    checked: Checked,
    by: str,
    raw: Any,
    fallbacks: tuple[str, ...] = (),
    edit_by: str = "",
) -> dict[str, Any]:
    """What the journal keeps of a step: every text in its bounds, the candidates with their configurations.

    `demoted` lists principles of too few nodes, moved to the open questions; `edit_by` wrote the edit of the protocol.
    """

    def short(text: str) -> str:
        return one_line(text, MAX_TEXT)

    def log_lines(texts: Mapping[int, str]) -> dict[int, str]:
        return {n: short(text) for n, text in texts.items() if n in context.new_nodes}

    notes, demoted = demote("\n".join(line[:MAX_TEXT] for line in step.notes.splitlines()), sorted(context.state.nodes))
    edit, usd = step.protocol_edit, step.usage.get("usd") if step.usage else 0.0
    proposals = [
        {
            "parent": c.parent,
            "changes": c.changes,
            "config": c.config,
            "strategy": c.strategy,
            "hypothesis": short(c.hypothesis),
            "by": c.by or by,
            "parent_rule": _parent_rule(context, c),
            **({"proposed_from": c.proposed_from} if c.reversion else {}),
        }
        for c in checked.candidates.values()
    ]
    return {
        "block": context.block,
        "iter_in_block": context.iter_in_block,
        "by": by,
        "edit_by": edit_by or by,
        "raw": raw,
        "chosen": step.chosen,
        "reason": short(step.reason),
        "activity": log_lines(step.activity),
        "observation": log_lines(step.observation),
        "proposals": proposals,
        "simulation": next_simulation(context, step),
        "opens_block": context.next_opens_block,
        "notes": notes,
        "block_summary": short(step.block_summary),
        "protocol_edit": edit and {"old": edit.old, "new": edit.new, "reason": short(edit.reason)},
        "fallbacks": fallbacks,
        "reversions": checked.reversions,
        "demoted": demoted,
        "usage": step.usage,
        "cost": "not reported" if usd is None else usd,
    }


def _parent_rule(context: Context, candidate: Candidate) -> str:
    """The log's `Parent rule:` line: where the parent stands by UCB, and the strategy."""
    ranked = [s.node.id for s in scores(context.state, context.block, context.experiment.search.ucb_c)]
    if candidate.parent == ROOT:
        why = "a block begins: UCB file empty"
    elif candidate.reversion:
        why = f"reversion check: the value is node {candidate.parent}'s"
    elif candidate.parent == ranked[0]:
        why = "highest UCB"
    else:
        why = f"UCB rank {ranked.index(int(candidate.parent)) + 1} of {len(ranked)}"
    return f"{why} -> parent={candidate.parent}, {candidate.strategy}"
