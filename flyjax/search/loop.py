"""The loop: train K candidates, take one step, journal it, again.

Everything the loop does next follows from the journal alone, so a run that is killed at any moment and
started again goes on as if nothing had happened.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flyjax.config import Experiment
from flyjax.search.iteration import EXHAUSTED, IterationPlan, at_block_end, next_nodes, plan_of, seeds_of
from flyjax.search.journal.heartbeat import Heartbeat, crashed_session_seconds
from flyjax.search.journal.journal import FILE_NAME, Journal
from flyjax.search.journal.state import State, apply, fold
from flyjax.search.policy.measures import measure
from flyjax.search.proposals.request import Accepted, ask
from flyjax.search.proposals.types import ROOT, Context, Proposer, ProtocolEdit
from flyjax.search.proposals.validation import root_config
from flyjax.search.protocol.document import EditRefused, apply_edit, carry_over, diff, instantiate, rules
from flyjax.search.ranges import derive_seed
from flyjax.search.run import render
from flyjax.search.run.opening import (
    NOT_APPROVED,
    changed_settings,
    check_free,
    declined,
    has_begun,
    read_protocol,
    stimuli,
)
from flyjax.search.run.revert import revert_protocol
from flyjax.search.run.user_files import (
    acknowledge,
    edited_protocol,
    left_by_a_crash,
    pending_input,
    without_key,
)
from flyjax.utils.atomic_io import write_atomic
from flyjax.utils.errors import UserError, mendable

__all__ = ["Evaluate", "Outcome", "revert_protocol", "run_loop"]

Evaluate = Callable[[IterationPlan], dict[int, dict[str, Any]]]


@dataclass(frozen=True)
class Outcome:
    """How a call of the loop ended: `finished`, or `paused` with the reason; resumable either way."""

    state: State
    status: str
    reason: str


def run_loop(
    experiment: Experiment,
    run_dir: str | Path,
    evaluate: Evaluate,
    proposer: Proposer,
    *,
    protocol_template: str | Path,
    earlier_protocol: str | Path | None = None,
    available_stimuli: tuple[str, ...] | None = None,
    stimulus_fallbacks: dict[str, str] | None = None,
    made_with: dict[str, Any] | None = None,
    config_overrides: dict[str, Any] | None = None,
    on_event: Callable[[dict[str, Any], State], None] = lambda event, state: None,
    on_iteration: Callable[[State, int], None] = lambda state, iteration: None,
    approve: Callable[[IterationPlan], bool] | None = None,
    warn: Callable[[str], None] = lambda line: None,
    clock: Callable[[], float] = time.time,
) -> Outcome:
    """Run, or go on with, the search in `run_dir`.

    **Arguments:** `evaluate` trains a plan's nodes and gives, per node id, {"metrics": {...} or None,
    "reason": why there are none, "activity": the log's line, "per_seed": [metrics of each seed]} (the last
    two may be left out); called again with the same plan after a kill, it has to resume by itself.
    `protocol_template` is the path of protocol.md, `earlier_protocol` that of a run whose rules carry
    over. `available_stimuli`: names that this machine can show (default: all of the range);
    `stand_ins`: missing stimuli and what replaces them, `made_with`: versions, devices, commit, for the record;
    `said`: what the config files alone say of the limits, for the next call (see `resuming`).
    `on_iteration(state, number)` is called when an iteration is trained and its step is taken;
    `approve(plan)` before an iteration begins, False pauses the run.

    **Raises:** `UserError` in one line for a run in use, a damaged journal, a changed config, a bad
    protocol, a full disk, a directory that is not the run's, and whatever the proposer cannot mend; any other
    error as it came. The run stays resumable.
    """
    if not has_begun(run_dir):
        check_free(run_dir)
    with Journal(run_dir, clock) as journal:
        loop = _Loop(experiment, Path(run_dir), evaluate, proposer, journal, clock)
        loop.available = stimuli(experiment, available_stimuli)
        loop.told = {"made_with": made_with or {}} | (
            {} if config_overrides is None else {"config_overrides": config_overrides}
        )
        loop.on_event, loop.on_iteration, loop.approve, loop.warn = on_event, on_iteration, approve, warn
        try:
            loop.open(protocol_template, earlier_protocol, stimulus_fallbacks or {})
            while loop.outcome is None:
                loop.advance()
        except KeyboardInterrupt as interrupt:
            loop.pause("interrupted", interrupt)
            raise
        except Exception as error:
            told = without_key(mendable(error) or "")
            loop.pause(told or _told(error), error)
            if not told or isinstance(error, UserError):
                raise
            raise UserError(told) from None
        finally:
            loop.heartbeat.stop()
        return loop.outcome


def _told(error: Exception) -> str:
    """An error that nobody foresaw, in one line."""
    first = next(iter(without_key(str(error)).strip().splitlines()), "")
    return f"stopped by {type(error).__name__}: {first[:500]}"


class _Loop:
    """One session. `state` is always the fold of the journal."""

    def __init__(self, experiment, run_dir, evaluate, proposer, journal, clock):
        self.experiment, self.run_dir, self.evaluate, self.proposer = experiment, run_dir, evaluate, proposer
        self.journal, self.clock = journal, clock
        self.state: State = fold(journal.events)
        self.working, self.heartbeat = False, Heartbeat(run_dir, clock)
        self.outcome: Outcome | None = None
        self.reopened = (
            False  # the newest step is taken once more: limits were raised at the end, or a person wants another
        )

    # --- the journal ---

    def record(self, event: str, **fields) -> None:
        if self.heartbeat.waited_s:
            fields["waited_s"], self.heartbeat.waited_s = self.heartbeat.waited_s, 0.0
        written = self.journal.append(event, **fields)
        known = () if event != "protocol_edited" else rules(self.state.protocol).problems
        self.state = apply(self.state, written)
        self.tell_journal()
        self.on_event(written, self.state)
        for line in rules(self.state.protocol).problems if event == "protocol_edited" else ():
            if line not in known:
                self.warn(f"protocol.md: {line}; it is left to readers")

    def tell_journal(self) -> None:
        while self.journal.warnings:
            self.warn(self.journal.warnings.pop(0))

    def pause(self, reason: str, error: BaseException | None = None) -> None:
        """Journal why the session ends, and what was paid where the error says it (see `state._spending`)."""
        if not self.working:
            return  # nothing was begun: the run is as it was
        try:
            self.record("run_paused", reason=reason, usage=getattr(error, "usage", None))
            render.write(self.run_dir, self.state)
        except (UserError, OSError):
            pass  # the disk is full: that is the error being reported

    def begin_session(self, event: str, **fields) -> None:
        self.record(event, proposer=self.proposer.name, **self.told, **fields)
        self.working = True
        self.heartbeat.start()

    def open(self, template, earlier, stimulus_fallbacks) -> None:
        """Begin the run, or take it up where the journal ends."""
        self.tell_journal()
        own, state = self.experiment.model_dump(mode="json"), self.state
        if state.started is None:
            if self.journal.events:
                raise UserError(
                    f"{self.run_dir / FILE_NAME} does not tell how its run began: restore the file from a copy, or choose another --run"
                )
            check_free(self.run_dir)
            text = instantiate(read_protocol(template), self.experiment)
            if earlier is not None:
                text = carry_over(read_protocol(earlier), read_protocol(template), self.experiment)
            self.begin_session(
                "run_started",
                name=self.experiment.name,
                experiment=own,
                protocol=text,
                stimulus_fallbacks=stimulus_fallbacks,
            )
        else:
            changed = changed_settings(state, self.experiment, self.run_dir)
            limit, why = self.next_nodes()
            if state.finished == EXHAUSTED and not changed:
                limit = 0  # the same space holds nothing more
            if state.finished and not limit:
                if changed:  # nothing to do now, but they are the run's from here on
                    self.begin_session("run_resumed", experiment=own, changed=changed)
                self.outcome = Outcome(self.state, "finished", why or state.finished)
            else:
                step = state.step  # the end was decided, and a kill came before it was written down
                ending = (
                    step is not None and step["iteration"] == self.number and not step["n_next"] and not state.pending
                )
                # A step that has candidates left, of a run that a limit ended, is not asked for again.
                over = ending and (bool(state.finished) or step["why_none"] != EXHAUSTED)
                # Somebody said no to the newest step, and what should be done otherwise.
                unwanted = declined(self.journal.events) and self.hears() and pending_input(self.run_dir, state)
                self.reopened = bool(limit) and (over or bool(unwanted))
                worked = crashed_session_seconds(self.run_dir, state.last_time, self.clock())
                self.begin_session("run_resumed", experiment=own, changed=changed, crashed_session_s=worked)
        if self.outcome is None:
            self.take_protocol_edit(left_by_a_crash(self.journal.events, self.state))
        if self.outcome is None or not (self.run_dir / "protocol.md").is_file():
            write_atomic(self.run_dir / "protocol.md", self.state.protocol)
        acknowledge(self.run_dir, self.state)
        render.write(self.run_dir, self.state)
        for line in rules(self.state.protocol).problems:
            self.warn(f"protocol.md: {line}; it is left to readers")

    def take_protocol_edit(self, own: tuple[str, ...] = ()) -> None:
        text = edited_protocol(self.run_dir, self.state, own)
        if text is not None:
            self.record(
                "protocol_edited", block=self.state.iteration.block if self.state.iteration else 0, by="user",
                reason="edited by hand", protocol=text, diff=diff(self.state.protocol, text),
            )  # fmt: skip
        if not (self.run_dir / "protocol.md").is_file():
            write_atomic(self.run_dir / "protocol.md", self.state.protocol)

    def hears(self) -> bool:
        """Whether the proposer reads people's instructions: only a language model does."""
        return self.proposer.name != "rules" and not getattr(self.proposer, "deaf", False)

    def try_protocol_edit(self) -> None:
        try:
            self.take_protocol_edit()
        except UserError as error:
            # Perhaps still being written: a weekend's run does not stop for it.
            self.warn(f"{error}; going on with the run's own version")

    # --- what comes next ---

    @property
    def number(self) -> int:
        return self.state.iteration.number if self.state.iteration else 0

    def at_block_end(self) -> bool:
        return at_block_end(self.experiment, self.state)

    def next_nodes(self) -> tuple[int, str]:
        # Since the last event, but not the pause before this session.
        now = max(0.0, self.clock() - self.state.last_time) if self.working else 0.0
        return next_nodes(self.experiment, self.state, self.state.wall_s + now)

    def advance(self) -> None:
        """One thing: train, step, or write down one consequence of the newest step."""
        state = self.state
        if state.pending:
            return self.train()
        step = state.step if state.step and state.step["iteration"] == self.number else None
        if step is None or self.reopened:
            return self.step()
        if self.number and self.number not in state.choices:
            parents = [ROOT] * (step["opens_block"] and step["n_next"] > 0) + [p["parent"] for p in step["proposals"]]
            made = {"chosen": step["chosen"], "reason": step["reason"], "next_parents": parents}
            self.record("choice", iteration=self.number, block=step["block"], **made)
            render.write(self.run_dir, self.state)
            return self.on_iteration(self.state, self.number)
        if self.at_block_end() and state.blocks[step["block"]].ended is None:
            self.end_block(step)
            return render.write(self.run_dir, self.state)
        if self.at_block_end() and self.late_edit(step):
            return render.write(self.run_dir, self.state)
        # Limits may have been lowered since the step was taken, and time went by.
        limit, why = self.next_nodes() if step["n_next"] else (0, step["why_none"])
        if not limit:
            if state.finished is None:
                self.record("run_finished", reason=why, nodes=len(state.nodes), wall_s=state.wall_s)
            self.outcome = Outcome(self.state, "finished", self.state.finished)
            return render.write(self.run_dir, self.state)
        return self.begin(step, limit)

    # --- the parts of a turn ---

    def begin(self, step: dict[str, Any], limit: int) -> None:
        """Start the iteration that a step proposed, with so many nodes at most."""
        state, search = self.state, self.experiment.search
        opens, first = step["opens_block"], max(state.nodes, default=0) + 1
        root = {
            "parent": ROOT,
            "changes": {},
            "config": root_config(self.experiment),
            "strategy": ROOT,
            "hypothesis": "",
        }
        entries = [{**root, "parent_rule": "a block begins: UCB file empty -> parent=root"}] * opens + step["proposals"]
        nodes = []
        for node, entry in enumerate(entries[:limit], first):
            seeds = range(seeds_of(self.experiment, entry["strategy"] == ROOT))
            nodes.append({"node": node, **entry, "seeds": [derive_seed(search.seed, node, s) for s in seeds]})
        block = step["block"] + (1 if self.at_block_end() else 0)
        done = 0 if opens else state.iteration.iter_in_block
        planned = {
            "iteration": self.number + 1, "block": block, "iter_in_block": done + 1,
            "simulation": step["simulation"], "nodes": nodes,
        }  # fmt: skip
        if self.approve is not None:
            ahead = plan_of(apply(state, {"event": "iteration_started", "time": state.last_time, **planned}))
            with self.heartbeat.paused():
                approved = self.approve(ahead)
            if not approved:
                self.pause(NOT_APPROVED)
                self.outcome = Outcome(self.state, "paused", NOT_APPROVED)
                return
        self.record("iteration_started", **planned)

    def train(self) -> None:
        """Have the pending iteration trained and journal what came out."""
        plan = plan_of(self.state)
        results = self.evaluate(plan)
        for node in plan.nodes:
            if node.id in plan.done:
                continue
            result = dict(results.get(node.id) or {"metrics": None, "reason": "the trainer gave no result"})
            metrics, reason = result.pop("metrics", None), result.pop("reason", None)
            extra = {k: v for k, v in result.items() if k in ("activity", "per_seed")}
            where = {"node": node.id, "parent": node.parent, "iteration": plan.number, "block": plan.block}
            if metrics:
                self.record("node_finished", **where, metrics=metrics, reason=reason or "", **extra)
            else:
                self.record("node_failed", **where, metrics=None, reason=reason or "the training gave no metrics")
        render.write(self.run_dir, self.state)

    def step(self) -> None:
        """Ask the proposer and journal its step, validated."""
        self.try_protocol_edit()
        state, search, newest = self.state, self.experiment.search, self.state.iteration
        limit, why = self.next_nodes()
        opens = newest is None or self.at_block_end()
        context = Context(
            experiment=self.experiment,
            state=state,
            protocol=state.protocol,
            block=newest.block if newest else 1,
            iter_in_block=newest.iter_in_block if newest else 0,
            n_iter_block=search.n_iter_block,
            new_nodes=newest.nodes if newest else (),
            n_proposals=max(0, limit - 1) if opens else limit,
            next_opens_block=opens and limit > 0,
            available_stimuli=self.available,
            run_dir=self.run_dir,
            user_input=pending_input(self.run_dir, state),
        )
        nothing_to_decide = newest is None and context.n_proposals == 0
        if getattr(self.proposer, "spends", False) and not nothing_to_decide:
            over = _overspent(self.experiment, state)
            if over:
                self.pause(over)
                self.outcome = Outcome(self.state, "paused", over)
                return
        answer = ask(context, self.proposer, lambda: self.state, self.record, silent=nothing_to_decide)
        n_next = len(answer.proposals) + (1 if context.next_opens_block else 0)
        if not n_next and limit:
            why = EXHAUSTED
        self.reopened = False
        # Read by whom? An answer of the rules, or of a sampler, has heard nobody: the instruction stays pending.
        heard = context.user_input and self.hears() and not (nothing_to_decide or answer.by == "rules")
        if context.user_input and not heard and not nothing_to_decide:
            self.warn(f"user_input.md stays pending: {answer.by} cannot read it, only a language model can")
        self.record(
            "proposal",
            **_proposal_event(replace(context, user_input=context.user_input if heard else ""), answer, n_next, why),
        )
        if heard:
            acknowledge(self.run_dir, self.state, just_read=context.user_input)

    def end_block(self, step: dict[str, Any]) -> None:
        """The block-end duties that code does: the edit, the measures, the summary."""
        self.try_protocol_edit()  # what people wrote is not lost under the edit below
        block, edit = step["block"], step["protocol_edit"]
        if self.is_left(edit, block):
            edit = self.make_edit(step)
        measures = measure(self.state, block)
        self.record(
            "block_ended", block=block, nodes=list(self.state.blocks[block].nodes), summary=step["block_summary"],
            edit=edit, measures={**vars(measures), "text": measures.describe()}, next_simulation=step["simulation"],
        )  # fmt: skip

    def is_left(self, edit: dict[str, Any], block: int) -> bool:
        """Whether this edit of the protocol is one, and is not made yet."""
        made = [(e.get("old"), e.get("new")) for e in self.state.edits if e["block"] == block and e["by"] != "user"]
        return ProtocolEdit(edit["old"], edit["new"], edit["reason"]).is_edit and (edit["old"], edit["new"]) not in made

    def make_edit(self, step: dict[str, Any]) -> dict[str, Any]:
        """Edit the run's protocol as a step says; gives the edit that was made."""
        state, edit = self.state, step["protocol_edit"]
        try:
            text = apply_edit(state.protocol, ProtocolEdit(edit["old"], edit["new"], edit["reason"]))
        except EditRefused as error:
            # Somebody edited the same passage between the step and now.
            return {"old": "", "new": "", "reason": f"The edit could not be made ({error})", "refused": True}
        self.record(
            "protocol_edited", block=step["block"], by=_editor(step), old=edit["old"], new=edit["new"], reason=edit["reason"],
            protocol=text, diff=diff(state.protocol, text),
        )  # fmt: skip
        write_atomic(self.run_dir / "protocol.md", text)
        return edit

    def late_edit(self, step: dict[str, Any]) -> bool:
        """The edit of a step that was taken once more, because the run goes on after its end; True where it was made.

        The block has ended then and keeps its summary. The rules would ask for the same again and are left out.
        """
        edit = step["protocol_edit"]
        if _editor(step) == "rules" or not edit or not self.is_left(edit, step["block"]):
            return False
        made = self.make_edit(step)
        if made != edit:
            self.warn(made["reason"])
        return made == edit


def _editor(step: dict[str, Any]) -> str:
    """Who wrote a step's edit of the protocol."""
    return step.get("edit_by") or step["by"]


def _overspent(experiment: Experiment, state: State) -> str:
    spent = state.spent
    used = {"max_calls": spent.calls, "max_tokens": spent.input_tokens + spent.output_tokens, "max_usd": spent.usd}
    for name, value in used.items():
        limit = getattr(experiment.search, name)
        if limit is not None and value >= limit:
            return f"search.{name}={limit:.12g} spent; raise it to go on, or go on free with --proposer rules"
    return ""


def _proposal_event(context: Context, answer: Accepted, n_next: int, why: str) -> dict[str, Any]:
    step, edit = answer.step, answer.step.protocol_edit
    usd = step.usage.get("usd") if step.usage else 0.0
    return {
        "iteration": context.state.iteration.number if context.state.iteration else 0,
        "block": context.block,
        "iter_in_block": context.iter_in_block,
        "by": answer.by,
        "edit_by": getattr(answer, "edit_by", None),
        "raw": answer.raw,
        "chosen": step.chosen,
        "reason": step.reason,
        "activity": {str(k): v for k, v in step.activity.items()},
        "observation": {str(k): v for k, v in step.observation.items()},
        "proposals": list(answer.proposals),
        "simulation": answer.simulation,
        "opens_block": context.next_opens_block,
        "n_next": n_next,
        "why_none": why,
        "notes": step.notes,
        "block_summary": step.block_summary,
        "protocol_edit": vars(edit) if edit is not None else None,
        "fallbacks": list(answer.fallbacks),
        "reversions": list(answer.reversions),
        "demoted": list(answer.demoted),
        "usage": step.usage,
        "cost": "not reported" if usd is None else usd,
        "user_input": context.user_input,
    }
