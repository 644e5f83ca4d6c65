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

from flyjax.search.interface import ROOT, BadAnswer, Context, Proposer, Step
from flyjax.search.journal import clean
from flyjax.search.memory import demote
from flyjax.search.proposers.rules import RulesProposer
from flyjax.search.space import MAX_TEXT, Candidate, Problem, is_line, next_simulation, resolve, reversions, validate_step
from flyjax.search.state import State
from flyjax.search.tree import scores

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
    context: Context, proposer: Proposer, state_now: Callable[[], State], record: Callable[..., None], silent: bool = False
) -> Accepted:
    """A step that holds: the proposer's, mended by the rules where two corrections did not help.

    **Arguments:** `state_now` gives the journal's state, which grows by the refused answers; `record`
    journals; `silent` skips the proposer where there is nothing to decide.

    **Raises:** whatever the proposer raises beyond `BadAnswer` (`Paused`, `UserError`: the run stops).
    """
    if silent:
        return _accept(context, Step(()), proposer.name, None, (), ())
    number = context.state.iteration.number if context.state.iteration else 0
    context = replace(context, calling=lambda usage: record("call_started", iteration=number, by=proposer.name, usage=usage))
    feedback, told, readable = (), False, None
    for attempt in range(1 + RETRIES):
        try:
            step = proposer.step(replace(context, state=state_now(), feedback=feedback))
            problems, error = validate_step(context, step), None
            readable = step, problems
        except BadAnswer as bad:
            step, problems, error = None, [Problem("answer", e) for e in bad.errors], bad
        moved = reversions(context, step) if step is not None and not problems else []
        if not problems and (not moved or told or attempt == RETRIES):
            return _accept(context, step, proposer.name, step.raw, step.fallbacks, tuple(map(str, moved)))
        told = told or bool(moved)
        feedback = tuple(map(str, problems or moved))
        if attempt < RETRIES:
            record(
                "proposal_rejected",
                iteration=number,
                by=proposer.name,
                errors=list(feedback),
                raw=keep_raw(error.raw if error else step.raw),
                usage=(error.usage if error else step.usage) or {},
            )
    usage, raw = (error.usage, error.raw) if error else (step.usage, step.raw)
    earlier: tuple[str, ...] = ()
    if step is None and readable is not None:
        # What could be read before is worth more than nothing of the last answer.
        earlier = (f"{problems[0]}; the answer before it counts",)
        step, problems = readable
    mended, fallbacks = mend(context, step, problems)
    kept = replace(mended, usage=usage or {})
    context = replace(context, n_proposals=len(kept.proposals))
    by = proposer.name if step is not None else "rules"
    fallbacks = (*earlier, *(step.fallbacks if step else ()), *fallbacks)
    return _accept(context, kept, by, raw, fallbacks, tuple(map(str, reversions(context, kept))))


def mend(context: Context, step: Step | None, problems: list[Problem]) -> tuple[Step, tuple[str, ...]]:
    """The step with its bad parts replaced by the rules, and a line for each; fewer proposals only where
    the space holds no new configuration."""
    rules = RulesProposer(context.experiment)
    reference, lines = rules.step(replace(context, feedback=())), tuple(f"{p}; {_remedy(context, step, p)}" for p in problems)
    if step is None:
        return reference, lines
    bad, changes = {p.part for p in problems}, {}
    for part in ("chosen", "reason", "next_simulation", "protocol_edit", "block_summary", "notes"):
        if part in bad:
            changes[part] = getattr(reference, part)
    for part in bad & {"activity", "observation"}:
        given = getattr(step, part)
        good = {n: text for n, text in given.items() if is_line(text)} if isinstance(given, Mapping) else {}
        changes[part] = {**getattr(reference, part), **good}
    if bad & {"proposals", "next_simulation"}:
        base = replace(step, **changes, proposals=())
        changes["proposals"], more = _mended_proposals(context, rules, base, step, problems)
        lines += more
    out = replace(step, **changes)
    if validate_step(replace(context, n_proposals=len(out.proposals)), out):
        # The parts do not fit together: the rules answer as a whole.
        return reference, (*lines, "what was left of the answer did not fit; the rules answered instead")
    return out, lines


def _remedy(context: Context, step: Step | None, problem: Problem) -> str:
    given = step.proposals if step is not None and isinstance(step.proposals, (tuple, list)) else ()
    if problem.part == "proposals" and problem.slot is None and len(given) > context.n_proposals:
        return "those beyond are left out"
    return "replaced by the rules"


def _mended_proposals(context, rules: RulesProposer, base: Step, step: Step, problems: list[Problem]):
    """(the good proposals where they stood, the rules' in the place of the others; a line for each that was dropped unnamed)."""
    lines: list[str] = []
    refused = {p.slot for p in problems if p.part == "proposals" and p.slot is not None}
    given = step.proposals if isinstance(step.proposals, (tuple, list)) else ()
    good = {k: p for k, p in enumerate(given[: context.n_proposals]) if k not in refused}
    # Another simulation, or text in the wrong place, may have made a slot bad that was not named.
    for slot in list(good):
        alone = replace(base, proposals=(good[slot],))
        found = [p for p in validate_step(replace(context, n_proposals=1), alone) if p.part == "proposals"]
        if found:
            del good[slot]
            lines.append(f"proposal {slot + 1}: {found[0].message}; replaced by the rules")
    simulation = next_simulation(context, base)
    taken = [resolve(context, Step((p,)))[0].config for p in good.values()]
    fresh = iter(rules.propose(context, context.n_proposals - len(good), taken, simulation))
    slots = [good[k] if k in good else next(fresh, None) for k in range(context.n_proposals)]
    lines += [f"proposal {k + 1}: the space holds nothing new for it; it is left out" for k, p in enumerate(slots) if p is None]
    return tuple(p if k in good else replace(p, by="rules") for k, p in enumerate(slots) if p is not None), tuple(lines)


def _accept(context: Context, step: Step, by: str, raw, fallbacks, reverted) -> Accepted:
    candidates = resolve(context, step)
    lines = {}
    for name in ("activity", "observation"):
        lines[name] = {n: one_line(t) for n, t in getattr(step, name).items() if n in context.new_nodes}
    notes, demoted = demote("\n".join(line[:MAX_TEXT] for line in step.notes.splitlines()))
    tidy = replace(step, reason=one_line(step.reason), block_summary=one_line(step.block_summary), notes=notes, **lines)
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
    return Accepted(tidy, by, keep_raw(raw), proposals, next_simulation(context, step), tuple(fallbacks), reverted, demoted)


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
