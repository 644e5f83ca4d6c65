"""Inline SVG: elements as escaped markup, the tree of a block, and charts.

Colours that carry no number come from the page's style sheet, so that one drawing serves light and dark pages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape
from matplotlib.colors import LinearSegmentedColormap, to_hex

from flyjax.report.axis import Axis
from flyjax.report.run_view import RunView
from flyjax.report.tables import SHORT_NAMES, describe_mutation, format_score, format_setting, root_config
from flyjax.report.tree_layout import SHAPES, tree_layout
from flyjax.search.journal.state import CONVERGED, FAILED, Node
from flyjax.search.policy import measures
from flyjax.search.proposals.types import ROOT
from flyjax.utils.format import finite


def element(tag: str, *children: Any, **attributes: Any) -> Markup:
    """An element; everything but `Markup` is escaped.

    **Arguments:**

    - `attributes`: `class_` is class, underscores are hyphens, None leaves an attribute out.
    """
    out = [f"<{tag}"]
    for key, value in attributes.items():
        if value is None:
            continue
        name = key.rstrip("_").replace("_", "-").replace("viewbox", "viewBox")
        text = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
        out.append(f' {name}="{escape(text)}"')
    inner = Markup("").join(c if isinstance(c, Markup) else escape(c) for c in children if c is not None)
    return Markup("".join(out)) + Markup(">") + inner + Markup(f"</{tag}>")


def drawing(width: float, height: float, *children: Any, label: str, class_: str = "chart") -> Markup:
    """An `svg` element with a label for screen readers."""
    size = {"viewbox": f"0 0 {width:g} {height:g}", "width": f"{width:g}", "height": f"{height:g}"}
    return element("svg", element("title", label), *children, class_=class_, role="img", **size)


def points(pairs: Iterable[tuple[float, float]]) -> str:
    """Corners of a polygon or polyline as an attribute."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)


def cross(x: float, y: float, size: float = 4.0, class_: str = "cross") -> Markup:
    """The mark of a failure."""
    a, b, c, d = (f"{v:.1f}" for v in (x - size, y - size, x + size, y + size))
    return element("path", d=f"M{a} {b}L{c} {d}M{a} {d}L{c} {b}", class_=class_)


def tooltip(run: RunView, node: Node) -> str:
    """Several lines that appear beside the pointer."""
    lines = [
        f"node {node.id} · parent {node.parent} · {node.strategy}",
        describe_mutation(run.state, node, short=True),
    ]
    if node.status == "failed":
        return "\n".join([*lines, f"failed: {node.reason or 'no reason given'}"])
    if node.status == "running":
        return "\n".join([*lines, "in training"])
    names = {"W R2": "connectivity_R2", "tau R2": "tau_R2", "V_rest R2": "V_rest_R2", "test R2": "test_R2"}
    lines.append(" · ".join(f"{short} {format_score(run.value(node, name))}" for short, name in names.items()))
    if "std" in node.spread:
        lines.append(f"{node.spread['n']} seeds, min {format_score(node.spread['min'])}")
    return "\n".join(lines)


def linked(run: RunView, node: Node, *children: Markup) -> Markup:
    """Marks of a node that lead to its row in the table and show its tooltip."""
    title = element("title", tooltip(run, node))
    return element("a", title, *children, href=f"#node-{node.id}", data_block=node.block)


def strategy_marker(strategy: str, x: float, y: float, radius: float, class_: str) -> Markup:
    """The shape of a strategy; the root's circle has a ring."""
    if strategy in SHAPES:
        n, first = SHAPES[strategy]
        angles = [math.radians(first - 90) + 2 * math.pi * k / n for k in range(n)]
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


#: Low to high; each colour is legible on white and on near-black paper.
RAMP = ("#4c63d2", "#8a52c6", "#c9488f", "#e5704f", "#d99a26")
_COLOURS = LinearSegmentedColormap.from_list("noise", RAMP, N=1024)
#: Number of node ids that fit below a chart.
N_LABELS = 26


class NoiseScale:
    """Colours of noise_model_level: one per level while they are few, else a gradient."""

    def __init__(self, levels: list[float], few: int = 8):
        self.levels, self.few = levels, len(levels) <= few

    def _colour(self, level: float) -> str:
        if self.few:
            place = self.levels.index(level) / max(1, len(self.levels) - 1)
        else:
            place = (level - self.levels[0]) / (self.levels[-1] - self.levels[0])
        return to_hex(_COLOURS(place))

    def __call__(self, node: Node) -> str:
        level = finite(node.config.get("noise_model_level"))
        return self._colour(level) if level in self.levels else "#888888"

    def legend(self) -> Markup:
        """A line of HTML that explains the colours."""
        title = element("span", "noise_model_level", class_="legend-title")
        if self.few:
            swatches = [
                (element("i", class_="swatch", style=f"background:{self._colour(v)}"), format_setting(v))
                for v in self.levels
            ]
            return element("p", title, *(element("span", *s, class_="key") for s in swatches), class_="legend")
        bar = element("i", class_="gradient", style=f"background:linear-gradient(90deg,{','.join(RAMP)})")
        low, high = format_setting(self.levels[0]), format_setting(self.levels[-1])
        return element("p", title, low, bar, high, class_="legend")


@dataclass(frozen=True)
class PlotArea:
    """A chart's size and margins in pixels; places inside are fractions from the lower left corner."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float

    def x(self, fraction: float) -> float:
        return self.left + fraction * (self.width - self.left - self.right)

    def y(self, fraction: float) -> float:
        return self.top + (1 - min(1.0, max(0.0, fraction))) * (self.height - self.top - self.bottom)

    def horizontal(self, fraction: float, class_: str) -> Markup:
        y = self.y(fraction)
        return element("line", x1=self.left, x2=self.width - self.right, y1=y, y2=y, class_=class_)

    def vertical(self, x: float, class_: str, from_y: float | None = None) -> Markup:
        top = self.y(1) if from_y is None else from_y
        return element("line", x1=x, x2=x, y1=top, y2=self.y(0), class_=class_)

    def grid(self, labels: Mapping[float, str]) -> list[Markup]:
        """Horizontal lines with their labels at the left."""
        lines = [self.horizontal(fraction, "grid") for fraction in labels]
        texts = [
            element("text", text, x=self.left - 7, y=self.y(fraction) + 4, class_="tick end")
            for fraction, text in labels.items()
        ]
        return lines + texts

    def node_ids(self, nodes: Sequence[Node]) -> list[Markup]:
        """Ids below the nodes, which stand side by side; as many as there is room for."""
        every = max(1, math.ceil(len(nodes) / N_LABELS))
        y = self.height - self.bottom + 18
        return [element("text", "node", x=self.width - self.right + 8, y=y, class_="axis")] + [
            element("text", str(node.id), x=self.x((k + 0.5) / len(nodes)), y=y, class_="tick middle")
            for k, node in enumerate(nodes)
            if k % every == 0
        ]


def _best_so_far(
    nodes: Sequence[Node], score: Callable[[Node], float | None], value: Callable[[Node], float | None]
) -> list[tuple[Node, float]]:
    """Every node whose score exceeds that of all nodes before it, with its value."""
    best, out = -math.inf, []
    for node in nodes:
        s, v = score(node), value(node)
        if s is not None and v is not None and s > best:
            best = s
            out.append((node, v))
    return out


def _stairs(area: PlotArea, steps: list[tuple[Node, float]], x: Mapping[int, float], class_: str) -> Markup:
    corners: list[tuple[float, float]] = []
    for node, value in steps:
        if corners:
            corners.append((x[node.id], corners[-1][1]))
        corners.append((x[node.id], area.y(value)))
    if not corners:
        return Markup("")
    end = (area.width - area.right, corners[-1][1])
    return element("polyline", points=points([*corners, end]), class_=class_)


def _mark(run: RunView, node: Node, name: str, area: PlotArea, x: float, radius: float, colour: str) -> Markup:
    """A dot at the node's value, or a cross where there is none."""
    value = run.value(node, name)
    if value is None:
        return cross(x, area.y(0))
    return element("circle", cx=x, cy=area.y(value), r=radius, style=f"fill:{colour}", class_="dot")


def _seed_range(run: RunView, node: Node, name: str, area: PlotArea, x: float) -> list[Markup]:
    """A bar from the worst to the best seed of a node with several."""
    seeds = [v for m in run.per_seed.get(node.id, []) if (v := finite(m.get(name))) is not None]
    if len(seeds) < 2 or run.value(node, name) is None:
        return []
    return [element("line", x1=x, x2=x, y1=area.y(min(seeds)), y2=area.y(max(seeds)), class_="whisker")]


def staircase(run: RunView, noise: NoiseScale) -> Markup:
    """Every node's R2 over its number, the best so far, and the R2 of what a blind search would choose."""
    nodes, name = run.nodes, run.truth_metric
    if not nodes:
        return Markup("")
    area = PlotArea(1040.0, 330.0, left=46.0, right=112.0, top=34.0, bottom=40.0)
    step = (area.width - area.left - area.right) / len(nodes)
    x = {n.id: area.left + (k + 0.5) * step for k, n in enumerate(nodes)}
    title_y = area.top - 12
    parts = area.grid({v: f"{v:g}" for v in (0, 0.25, 0.5, 0.75, 1)})
    for v, text in ((CONVERGED, f"converged > {CONVERGED}"), (FAILED, f"failed < {FAILED}")):
        parts.append(area.horizontal(v, "threshold"))
        parts.append(element("text", text, x=area.width - area.right + 8, y=area.y(v) + 4, class_="tick"))
    for block in run.state.blocks.values():
        places = [x[i] for i in block.nodes]
        begin, end = min(places) - step / 2, max(places) + step / 2
        if begin > area.left + 1:
            parts.append(area.vertical(begin, "border", from_y=area.top - 22))
        title, stimulus = f"Block {block.number}", str(block.simulation.get("visual_input_type", ""))
        if stimulus and end - begin > 7 * (len(title) + len(stimulus)):
            title += f" · {stimulus}"
        parts.append(element("text", title, x=begin + 6, y=title_y, class_="block-title"))
    parts.append(element("text", name, x=area.width - area.right + 8, y=title_y, class_="axis"))
    parts += area.node_ids(nodes)
    best = _best_so_far(nodes, lambda n: run.value(n, name), lambda n: run.value(n, name))
    blind = _best_so_far(nodes, lambda n: run.value(n, "test_R2"), lambda n: run.value(n, name))
    parts += [_stairs(area, blind, x, "stairs blind"), _stairs(area, best, x, "stairs best")]
    radius = max(2.5, min(5.0, 0.36 * step))
    for node in nodes:
        if node.status != "running":
            bar = _seed_range(run, node, name, area, x[node.id])
            parts.append(linked(run, node, *bar, _mark(run, node, name, area, x[node.id], radius, noise(node))))
    return drawing(area.width, area.height, *parts, label=f"{name} of every node and the best so far")


def landscape(run: RunView, name: str, noise: NoiseScale) -> Markup:
    """R2 over one parameter, a dot per node; the root's value is a dashed line."""
    area = PlotArea(250.0, 176.0, left=30.0, right=12.0, top=10.0, bottom=24.0)
    axis, metric = Axis([n.config.get(name) for n in run.nodes], run.search_ranges.get(name)), run.truth_metric
    parts = area.grid({v: f"{v:g}" for v in (0, 0.5, 1)})
    parts += [area.horizontal(v, "threshold") for v in (CONVERGED, FAILED)]
    for place, text in axis.tick_labels()[:8]:
        x = area.x(place)
        parts.append(element("line", x1=x, x2=x, y1=area.y(0), y2=area.y(0) + 4, class_="tickmark"))
        parts.append(element("text", text, x=x, y=area.height - 7, class_="tick middle"))
    home = axis.place(root_config(run.state).get(name))
    if home is not None:
        parts.append(area.vertical(area.x(home), "home"))
    for node in sorted(run.nodes, key=lambda n: run.value(n, metric) or 0):
        at = axis.place(node.config.get(name))
        if at is not None and node.status != "running":
            parts.append(linked(run, node, _mark(run, node, metric, area, area.x(at), 4.2, noise(node))))
    label = f"{metric} over {SHORT_NAMES.get(name, name)}"
    return drawing(area.width, area.height, *parts, label=label, class_="chart panel")


def step_sizes(run: RunView) -> Markup:
    """Distance of every node from its parent, in unit places of the ranges."""
    steps = [(node, size) for node, size in run.step_sizes() if size is not None]
    if not steps:
        return Markup("")
    area = PlotArea(1040.0, 150.0, left=46.0, right=112.0, top=12.0, bottom=28.0)
    high = 1.1 * max(0.1, *(size for _, size in steps))
    gap = (area.width - area.left - area.right) / len(steps)
    parts = area.grid({v / high: f"{v:.2f}" if v else "0" for v in (0, high / 2.2, high / 1.1)})
    parts += area.node_ids([node for node, _ in steps])
    for k, (node, size) in enumerate(steps):
        x, y = area.left + (k + 0.5) * gap, area.y(size / high)
        class_ = "step chosen" if node.id in run.chosen else "step"
        dot = element("circle", cx=x, cy=y, r=min(3.5, 0.4 * gap), class_=class_)
        parts.append(linked(run, node, area.vertical(x, class_, from_y=y), dot))
    return drawing(area.width, area.height, *parts, label="step sizes")
