"""The search loop: train K candidates, take one step, journal both, repeat.

The next thing to do follows from the journal alone, so a killed run continues where it stopped.
"""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flyjax.config import Experiment
from flyjax.search.confirmation import planned_confirmation
from flyjax.search.iteration import (
    EXHAUSTED,
    IterationPlan,
    at_block_end,
    next_context,
    next_nodes,
    pending_plan,
    planned_iteration,
)
from flyjax.search.journal.heartbeat import Heartbeat, crashed_session_seconds
from flyjax.search.journal.journal import FILE_NAME, Journal
from flyjax.search.journal.state import State, apply, fold
from flyjax.search.policy.measures import measure
from flyjax.search.policy.run_map import map_score
from flyjax.search.proposals.request import request_step
from flyjax.search.proposals.types import ROOT, Proposer, ProtocolEdit
from flyjax.search.protocol.document import EditRefused, apply_edit, carry_over, diff, instantiate, rules
from flyjax.search.run import render
from flyjax.search.run.opening import (
    NOT_APPROVED,
    changed_settings,
    check_free,
    has_begun,
    read_protocol,
    stimuli,
    was_declined,
)
from flyjax.search.run.user_files import acknowledge, edited_protocol, pending_input, write_protocol
from flyjax.utils.errors import UserError, user_message
from flyjax.utils.run_directory import check
from flyjax.utils.secrets import redact

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
    config_overrides: dict[str, Any] | None = None  # limits that the config files name, see `flyjax.search.run.opening`
    startup_s: float = 0.0  # of the process, before the call


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
        self.state = fold(self.journal.events)
        self.heartbeat = Heartbeat(self.run_dir, self.clock)

    # --- the journal and the files ---

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

    def begin(self, event: str, **fields: Any) -> None:
        """Journal that this session works on the run."""
        if self.provenance.config_overrides is not None:
            fields["config_overrides"] = self.provenance.config_overrides
        fields |= {"made_with": self.provenance.made_with, "startup_s": self.provenance.startup_s}
        self.record(event, proposer=self.proposer.name, experiment=self.experiment.model_dump(mode="json"), **fields)
        self.is_working = True
        self.heartbeat.start()

    def pause(self, reason: str, error: BaseException | None = None) -> None:
        """Journal why the session ends, with what an interrupted call cost where the error knows it."""
        if self.is_working:
            with suppress(UserError, OSError):  # a full disk is the error that is being reported
                self.record("run_paused", reason=reason, usage=getattr(error, "usage", None))
                render.write(self.run_dir, self.state)

    def warn_of_rows(self, problems: Iterable[str]) -> None:
        for line in problems:
            self.callbacks.warn(f"protocol.md: {line}; code cannot follow it")

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
        fallbacks = self.provenance.stimulus_fallbacks
        self.begin("run_started", name=self.experiment.name, protocol=text, stimulus_fallbacks=fallbacks)
        write_protocol(self.journal.run, text)

    def resume(self) -> None:
        state = self.state
        changed = {k: now for k, (_, now) in changed_settings(state, self.experiment, self.run_dir).items()}
        limit, why = self.next_nodes()
        if state.finished == EXHAUSTED and not changed:
            limit = 0  # the same space has no other configuration
        if state.finished and not limit and "search.confirm_share" not in changed:
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
        render.write(self.run_dir, self.state)
        self.warn_of_rows(rules(self.state.protocol).problems)

    # --- the state ---

    @property
    def newest_step(self) -> dict[str, Any] | None:
        """The step after the newest iteration; None where it is not taken yet."""
        step = self.state.step
        return step if step is not None and step["iteration"] == self.state.number else None

    @property
    def reads_user_input(self) -> bool:
        """Whether the proposer reads the users' instructions, as language models do."""
        return getattr(self.proposer, "reads_instructions", True)

    def next_nodes(self) -> tuple[int, str]:
        """How many nodes the next iteration may have, and why none where it may have none."""
        return next_nodes(self.experiment, self.state, self.wall_s)

    @property
    def wall_s(self) -> float:
        """Seconds of work until now: since the last event, but without the pause before this session."""
        since = max(0.0, self.clock() - (self.state.last_time or 0.0)) if self.is_working else 0.0
        return self.state.wall_s + since

    # --- a turn of the loop ---

    def advance(self) -> None:
        """Do the next thing: train an iteration, take a step, or journal one consequence of the newest step."""
        step, state = self.newest_step, self.state
        if state.pending or state.confirming:
            self.train_iteration()
        elif step is None or self.repeat_step:
            self.take_step()
        elif state.number and state.number not in state.choices:
            self.record_choice(step)
        elif at_block_end(self.experiment, state) and state.blocks[step["block"]].ended is None:
            self.end_block(step)
        else:
            self.begin_iteration_or_finish(step)
        render.write(self.run_dir, self.state)

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

    def take_step(self) -> None:
        """Ask the proposer and journal its step, validated."""
        self.try_user_edit()
        limit, why = self.next_nodes()
        context = next_context(self.experiment, self.state, self.run_dir, self.available_stimuli, limit)
        # The first iteration with one candidate is the root: there is nothing to propose.
        is_trivial = not self.state.number and context.n_proposals == 0
        fields = request_step(context, self.proposer, lambda: self.state, self.record, silent=is_trivial)
        n_next = len(fields["proposals"]) + context.next_opens_block
        self.repeat_step = False
        # An answer of the rules or of a sampler has not read the instruction: it stays pending.
        was_read = self.reads_user_input and not is_trivial and fields["by"] != "rules"
        if context.user_input and not was_read and not is_trivial:
            self.callbacks.warn(
                f"user_input.md stays pending: {fields['by']} cannot read it, only a language model can"
            )
        instruction = context.user_input if was_read else ""
        why = EXHAUSTED if limit and not n_next else why
        more = {"iteration": self.state.number, "n_next": n_next, "why_none": why, "user_input": instruction}
        self.record("proposal", **fields, **more)
        if instruction:
            acknowledge(self.run_dir, self.state, just_read=instruction)

    def record_choice(self, step: dict[str, Any]) -> None:
        parents = [ROOT] * bool(step["opens_block"] and step["n_next"]) + [p["parent"] for p in step["proposals"]]
        decided = {"block": step["block"], "chosen": step["chosen"], "reason": step["reason"], "next_parents": parents}
        if self.experiment.search.objective == "map" and (found := map_score(self.state, step["block"])):
            decided["map_score"] = found
        self.record("choice", iteration=self.state.number, **decided)
        render.write(self.run_dir, self.state)
        self.callbacks.on_iteration(self.state, self.state.number)

    def end_block(self, step: dict[str, Any]) -> None:
        """Journal the end of a block: its summary and measures. The edit of the protocol follows."""
        self.try_user_edit()  # before the edit of the step, which would replace it
        block, edit, measures = step["block"], step["protocol_edit"], measure(self.state, step["block"])
        try:
            apply_edit(self.state.protocol, self.new_edit(step) or ProtocolEdit("", "", ""))
        except EditRefused as error:
            # A user edited the same passage since the step was taken.
            edit = {"old": "", "new": "", "reason": f"The edit could not be made ({error})", "refused": True}
        self.record(
            "block_ended", block=block, nodes=list(self.state.blocks[block].nodes), summary=step["block_summary"],
            edit=edit, measures={**vars(measures), "text": measures.describe()}, next_simulation=step["simulation"],
        )  # fmt: skip

    def begin_iteration_or_finish(self, step: dict[str, Any]) -> None:
        if at_block_end(self.experiment, self.state) and (edit := self.new_edit(step)):
            self.edit_protocol(step, edit)
        # Limits may have been lowered since the step was taken, and time has passed.
        limit, why = self.next_nodes() if step["n_next"] else (0, step["why_none"])
        if limit:
            planned: dict[str, Any] | None = planned_iteration(self.experiment, self.state, step, limit)
        else:
            planned = planned_confirmation(self.experiment, self.state, self.wall_s)
        if planned is None:
            if self.state.finished is None:
                self.record("run_finished", reason=why, nodes=len(self.state.nodes), wall_s=self.state.wall_s)
            self.outcome = Outcome(self.state, "finished", self.state.finished or why)
            return
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

    def record_protocol(self, text: str, block: int, by: str, reason: str, **fields: Any) -> None:
        known = rules(self.state.protocol).problems
        change = {"reason": reason, "protocol": text, "diff": diff(self.state.protocol, text)}
        self.record("protocol_edited", block=block, by=by, **fields, **change)
        self.warn_of_rows(line for line in rules(text).problems if line not in known)

    def take_user_edit(self) -> None:
        """Journal what a user changed in protocol.md, and write the file where it is not the run's version."""
        text = edited_protocol(self.journal.run, self.state)
        if text is not None:
            block = self.state.iteration.block if self.state.iteration else 0
            self.record_protocol(text, block, "user", "edited by hand")
        write_protocol(self.journal.run, self.state.protocol)

    def try_user_edit(self) -> None:
        """Journal an edit by a user; one that cannot be used stops no run: it may be half-written."""
        try:
            self.take_user_edit()
        except UserError as error:
            self.callbacks.warn(f"{error}; going on with the run's own version")

    def new_edit(self, step: dict[str, Any]) -> ProtocolEdit | None:
        """The edit of the protocol that a step asks for, where it was not made yet.

        A step that is taken again after the block's end may have an edit of its own; the rules would repeat theirs.
        """
        given, own = step["protocol_edit"], [e for e in self.state.edits if e["by"] != "user"]
        made = [(e.get("old"), e.get("new")) for e in own if e["block"] == step["block"]]
        edit = given and ProtocolEdit(given["old"], given["new"], given["reason"])
        if not edit or not edit.is_edit:
            return None
        repeated = made if (step.get("edit_by") or step["by"]) == "rules" else (edit.old, edit.new) in made
        return None if repeated else edit

    def edit_protocol(self, step: dict[str, Any], edit: ProtocolEdit) -> None:
        """Edit the protocol as a step says, where that is possible."""
        try:
            text = apply_edit(self.state.protocol, edit)
        except EditRefused as error:
            self.callbacks.warn(f"The edit could not be made ({error})")
            return
        by = step.get("edit_by") or step["by"]
        self.record_protocol(text, step["block"], by, edit.reason, old=edit.old, new=edit.new)
        write_protocol(self.journal.run, text)
        render.write(self.run_dir, self.state)


def run_loop(
    experiment: Experiment,
    run_dir: str | Path,
    evaluate: Evaluate,
    proposer: Proposer,
    *,
    protocol_template: str | Path,
    earlier_protocol: str | Path | None = None,
    available_stimuli: tuple[str, ...] | None = None,
    provenance: Provenance | None = None,
    callbacks: SearchCallbacks | None = None,
    clock: Callable[[], float] = time.time,
) -> Outcome:
    """Run the search in `run_dir`, or go on with it.

    **Arguments:**

    - `evaluate`: trains a plan's nodes. Called again with the same plan after a kill, it has to resume by itself.
    - `protocol_template`: path of protocol.md.
    - `earlier_protocol`: path of the protocol of an earlier run, whose rules carry over.
    - `available_stimuli`: names of the stimuli on this machine; by default all of the range.
    - `clock`: gives unix seconds.

    **Raises:** `UserError` in one line for a run in use, a damaged journal, a changed config, a bad protocol, a full
    disk, a directory of another kind, and for what stops the proposer; any other error unchanged. The run stays
    resumable.
    """
    check(run_dir, "search")
    if not has_begun(run_dir):
        check_free(run_dir)
    with Journal(run_dir, clock) as journal:
        session = Session(
            experiment, Path(run_dir), evaluate, proposer, journal, clock,
            available_stimuli=stimuli(experiment, available_stimuli),
            provenance=provenance or Provenance(),
            callbacks=callbacks or SearchCallbacks(),
        )  # fmt: skip
        try:
            session.report_damage()
            if session.state.started is None:
                session.start(protocol_template, earlier_protocol)
            else:
                session.resume()
            session.write_files()
            while session.outcome is None:
                session.advance()
        except KeyboardInterrupt as interrupt:
            session.pause(str(interrupt) or "interrupted", interrupt)
            raise
        except Exception as error:
            message = user_message(error) or ""
            first = next(iter(redact(str(error)).strip().splitlines()), "")
            session.pause(message or f"stopped by {type(error).__name__}: {first[:500]}", error)
            if not message or isinstance(error, UserError):
                raise
            raise UserError(message) from None
        finally:
            session.heartbeat.stop()
        return session.outcome
