"""One session of a run: the state machine behind `flyjax.search.loop.run_loop`.

The next thing to do follows from the journal alone, so a run that was killed at any moment goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flyjax.config import Experiment
from flyjax.config.ranges import derive_seed
from flyjax.search.iteration import (
    EXHAUSTED,
    IterationPlan,
    at_block_end,
    n_seeds,
    next_nodes,
    pending_plan,
    spent_budget,
)
from flyjax.search.journal.heartbeat import Heartbeat, crashed_session_seconds
from flyjax.search.journal.journal import FILE_NAME, Journal
from flyjax.search.journal.state import State, apply, fold
from flyjax.search.policy.measures import measure
from flyjax.search.proposals.request import Accepted, request_step
from flyjax.search.proposals.space import root_config
from flyjax.search.proposals.types import ROOT, Context, Proposer, ProtocolEdit
from flyjax.search.protocol.document import apply_edit, carry_over, diff, instantiate, rules
from flyjax.search.protocol.guard import EditRefused
from flyjax.search.run import render
from flyjax.search.run.context import next_context
from flyjax.search.run.opening import NOT_APPROVED, check_free, read_protocol, was_declined
from flyjax.search.run.resume import changed_settings
from flyjax.search.run.user_files import acknowledge, edited_protocol, pending_input, write_protocol
from flyjax.utils.errors import UserError

#: Trains a plan: node id -> {"metrics": {...} or None, "reason": why there are none, "activity": the log's line,
#: "per_seed": [metrics of each seed]}; the last two are optional.
Evaluate = Callable[[IterationPlan], dict[int, dict[str, Any]]]


@dataclass(frozen=True)
class SearchCallbacks:
    """What a caller of `run_loop` is informed of, and asked."""

    on_event: Callable[[dict[str, Any], State], None] = lambda event, state: None
    on_iteration: Callable[[State, int], None] = lambda state, number: None  # trained, and its step taken
    approve: Callable[[IterationPlan], bool] | None = None  # before an iteration begins; False pauses the run
    warn: Callable[[str], None] = lambda line: None


@dataclass(frozen=True)
class Provenance:
    """How a call of `run_loop` came about, for the record."""

    made_with: dict[str, Any] = field(default_factory=dict)  # versions, devices, commit
    stimulus_fallbacks: dict[str, str] = field(default_factory=dict)  # missing stimuli -> what replaces them
    config_overrides: dict[str, Any] | None = None  # limits that the config files name, see `flyjax.search.run.resume`


@dataclass(frozen=True)
class Outcome:
    """How a call of `run_loop` ended: `finished`, or `paused` with the reason. A later call may go on from either."""

    state: State
    status: str
    reason: str


@dataclass
class Session:
    """One call of `run_loop`. `state` is always the fold of the journal."""

    experiment: Experiment
    run_dir: Path
    evaluate: Evaluate
    proposer: Proposer
    journal: Journal
    clock: Callable[[], float]
    available_stimuli: tuple[str, ...]
    provenance: Provenance
    callbacks: SearchCallbacks
    outcome: Outcome | None = None
    is_working: bool = False  # the session is in the journal
    repeat_step: bool = False  # the newest step is taken again: a limit was raised, or the user wants another

    def __post_init__(self) -> None:
        self.state: State = fold(self.journal.events)
        self.heartbeat = Heartbeat(self.run_dir, self.clock)

    # --- the journal ---

    def record(self, event: str, **fields: Any) -> None:
        if self.heartbeat.waited_s:
            fields["waited_s"], self.heartbeat.waited_s = self.heartbeat.waited_s, 0.0
        written = self.journal.append(event, **fields)
        self.state = apply(self.state, written)
        self.report_damage()
        self.callbacks.on_event(written, self.state)

    def report_damage(self) -> None:
        while self.journal.warnings:
            self.callbacks.warn(self.journal.warnings.pop(0))

    def record_protocol(self, text: str, block: int, by: str, reason: str, **fields: Any) -> None:
        known = rules(self.state.protocol).problems
        change = {"reason": reason, "protocol": text, "diff": diff(self.state.protocol, text)}
        self.record("protocol_edited", block=block, by=by, **fields, **change)
        self.warn_of_rows([line for line in rules(text).problems if line not in known])

    def warn_of_rows(self, problems: list[str] | tuple[str, ...]) -> None:
        for line in problems:
            self.callbacks.warn(f"protocol.md: {line}; code cannot follow it")

    def begin(self, event: str, **fields: Any) -> None:
        """Journal that this session works on the run."""
        if self.provenance.config_overrides is not None:
            fields["config_overrides"] = self.provenance.config_overrides
        fields["made_with"] = self.provenance.made_with
        experiment = self.experiment.model_dump(mode="json")
        self.record(event, proposer=self.proposer.name, experiment=experiment, **fields)
        self.is_working = True
        self.heartbeat.start()

    def pause(self, reason: str, error: BaseException | None = None) -> None:
        """Journal why the session ends, with what an interrupted call cost where the error knows it."""
        if self.is_working:
            with suppress(UserError, OSError):  # a full disk is the error that is being reported
                self.record("run_paused", reason=reason, usage=getattr(error, "usage", None))
                self.render()

    def render(self) -> None:
        render.write(self.run_dir, self.state)

    # --- beginning ---

    def start(self, template: str | Path, earlier: str | Path | None) -> None:
        if self.journal.events:
            raise UserError(
                f"{self.run_dir / FILE_NAME} has no run_started event: restore the file from a copy, "
                "or choose another --run"
            )
        check_free(self.run_dir)
        text = instantiate(read_protocol(template), self.experiment)
        if earlier is not None:
            text = carry_over(read_protocol(earlier), read_protocol(template), self.experiment)
        self.begin(
            "run_started",
            name=self.experiment.name,
            protocol=text,
            stimulus_fallbacks=self.provenance.stimulus_fallbacks,
        )
        write_protocol(self.journal.run, text)

    def resume(self) -> None:
        state = self.state
        changed = {k: now for k, (_, now) in changed_settings(state, self.experiment, self.run_dir).items()}
        limit, why = self.next_nodes()
        if state.finished == EXHAUSTED and not changed:
            limit = 0  # the same space has no other configuration
        if state.finished and not limit:
            if changed:  # nothing to do now, but they are the run's settings from here on
                self.begin("run_resumed", changed=changed)
            self.heartbeat.discard()  # of a session that was killed after the end
            self.outcome = Outcome(self.state, "finished", why or state.finished)
            return
        self.repeat_step = limit > 0 and (self.step_ended_run() or self.user_wants_another_step())
        crashed = crashed_session_seconds(self.run_dir, state.last_time or 0.0, self.clock())
        self.begin("run_resumed", changed=changed, crashed_session_s=crashed)
        self.take_user_edit()

    def step_ended_run(self) -> bool:
        """Whether the newest step proposed nothing because of a limit; it is written down or a kill came before."""
        step, state = self.newest_step, self.state
        if step is None or step["n_next"] or state.pending:
            return False
        return bool(state.finished) or step["why_none"] != EXHAUSTED

    def user_wants_another_step(self) -> bool:
        """Whether the user did not approve of the newest step, and wrote what should be done instead."""
        declined = was_declined(self.journal.events) and self.reads_user_input
        return declined and bool(pending_input(self.run_dir, self.state))

    def write_files(self) -> None:
        if not (self.run_dir / "protocol.md").is_file():  # of a finished run, which takes no edit
            write_protocol(self.journal.run, self.state.protocol)
        acknowledge(self.run_dir, self.state)
        self.render()
        self.warn_of_rows(rules(self.state.protocol).problems)

    # --- the state ---

    @property
    def number(self) -> int:
        """Number of the newest iteration, 0 before the first."""
        return self.state.iteration.number if self.state.iteration else 0

    @property
    def block(self) -> int:
        """The newest block, 0 before the first."""
        return self.state.iteration.block if self.state.iteration else 0

    @property
    def newest_step(self) -> dict[str, Any] | None:
        """The step after the newest iteration; None where it is not taken yet."""
        step = self.state.step
        return step if step is not None and step["iteration"] == self.number else None

    @property
    def reads_user_input(self) -> bool:
        """Whether the proposer reads the users' instructions, as language models do."""
        return getattr(self.proposer, "reads_instructions", True)

    def at_block_end(self) -> bool:
        return at_block_end(self.experiment, self.state)

    def next_nodes(self) -> tuple[int, str]:
        """How many nodes the next iteration may have, and why none where it may have none."""
        # The time since the last event counts, but not the pause before this session.
        since = max(0.0, self.clock() - (self.state.last_time or 0.0)) if self.is_working else 0.0
        return next_nodes(self.experiment, self.state, self.state.wall_s + since)

    # --- a turn of the loop ---

    def advance(self) -> None:
        """Do the next thing: train an iteration, take a step, or journal one consequence of the newest step."""
        step = self.newest_step
        if self.state.pending:
            self.train_iteration()
        elif step is None or self.repeat_step:
            self.take_step()
        elif self.number and self.number not in self.state.choices:
            self.record_choice(step)
        elif self.at_block_end() and self.state.blocks[step["block"]].ended is None:
            self.end_block(step)
        else:
            self.begin_iteration_or_finish(step)

    def train_iteration(self) -> None:
        plan = pending_plan(self.state)
        results = self.evaluate(plan)
        for node in plan.nodes:
            if node.id in plan.done:
                continue
            result = results.get(node.id) or {"metrics": None, "reason": "the trainer gave no result"}
            place = {"node": node.id, "parent": node.parent, "iteration": plan.number, "block": plan.block}
            metrics, reason = result.get("metrics"), result.get("reason")
            if metrics:
                extra = {k: result[k] for k in ("activity", "per_seed") if k in result}
                self.record("node_finished", **place, metrics=metrics, reason=reason or "", **extra)
            else:
                self.record("node_failed", **place, metrics=None, reason=reason or "the training gave no metrics")
        self.render()

    def take_step(self) -> None:
        """Ask the proposer and journal its step, validated."""
        self.try_user_edit()
        limit, why = self.next_nodes()
        context = next_context(
            self.experiment, self.state, self.state.protocol, self.run_dir, self.available_stimuli, limit
        )
        # The first iteration with one candidate is the root: there is nothing to propose.
        is_trivial = not self.number and context.n_proposals == 0
        over = spent_budget(self.experiment, self.state) if getattr(self.proposer, "is_paid", False) else ""
        if over and not is_trivial:
            self.pause(over)
            self.outcome = Outcome(self.state, "paused", over)
            return
        answer = request_step(context, self.proposer, lambda: self.state, self.record, silent=is_trivial)
        n_next = len(answer.proposals) + context.next_opens_block
        self.repeat_step = False
        # An answer of the rules or of a sampler has not read the instruction: it stays pending.
        was_read = self.reads_user_input and not is_trivial and answer.by != "rules"
        if context.user_input and not was_read and not is_trivial:
            self.callbacks.warn(f"user_input.md stays pending: {answer.by} cannot read it, only a language model can")
        instruction = context.user_input if was_read else ""
        why = EXHAUSTED if limit and not n_next else why
        self.record(
            "proposal", **_proposal_fields(context, answer), iteration=self.number, n_next=n_next, why_none=why,
            user_input=instruction,
        )  # fmt: skip
        if instruction:
            acknowledge(self.run_dir, self.state, just_read=instruction)

    def record_choice(self, step: dict[str, Any]) -> None:
        roots = [ROOT] if step["opens_block"] and step["n_next"] else []
        self.record(
            "choice", iteration=self.number, block=step["block"], chosen=step["chosen"], reason=step["reason"],
            next_parents=roots + [p["parent"] for p in step["proposals"]],
        )  # fmt: skip
        self.render()
        self.callbacks.on_iteration(self.state, self.number)

    def end_block(self, step: dict[str, Any]) -> None:
        """Journal the end of a block: its summary and measures. The edit of the protocol follows."""
        self.try_user_edit()  # before the edit of the step, which would replace it
        block, edit, measures = step["block"], step["protocol_edit"], measure(self.state, step["block"])
        if self.is_new_edit(step):
            try:
                apply_edit(self.state.protocol, _as_edit(edit))
            except EditRefused as error:
                # A user edited the same passage since the step was taken.
                edit = {"old": "", "new": "", "reason": f"The edit could not be made ({error})", "refused": True}
        self.record(
            "block_ended", block=block, nodes=list(self.state.blocks[block].nodes), summary=step["block_summary"],
            edit=edit, measures={**vars(measures), "text": measures.describe()}, next_simulation=step["simulation"],
        )  # fmt: skip
        self.render()

    def begin_iteration_or_finish(self, step: dict[str, Any]) -> None:
        if self.at_block_end() and self.is_new_edit(step):
            self.edit_protocol(step)
            self.render()
        # Limits may have been lowered since the step was taken, and time has passed.
        limit, why = self.next_nodes() if step["n_next"] else (0, step["why_none"])
        if limit:
            self.begin_iteration(step, limit)
            return
        if self.state.finished is None:
            self.record("run_finished", reason=why, nodes=len(self.state.nodes), wall_s=self.state.wall_s)
        self.outcome = Outcome(self.state, "finished", self.state.finished or why)
        self.render()

    def begin_iteration(self, step: dict[str, Any], limit: int) -> None:
        """Begin the iteration that a step proposed, with `limit` nodes at most, where the user approves."""
        opens, newest, first = step["opens_block"], self.state.iteration, max(self.state.nodes, default=0) + 1
        root = {
            "parent": ROOT, "changes": {}, "config": root_config(self.experiment), "strategy": ROOT, "hypothesis": "",
            "parent_rule": "a block begins: UCB file empty -> parent=root",
        }  # fmt: skip
        nodes = []
        for node, entry in enumerate(([root] * opens + step["proposals"])[:limit], first):
            count = n_seeds(self.experiment, is_root=entry["strategy"] == ROOT)
            seeds = [derive_seed(self.experiment.search.seed, node, index) for index in range(count)]
            nodes.append({"node": node, **entry, "seeds": seeds})
        planned = {
            "iteration": self.number + 1,
            "block": step["block"] + self.at_block_end(),
            "iter_in_block": 1 if opens or newest is None else newest.iter_in_block + 1,
            "simulation": step["simulation"],
            "nodes": nodes,
        }
        if self.callbacks.approve is not None:
            event = {"event": "iteration_started", "time": self.state.last_time, **planned}
            with self.heartbeat.paused():
                approved = self.callbacks.approve(pending_plan(apply(self.state, event)))
            if not approved:
                self.pause(NOT_APPROVED)
                self.outcome = Outcome(self.state, "paused", NOT_APPROVED)
                return
        self.record("iteration_started", **planned)

    # --- the protocol ---

    def take_user_edit(self) -> None:
        """Journal what a user changed in protocol.md, and write the file where it is not the run's version."""
        text = edited_protocol(self.journal.run, self.state)
        if text is not None:
            self.record_protocol(text, self.block, "user", "edited by hand")
        write_protocol(self.journal.run, self.state.protocol)

    def try_user_edit(self) -> None:
        """Journal an edit by a user; one that cannot be used stops no run: it may be half-written."""
        try:
            self.take_user_edit()
        except UserError as error:
            self.callbacks.warn(f"{error}; going on with the run's own version")

    def is_new_edit(self, step: dict[str, Any]) -> bool:
        """Whether a step edits the protocol, and the edit was not made yet.

        A step that is taken again after the block's end may have an edit of its own; the rules would repeat theirs.
        """
        edit = step["protocol_edit"]
        made = [
            (e.get("old"), e.get("new")) for e in self.state.edits if e["block"] == step["block"] and e["by"] != "user"
        ]
        if not edit or not (edit["old"] or edit["new"]):
            return False
        return not made if _editor(step) == "rules" else (edit["old"], edit["new"]) not in made

    def edit_protocol(self, step: dict[str, Any]) -> None:
        """Edit the protocol as a step says, where that is possible."""
        edit = step["protocol_edit"]
        try:
            text = apply_edit(self.state.protocol, _as_edit(edit))
        except EditRefused as error:
            self.callbacks.warn(f"The edit could not be made ({error})")
            return
        self.record_protocol(text, step["block"], _editor(step), edit["reason"], old=edit["old"], new=edit["new"])
        write_protocol(self.journal.run, text)


def _as_edit(edit: dict[str, Any]) -> ProtocolEdit:
    return ProtocolEdit(edit["old"], edit["new"], edit["reason"])


def _editor(step: dict[str, Any]) -> str:
    """Who wrote a step's edit of the protocol."""
    return step.get("edit_by") or step["by"]


def _proposal_fields(context: Context, answer: Accepted) -> dict[str, Any]:
    """What the journal keeps of an accepted step."""
    step = answer.step
    usd = step.usage.get("usd") if step.usage else 0.0
    return {
        "block": context.block,
        "iter_in_block": context.iter_in_block,
        "by": answer.by,
        "edit_by": answer.edit_by,
        "raw": answer.raw,
        "chosen": step.chosen,
        "reason": step.reason,
        "activity": step.activity,
        "observation": step.observation,
        "proposals": answer.proposals,
        "simulation": answer.simulation,
        "opens_block": context.next_opens_block,
        "notes": step.notes,
        "block_summary": step.block_summary,
        "protocol_edit": vars(step.protocol_edit) if step.protocol_edit is not None else None,
        "fallbacks": answer.fallbacks,
        "reversions": answer.reversions,
        "demoted": answer.demoted,
        "usage": step.usage,
        "cost": "not reported" if usd is None else usd,
    }
