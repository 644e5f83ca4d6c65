"""The tree of a block as inline SVG."""

from __future__ import annotations

import math

from markupsafe import Markup

from flyjax.report.run_view import RunView
from flyjax.report.svg.elements import cross, drawing, element, points, tooltip
from flyjax.report.tree_layout import tree_layout
from flyjax.search.journal.state import Node
from flyjax.search.policy import measures
from flyjax.search.proposals.types import ROOT

#: Number of corners of a strategy's shape and the direction of the first one; the others are circles.
SHAPES = {"failure-probe": (3, -90), "explore": (4, -90), "robustness-test": (4, 45), "force-branch": (6, 0)}


def strategy_marker(strategy: str, x: float, y: float, radius: float, class_: str) -> Markup:
    """The shape of a strategy; the root's circle has a ring."""
    if strategy in SHAPES:
        n, first = SHAPES[strategy]
        angles = [math.radians(first) + 2 * math.pi * k / n for k in range(n)]
        corners = [(x + 1.25 * radius * math.cos(a), y + 1.25 * radius * math.sin(a)) for a in angles]
        return element("polygon", points=points(corners), class_=class_)
    circle = element("circle", cx=x, cy=y, r=radius, class_=class_)
    return element("circle", cx=x, cy=y, r=radius + 3, class_="ring-root") + circle if strategy == "root" else circle


def node_class(node: Node) -> str:
    """Style classes of a node: how good it is."""
    status = {"running": "running", "failed": "untrained"}
    return f"node {status.get(node.status, node.classification)}"


def block_tree(run: RunView, block: int) -> Markup:
    """One block's tree; the chosen node of each iteration has a ring, the best node a star."""
    nodes = [run.state.nodes[i] for i in run.state.blocks[block].nodes]
    if not nodes:
        return Markup("")
    layout = tree_layout(nodes)
    last = max(n.iter_in_block for n in nodes)
    crowded = len(nodes) > 80 or layout.n_lanes > 12
    radius, row = (6.0, 35.0) if crowded else (8.0, 41.0)
    step = min(110.0, max(38.0 if crowded else 46.0, 960.0 / (last + 0.5)))
    left, top = 34.0, 34.0
    width, height = left + last * step + 46, top + (layout.n_lanes - 1) * row + 40
    place = {k: (left + column * step, top + 12 + lane * row) for k, (column, lane) in layout.place.items()}
    best = measures.best_node(run.state, block)
    columns = [(k, left + k * step) for k in range(1, last + 1)]
    guides = [element("line", x1=x, x2=x, y1=top - 12, y2=height - 8, class_="guide") for _, x in columns]
    ticks = [element("text", k, x=x, y=top - 18, class_="tick middle") for k, x in columns]
    edges = [
        element(
            "path",
            d=_edge(place[layout.parent[n.id]], place[n.id], step, layout.reserved),
            class_="edge main" if n.id in run.chosen else "edge",
        )
        for n in nodes
    ]
    x, y = place[ROOT]
    parts = [
        element("text", "iteration", x=left - 28, y=top - 18, class_="axis"),
        *guides,
        *ticks,
        *edges,
        element("circle", cx=x, cy=y, r=3.0, class_="origin"),
        element("text", "root", x=x, y=y + 16, class_="tick middle"),
    ]
    for n in nodes:
        x, y = place[n.id]
        marks = [element("title", tooltip(run, n))]
        if n.id in run.chosen:
            marks.append(element("circle", cx=x, cy=y, r=radius + 4.5, class_="ring"))
        marks.append(strategy_marker(n.strategy, x, y, radius, node_class(n)))
        if n.status == "failed":
            marks.append(cross(x, y, 0.45 * radius, "cross inner"))
        label, class_ = (f"★ {n.id}", "node-id best") if best is not None and n.id == best.id else (n.id, "node-id")
        marks.append(element("text", label, x=x, y=y + radius + 14, class_=class_))
        parts.append(element("a", *marks, href=f"#node-{n.id}"))
    return drawing(width, height, *parts, label=f"tree of block {block}", class_="chart tree")


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
