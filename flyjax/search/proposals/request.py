"""Ask a proposer for a step and make sure that what comes back can be carried out.

Errors go back to the proposer at most twice. What is still wrong then is replaced by the rules, part by
part, and recorded as such. A valid choice is never overridden; the one change that code makes is the
parent that the reversion check names, after the proposer was told once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flyjax.search.journal.journal import clean
from flyjax.search.journal.state import State
from flyjax.search.memory_notes import demote
from flyjax.search.policy.measures import measure
from flyjax.search.policy.ucb import scores
from flyjax.search.proposals.types import ROOT, BadAnswer, Context, Problem, Proposer, ProtocolEdit, Step
from flyjax.search.proposals.validation import (
    MAX_TEXT,
    Candidate,
    is_line,
    next_simulation,
    resolve,
    reversions,
    validate_step,
)
from flyjax.search.proposers.rules import RulesProposer

RETRIES = 2  # corrections a proposer may make
MAX_RAW = 500_000  # characters of an answer that the journal keeps


@dataclass(frozen=True)
class Accepted:
    """A step that can be carried out, as the journal keeps it."""

    step: Step
    by: str
    raw: Any
    proposals: tuple[dict[str, Any], ...]  # parent, changes, config, strategy, hypothesis, parent_rule
    simulation: dict[str, Any]  # of the next iteration
    fallbacks: tuple[str, ...] = ()
    reversions: tuple[str, ...] = ()
    demoted: tuple[str, ...] = ()  # principles of too few nodes, which the notes keep as open questions
    edit_by: str = ""  # who worded the edit of the protocol: the rules, where the answer's own could not be used


def keep_raw(raw: Any) -> Any:
    """What the journal keeps of an answer: a JSON-able copy, or its beginning where it is too long."""
    try:
        text = json.dumps(clean(raw), allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        try:
            text = repr(raw)
        except RecursionError:
            text = "nested too deep to be shown"
        return {"unreadable": text[:MAX_RAW]}
    return json.loads(text) if len(text) <= MAX_RAW else {"cut": text[:MAX_RAW]}


def one_line(text: str) -> str:
    """A text that fits into one line of the log."""
    return " ".join(str(text).split())[:MAX_TEXT]


def ask(
    context: Context,
    proposer: Proposer,
    state_now: Callable[[], State],
    record: Callable[..., None],
    silent: bool = False,
) -> Accepted:
    """A step that holds: the proposer's, mended by the rules where two corrections did not help.

    **Arguments:** `state_now` gives the journal's state, which grows by the refused answers; `record`
    journals; `silent` skips the proposer where there is nothing to decide.

    **Raises:** whatever the proposer raises beyond `BadAnswer` (`Paused`, `UserError`: the run stops).
    """
    if silent:
        return _accept(context, Step(()), proposer.name, None, (), ())
    number = context.state.iteration.number if context.state.iteration else 0
    context = replace(
        context, calling=lambda usage: record("call_started", iteration=number, by=proposer.name, usage=usage)
    )
    if hasattr(proposer, "drafted"):  # an optimiser's drafts, the same for every attempt
        context = proposer.drafted(context)
    feedback, told = (), False
    best: tuple[Step, list[Problem]] | None = (
        None  # of the answers that could be read the one with the fewest problems, the newest of equals
    )
    for attempt in range(1 + RETRIES):
        try:
            step = proposer.step(replace(context, state=state_now(), feedback=feedback))
            problems, usage, raw = validate_step(context, step), step.usage, step.raw
            best = (step, problems) if best is None or len(problems) <= len(best[1]) else best
        except BadAnswer as bad:
            step, problems, usage, raw = None, [Problem("answer", e) for e in bad.errors], bad.usage, bad.raw
        moved = reversions(context, step) if not problems else []
        if not problems and (not moved or told or attempt == RETRIES):
            return _accept(context, step, proposer.name, raw, (), tuple(map(str, moved)))
        told = told or bool(moved)
        feedback = tuple(map(str, problems or moved))
        if attempt < RETRIES:
            record(
                "proposal_rejected",
                iteration=number,
                by=proposer.name,
                errors=list(feedback),
                raw=keep_raw(raw),
                usage=usage or {},
            )
    earlier: tuple[str, ...] = ()
    if best is not None and step is not best[0]:
        earlier = (f"{problems[0]}; the answer before it counts",)
    best_step, problems = best or (None, problems)
    mended, fallbacks = mend(context, best_step, problems)
    kept = replace(mended, usage=usage or {})
    context = replace(context, n_proposals=len(kept.proposals))
    by = proposer.name if best_step is not None else "rules"
    edit_by = by if best_step is not None and mended.protocol_edit is best_step.protocol_edit else "rules"
    return _accept(context, kept, by, raw, (*earlier, *fallbacks), tuple(map(str, reversions(context, kept))), edit_by)


def mend(context: Context, step: Step | None, problems: list[Problem]) -> tuple[Step, tuple[str, ...]]:
    """The step with its bad parts replaced by the rules, and a line for each; fewer proposals only where
    the space holds no new configuration."""
    rules = RulesProposer(context.experiment)
    lines = tuple(f"{p}; {p.remedy or _remedy(context, step, p)}" for p in problems)
    reference = rules.step(replace(context, feedback=()))
    if step is None:
        if context.drafts:  # the optimiser's work is no worse for an answer that could not be read
            reference = replace(
                reference, proposals=_mended_proposals(context, rules, replace(reference, proposals=()), (), set())[0]
            )
        return reference, lines
    bad, changes = {p.part for p in problems if not p.remedy}, {}
    for part in ("chosen", "reason", "next_simulation", "protocol_edit", "block_summary", "notes"):
        if part in bad:
            changes[part] = getattr(reference, part)
    if "protocol_edit" in bad and isinstance(step.protocol_edit, ProtocolEdit) and not step.protocol_edit.is_edit:
        # No edit was wanted, and none is made: the measures are the reason.
        measures = measure(context.state, context.block).describe()
        changes["protocol_edit"] = (
            replace(step.protocol_edit, reason=f"No changes needed: {measures}") if context.is_block_end else None
        )
    for part in bad & {"activity", "observation"}:
        given = getattr(step, part)
        good = {n: text for n, text in given.items() if is_line(text)} if isinstance(given, Mapping) else {}
        changes[part] = {**getattr(reference, part), **good}
    if bad & {"proposals", "next_simulation"}:
        refused = {p.slot for p in problems if p.part == "proposals" and p.slot is not None}
        given = step.proposals if isinstance(step.proposals, (tuple, list)) else ()
        changes["proposals"], more = _mended_proposals(
            context, rules, replace(step, **changes, proposals=(), flaws=()), given, refused
        )
        lines += more
    out = replace(step, **changes, flaws=())
    if validate_step(replace(context, n_proposals=len(out.proposals)), out):
        # The parts do not fit together: the rules answer as a whole.
        return reference, (*lines, "what was left of the answer did not fit; the rules answered instead")
    return out, lines


def _remedy(context: Context, step: Step | None, problem: Problem) -> str:
    given = step.proposals if step is not None and isinstance(step.proposals, (tuple, list)) else ()
    if problem.part == "proposals" and problem.slot is None and len(given) > context.n_proposals:
        return "those beyond are left out"
    if context.drafts and problem.part == "proposals" and problem.slot is not None:
        return "the optimiser's draft, else the rules, in its place"
    return "replaced by the rules"


def _mended_proposals(context, rules: RulesProposer, base: Step, given, refused: set[int]):
    """(the good proposals where they stood, in the place of the others the optimiser's drafts where there are any, then the rules';
    a line for each that was dropped unnamed)."""
    lines: list[str] = []
    good: dict[int, Any] = {k: p for k, p in enumerate(given[: context.n_proposals]) if k not in refused}

    def unfit(proposal) -> list[Problem]:
        alone = replace(base, proposals=(proposal,))
        return [p for p in validate_step(replace(context, n_proposals=1), alone) if p.part == "proposals"]

    # Another simulation, or text in the wrong place, may have made a slot bad that was not named.
    for slot in list(good):
        if found := unfit(good[slot]):
            del good[slot]
            lines.append(f"{found[0].called} {slot + 1}: {found[0].message}; replaced by the rules")
    simulation = next_simulation(context, base)
    taken = {k: resolve(context, Step((p,)))[0].config for k, p in good.items()}
    for slot, draft in enumerate((context.drafts or ())[: context.n_proposals]):
        if slot not in good and not unfit(draft):
            config = resolve(context, Step((draft,)))[0].config
            if config not in taken.values():
                good[slot], taken[slot] = draft, config
    fresh = iter(rules.propose(context, context.n_proposals - len(good), list(taken.values()), simulation))
    slots = [good[k] if k in good else next(fresh, None) for k in range(context.n_proposals)]
    lines += [
        f"proposal {k + 1}: the space holds nothing new for it; it is left out"
        for k, p in enumerate(slots)
        if p is None
    ]
    return tuple(p if k in good else replace(p, by="rules") for k, p in enumerate(slots) if p is not None), tuple(lines)


def _accept(context: Context, step: Step, by: str, raw, fallbacks, reverted, edit_by: str = "") -> Accepted:
    candidates = resolve(context, step)
    lines = {}
    for name in ("activity", "observation"):
        lines[name] = {n: one_line(t) for n, t in getattr(step, name).items() if n in context.new_nodes}
    notes, demoted = demote("\n".join(line[:MAX_TEXT] for line in step.notes.splitlines()), sorted(context.state.nodes))
    edit = step.protocol_edit and replace(step.protocol_edit, reason=one_line(step.protocol_edit.reason))
    tidy = replace(
        step,
        reason=one_line(step.reason),
        block_summary=one_line(step.block_summary),
        notes=notes,
        protocol_edit=edit,
        **lines,
    )
    proposals = tuple(
        {
            "parent": c.parent,
            "changes": c.changes,
            "config": c.config,
            "strategy": c.strategy,
            "hypothesis": one_line(c.hypothesis),
            "by": p.by or by,
            "parent_rule": _parent_rule(context, c, p.parent),
        }
        for c, p in zip(candidates, step.proposals)
    )
    simulation = next_simulation(context, step)
    return Accepted(tidy, by, keep_raw(raw), proposals, simulation, tuple(fallbacks), reverted, demoted, edit_by or by)


def _parent_rule(context: Context, candidate: Candidate, named: int | str) -> str:
    """The log's `Parent rule:` line: where the parent stands by UCB, and the strategy."""
    if candidate.parent == ROOT:
        return f"a block begins: UCB file empty -> parent=root, {candidate.strategy}"
    if candidate.parent != named:
        return f"reversion check: the value is node {candidate.parent}'s -> parent={candidate.parent}, {candidate.strategy}"
    ranked = [s.node.id for s in scores(context.state, context.block, context.experiment.search.ucb_c)]
    place = ranked.index(candidate.parent)
    rank = "highest UCB" if not place else f"UCB rank {place + 1} of {len(ranked)}"
    return f"{rank} -> parent={candidate.parent}, {candidate.strategy}"
