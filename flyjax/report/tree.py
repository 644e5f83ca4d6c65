"""Where the nodes of a block's tree are drawn: time runs to the right, and every branch has a lane of its own.

The child with the most descendants continues in its parent's lane; other children open a lane near by, which
is free again where their branch ends. So the height follows the number of branches at one time, not of nodes.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from flyjax.search.journal.state import Node
from flyjax.search.proposals.types import ROOT

#: Above this many lanes, edges may cross: a branch then occupies its lane at its nodes only.
MANY_LANES = 30

#: Number of corners of a strategy's shape, and degrees from the top to the first one; the others are circles.
SHAPES = {"failure-probe": (3, 0), "explore": (4, 0), "robustness-test": (4, 45), "force-branch": (6, 30)}

Key = int | str  # id of a node, or ROOT


@dataclass(frozen=True)
class TreeLayout:
    """Column (iteration in the block, 0 for the root configuration) and lane of every node."""

    place: dict[Key, tuple[int, int]]
    parent: dict[int, Key]
    n_lanes: int
    reserved: bool  # edges run in their child's lane


def tree_layout(nodes: list[Node]) -> TreeLayout:
    """Lanes for a block's nodes, in order of id. An unknown parent, or one that is not older, counts as the root."""
    column: dict[Key, int] = {ROOT: 0, **{n.id: n.iter_in_block for n in nodes}}
    parent: dict[int, Key] = {
        n.id: n.parent if n.parent in column and column[n.parent] < column[n.id] else ROOT for n in nodes
    }
    size: dict[Key, int] = dict.fromkeys(column, 1)
    children: dict[Key, list[int]] = {k: [] for k in column}
    for n in sorted(nodes, key=lambda n: (-n.iter_in_block, n.id)):
        size[parent[n.id]] += size[n.id]
        children[parent[n.id]].append(n.id)
    successor = {k: max(c, key=lambda i: (size[i], -i)) for k, c in children.items() if c}
    heads = sorted(nodes, key=lambda n: (column[parent[n.id]], -size[n.id], n.id))
    branches = [_branch(ROOT, successor)]
    branches += [_branch(n.id, successor) for n in heads if successor[parent[n.id]] != n.id]
    for reserved in (True, False):
        place = _assign_lanes(branches, column, parent, reserved)
        lanes = [lane for _, lane in place.values()]
        if max(lanes) - min(lanes) < MANY_LANES:
            break
    shifted = {k: (c, lane - min(lanes)) for k, (c, lane) in place.items()}
    return TreeLayout(shifted, parent, max(lanes) - min(lanes) + 1, reserved)


def _branch(head: Key, successor: dict[Key, int]) -> list[Key]:
    out = [head]
    while out[-1] in successor:
        out.append(successor[out[-1]])
    return out


def _assign_lanes(
    branches: list[list[Key]], column: dict[Key, int], parent: dict[int, Key], reserved: bool
) -> dict[Key, tuple[int, int]]:
    """(column, lane) of every node: each branch takes the free lane nearest to its parent's."""
    occupied: dict[int, set[int]] = {}
    place: dict[Key, tuple[int, int]] = {}
    for branch in branches:
        head, columns = branch[0], {column[k] for k in branch}
        home = place[parent[head]][1] if head in parent else 0
        if reserved:
            begin = column[parent[head]] + 1 if head in parent else 0
            columns = set(range(begin, column[branch[-1]] + 1))
        lane = next(lane for lane in _nearest(home) if not occupied.setdefault(lane, set()) & columns)
        occupied[lane] |= columns
        place |= {k: (column[k], lane) for k in branch}
    return place


def _nearest(home: int) -> Iterator[int]:
    """home, then its neighbours below and above, further and further."""
    yield home
    for distance in itertools.count(1):
        yield home + distance
        yield home - distance


def corners(strategy: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Corners of a strategy's shape around (x, y), y down; none for a circle."""
    n, first = SHAPES.get(strategy, (0, 0))
    angles = [math.radians(first - 90) + 2 * math.pi * k / n for k in range(n)]
    return [(x + 1.25 * radius * math.cos(a), y + 1.25 * radius * math.sin(a)) for a in angles]


@dataclass(frozen=True)
class TreeDrawing:
    """A block's tree in pixels; `marks` has (node, x, y, path of the edge that leads to it)."""

    width: float
    height: float
    radius: float
    columns: list[tuple[int, float]]
    origin: tuple[float, float]
    marks: list[tuple[Node, float, float, str]]


def draw_tree(nodes: list[Node]) -> TreeDrawing:
    """Places of a block's nodes, closer together where they are many."""
    layout, last = tree_layout(nodes), max(n.iter_in_block for n in nodes)
    crowded = len(nodes) > 80 or layout.n_lanes > 12
    radius, row, least = (6.0, 36.0, 62.0) if crowded else (8.0, 42.0, 66.0)
    step, left, top = min(110.0, max(least, 960.0 / (last + 0.5))), 34.0, 34.0
    place = {k: (left + column * step, top + 12 + lane * row) for k, (column, lane) in layout.place.items()}
    return TreeDrawing(
        left + last * step + 46,
        top + (layout.n_lanes - 1) * row + 40,
        radius,
        [(k, left + k * step) for k in range(1, last + 1)],
        place[ROOT],
        [(n, *place[n.id], _edge(place[layout.parent[n.id]], place[n.id], step, layout.reserved)) for n in nodes],
    )


def _edge(begin: tuple[float, float], end: tuple[float, float], step: float, reserved: bool) -> str:
    """The path between two nodes; `step`: distance of two iterations."""
    (x0, y0), (x1, y1) = begin, end
    if y0 == y1 and (reserved or x1 - x0 < 1.5 * step):
        return f"M{x0:.1f} {y0:.1f}H{x1:.1f}"
    if y0 == y1:  # above the other nodes of the lane
        return f"M{x0:.1f} {y0:.1f}C{x0 + step:.1f} {y0 - 18:.1f} {x1 - step:.1f} {y0 - 18:.1f} {x1:.1f} {y1:.1f}"
    turn = x0 + step if reserved else x1
    mid = (x0 + turn) / 2
    return f"M{x0:.1f} {y0:.1f}C{mid:.1f} {y0:.1f} {mid:.1f} {y1:.1f} {turn:.1f} {y1:.1f}H{x1:.1f}"
