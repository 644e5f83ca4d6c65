"""Parallel coordinates of a sweep: one line per configuration across an axis per setting and per outcome."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Curve

from flyjax.config import Range
from flyjax.report.charts import Axis
from flyjax.report.figures.style import DPI, house_style, save_png
from flyjax.report.tables import SHORT_NAMES
from flyjax.utils.format import finite

#: Metrics with an axis of their own beside the one that colours the lines.
OUTCOMES = ("final_loss",)
#: Settings with so many values or fewer are drawn as choices.
FEW = 3
STOPPED = (0, (4, 2))  # line style of a configuration that was stopped early
#: Names of metrics on axes.
METRIC_LABELS = {"connectivity_R2": "W $R^2$"}

Row = Mapping[str, Any]


def _make_axes(rows: Sequence[Row], names: Sequence[str], ranges: Mapping[str, Range], metric: str) -> dict[str, Axis]:
    """The axes from left to right by name: settings, outcomes that vary, and `metric`."""
    axes = {name: Axis([row[name] for row in rows], ranges.get(name), few=FEW) for name in names}
    for name in OUTCOMES:
        values = [v for row in rows if (v := finite(row.get(name))) is not None]
        if len(values) > 1 and min(values) < max(values):
            axes[name] = Axis(values, few=FEW)
    axes[metric] = Axis((0.0, 1.0))
    return axes


def _draw_axis(ax: Axes, x: float, axis: Axis, title: str, bold: bool) -> None:
    ax.plot([x, x], [0, 1], color="0.25", lw=0.9, zorder=3)
    for y, text in axis.tick_labels():
        ax.plot([x - 0.03, x], [y, y], color="0.25", lw=0.9, zorder=3)
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6}
        ax.text(x - 0.06, y, text, ha="right", va="center", fontsize=8, color="0.1", zorder=4, bbox=box)
    ax.text(x, 1.06, title, ha="center", va="bottom", fontsize=9, fontweight="bold" if bold else "normal")


def _draw_line(ax: Axes, heights: Sequence[float | None], colour: Any, best: bool, stopped: bool, failed: bool) -> None:
    """A smooth line through the places that are known; a cross marks where a failed one ends."""
    known = [(float(x), y) for x, y in enumerate(heights) if y is not None]
    points, codes = [known[0]], [Curve.MOVETO]
    for (x0, y0), (x1, y1) in zip(known, known[1:], strict=False):
        points += [(x0 + 0.4 * (x1 - x0), y0), (x1 - 0.4 * (x1 - x0), y1), (x1, y1)]
        codes += [Curve.CURVE4] * 3
    width, opacity = (2.6, 1.0) if best else (1.3, 0.8)
    style = STOPPED if stopped else "solid"
    ax.add_patch(PathPatch(Curve(points, codes), ls=style, ec=colour, fc="none", lw=width, alpha=opacity))
    if failed:
        ax.plot(*known[-1], marker="x", color="0.4", ms=5, mew=1.2)


@house_style
def parallel_figure(
    path: str | Path,
    rows: Sequence[Row],
    names: Sequence[str],
    ranges: Mapping[str, Range],
    metric: str = "connectivity_R2",
) -> Path:
    """Draw the rows of a sweep.

    **Arguments:**

    - `rows`: one per configuration: its settings and metrics, and `stopped_at` where it was stopped early.
    - `names`: the settings that differ.
    - `ranges`: search ranges by name; a log range is a log axis.
    - `metric`: a metric in [0, 1], the last axis and the colour. A configuration without it is a grey line
        that ends before the outcomes.
    """
    axes = _make_axes(rows, names, ranges, metric)
    scores = [finite(row.get(metric)) for row in rows]
    found = [v for v in scores if v is not None]
    # The colours span the values that were reached.
    low, high = (min(found), max(found)) if found else (0.0, 1.0)
    if high - low < 0.05:
        low, high = max(0.0, high - 0.05), max(high, 0.05)
    # Without the palest end, which does not show on white.
    colours = matplotlib.colors.ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.93, 256)))
    norm = matplotlib.colors.Normalize(low, high)

    figure = Figure(figsize=(max(5.5, 1.35 * len(axes) + 1.2), 4.2), dpi=1.3 * DPI, layout="constrained")
    ax = figure.subplots()
    for row, score in sorted(zip(rows, scores, strict=True), key=lambda r: -1.0 if r[1] is None else r[1]):
        heights = [None if row.get(name) is None else axis.place(row[name]) for name, axis in axes.items()]
        colour, is_best = "0.6" if score is None else colours(norm(score)), score is not None and score == max(found)
        _draw_line(ax, heights, colour, is_best, row.get("stopped_at") is not None, score is None)
    for x, (name, axis) in enumerate(axes.items()):
        title = METRIC_LABELS.get(name) or SHORT_NAMES.get(name, name).replace("_", " ")
        _draw_axis(ax, x, axis, title, bold=name == metric)
    ax.set(xlim=(-0.45, len(axes) - 1 + 0.12), ylim=(-0.04, 1.12))
    ax.axis("off")
    bar = figure.colorbar(matplotlib.cm.ScalarMappable(norm, colours), ax=ax, fraction=0.03, pad=0.02, aspect=28)
    bar.set_label(METRIC_LABELS.get(metric, metric), fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    keys = [Line2D([], [], color=colours(1.0), lw=2.6, label="best")] if found else []
    if any(row.get("stopped_at") is not None for row in rows):
        keys.append(Line2D([], [], color="0.3", lw=1.3, ls=STOPPED, label="stopped early"))
    if len(found) < len(rows):
        keys.append(Line2D([], [], color="0.6", lw=1.3, marker="x", mec="0.4", ms=5, label="failed"))
    figure.legend(handles=keys, loc="outside lower center", ncols=max(1, len(keys)), frameon=False, fontsize=8)
    return save_png(figure, path, mode="RGB")
