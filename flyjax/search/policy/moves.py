"""How the rules change a configuration: what has helped so far, then first moves, then small steps.

Everything is a change against a parent's configuration, as a mapping of names to values. Nothing here
knows a good value: only ranges, the results of the block, and the protocol's first moves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from flyjax.config import Range
from flyjax.search.journal.state import Node, State
from flyjax.search.policy.ucb import score, worths
from flyjax.search.protocol.rule_table import Hint
from flyjax.search.ranges import at, extreme, perturb, sample, unit

#: Typical steps as shares of a range.
WIDE_STEP, STEP, FINE_STEP = 0.35, 0.3, 0.1
GOOD = 0.9  # from here on steps are fine
HARMLESS = -0.03  # a change that cost less than this may still help together with others
#: While none of a block's first changes (three at least) has brought this much, nothing is known, first moves included:
LOST, FIRST = 0.05, 3
FAR = 2  # so many slots then draw anywhere


@dataclass(frozen=True)
class Move:
    """A change that was tried, and what it brought over the configuration it started from."""

    changes: dict[str, Any]
    gain: float
    origin: dict[str, Any]  # the configuration it started from


def moves(state: State, block: int) -> list[Move]:
    """Every change tried in a block, best first. Companions of the root are compared with the root."""
    nodes = state.block_nodes(block)
    worth = worths(nodes)
    root = next((n for n in nodes if n.strategy == "root"), None)
    out = []
    for node in nodes:
        start = state.nodes.get(node.parent) if isinstance(node.parent, int) else root
        if start is None or start.id not in worth or start is node or not node.changes:
            continue
        out.append(Move(node.changes, worth[node.id] - worth[start.id], start.config))
    return sorted(out, key=lambda m: -m.gain)


def hinted(hint: Hint, span: Range, value: Any) -> Any | None:
    """The first move on a value; None where it moves nothing."""
    moved = at(span, 1.0 if hint.end == "max" else 0.0) if hint.end else extreme(span, value, hint.factor)
    return None if moved == value else moved


def anywhere(ranges: dict[str, Range], config: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """A change to a place drawn uniformly on every range's scale."""
    drawn = {name: sample(span, rng) for name, span in ranges.items()}
    return {name: value for name, value in drawn.items() if value != config[name]}


def first_moves(hints: tuple[Hint, ...], ranges: dict[str, Range], config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One change per first-move row, in the table's order."""
    for hint in hints:
        if hint.parameter in ranges:
            value = hinted(hint, ranges[hint.parameter], config[hint.parameter])
            if value is not None:
                yield {hint.parameter: value}


def _combined(tried: list[Move], parent: Node, own: set[str], least: float) -> dict[str, Any]:
    """All changes that brought more than `least`, where the parent's own lineage has not moved already."""
    out: dict[str, Any] = {}
    for move in tried:
        if move.gain > least:
            for name, value in move.changes.items():
                if name not in own and value != parent.config[name]:
                    out.setdefault(name, value)
    return out


def _lineage(state: State, node: Node) -> set[str]:
    names, here = set(), node
    while here is not None:
        names |= set(here.changes)
        here = state.nodes.get(here.parent) if isinstance(here.parent, int) else None
    return names


def _again(ranges: dict[str, Range], parent: Node, origin: dict[str, Any], stretch: float = 1.0) -> dict[str, Any]:
    """The parent's own step once more, in the same direction."""
    out = {}
    for name in parent.changes:
        span = ranges.get(name)
        if span is None or span.scale == "choice":
            continue
        here, before = unit(span, parent.config[name]), unit(span, origin[name])
        value = at(span, here + stretch * (here - before))
        if value != parent.config[name]:
            out[name] = value
    return out


def _direction(name: str, span: Range, tried: list[Move]) -> int:
    """Which way a parameter has helped: +1, -1, or 0 where nobody knows."""
    pull = 0.0
    for move in tried:
        if name in move.changes:
            step = unit(span, move.changes[name]) - unit(span, move.origin[name])
            pull += np.sign(step) * move.gain / len(move.changes)
    return 0 if abs(pull) < 0.01 else int(np.sign(pull))


def steps(
    ranges: dict[str, Range], config: dict[str, Any], tried: list[Move], rng: np.random.Generator, size: float
) -> Iterator[dict[str, Any]]:
    """Without end: about half of the parameters moved by about `size` of their range, mostly the way that helped.

    One at a time, a search needs as many iterations as there are parameters before it has moved at all.
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
        # Where a range holds few values every step may be taken already.
        size = min(1.0, size * 1.05)


def exploit(
    state: State, block: int, parent: Node, ranges: dict[str, Range], hints: tuple[Hint, ...], rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """Changes of one parent, the most promising first, without end."""
    tried, own = moves(state, block), _lineage(state, parent)
    names_tried = {name for move in tried for name in move.changes}
    if len(tried) >= FIRST and all(move.gain < LOST for move in tried):
        for _ in range(FAR):
            yield anywhere(ranges, parent.config, rng)
    # 1: what helped elsewhere in the block, together; then with what did no harm.
    yield _combined(tried, parent, own, 0.0)
    yield _combined(tried, parent, own, HARMLESS)
    # 2: the parent's own step again, if it helped.
    start = state.nodes.get(parent.parent) if isinstance(parent.parent, int) else None
    worth = worths([parent, *([start] if start is not None else [])])
    if start is not None and parent.changes and worth[parent.id] > worth[start.id]:
        yield _again(ranges, parent, start.config)
    # 3: first moves nobody tried, one after the other with steps between, so that neither starves.
    fresh = (c for c in first_moves(hints, ranges, parent.config) if not set(c) & names_tried)
    wander = steps(ranges, parent.config, tried, rng, STEP if score(parent) < GOOD else FINE_STEP)
    for change in fresh:
        yield change
        yield next(wander)
    yield from wander


def probes(
    ranges: dict[str, Range], parent: Node, probed: set[str], factor: float, rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """One parameter at a time times or divided by `factor`, those not probed yet first."""
    names = [list(ranges)[k] for k in rng.permutation(len(ranges))]
    for name in sorted(names, key=lambda n: n in probed):
        for way in (factor, 1 / factor) if rng.random() < 0.5 else (1 / factor, factor):
            value = extreme(ranges[name], parent.config[name], way)
            if value is not None:
                yield {name: value}
