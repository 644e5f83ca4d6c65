"""Charts as inline SVG: the best R2 so far, the landscape of every parameter, step sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.colors import LinearSegmentedColormap, to_hex

from flyjax.report.axis import Axis
from flyjax.report.run_view import RunView
from flyjax.report.svg.elements import cross, drawing, element, linked, points
from flyjax.report.tables import SHORT_NAMES, format_setting, root_config
from flyjax.search.journal.state import CONVERGED, FAILED, Node
from flyjax.utils.format import finite

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
