"""Charts as inline SVG: the staircase of the best R2, the landscape, step sizes.

Colours that carry no number come from the page's style sheet, so that one drawing serves light and dark.
Everything written into a drawing is escaped by `el`.
"""

from __future__ import annotations

import json
import math
from typing import Any

from markupsafe import Markup, escape

from flyjax.report.run_view import Run
from flyjax.report.tables import SHORT, mutation, number, setting
from flyjax.search.journal.state import CONVERGED, FAILED, Node
from flyjax.utils.format import finite

#: Low to high; each step is legible on white and on near-black paper.
RAMP = ("#4c63d2", "#8a52c6", "#c9488f", "#e5704f", "#d99a26")


def el(tag: str, *children: Any, **attributes: Any) -> Markup:
    """An element; `class_` is class, underscores are hyphens, None leaves an attribute out."""
    out = [f"<{tag}"]
    for key, value in attributes.items():
        if value is None:
            continue
        name = key.rstrip("_").replace("_", "-").replace("viewbox", "viewBox")
        shown = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
        out.append(f' {name}="{escape(shown)}"')
    inner = Markup("").join(c if isinstance(c, Markup) else escape(c) for c in children if c is not None)
    return Markup("".join(out)) + Markup(">") + inner + Markup(f"</{tag}>")


def svg(width: float, height: float, *children: Any, label: str, class_: str = "chart", **attributes: Any) -> Markup:
    return el(
        "svg",
        el("title", label),
        *children,
        class_=class_,
        viewbox=f"0 0 {width:g} {height:g}",
        width=f"{width:g}",
        height=f"{height:g}",
        role="img",
        **attributes,
    )


def points(pairs) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)


def _mix(place: float) -> str:
    """A colour of the ramp, 0 to 1."""
    where = min(1.0, max(0.0, place)) * (len(RAMP) - 1)
    k = min(int(where), len(RAMP) - 2)
    low, high = (tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in RAMP[k : k + 2])
    return "#" + "".join(f"{round(a + (b - a) * (where - k)):02x}" for a, b in zip(low, high, strict=True))


class NoiseScale:
    """Colours of noise_model_level: one per level while they are few, else a gradient."""

    def __init__(self, levels: list[float], few: int = 8):
        self.levels, self.few = levels, len(levels) <= few

    def __call__(self, node: Node) -> str:
        level = finite(node.config.get("noise_model_level"))
        if level is None or level not in self.levels:
            return "#888888"
        if self.few:
            return _mix(self.levels.index(level) / max(1, len(self.levels) - 1))
        return _mix((level - self.levels[0]) / (self.levels[-1] - self.levels[0]))

    def legend(self) -> Markup:
        """A line of HTML that explains the colours."""
        head = el("span", "noise_model_level", class_="legend-title")
        if self.few:
            n = max(1, len(self.levels) - 1)
            keys = [
                el("span", el("i", class_="swatch", style=f"background:{_mix(k / n)}"), setting(v), class_="key")
                for k, v in enumerate(self.levels)
            ]
            return el("p", head, *keys, class_="legend")
        bar = el("i", class_="gradient", style=f"background:linear-gradient(90deg,{','.join(RAMP)})")
        return el("p", head, setting(self.levels[0]), bar, setting(self.levels[-1]), class_="legend")


def tooltip(run: Run, node: Node) -> str:
    """What a pointer reads at a node, several lines."""
    lines = [f"node {node.id} · parent {node.parent} · {node.strategy}", mutation(run.state, node, short=True)]
    if node.status == "failed":
        return "\n".join([*lines, f"failed: {node.reason or 'no reason given'}"])
    if node.status == "running":
        return "\n".join([*lines, "in training"])
    names = {"W R2": "connectivity_R2", "tau R2": "tau_R2", "V_rest R2": "V_rest_R2", "test R2": "test_R2"}
    lines.append(" · ".join(f"{short} {number(run.value(node, name))}" for short, name in names.items()))
    if "std" in node.spread:
        lines.append(f"{node.spread['n']} seeds, min {number(node.spread['min'])}")
    return "\n".join(lines)


def cross(x: float, y: float, size: float = 4.0, class_: str = "cross") -> Markup:
    """Where something failed."""
    a, b, c, d = (f"{v:.1f}" for v in (x - size, y - size, x + size, y + size))
    return el("path", d=f"M{a} {b}L{c} {d}M{a} {d}L{c} {b}", class_=class_)


def _linked(node: Node, run: Run, *children: Markup) -> Markup:
    return el("a", el("title", tooltip(run, node)), *children, href=f"#node-{node.id}", data_block=node.block)


# --- staircase ----------------------------------------------------------------------------------


def staircase(run: Run, noise: NoiseScale) -> Markup:
    """Every node's R2 over its number, the best so far, and what a blind choice would have held."""
    nodes, name = run.nodes, run.truth_metric
    if not nodes:
        return Markup("")
    width, height, left, right, top, bottom = 1040.0, 330.0, 46.0, 112.0, 34.0, 40.0
    step = (width - left - right) / len(nodes)
    y = lambda v: top + (1 - min(1.0, max(0.0, v))) * (height - top - bottom)  # noqa: E731
    x = {n.id: left + (k + 0.5) * step for k, n in enumerate(nodes)}
    ink: list[Any] = []
    for v in (0, 0.25, 0.5, 0.75, 1):
        ink.append(el("line", x1=left, x2=width - right, y1=y(v), y2=y(v), class_="grid"))
        ink.append(el("text", f"{v:g}", x=left - 8, y=y(v) + 4, class_="tick end"))
    for v, text in ((CONVERGED, f"converged > {CONVERGED}"), (FAILED, f"failed < {FAILED}")):
        ink.append(el("line", x1=left, x2=width - right, y1=y(v), y2=y(v), class_="threshold"))
        ink.append(el("text", text, x=width - right + 8, y=y(v) + 4, class_="tick"))
    for block in run.state.blocks.values():
        mine = [x[i] for i in block.nodes if i in x]
        begin, end = min(mine) - step / 2, max(mine) + step / 2
        if begin > left + 1:
            ink.append(el("line", x1=begin, x2=begin, y1=top - 22, y2=height - bottom, class_="border"))
        title = f"Block {block.number}"
        kind = str(block.simulation.get("visual_input_type", ""))
        if kind and end - begin > 7 * (len(title) + len(kind)):
            title += f" · {kind}"
        ink.append(el("text", title, x=begin + 6, y=top - 12, class_="block-title"))
    ink.append(el("text", name, x=width - right + 8, y=top - 12, class_="axis"))
    ink.append(el("text", "node", x=width - right + 8, y=height - bottom + 18, class_="axis"))
    every = max(1, math.ceil(len(nodes) / 26))
    for k, node in enumerate(nodes):
        if k % every == 0:
            ink.append(el("text", str(node.id), x=x[node.id], y=height - bottom + 18, class_="tick middle"))

    end = max(x.values()) + step / 2
    blind = _incumbent(nodes, lambda n: run.value(n, "test_R2"), lambda n: run.value(n, name))
    ink.append(_stairs(blind, x, y, end, "stairs blind"))
    ink.append(_stairs(_incumbent(nodes, lambda n: run.value(n, name)), x, y, end, "stairs best"))
    for node in nodes:
        value, parts = run.value(node, name), []
        if value is None:
            if node.status != "running":
                parts.append(cross(x[node.id], y(0)))
        else:
            seeds = [finite(m.get(name)) for m in run.per_seed.get(node.id, [])]
            seeds = [s for s in seeds if s is not None]
            if len(seeds) > 1:
                parts.append(
                    el("line", x1=x[node.id], x2=x[node.id], y1=y(min(seeds)), y2=y(max(seeds)), class_="whisker")
                )
            radius = max(2.5, min(5.0, 0.36 * step))
            parts.append(el("circle", cx=x[node.id], cy=y(value), r=radius, style=f"fill:{noise(node)}", class_="dot"))
        if parts:
            ink.append(_linked(node, run, *parts))
    return svg(width, height, *ink, label=f"{name} of every node and the best so far")


def _incumbent(nodes, key, shown=None) -> list[tuple[Node, float]]:
    """(node, value) wherever the best by `key` changes, the value being that of `shown`."""
    best, out = -math.inf, []
    for node in nodes:
        k = key(node)
        if k is not None and k > best:
            v = k if shown is None else shown(node)
            if v is not None:
                best = k
                out.append((node, v))
    return out


def _stairs(changes, x, y, end: float, class_: str) -> Markup | None:
    if not changes:
        return None
    corners: list[tuple[float, float]] = []
    for node, value in changes:
        if corners:
            corners.append((x[node.id], corners[-1][1]))
        corners.append((x[node.id], y(value)))
    return el("polyline", points=points([*corners, (end, corners[-1][1])]), class_=class_)


# --- landscape ----------------------------------------------------------------------------------


class Axis:
    """Places of one parameter's values between 0 and 1, and its ticks."""

    def __init__(self, run: Run, name: str):
        span = run.spans.get(name)
        values = [n.config.get(name) for n in run.nodes]
        numbers = [v for v in map(finite, values) if v is not None]
        self.scale = span.scale if span else "linear"
        if self.scale == "choice" or len(numbers) < len(values):
            self.scale = "choice"
            given = span.values if span and span.values else ()
            seen = sorted({json.dumps(v) for v in values} - {json.dumps(v) for v in given})
            self.kinds = [*given, *map(json.loads, seen)]
            return
        low, high = min(numbers), max(numbers)
        if span:
            low, high = min(low, span.min), max(high, span.max)
        self.scale = "log" if self.scale == "log" and low > 0 else "linear"
        self.low, self.high = low, high if high > low else low + 1

    def place(self, value: Any) -> float | None:
        if self.scale == "choice":
            return (self.kinds.index(value) + 0.5) / len(self.kinds) if value in self.kinds else None
        value = finite(value)
        if value is None or (self.scale == "log" and value <= 0):
            return None
        if self.scale == "log":
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        if self.scale == "choice":
            return [(self.place(v), setting(v)) for v in self.kinds[:8]]
        if self.scale == "log":
            powers = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            if len(powers) >= 2:
                return [(self.place(10.0**p), "10" + str(p).translate(_SUPER)) for p in powers]
            return [(0.0, setting(self.low)), (1.0, setting(self.high))]
        raw = (self.high - self.low) / 4
        unit = 10 ** math.floor(math.log10(raw))
        size = next(s * unit for s in (1, 2, 2.5, 5, 10) if s * unit >= raw * 0.999)
        first = math.ceil(self.low / size - 1e-9)
        marks = [k * size for k in range(first, math.floor(self.high / size + 1e-9) + 1)]
        return [(self.place(m), setting(round(m, 12))) for m in marks]


_SUPER = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def landscape(run: Run, name: str, noise: NoiseScale) -> Markup:
    """R2 over one parameter, every node a dot; the root's value a dashed line."""
    width, height, left, right, top, bottom = 250.0, 176.0, 30.0, 12.0, 10.0, 24.0
    axis, metric = Axis(run, name), run.truth_metric
    x = lambda place: left + place * (width - left - right)  # noqa: E731
    y = lambda v: top + (1 - min(1.0, max(0.0, v))) * (height - top - bottom)  # noqa: E731
    ink: list[Any] = []
    for v in (0, 0.5, 1):
        ink.append(el("line", x1=left, x2=width - right, y1=y(v), y2=y(v), class_="grid"))
        ink.append(el("text", f"{v:g}", x=left - 6, y=y(v) + 4, class_="tick end"))
    for v in (CONVERGED, FAILED):
        ink.append(el("line", x1=left, x2=width - right, y1=y(v), y2=y(v), class_="threshold"))
    for place, text in axis.ticks():
        ink.append(el("line", x1=x(place), x2=x(place), y1=y(0), y2=y(0) + 4, class_="tickmark"))
        ink.append(el("text", text, x=x(place), y=height - 7, class_="tick middle"))
    root = (run.state.experiment.get("training") or {}).get(name)
    home = axis.place(root) if root is not None else None
    if home is not None:
        ink.append(el("line", x1=x(home), x2=x(home), y1=y(1), y2=y(0), class_="home"))
    for node in sorted(run.nodes, key=lambda n: run.value(n, metric) or 0):
        place, value = axis.place(node.config.get(name)), run.value(node, metric)
        if place is None or node.status == "running":
            continue
        if value is None:
            ink.append(_linked(node, run, cross(x(place), y(0), 3.5)))
        else:
            ink.append(
                _linked(
                    node, run, el("circle", cx=x(place), cy=y(value), r=4.2, style=f"fill:{noise(node)}", class_="dot")
                )
            )
    return svg(width, height, *ink, label=f"{metric} over {SHORT.get(name, name)}", class_="chart panel")


def step_sizes(run: Run) -> Markup:
    """Distance of every node from its parent, in unit places of the ranges."""
    steps = [s for s in run.steps() if s.size is not None]
    if not steps:
        return Markup("")
    width, height, left, right, top, bottom = 1040.0, 150.0, 46.0, 112.0, 12.0, 28.0
    high = max([s.size for s in steps] + [0.1]) * 1.1
    gap = (width - left - right) / len(steps)
    y = lambda v: top + (1 - v / high) * (height - top - bottom)  # noqa: E731
    ink: list[Any] = []
    for v in (0, high / 2.2, high / 1.1):
        ink.append(el("line", x1=left, x2=width - right, y1=y(v), y2=y(v), class_="grid"))
        ink.append(el("text", f"{v:.2f}" if v else "0", x=left - 8, y=y(v) + 4, class_="tick end"))
    chosen = {c.chosen for c in run.state.choices.values()}
    every = max(1, math.ceil(len(steps) / 26))
    for k, s in enumerate(steps):
        x = left + (k + 0.5) * gap
        kind = "step chosen" if s.node.id in chosen else "step"
        line = el("line", x1=x, x2=x, y1=y(0), y2=y(s.size), class_=kind)
        ink.append(_linked(s.node, run, line, el("circle", cx=x, cy=y(s.size), r=min(3.5, 0.4 * gap), class_=kind)))
        if k % every == 0:
            ink.append(el("text", str(s.node.id), x=x, y=height - 8, class_="tick middle"))
    ink.append(el("text", "node", x=width - right + 8, y=height - 8, class_="axis"))
    return svg(width, height, *ink, label="step sizes")
