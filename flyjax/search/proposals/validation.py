"""Whether a step can be carried out: one pass over an answer gives its candidates and its problems.

    checked = check_step(context, step)
    checked.problems       # empty: the step can be carried out
    checked.candidates     # slot -> the candidate of each lawful proposal

A candidate is a configuration inside the ranges with a lawful parent, by the reversion check. Seeds are derived from
(run seed, node id, index) in `ranges.derive_seed`; no proposal can name one.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flyjax.config import SIMULATION_TUNABLE, Experiment, Simulation, Training
from flyjax.config.ranges import coerce
from flyjax.search.iteration import block_simulation, root_config
from flyjax.search.journal.state import Node
from flyjax.search.memory_notes import MAX_NOTES
from flyjax.search.policy.ucb import scores
from flyjax.search.proposals.types import ROOT, STRATEGIES, Context, Problem, Proposal, Step
from flyjax.search.protocol.document import EditRefused, apply_edit
from flyjax.utils.errors import UserError, nearest

MAX_TEXT = 4_000  # characters of a reason, a hypothesis, a summary


@dataclass(frozen=True)
class Candidate(Proposal):
    """A lawful proposal: its changes in their own types, its parent by the reversion check."""

    config: dict[str, Any] = field(default_factory=dict)  # the whole training section
    proposed_from: int | None = None  # the parent that the proposal named, where the reversion check sets another
    reversion: str = ""  # why it does


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
    config = Training.model_validate({**parent, **real}).model_dump(mode="json")
    return {k: config[k] for k in real}, config


def available_visuals(context: Context) -> tuple[Any, ...]:
    """The visual_input_type values that the next block may use: in the range and available on this machine."""
    span = context.experiment.search.simulation_ranges.get("visual_input_type")
    values = span.values if span is not None and span.values else context.available_stimuli
    return tuple(v for v in values if v in context.available_stimuli)


def next_simulation(context: Context, step: Step) -> dict[str, Any]:
    """The simulation that the step's proposals are trained in."""
    if context.block not in context.state.blocks:
        return block_simulation(context.experiment, context.block)
    current = context.state.blocks[context.block].simulation
    return {**current, **(step.next_simulation if context.next_opens_block else {})}


def _start(context: Context, parent: Any) -> dict[str, Any]:
    """The configuration that changes against `parent` start from.

    **Raises:** `ValueError` where it is no lawful parent.
    """
    if context.next_opens_block:
        if parent != ROOT:
            raise ValueError(f"parent has to be {ROOT!r}: the next iteration opens a block")
        return root_config(context.experiment)
    lawful = sorted(n.id for n in context.state.block_nodes(context.block))
    if isinstance(parent, bool) or not isinstance(parent, int) or parent not in lawful:
        hint = f" (the block's root is node {lawful[0] if lawful else None})" if parent == ROOT else ""
        listed = ", ".join(map(str, lawful[-12:]))
        raise ValueError(f"parent {str(parent)[:40]!r} is not a trained node of this block{hint}; use one of {listed}")
    return context.state.nodes[parent].config


def make_candidate(context: Context, proposal: Proposal) -> Candidate:
    """The candidate of a proposal.

    **Raises:** `ValueError`, one line, for a proposal that breaks a rule of the space.
    """
    if proposal.strategy not in STRATEGIES[1:]:
        raise ValueError(f"strategy {str(proposal.strategy)[:40]!r} is not one of {', '.join(STRATEGIES[1:])}")
    if len(proposal.hypothesis) > MAX_TEXT:
        raise ValueError(f"the hypothesis has {len(proposal.hypothesis)} characters; at most {MAX_TEXT}")
    named, nodes = proposal.parent, context.state.nodes
    changes, config = child_config(context.experiment, _start(context, named), proposal.changes)
    if proposal.strategy == "robustness-test" and changes:
        raise ValueError("a robustness-test runs its parent's configuration again: changes have to be empty")
    candidate = Candidate(**vars(proposal) | {"changes": changes}, config=config)
    if len(changes) != 1 or context.next_opens_block:
        return candidate
    ((name, value),) = changes.items()
    # The reversion check: the nearest ancestor of the parent that has the new value becomes the parent. A node that
    # is no ancestor has the value by chance: nothing is taken back.
    ancestors = _ancestors(context, nodes[named])
    earlier = next((node.id for node in ancestors if node.config[name] == value), None)
    if earlier is None:
        return candidate
    changes = {k: v for k, v in config.items() if v != nodes[earlier].config[k]}
    listed = ", ".join(f"{k}={v}" for k, v in changes.items()) or "none"
    reversion = (
        f"reversion check: {name}={value} is node {earlier}'s value, so use parent={earlier} instead of {named}; "
        f"for the same configuration the changes are then {listed}. Or take another value. An unchanged answer "
        "is accepted: the program sets this parent, the configuration stays"
    )
    return replace(candidate, parent=earlier, changes=changes, proposed_from=int(named), reversion=reversion)


def _ancestors(context: Context, node: Node) -> Iterator[Node]:
    """The parent of a node, that one's parent and so on, to the block's root where that was trained before the node."""
    nodes, here = context.state.nodes, node
    while here.parent in nodes:
        here = nodes[here.parent]
        yield here
    root = nodes[context.state.blocks[node.block].nodes[0]]
    if root.iteration < node.iteration and here.id != root.id:
        yield root


def highest_ucb(context: Context) -> int | str:
    """The node of the highest UCB in the block; root where the next iteration opens a block."""
    ranked = scores(context.state, context.block, context.experiment.search.ucb_c)
    return ROOT if context.next_opens_block or not ranked else ranked[0].node.id


#: The words of an answer without an edit that says what ("No changes needed.") and not why.
_NO_REASON = re.compile(r"((no|none|nothing|n|a|na|to|changes?|edits?|is|are|needed|required|necessary) ?)*")


@dataclass(frozen=True)
class Checked:
    """What `check_step` found."""

    problems: list[Problem]
    candidates: dict[int, Candidate]
    noun: str = "proposal"

    @property
    def reversions(self) -> tuple[str, ...]:
        """A line for every parent that the reversion check replaces."""
        return tuple(f"{self.noun} {k + 1}: {c.reversion}" for k, c in self.candidates.items() if c.reversion)


def check_step(context: Context, step: Step) -> Checked:
    """The candidates of a step, and everything that keeps it from being carried out, its own warnings included.

    Never raises.
    """
    problems = _check_simulation(context, step.next_simulation)
    # Which configurations are known in a simulation that is refused is undefined.
    simulation = None if problems else next_simulation(context, step)
    wrong, candidates = _check_proposals(context, step, simulation)
    problems += wrong
    if context.new_nodes and (isinstance(step.chosen, bool) or step.chosen not in context.new_nodes):
        listed = ", ".join(map(str, context.new_nodes))
        problems.append(Problem("chosen", f"{str(step.chosen)[:40]} is not one of the new nodes, {listed}"))
    problems += [
        Problem("log", f"node {n} has no {name}")
        for name in ("activity", "observation")
        for n in context.new_nodes
        if not getattr(step, name).get(n)
    ]
    problems += [*_check_block_end(context, step), *_check_texts(step), *step.warnings]
    return Checked(problems, candidates, noun(context))


def noun(context: Context) -> str:
    """What a proposal is called: where an optimiser drafts it is a slot."""
    return "proposal" if context.drafts is None else "slot"


def known_configs(context: Context, simulation: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Name -> configuration of all that was or will be trained in a simulation without being proposed again."""
    state = context.state
    root = {"the block's root": root_config(context.experiment)} if context.next_opens_block else {}
    nodes = (n for n in state.nodes.values() if state.blocks[n.block].simulation == simulation)
    return root | {f"node {n.id}": n.config for n in nodes}


def new_candidate(
    context: Context, proposal: Proposal, simulation: dict[str, Any] | None, taken: Mapping[str, dict[str, Any]]
) -> Candidate:
    """The candidate of a proposal whose configuration is neither trained in `simulation` nor `taken` (name -> config).

    **Raises:** `ValueError`, one line, where it is, or where the proposal breaks a rule of the space.
    """
    candidate = make_candidate(context, proposal)
    if candidate.strategy == "robustness-test":
        return candidate
    for name, config in {**known_configs(context, simulation), **taken}.items():
        if config == candidate.config:
            raise ValueError(f"the same configuration as {name}; change something, or call it a robustness-test")
    return candidate


def _check_proposals(context: Context, step: Step, simulation) -> tuple[list[Problem], dict[int, Candidate]]:
    given, word = step.proposals, noun(context)
    problems: list[Problem] = []
    candidates: dict[int, Candidate] = {}
    for slot, proposal in enumerate(given[: context.n_proposals]):
        taken = {f"{word} {k + 1}": c.config for k, c in candidates.items()}
        try:
            candidates[slot] = new_candidate(context, proposal, simulation, taken)
        except ValueError as error:
            problems.append(Problem("proposals", str(error), slot, word))
    if len(given) != context.n_proposals:
        problems.append(Problem("proposals", f"{len(given)} given, {context.n_proposals} wanted"))
    return problems, candidates


def _check_simulation(context: Context, changes: Mapping[str, Any]) -> list[Problem]:
    if changes and not context.is_block_end:
        return [Problem("next_simulation", "the simulation changes at block ends only; leave it empty")]
    spans, wrong = context.experiment.search.simulation_ranges, []
    for name, value in changes.items():
        if name not in spans:
            wrong.append(f"{str(name)[:60]!r} is not searched; searched: {', '.join(spans) or 'none'}")
            continue
        try:
            coerce(spans[name], value)
            if name == "visual_input_type" and value not in context.available_stimuli:
                available = ", ".join(map(str, available_visuals(context))) or "none"
                wrong.append(f"{name}={value} is not on this machine; there is: {available}")
        except ValueError as error:
            wrong.append(f"{name}={error}")
    if not wrong:
        try:
            Simulation.model_validate({**context.experiment.simulation.model_dump(mode="json"), **changes})
        except UserError as error:
            wrong.append(str(error))
    return [Problem("next_simulation", message) for message in wrong]


def _check_block_end(context: Context, step: Step) -> list[Problem]:
    edit = step.protocol_edit
    if not context.is_block_end:
        return [Problem("protocol_edit", "the protocol is edited at block ends only")] if edit is not None else []
    problems = []
    if not step.block_summary.strip():
        problems.append(Problem("block_summary", "a block end needs its summary: what worked and what failed"))
    if edit is None:
        return [*problems, Problem("protocol_edit", "a block end needs an edit, or an empty one with the reason")]
    words = " ".join(re.findall(r"\w+", edit.reason.lower()))
    if not words or (not edit.is_edit and _NO_REASON.fullmatch(words)):
        why = "the reason is missing; it is needed for an edit and for no changes alike"
        problems.append(Problem("protocol_edit", why))
    elif len(edit.reason) > MAX_TEXT:
        problems.append(Problem("protocol_edit", f"the reason has more than {MAX_TEXT} characters"))
    try:
        apply_edit(context.protocol, edit)
    except EditRefused as error:
        problems.append(Problem("protocol_edit", str(error)))
    return problems


def _check_texts(step: Step) -> list[Problem]:
    texts = {"reason": {0: step.reason}, "block_summary": {0: step.block_summary}}
    texts |= {"activity": step.activity, "observation": step.observation}
    problems = [
        Problem(name, f"a line of the log has at most {MAX_TEXT} characters")
        for name, lines in texts.items()
        if any(len(line) > MAX_TEXT for line in lines.values())
    ]
    if len(step.notes.splitlines()) > MAX_NOTES or len(step.notes) > 200 * MAX_NOTES:
        problems.append(Problem("notes", f"memory notes are a text of at most {MAX_NOTES} lines"))
    return problems
