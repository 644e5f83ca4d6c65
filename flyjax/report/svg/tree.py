"""The tree of a block as a drawing: time runs right, every branch keeps a lane of its own.

A node's heaviest child goes on in its lane; other children open a lane near by, which is free again
where their branch ends. So the height follows the branches alive at one time, not the node count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from flyjax.report.run_view import Run
from flyjax.report.svg.charts import cross, el, points, svg, tooltip
from flyjax.search.journal.state import Node
from flyjax.search.policy import measures
from flyjax.search.proposals.types import ROOT

#: Above this many lanes, edges may cross: a lane is then held at its nodes only.
MANY_LANES = 30


@dataclass(frozen=True)
class Layout:
    """Column (iteration in the block, 0 for the root configuration) and lane of every node."""

    place: dict[int | str, tuple[int, int]]
    parent: dict[int, int | str]
    lanes: int
    reserved: bool  # edges run in their child's lane


def layout(nodes: list[Node]) -> Layout:
    """Lanes for a block's nodes, in id order. Any tree is accepted; an unknown parent counts as the root."""
    column: dict[int | str, int] = {ROOT: 0, **{n.id: n.iter_in_block for n in nodes}}
    parent: dict[int, int | str] = {}
    for n in nodes:
        known = n.parent in column and column[n.parent] < column[n.id]
        parent[n.id] = n.parent if known else ROOT
    size: dict[int | str, int] = dict.fromkeys(column, 1)
    children: dict[int | str, list[int]] = {k: [] for k in column}
    for n in sorted(nodes, key=lambda n: (-n.iter_in_block, n.id)):
        size[parent[n.id]] += size[n.id]
        children[parent[n.id]].append(n.id)
    heavy = {k: max(c, key=lambda i: (size[i], -i)) for k, c in children.items() if c}
    chains = [_chain(ROOT, heavy)]
    for n in sorted(nodes, key=lambda n: (column[parent[n.id]], -size[n.id], n.id)):
        if heavy[parent[n.id]] != n.id:
            chains.append(_chain(n.id, heavy))
    for reserved in (True, False):
        place = _lanes(chains, column, parent, reserved)
        lowest = min(lane for _, lane in place.values())
        lanes = max(lane for _, lane in place.values()) - lowest + 1
        if lanes <= MANY_LANES:
            break
    return Layout({k: (c, lane - lowest) for k, (c, lane) in place.items()}, parent, lanes, reserved)


def _chain(head, heavy) -> list:
    out = [head]
    while out[-1] in heavy:
        out.append(heavy[out[-1]])
    return out


def _lanes(chains, column, parent, reserved) -> dict:
    taken: dict[int, set[int]] = {}
    place: dict = {}
    for chain in chains:
        head = chain[0]
        home = place[parent[head]][1] if head in parent else 0
        if reserved:
            begin = column[parent[head]] + 1 if head in parent else 0
            held = set(range(begin, column[chain[-1]] + 1))
        else:
            held = {column[k] for k in chain}
        lane = next(lane for lane in _nearest(home) if not taken.setdefault(lane, set()) & held)
        taken[lane] |= held
        place |= {k: (column[k], lane) for k in chain}
    return place


def _nearest(home: int):
    """home, then its neighbours below and above, further and further."""
    yield home
    distance = 1
    while True:
        yield home + distance
        yield home - distance
        distance += 1


def marker(strategy: str, x: float, y: float, r: float, class_: str) -> Markup:
    """A strategy's shape."""
    if strategy == "failure-probe":
        corners = [(x, y - 1.2 * r), (x + 1.1 * r, y + 0.85 * r), (x - 1.1 * r, y + 0.85 * r)]
    elif strategy == "explore":
        corners = [(x, y - 1.25 * r), (x + 1.25 * r, y), (x, y + 1.25 * r), (x - 1.25 * r, y)]
    elif strategy == "robustness-test":
        corners = [
            (x - 0.9 * r, y - 0.9 * r),
            (x + 0.9 * r, y - 0.9 * r),
            (x + 0.9 * r, y + 0.9 * r),
            (x - 0.9 * r, y + 0.9 * r),
        ]
    elif strategy == "force-branch":
        corners = [(x + 1.1 * r * math.cos(a), y + 1.1 * r * math.sin(a)) for a in (math.pi / 3 * k for k in range(6))]
    else:
        circle = el("circle", cx=x, cy=y, r=r, class_=class_)
        ring = el("circle", cx=x, cy=y, r=r + 3, class_="ring-root") if strategy == "root" else Markup("")
        return ring + circle
    return el("polygon", points=points(corners), class_=class_)


def node_class(node: Node) -> str:
    """Style classes of a node: how far it came."""
    if node.status == "running":
        return "node running"
    if node.status == "failed":
        return "node untrained"
    return f"node {node.classification}"


def block_tree(run: Run, block: int) -> Markup:
    """One block's tree; the chosen node of each iteration is ringed, the best one starred."""
    nodes = [run.state.nodes[i] for i in run.state.blocks[block].nodes]
    if not nodes:
        return Markup("")
    plan = layout(nodes)
    last = max(n.iter_in_block for n in nodes)
    crowded = len(nodes) > 80 or plan.lanes > 12
    r, row = (6.0, 35.0) if crowded else (8.0, 41.0)
    col = min(110.0, max(38.0 if crowded else 46.0, 960.0 / (last + 0.5)))
    left, top = 34.0, 34.0
    width, height = left + last * col + 46, top + (plan.lanes - 1) * row + 40
    at = {k: (left + c * col, top + 12 + lane * row) for k, (c, lane) in plan.place.items()}
    best = measures.best_node(run.state, block)
    chosen = {c.chosen for c in run.state.choices.values()}
    ink: list[Any] = []
    for k in range(1, last + 1):
        x = left + k * col
        ink.append(el("line", x1=x, x2=x, y1=top - 12, y2=height - 8, class_="guide"))
        ink.append(el("text", str(k), x=x, y=top - 18, class_="tick middle"))
    ink.append(el("text", "iteration", x=left - 28, y=top - 18, class_="axis"))
    for n in nodes:
        kind = "edge main" if n.id in chosen else "edge"
        ink.append(el("path", d=_edge(at[plan.parent[n.id]], at[n.id], col, plan.reserved), class_=kind))
    x, y = at[ROOT]
    ink.append(el("circle", cx=x, cy=y, r=3.0, class_="origin"))
    ink.append(el("text", "root", x=x, y=y + 16, class_="tick middle"))
    for n in nodes:
        x, y = at[n.id]
        parts = [el("title", tooltip(run, n))]
        if n.id in chosen:
            parts.append(el("circle", cx=x, cy=y, r=r + 4.5, class_="ring"))
        parts.append(marker(n.strategy, x, y, r, node_class(n)))
        if n.status == "failed":
            parts.append(cross(x, y, 0.45 * r, "cross inner"))
        mark = "★ " if best is not None and n.id == best.id else ""
        parts.append(el("text", f"{mark}{n.id}", x=x, y=y + r + 14, class_="node-id best" if mark else "node-id"))
        ink.append(el("a", *parts, href=f"#node-{n.id}"))
    return svg(width, height, *ink, label=f"tree of block {block}", class_="chart tree")


def _edge(a: tuple[float, float], b: tuple[float, float], col: float, reserved: bool) -> str:
    (x0, y0), (x1, y1) = a, b
    if y0 == y1 and (reserved or x1 - x0 < 1.5 * col):
        return f"M{x0:.1f} {y0:.1f}H{x1:.1f}"
    if y0 == y1:
        # Other nodes stand in between: pass above them.
        return f"M{x0:.1f} {y0:.1f}C{x0 + col:.1f} {y0 - 18:.1f} {x1 - col:.1f} {y0 - 18:.1f} {x1:.1f} {y1:.1f}"
    turn = x0 + col if reserved else x1
    mid = (x0 + turn) / 2
    return f"M{x0:.1f} {y0:.1f}C{mid:.1f} {y0:.1f} {mid:.1f} {y1:.1f} {turn:.1f} {y1:.1f}H{x1:.1f}"
