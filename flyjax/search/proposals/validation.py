"""What may be proposed: configurations inside the ranges, each new, each with a lawful parent.

    problems = validate_step(context, step)      # empty: the step can be carried out
    moves = reversions(context, step)            # parents that the reversion check names instead
    candidates = resolve(context, step)          # parents, changes and whole configurations

Seeds are derived from (run seed, node id, index) in `ranges.derive_seed`; no proposal can name one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from flyjax.config import SIMULATION_TUNABLE, Experiment, Simulation, Training
from flyjax.search.memory_notes import MAX_NOTES
from flyjax.search.policy.ucb import scores
from flyjax.search.proposals.types import ROOT, STRATEGIES, Context, Problem, Proposal, ProtocolEdit, Step
from flyjax.search.protocol.document import EditRefused, apply_edit
from flyjax.search.ranges import coerce, derive_seed, extreme, perturb, sample, unit
from flyjax.utils.errors import nearest

__all__ = [
    "Candidate", "Problem", "Reversion", "available_visuals", "block_simulation", "child_config", "coerce", "derive_seed",
    "extreme", "next_simulation", "perturb", "resolve", "reversions", "root_config", "sample", "unit", "validate_step",
]  # fmt: skip

MAX_TEXT = 4_000  # characters of a reason, a hypothesis, a summary
#: Words that leave a protocol as it is without saying why.
_NO_REASON = frozenset(
    "a all any are at be been change changed changes current currently do edit edited edits for further here i is make "
    "modification modifications moment n na necessary need needed needs no none not nothing now of ok okay point present "
    "protocol required requires revision revisions stage the then there these this time to unchanged update updates was were "
    "warranted yet".split()
)


@dataclass(frozen=True)
class Reversion:
    """A single changed parameter that returns to an earlier node's value: that node is the parent."""

    slot: int
    named: int
    parent: int
    parameter: str
    value: Any
    changes: dict[str, Any]  # of the same configuration, against that parent
    called: str = "proposal"

    def __str__(self) -> str:
        told = ", ".join(f"{k}={v}" for k, v in self.changes.items()) or "none"
        return (
            f"{self.called} {self.slot + 1}: reversion check: {self.parameter}={self.value} is node {self.parent}'s value, so use "
            f"parent={self.parent} instead of {self.named}; for the same configuration the changes are then {told}. Or take "
            "another value. An answer that leaves it as it was is accepted: the program sets this parent, the configuration stays"
        )


@dataclass(frozen=True)
class Candidate:
    """A proposal worked out: what its node will be."""

    parent: int | str
    changes: dict[str, Any]
    config: dict[str, Any]
    strategy: str
    hypothesis: str


# --- configurations -----------------------------------------------------------------------------


def root_config(experiment: Experiment) -> dict[str, Any]:
    """The baseline: the config file's whole training section."""
    return experiment.training.model_dump(mode="json")


def child_config(experiment: Experiment, parent: dict[str, Any], changes: Mapping[str, Any]) -> tuple[dict, dict]:
    """(changes that change something, in their own types; the parent's configuration with them).

    **Raises:** `ValueError`, one line, for a name that is not searched or a value out of range.
    """
    ranges, real = experiment.search.ranges, {}
    for name, value in changes.items():
        if name in SIMULATION_TUNABLE:
            raise ValueError(f"{name} is a simulation parameter: it changes at block ends only, in next_simulation")
        if name not in ranges:
            known, near = ", ".join(ranges), nearest(str(name)[:60], ranges)
            raise ValueError(f"{str(name)[:60]!r} is not searched in this run; searched: {known}.{near}")
        try:
            value = coerce(ranges[name], value)
        except ValueError as error:
            raise ValueError(f"{name}={error}") from None
        if value != parent[name]:
            real[name] = value
    try:
        whole = Training.model_validate({**parent, **real}).model_dump(mode="json")
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return {k: whole[k] for k in real}, whole


def block_simulation(experiment: Experiment, block: int) -> dict[str, Any]:
    """The simulation `search.simulations` gives a block (cyclically), or the base one."""
    base, listed = experiment.simulation.model_dump(mode="json"), experiment.search.simulations
    return {**base, **(listed[(block - 1) % len(listed)] if listed else {})}


def available_visuals(context: Context) -> tuple[Any, ...]:
    """The visual_input_type values that the next block may use: in the range and on this machine."""
    span = context.experiment.search.simulation_ranges.get("visual_input_type")
    values = span.values if span is not None and span.values else context.available_stimuli
    return tuple(v for v in values if v in context.available_stimuli)


def next_simulation(context: Context, step: Step) -> dict[str, Any]:
    """The simulation that the step's proposals are trained in."""
    if context.block not in context.state.blocks:
        return block_simulation(context.experiment, context.block)
    current = context.state.blocks[context.block].simulation
    return {**current, **(step.next_simulation if context.next_opens_block else {})}


# --- validation ---------------------------------------------------------------------------------


def _parents(context: Context) -> set[int]:
    return {n.id for n in context.state.block_nodes(context.block)}


def _candidate(context: Context, proposal: Proposal) -> Candidate:
    """**Raises:** `ValueError`, one line."""
    if not isinstance(proposal.changes, Mapping):
        raise ValueError("changes have to be a mapping of parameter names to values")
    if proposal.strategy not in STRATEGIES or proposal.strategy == ROOT:
        raise ValueError(f"strategy {str(proposal.strategy)[:40]!r} is not one of {', '.join(STRATEGIES[1:])}")
    if not isinstance(proposal.hypothesis, str) or len(proposal.hypothesis) > MAX_TEXT:
        raise ValueError(f"the hypothesis has to be a text of at most {MAX_TEXT} characters")
    parent = proposal.parent
    if context.next_opens_block:
        if parent != ROOT:
            raise ValueError(f"parent has to be {ROOT!r}: the next iteration opens a block")
        start = root_config(context.experiment)
    else:
        lawful = _parents(context)
        if isinstance(parent, bool) or not isinstance(parent, int) or parent not in lawful:
            first = min(lawful, default=None)
            hint = f" (the block's root is node {first})" if parent == ROOT else ""
            listed = ", ".join(map(str, sorted(lawful)[-12:]))
            raise ValueError(
                f"parent {str(parent)[:40]!r} is not a trained node of this block{hint}; use one of {listed}"
            )
        start = context.state.nodes[parent].config
    changes, config = child_config(context.experiment, start, proposal.changes)
    if proposal.strategy == "robustness-test" and changes:
        raise ValueError("a robustness-test runs its parent's configuration again: changes have to be empty")
    return Candidate(parent, changes, config, proposal.strategy, proposal.hypothesis)


def _twin(context: Context, simulation, config) -> str | None:
    """Who already has this configuration in this simulation."""
    if context.next_opens_block and config == root_config(context.experiment):
        return "the block's root"
    state = context.state
    for node in state.nodes.values():
        if node.config == config and state.blocks[node.block].simulation == simulation:
            return f"node {node.id}"
    return None


def _called(context: Context) -> str:
    return "proposal" if context.drafts is None else "slot"


def _check_proposals(context: Context, step: Step, simulation) -> list[Problem]:
    if not isinstance(step.proposals, (tuple, list)) or not all(isinstance(p, Proposal) for p in step.proposals):
        return [Problem("proposals", "have to be a list of proposals")]
    problems, seen, called = [], [], _called(context)
    for slot, proposal in enumerate(step.proposals[: context.n_proposals]):
        try:
            candidate = _candidate(context, proposal)
        except ValueError as error:
            problems.append(Problem("proposals", str(error), slot, called))
            continue
        if candidate.strategy != "robustness-test":
            twin = _twin(context, simulation, candidate.config)
            earlier = next((k for k, c in seen if c.config == candidate.config), None)
            if twin is None and earlier is not None:
                twin = f"{called} {earlier + 1}"
            if twin:
                said = f"the same configuration as {twin}; change something, or call it a robustness-test"
                problems.append(Problem("proposals", said, slot, called))
        seen.append((slot, candidate))
    if len(step.proposals) != context.n_proposals:
        problems.append(Problem("proposals", f"{len(step.proposals)} given, {context.n_proposals} wanted"))
    return problems


def _check_simulation(context: Context, changes: Any) -> list[Problem]:
    if not isinstance(changes, Mapping):
        return [Problem("next_simulation", "has to be a mapping of simulation parameters to values")]
    if changes and not context.is_block_end:
        return [Problem("next_simulation", "the simulation changes at block ends only; leave it empty")]
    spans, problems = context.experiment.search.simulation_ranges, []
    for name, value in changes.items():
        if name not in spans:
            known = ", ".join(spans) or "none"
            problems.append(Problem("next_simulation", f"{str(name)[:60]!r} is not searched; searched: {known}"))
            continue
        try:
            coerce(spans[name], value)
        except ValueError as error:
            problems.append(Problem("next_simulation", f"{name}={error}"))
            continue
        if name == "visual_input_type" and value not in context.available_stimuli:
            here = ", ".join(map(str, available_visuals(context))) or "none"
            problems.append(Problem("next_simulation", f"{name}={value} is not on this machine; there is: {here}"))
    if not problems:
        base = context.experiment.simulation.model_dump(mode="json")
        try:
            Simulation.model_validate({**base, **changes})
        except ValidationError as error:
            first = error.errors()[0]
            problems.append(Problem("next_simulation", f"{'.'.join(map(str, first['loc']))}: {first['msg']}"))
    return problems


def _check_block_end(context: Context, step: Step) -> list[Problem]:
    edit = step.protocol_edit
    if not context.is_block_end:
        return [Problem("protocol_edit", "the protocol is edited at block ends only")] if edit is not None else []
    problems = []
    if not isinstance(step.block_summary, str) or not step.block_summary.strip():
        problems.append(Problem("block_summary", "a block end needs its summary: what worked and what failed"))
    if not isinstance(edit, ProtocolEdit):
        return [*problems, Problem("protocol_edit", "a block end needs an edit, or an empty one with the reason")]
    # "No changes needed" by itself, however worded, says what and not why.
    told = set(re.findall(r"\w+", edit.reason.lower())) if isinstance(edit.reason, str) else set()
    if len(told if edit.is_edit else told - _NO_REASON) < (1 if edit.is_edit else 2):
        problems.append(
            Problem("protocol_edit", "the reason is missing; it is needed for an edit and for no changes alike")
        )
    elif not is_line(edit.reason):
        problems.append(Problem("protocol_edit", f"the reason has to be a text of at most {MAX_TEXT} characters"))
    try:
        apply_edit(context.protocol, edit)
    except EditRefused as error:
        problems.append(Problem("protocol_edit", str(error)))
    return problems


def is_line(text: Any) -> bool:
    """Whether a text may stand in the log."""
    return isinstance(text, str) and len(text) <= MAX_TEXT


def _check_texts(step: Step) -> list[Problem]:
    problems = []
    for name in ("reason", "block_summary"):
        if not is_line(getattr(step, name)):
            problems.append(Problem(name, f"has to be a text of at most {MAX_TEXT} characters"))
    for name in ("activity", "observation"):
        lines = getattr(step, name)
        if not isinstance(lines, Mapping) or not all(map(is_line, lines.values())):
            problems.append(Problem(name, f"has to map nodes to texts of at most {MAX_TEXT} characters"))
    if not isinstance(step.notes, str) or len(step.notes.splitlines()) > MAX_NOTES or len(step.notes) > 200 * MAX_NOTES:
        problems.append(Problem("notes", f"memory notes are a text of at most {MAX_NOTES} lines"))
    return problems


def validate_step(context: Context, step: Step) -> list[Problem]:
    """Everything that keeps a step from being carried out, and the flaws of its answer; empty where nothing does.

    Never raises.
    """
    problems = _check_simulation(context, step.next_simulation)
    # Which configurations are known in a simulation that is refused, nobody can say.
    problems += _check_proposals(context, step, next_simulation(context, step) if not problems else None)
    if context.new_nodes and (isinstance(step.chosen, bool) or step.chosen not in context.new_nodes):
        listed = ", ".join(map(str, context.new_nodes))
        problems.append(Problem("chosen", f"{str(step.chosen)[:40]} is not one of the new nodes, {listed}"))
    return [*problems, *_check_block_end(context, step), *_check_texts(step), *step.flaws]


# --- carrying out -------------------------------------------------------------------------------


def reversion_parent(context: Context, candidate: Candidate) -> int | None:
    """The node that the reversion check makes the parent, where it is another than the one named.

    It applies to one changed parameter whose new value a previous node of the block has (previous to
    the named parent): the nearest such ancestor, else the node whose configuration is closest to the
    proposed one (of equally close ones the newest). The same is asked of that node, until a parent stands.
    """
    if context.next_opens_block:
        return None
    parent, config = candidate.parent, candidate.config
    while (earlier := _previous_with_value(context, parent, config)) is not None:
        parent = earlier
    return parent if parent != candidate.parent else None


def _previous_with_value(context: Context, parent: int, config: dict[str, Any]) -> int | None:
    nodes = context.state.nodes
    changed = [k for k, v in config.items() if v != nodes[parent].config[k]]
    if len(changed) != 1:
        return None
    (name,) = changed
    here = nodes[parent].parent
    while here in nodes:
        if nodes[here].config[name] == config[name]:
            return here
        here = nodes[here].parent
    same = [n for n in context.state.block_nodes(context.block) if n.id < parent and n.config[name] == config[name]]

    def differences(node):
        return sum(node.config[k] != v for k, v in config.items())

    return min(same, key=lambda n: (differences(n), -n.id)).id if same else None


def _against(context: Context, parent: int, config: dict[str, Any]) -> dict[str, Any]:
    start = context.state.nodes[parent].config
    return {k: v for k, v in config.items() if v != start[k]}


def reversions(context: Context, step: Step) -> list[Reversion]:
    """Proposals of a valid step whose parent the reversion check replaces."""
    out = []
    for slot, proposal in enumerate(step.proposals):
        candidate = _candidate(context, proposal)
        parent = reversion_parent(context, candidate)
        if parent is not None:
            ((name, value),) = candidate.changes.items()
            changes = _against(context, parent, candidate.config)
            out.append(Reversion(slot, proposal.parent, parent, name, value, changes, _called(context)))
    return out


def resolve(context: Context, step: Step) -> tuple[Candidate, ...]:
    """The candidates of a valid step, the reversion check applied to their parents."""
    out = []
    for proposal in step.proposals:
        candidate = _candidate(context, proposal)
        parent = reversion_parent(context, candidate)
        if parent is not None:
            changes = _against(context, parent, candidate.config)
            candidate = Candidate(parent, changes, candidate.config, candidate.strategy, candidate.hypothesis)
        out.append(candidate)
    return tuple(out)


def highest_ucb(context: Context) -> int | str:
    """The node of the highest UCB in the block; root where the next iteration opens a block."""
    ranked = scores(context.state, context.block, context.experiment.search.ucb_c)
    return ROOT if context.next_opens_block or not ranked else ranked[0].node.id
