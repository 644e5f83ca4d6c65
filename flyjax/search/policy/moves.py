"""How the rules change a configuration: what has helped so far, then first moves, then small steps.

Everything is a change against a parent's configuration, a mapping of names to values. No good value is built in:
changes follow from the ranges, the results of the block, and the protocol's first moves.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from flyjax.config import Range
from flyjax.config.ranges import at, extreme, perturb, sample, unit
from flyjax.search.journal.state import Node, State
from flyjax.search.policy.measures import clear_gain, comparable_rewards
from flyjax.search.policy.ucb import score
from flyjax.search.proposals.types import ROOT
from flyjax.search.protocol.rule_table import Hint

#: Typical steps as shares of a range.
WIDE_STEP, STEP, FINE_STEP = 0.35, 0.3, 0.1
GOOD = 0.9  # from here on steps are fine
HARMLESS = -0.03  # a change that cost less than this may still help together with others
#: While none of a block's first changes (three at least) has gained this much, nothing is known, first moves included:
LITTLE_GAIN, ENOUGH_TRIED = 0.05, 3
LEAST_PROBE = 3.0  # times: a value that changes less is no extreme
N_ANYWHERE = 2  # so many slots then draw from the whole space

Changes = dict[str, Any]  # names -> values, against a parent's configuration


@dataclass(frozen=True)
class Move:
    """A change that was tried, and its gain over the configuration it started from."""

    changes: Changes
    gain: float
    origin: dict[str, Any]  # the configuration it started from
    clear: float = 0.0  # a gain up to this may be noise


def start(state: State, node: Node) -> Node | None:
    """The node whose configuration was changed to make `node`; None for a block's root.

    It is the parent, but the block's root for the companions of the root, and where the reversion check set the
    parent the node that the proposer changed.
    """
    if isinstance(node.parent, int):
        return state.nodes.get(node.parent if node.proposed_from is None else node.proposed_from)
    root = next((n for n in state.block_nodes(node.block) if n.strategy == ROOT), None)
    return None if root is None or root.id == node.id else root


def changes_from(start: Node, node: Node) -> Changes:
    """What was changed in the configuration of `start` to make `node`."""
    if node.proposed_from is None:
        return node.changes
    return {k: v for k, v in node.config.items() if v != start.config[k]}


def moves(state: State, block: int) -> list[Move]:
    """Every change tried in a block, best first."""
    nodes = state.block_nodes(block)
    reward = comparable_rewards(nodes)
    out = []
    for node in nodes:
        origin = start(state, node)
        if origin is not None and origin.id in reward and (changes := changes_from(origin, node)):
            gain, clear = reward[node.id] - reward[origin.id], clear_gain(state, block, origin, node)
            out.append(Move(changes, gain, origin.config, clear))
    return sorted(out, key=lambda m: -m.gain)


def anywhere(ranges: dict[str, Range], config: dict[str, Any], rng: np.random.Generator) -> Changes:
    """A change to a point drawn uniformly on every range's scale."""
    drawn = {name: sample(span, rng) for name, span in ranges.items()}
    return {name: value for name, value in drawn.items() if value != config[name]}


def first_moves(hints: tuple[Hint, ...], ranges: dict[str, Range], config: dict[str, Any]) -> Iterator[Changes]:
    """One change per first-move row, in the table's order."""
    for hint in hints:
        if hint.parameter in ranges:
            span, value = ranges[hint.parameter], config[hint.parameter]
            moved = (
                at(span, 1.0 if hint.end == "max" else 0.0) if hint.end else extreme(span, value, hint.factor or 1.0)
            )
            if moved is not None and moved != value:
                yield {hint.parameter: moved}


def _combined(tried: list[Move], parent: Node, own: set[str], least: float) -> Changes:
    """All changes that gained more than `least`, where the parent's own lineage has not moved already."""
    out: Changes = {}
    for move in tried:
        for name, value in move.changes.items() if move.gain > least else ():
            if name not in own and value != parent.config[name]:
                out.setdefault(name, value)
    return out


def _lineage(state: State, node: Node | None) -> set[str]:
    return set() if node is None else {*node.changes, *_lineage(state, start(state, node))}


def repeat_step(ranges: dict[str, Range], parent: Node, origin: Node) -> Changes:
    """The parent's own step from `origin` once more, in the same direction."""
    out = {}
    for name in changes_from(origin, parent):
        span = ranges.get(name)
        if span is not None and span.scale != "choice":
            place, before = unit(span, parent.config[name]), unit(span, origin.config[name])
            out[name] = at(span, place + (place - before))
    return {name: value for name, value in out.items() if value != parent.config[name]}


def _direction(name: str, span: Range, tried: list[Move]) -> int:
    """Which way a parameter has helped: +1, -1, or 0 where it is not known."""
    pull = 0.0
    for move in tried:
        if name in move.changes:
            step = unit(span, move.changes[name]) - unit(span, move.origin[name])
            pull += np.sign(step) * move.gain / len(move.changes)
    return 0 if abs(pull) < 0.01 else int(np.sign(pull))


def steps(
    ranges: dict[str, Range], config: dict[str, Any], tried: list[Move], rng: np.random.Generator, size: float
) -> Iterator[Changes]:
    """An endless series: about half of the parameters moved by about `size` of their range, mostly the way that helped.

    One at a time, a search would need as many iterations as there are parameters before all have moved.
    """
    names = list(ranges)
    while True:
        count = 1 + int(rng.binomial(len(names) - 1, 0.5))
        out = {}
        for k in rng.choice(len(names), size=count, replace=False):
            name, span = names[k], ranges[names[k]]
            way = _direction(name, span, tried) if rng.random() < 0.75 else 0
            out[name] = perturb(span, config[name], rng, size, way)
        yield out
        # Where a range has few values every step may be taken already.
        size = min(1.0, size * 1.05)


def exploit(
    state: State, block: int, parent: Node, ranges: dict[str, Range], hints: tuple[Hint, ...], rng: np.random.Generator
) -> Iterator[Changes]:
    """An endless series of changes of one parent, the most promising first."""
    tried, own = moves(state, block), _lineage(state, parent)
    names_tried = {name for move in tried for name in move.changes}
    # A good parent leaves little to gain, so that small gains do not mean that nothing is known.
    if score(parent) < GOOD and len(tried) >= ENOUGH_TRIED and all(move.gain < LITTLE_GAIN for move in tried):
        for _ in range(N_ANYWHERE):
            yield anywhere(ranges, parent.config, rng)
    # 1: what helped elsewhere in the block, together; then with what did no harm.
    yield _combined(tried, parent, own, 0.0)
    yield _combined(tried, parent, own, HARMLESS)
    # 2: the parent's own step again, if it helped.
    origin = start(state, parent)
    if origin is not None and parent.parent != ROOT:
        reward = comparable_rewards([parent, origin])
        if reward[parent.id] > reward[origin.id]:
            yield repeat_step(ranges, parent, origin)
    # 3: first moves that were not tried, each followed by a step, so that neither series starves.
    wander = steps(ranges, parent.config, tried, rng, STEP if score(parent) < GOOD else FINE_STEP)
    for change in first_moves(hints, ranges, parent.config):
        if not set(change) & names_tried:
            yield change
            yield next(wander)
    yield from wander


def probes(
    ranges: dict[str, Range], parent: Node, probed: set[str], factor: float, rng: np.random.Generator
) -> Iterator[Changes]:
    """One parameter at a time multiplied or divided by `factor`, or set to the end of its range where that is nearer.

    Of the two ways the one that goes further on the range's scale, if the value changes at least `LEAST_PROBE` times.
    Parameters that were not probed yet come first.
    """
    names = [list(ranges)[k] for k in rng.permutation(len(ranges))]
    for name in sorted(names, key=lambda n: n in probed):
        span, value = ranges[name], parent.config[name]
        ends = [end for way in (factor, 1 / factor) if (end := extreme(span, value, way)) is not None]
        far = [end for end in ends if _times(value, end) >= min(LEAST_PROBE, 0.99 * factor)]
        if far:
            yield {name: max(far, key=lambda end: abs(unit(span, end) - unit(span, value)))}


def _times(a: Any, b: Any) -> float:
    """By which factor two numbers differ; infinite for words, and where one of them is 0."""
    if isinstance(a, str) or isinstance(b, str) or not a or not b:
        return math.inf
    return max(a / b, b / a)
