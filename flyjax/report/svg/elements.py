"""SVG elements as escaped markup, and what all drawings of nodes share.

Colours that carry no number come from the page's style sheet, so that one drawing serves light and dark pages.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from markupsafe import Markup, escape

from flyjax.report.run_view import RunView
from flyjax.report.tables import describe_mutation, format_score
from flyjax.search.journal.state import Node


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
