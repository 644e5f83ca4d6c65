"""A sweep at a glance: one line per configuration across an axis per setting, coloured by what it recovered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Curve

from flyjax.config import Range
from flyjax.report.figures.style import DPI, house_style, save_png
from flyjax.report.tables import SHORT, setting
from flyjax.utils.format import finite

#: A range without a scale of its own is drawn on a log axis from this ratio of its ends on.
WIDE = 20.0


class Axis:
    """Where values of one setting lie, 0 at the bottom and 1 at the top."""

    def __init__(self, name: str, values: Sequence[Any], span: Range | None = None):
        self.name = name
        numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
        few = sorted(set(numbers)) if len(numbers) == len(values) else list(dict.fromkeys(values))
        if len(numbers) < len(values) or len(few) <= 3 or (span is not None and span.scale == "choice"):
            self.kind, self.ticks = "choice", few
        else:
            low, high = (span.min, span.max) if span is not None and span.scale != "choice" else (min(few), max(few))
            low, high = min(low, few[0]), max(high, few[-1])
            log = span.scale == "log" if span is not None else low > 0 and high / low > WIDE
            self.kind, self.low, self.high = ("log" if log else "linear"), low, high
            self.ticks = _decades(low, high) if log else _round(low, high)

    def place(self, value: Any) -> float:
        """0 to 1."""
        if self.kind == "choice":
            return (self.ticks.index(value) + 0.5) / len(self.ticks)
        if self.kind == "log":
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def _decades(low: float, high: float) -> list[float]:
    exponents = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    ticks = [10.0**k for k in exponents]
    return ticks if len(ticks) > 1 else sorted({low, *ticks, high})


def _round(low: float, high: float, about: int = 5) -> list[float]:
    step = 10 ** math.floor(math.log10((high - low) / about))
    step *= next(m for m in (1, 2, 2.5, 5, 10) if (high - low) / (m * step) <= about)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) + 0.0 for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _tick(axis: Axis, value: Any) -> str:
    if axis.kind == "log" and value > 0 and math.log10(value) == round(math.log10(value)):
        return f"$10^{{{round(math.log10(value))}}}$"
    return setting(value)


@house_style
def parallel_figure(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    ranges: Mapping[str, Range],
    colour: str = "connectivity_R2",
    also: Sequence[str] = ("final_loss",),
) -> Path:
    """Settings `names` and outcomes of the rows of a sweep; writes a PNG.

    Args:
        rows: one per configuration: its settings, `colour`, `also`, and `stopped_at` where it was stopped.
        ranges: by name, the search ranges; a log range is a log axis.
        colour: a metric in [0, 1], the last axis and the colour. A configuration without it is a grey line
            that ends before the outcomes.
    """
    outcomes = [name for name in also if sum(finite(row.get(name)) is not None for row in rows) > 1]
    axes = [Axis(name, [row[name] for row in rows], ranges.get(name)) for name in names]
    for name in outcomes:
        values = [v for row in rows if (v := finite(row.get(name))) is not None]
        if min(values) < max(values):
            axes.append(Axis(name, values))
    last = Axis(colour, (0.0, 1.0, 0.25, 0.5), None)
    last.ticks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    axes.append(last)
    n = len(axes)
    # What is drawn is what was reached: the colours span the values found.
    found = [v for row in rows if (v := finite(row.get(colour))) is not None]
    low, high = (min(found), max(found)) if found else (0.0, 1.0)
    if high - low < 0.05:
        low, high = max(0.0, high - 0.05), max(high, 0.05)
    # Without the palest end, which is lost on white.
    scale = matplotlib.colors.ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.93, 256)))
    norm = matplotlib.colors.Normalize(low, high)

    fig = Figure(figsize=(max(5.5, 1.35 * n + 1.2), 4.2), dpi=1.3 * DPI, layout="constrained")
    ax = fig.subplots()
    rng = np.random.default_rng(0)
    order = sorted(rows, key=lambda r: -1.0 if finite(r.get(colour)) is None else r[colour])
    for row in order:  # the best on top
        value = finite(row.get(colour))
        ys = []
        for axis in axes:
            v = row.get(axis.name)
            if v is None or (not isinstance(v, str) and finite(v) is None):
                ys.append(None)
                continue
            y = axis.place(v)
            if axis.kind == "choice":  # lines of equal settings side by side
                y += rng.uniform(-0.25, 0.25) / max(3, len(axis.ticks))
            ys.append(y)
        known = [(x, y) for x, y in enumerate(ys) if y is not None]
        best = value is not None and value == max(found)
        style = dict(
            edgecolor=scale(norm(value)) if value is not None else "0.6",
            lw=2.6 if best else 1.3,
            alpha=1.0 if best else 0.8,
            ls=(0, (4, 2)) if row.get("stopped_at") is not None else "solid",
            facecolor="none",
        )
        points, codes = [known[0]], [Curve.MOVETO]
        for (x0, y0), (x1, y1) in zip(known, known[1:]):
            points += [(x0 + 0.4 * (x1 - x0), y0), (x1 - 0.4 * (x1 - x0), y1), (x1, y1)]
            codes += [Curve.CURVE4] * 3
        ax.add_patch(PathPatch(Curve(points, codes), **style))
        if value is None:
            ax.plot(*known[-1], marker="x", color="0.4", ms=5, mew=1.2)
    for x, axis in enumerate(axes):
        ax.plot([x, x], [0, 1], color="0.25", lw=0.9, zorder=3)
        for value in axis.ticks:
            y = axis.place(value)
            ax.plot([x - 0.03, x], [y, y], color="0.25", lw=0.9, zorder=3)
            text = ax.text(x - 0.06, y, _tick(axis, value), ha="right", va="center", fontsize=8, color="0.1", zorder=4)
            text.set_bbox(dict(facecolor="white", edgecolor="none", alpha=0.75, pad=0.6))
        title = SHORT.get(axis.name, axis.name).replace("_", " ")
        title = {"connectivity R2": "W $R^2$", "final loss": "final loss"}.get(title, title)
        ax.text(x, 1.06, title, ha="center", va="bottom", fontsize=9, fontweight="bold" if axis is last else "normal")
    ax.set_xlim(-0.45, n - 1 + 0.12)
    ax.set_ylim(-0.04, 1.12)
    ax.axis("off")
    bar = fig.colorbar(matplotlib.cm.ScalarMappable(norm, scale), ax=ax, fraction=0.03, pad=0.02, aspect=28)
    bar.set_label("W $R^2$" if colour == "connectivity_R2" else colour, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    keys = [Line2D([], [], color=scale(1.0), lw=2.6, label="best")] if found else []
    if any(row.get("stopped_at") is not None for row in rows):
        keys.append(Line2D([], [], color="0.3", lw=1.3, ls=(0, (4, 2)), label="stopped early"))
    if len(found) < len(rows):
        keys.append(Line2D([], [], color="0.6", lw=1.3, marker="x", mec="0.4", ms=5, label="diverged"))
    fig.legend(handles=keys, loc="outside lower center", ncols=max(1, len(keys)), frameon=False, fontsize=8)
    return save_png(fig, path, mode="RGB")
