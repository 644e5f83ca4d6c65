"""Request a step from a proposer and make sure that it can be carried out.

Errors go back to the proposer at most twice; what is still wrong then is replaced part by part
(`repair.repair_step`) and recorded. A valid choice is never overridden; the one change that code makes is the
parent that the reversion check names, after the proposer was informed once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flyjax.search.journal.state import State
from flyjax.search.memory_notes import demote
from flyjax.search.policy.ucb import scores
from flyjax.search.proposals.repair import repair_step
from flyjax.search.proposals.space import MAX_TEXT, Candidate, next_simulation
from flyjax.search.proposals.types import ROOT, BadAnswer, Context, Problem, Proposer, Step
from flyjax.search.proposals.validation import Checked, check_step
from flyjax.search.sanitize import clean_raw, one_line

RETRIES = 2  # corrections a proposer may make


@dataclass(frozen=True)
class Accepted:
    """A step that can be carried out, in the journal's form."""

    step: Step
    by: str
    raw: Any
    proposals: tuple[dict[str, Any], ...]  # parent, changes, config, strategy, hypothesis, by, parent_rule
    simulation: dict[str, Any]  # of the next iteration
    fallbacks: tuple[str, ...] = ()
    reversions: tuple[str, ...] = ()
    demoted: tuple[str, ...] = ()  # principles of too few nodes, moved to the open questions
    edit_by: str = ""  # who worded the edit of the protocol: the rules, where the answer's own could not be used


def request_step(
    context: Context,
    proposer: Proposer,
    state_now: Callable[[], State],
    record: Callable[..., None],
    silent: bool = False,
) -> Accepted:
    """A step that can be carried out: the proposer's, repaired where two corrections did not help.

    **Arguments:** `state_now` gives the journal's state, which grows by the refused answers; `record`
    journals; `silent` skips the proposer where there is nothing to decide.

    **Raises:** whatever the proposer raises beyond `BadAnswer` (`Paused`, `UserError`: the run stops).
    """
    if silent:
        return _accept(context, Step(()), check_step(context, Step(())), proposer.name, None)
    number = context.state.iteration.number if context.state.iteration else 0
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
) -> Accepted:
    """The step with every text in its bounds, its candidates as the journal keeps them."""
    notes, demoted = demote("\n".join(line[:MAX_TEXT] for line in step.notes.splitlines()), sorted(context.state.nodes))
    edit = step.protocol_edit and replace(step.protocol_edit, reason=one_line(step.protocol_edit.reason, MAX_TEXT))

    def log_lines(texts: Mapping[int, str]) -> dict[int, str]:
        return {n: one_line(text, MAX_TEXT) for n, text in texts.items() if n in context.new_nodes}

    tidy = replace(
        step,
        reason=one_line(step.reason, MAX_TEXT),
        block_summary=one_line(step.block_summary, MAX_TEXT),
        activity=log_lines(step.activity),
        observation=log_lines(step.observation),
        notes=notes,
        protocol_edit=edit,
    )
    proposals = tuple(
        {
            "parent": c.parent,
            "changes": c.changes,
            "config": c.config,
            "strategy": c.strategy,
            "hypothesis": one_line(c.hypothesis, MAX_TEXT),
            "by": c.by or by,
            "parent_rule": _parent_rule(context, c),
            **({"proposed_from": c.proposed_from} if c.reversion else {}),
        }
        for c in checked.candidates.values()
    )
    simulation = next_simulation(context, step)
    return Accepted(tidy, by, raw, proposals, simulation, fallbacks, checked.reversions, demoted, edit_by or by)


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
