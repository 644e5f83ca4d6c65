"""The space of candidates: configurations inside the ranges, lawful parents, the reversion check.

Seeds are derived from (run seed, node id, index) in `ranges.derive_seed`; no proposal can name one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flyjax.config import SIMULATION_TUNABLE, Experiment, Training
from flyjax.config.ranges import coerce
from flyjax.search.journal.state import Node
from flyjax.search.policy.ucb import scores
from flyjax.search.proposals.types import ROOT, STRATEGIES, Context, Proposal, Step
from flyjax.utils.errors import nearest

MAX_TEXT = 4_000  # characters of a reason, a hypothesis, a summary


@dataclass(frozen=True)
class Candidate:
    """A lawful proposal: what its node will be, its parent by the reversion check."""

    parent: int | str
    changes: dict[str, Any]  # against the parent
    config: dict[str, Any]  # the whole training section
    strategy: str
    hypothesis: str
    by: str = ""
    proposed_from: int | None = None  # the parent that the proposal named, where the reversion check sets another
    reversion: str = ""  # why it does


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
    config = Training.model_validate({**parent, **real}).model_dump(mode="json")
    return {k: config[k] for k in real}, config


def block_simulation(experiment: Experiment, block: int) -> dict[str, Any]:
    """The simulation `search.simulations` gives a block (cyclically), or the base one."""
    base, listed = experiment.simulation.model_dump(mode="json"), experiment.search.simulations
    return {**base, **(listed[(block - 1) % len(listed)] if listed else {})}


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
    if not isinstance(proposal.changes, Mapping):
        raise ValueError("changes have to be a mapping of parameter names to values")
    if proposal.strategy not in STRATEGIES[1:]:
        raise ValueError(f"strategy {str(proposal.strategy)[:40]!r} is not one of {', '.join(STRATEGIES[1:])}")
    if not isinstance(proposal.hypothesis, str) or len(proposal.hypothesis) > MAX_TEXT:
        raise ValueError(f"the hypothesis has to be a text of at most {MAX_TEXT} characters")
    named, nodes = proposal.parent, context.state.nodes
    changes, config = child_config(context.experiment, _start(context, named), proposal.changes)
    if proposal.strategy == "robustness-test" and changes:
        raise ValueError("a robustness-test runs its parent's configuration again: changes have to be empty")
    candidate = Candidate(named, changes, config, proposal.strategy, proposal.hypothesis, proposal.by)
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
