"""Figures of the map of a landscape: importance, effects, pairs, classes, and several conditions side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from flyjax.config import Range
from flyjax.config.ranges import unit
from flyjax.landscape import Landscape
from flyjax.landscape.classes import reliability
from flyjax.landscape.regions import RELIABLE
from flyjax.report.charts import Axis
from flyjax.report.figures.style import ACCENT, DASHED, GUIDE, LEARNED, MUTED, TRUE, house_style, save_png
from flyjax.report.tables import SHORT_NAMES
from flyjax.utils.metric_names import CONVERGED, FAILED, QUANTITIES

DPI = 110
GOOD = "#009e73"
#: Line and bar colours of what is mapped.
COLOURS = {"connectivity_R2": LEARNED, "V_rest_R2": ACCENT, "tau_R2": "#cc79a7", "test_R2": MUTED}
N_SHOWN = 9  # effects that are drawn, the most important ones
N_PAIRS = 3


def short(name: str) -> str:
    """The short name of a setting or metric."""
    return SHORT_NAMES.get(name) or (f"{QUANTITIES[name]} R²" if name in QUANTITIES else name.replace("_R2", " R²"))


def _ticks(ax: Axes, span: Range, axis: str = "x") -> None:
    """Ticks of a setting's values on an axis of unit places."""
    choices = [(unit(span, v), str(v)) for v in span.values or ()]
    labels = choices or Axis([span.min, span.max], span).tick_labels()
    getattr(ax, f"set_{axis}ticks")(*zip(*labels, strict=True))
    getattr(ax, f"set_{axis}lim")(-0.03, 1.03)


def _importance(ax: Axes, landscape: Landscape, metrics: Sequence[str]) -> None:
    names = landscape.importance().ranked()
    height = 0.8 / len(metrics)
    for k, metric in enumerate(metrics):
        found, y = landscape.importance(metric), np.arange(len(names)) + (k - (len(metrics) - 1) / 2) * height
        total = [found.total[n] for n in names]
        errors = np.abs([[e.value - e.low for e in total], [e.high - e.value for e in total]])
        colour = COLOURS.get(metric, TRUE)
        ax.barh(y, [e.value for e in total], 0.9 * height, color=colour, alpha=0.35, label=f"{short(metric)}, total")
        ax.barh(y, [found.first[n].value for n in names], 0.9 * height, color=colour, label=f"{short(metric)}, alone")
        ax.errorbar([e.value for e in total], y, xerr=errors, fmt="none", ecolor=TRUE, elinewidth=0.7, capsize=1.5)
    ax.set_yticks(range(len(names)), [short(n) for n in names])
    ax.invert_yaxis()
    ax.set(xlim=(0, 1), xlabel="share of the variance that the settings cause")
    ax.set_title("Importance (Sobol' indices, 90 % intervals)")
    ax.legend(loc="lower right")


def _reliability(ax: Axes, landscape: Landscape) -> None:
    classes, groups = landscape.classes, landscape.groups
    if classes.skill.low <= 0:
        ax.set_title("Classes: no skill yet")
        ax.axis("off")
        return
    values, n = landscape.trainings.values("connectivity_R2"), np.bincount(groups)
    ax.plot([0, 1], [0, 1], color=MUTED, lw=0.7, ls=DASHED)
    reached = {"failed": (classes.held_out[:, 0], values < FAILED, LEARNED)}
    if (above := landscape.above) is not None:
        reached[f"above {above.level:g}"] = above.held_out, values > above.level, GOOD
    for name, (stated, hit, colour) in reached.items():
        if 0 < hit.mean() < 1:
            bins = reliability(stated, np.bincount(groups, hit) / n, n)
            ends = np.clip([bins[:, 1] - 1.645 * bins[:, 2], bins[:, 1] + 1.645 * bins[:, 2]], 0, 1)
            errors = np.abs(ends - bins[:, 1])
            ax.errorbar(bins[:, 0], bins[:, 1], errors, marker="o", ms=3, color=colour, lw=0.9, label=name)
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="stated probability", ylabel="share of held-out trainings")
    ax.set_title(f"Reliability (skill {classes.skill.value:.2f})")
    ax.legend(loc="upper left")


def _ranges(ax: Axes, landscape: Landscape, defaults: Mapping[str, Any]) -> None:
    """The stable range of every setting around the recommended one, on unit axes."""
    setting, space = landscape.recommended, landscape.space
    (level, found), above = landscape.stable_ranges(setting), landscape.above
    for y, name in enumerate(space.names):
        ax.plot([0, 1], [y, y], color=GUIDE, lw=5, solid_capstyle="butt", zorder=0)
        ax.plot(setting.place[y], y, marker="*", ms=9, color=GOOD, mec="white", mew=0.5, ls="none")
        ax.plot(landscape.best_node.place[y], y, marker="o", ms=4, mfc="none", mec=TRUE, ls="none")
        if name in defaults:
            ax.plot(landscape.space.places([{**setting.settings, name: defaults[name]}])[0, y], y, marker="x", ms=5,
                    color=LEARNED, ls="none")  # fmt: skip
    for y, one in enumerate(found):
        span = space.ranges[one.name]
        ends = [unit(span, v) for v in (*one.low_interval, one.low, one.high, *one.high_interval)]
        ax.plot([ends[0], ends[-1]], [y, y], color=GOOD, lw=1.2, zorder=1)
        ax.plot([ends[2], ends[3]], [y, y], color=GOOD, lw=5, alpha=0.55, solid_capstyle="butt", zorder=1)
        if one.fails_at is not None:
            ax.plot(unit(span, one.fails_at), y, marker="|", ms=9, color=TRUE, mew=1.6)
    ax.set_yticks(range(len(space.names)), [short(n) for n in space.names])
    ax.invert_yaxis()
    ax.set_xticks([0, 1], ["low end", "high end"])
    ax.set_xlabel("★ recommended   ○ best node   × default   | fails")
    title = "No stable range"
    if above is not None and level is not None:
        title = f"P({short('connectivity_R2')} > {above.level:g}) is at least {level:g}"
    ax.set_title(title)


@house_style
def overview_figure(
    path: str | Path, landscape: Landscape, metrics: Sequence[str], defaults: Mapping[str, Any]
) -> Path:
    """Importance, reliability of the class probabilities, and stable ranges.

    **Arguments:**

    - `metrics`: whose importance is drawn.
    - `defaults`: the protocol's values, marked beside the recommended ones.
    """
    figure = Figure(figsize=(11, 0.34 * len(landscape.space.names) + 1.2), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=(1.25, 0.8, 1))
    _importance(axes[0], landscape, metrics)
    _reliability(axes[1], landscape)
    _ranges(axes[2], landscape, defaults)
    return save_png(figure, path)


@house_style
def effects_figure(path: str | Path, landscape: Landscape, metrics: Sequence[str]) -> Path:
    """The effect of every setting on some metrics and on the probability to exceed a level; a dot per configuration."""
    names = landscape.importance().ranked()[:N_SHOWN]
    data = landscape.surrogate().data
    n_columns = min(3, len(names))
    n_rows = -(-len(names) // n_columns)
    figure = Figure(figsize=(3.6 * n_columns, 2.0 * n_rows + 0.4), dpi=DPI, layout="constrained")
    all_axes = np.ravel(figure.subplots(n_rows, n_columns, sharey=True, squeeze=False))
    for ax, name in zip(all_axes, names, strict=False):
        k = landscape.space.names.index(name)
        faint = min(0.7, 40 / len(data.y))
        ax.plot(data.x[:, k], data.y, "o", ms=3, color=COLOURS.get(landscape.metric, TRUE), alpha=faint, mew=0)
        for metric in metrics:
            one, colour = landscape.curve(name, metric), COLOURS.get(metric, TRUE)
            ax.fill_between(one.places, *one.band, color=colour, alpha=0.2, lw=0)
            ax.plot(one.places, one.mean, color=colour, lw=1.4, label=short(metric))
        if (above := landscape.above) is not None:
            one, label = landscape.class_curve(name, above.level), f"P({short('connectivity_R2')} > {above.level:g})"
            ax.plot(one.places, one.mean, color=GOOD, lw=1.2, ls=DASHED, label=label)
        _ticks(ax, landscape.space.ranges[name])
        ax.set(ylim=(-0.02, 1.02))
        ax.set_title(short(name))
    for ax in all_axes[len(names) :]:
        ax.axis("off")
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(metrics) + 1)
    return save_png(figure, path, mode="RGB")


@house_style
def pairs_figure(path: str | Path, landscape: Landscape) -> Path | None:
    """Response maps of the most important pairs, with the nodes on them; None where there is no pair."""
    found = landscape.importance()
    pairs = sorted(found.pairs, key=lambda p: -found.pairs[p].value - found.total[p[0]].value * found.total[p[1]].value)
    if not pairs:
        return None
    pairs, data = pairs[:N_PAIRS], landscape.surrogate().data
    # Without the palest end, which does not show on white.
    colours = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.95, 256)))
    figure = Figure(figsize=(3.5 * len(pairs) + 0.6, 3.1), dpi=DPI, layout="constrained")
    axes = np.ravel(figure.subplots(1, len(pairs), squeeze=False))
    for ax, names in zip(axes, pairs, strict=True):
        one = landscape.surface(names)
        i, j = (landscape.space.names.index(n) for n in names)
        drawn = ax.pcolormesh(*one.places, one.mean.T, cmap=colours, vmin=0, vmax=1, shading="gouraud")
        if one.mean.min() < CONVERGED < one.mean.max():
            ax.contour(*one.places, one.mean.T, [CONVERGED], colors="white", linewidths=1.2)
        ax.scatter(data.x[:, i], data.x[:, j], 11, data.y, cmap=colours, vmin=0, vmax=1, edgecolors="white", lw=0.4)
        ax.plot(*landscape.recommended.place[[i, j]], marker="*", ms=12, color="white", mec=TRUE, mew=0.7)
        for axis, name in zip("xy", names, strict=True):
            _ticks(ax, landscape.space.ranges[name], axis)
            getattr(ax, f"set_{axis}label")(short(name))
        estimate = found.pairs[names]
        ax.set_title(f"interaction {estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})", fontsize=8)
    figure.colorbar(drawn, ax=list(axes), label=f"{short(landscape.metric)}, other settings averaged", pad=0.01)
    return save_png(figure, path, mode="RGB")


@house_style
def conditions_figure(path: str | Path, landscapes: Mapping[str, Landscape], metrics: Sequence[str]) -> Path:
    """Conditions side by side: the importance of every setting, and the probability of convergence along it."""
    names = list(dict.fromkeys(n for one in landscapes.values() for n in one.space.names))
    figure = Figure(figsize=(5.5 * len(metrics), 0.4 * len(landscapes) + 1.4), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for ax, metric in zip(axes, metrics, strict=True):
        table = np.full((len(landscapes), len(names)), np.nan)
        for row, one in enumerate(landscapes.values()):
            if metric in one.metrics and one.surrogate(metric).skill.low > 0:
                found = one.importance(metric).total
                for k, name in enumerate(names):
                    if name in found:
                        e, table[row, k] = found[name], found[name].value
                        text = f"{e.value:.2f}\n{e.low:.2f}–{e.high:.2f}"
                        ax.text(k, row, text, ha="center", va="center", fontsize=5.5,
                                color="white" if e.value > 0.45 else TRUE)  # fmt: skip
            else:
                ax.text((len(names) - 1) / 2, row, "not predicted", ha="center", va="center", fontsize=7, color=MUTED)
        ax.imshow(table, cmap="Oranges" if metric == "connectivity_R2" else "Blues", vmin=0, vmax=0.8, aspect="auto")
        ax.set_xticks(range(len(names)), [short(n) for n in names], rotation=35, ha="right")
        ax.set_yticks(range(len(landscapes)), list(landscapes))
        ax.set_title(f"{short(metric)}: total Sobol' index, 90 % interval")
        ax.tick_params(length=0)
    return save_png(figure, path, mode="RGB")


@house_style
def probability_figure(path: str | Path, landscapes: Mapping[str, Landscape], level: float) -> Path:
    """The probability to exceed a level along every setting, other settings averaged, for every condition."""
    names = list(dict.fromkeys(n for one in landscapes.values() for n in one.space.names))[:N_SHOWN]
    n_columns = min(3, len(names))
    n_rows = -(-len(names) // n_columns)
    figure = Figure(figsize=(3.6 * n_columns, 2.0 * n_rows + 0.8), dpi=DPI, layout="constrained")
    all_axes = np.ravel(figure.subplots(n_rows, n_columns, sharey=True, squeeze=False))
    cycle = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#999999", "#1a1a1a"]
    for ax, name in zip(all_axes, names, strict=False):
        for k, (condition, one) in enumerate(landscapes.items()):
            if name in one.space.names:
                line, colour = one.class_curve(name, level), cycle[k % len(cycle)]
                style = DASHED if k >= len(cycle) else "-"  # the colours begin again
                ax.fill_between(line.places, *line.band, color=colour, alpha=0.12, lw=0)
                ax.plot(line.places, line.mean, color=colour, ls=style, lw=1.3, label=condition)
                _ticks(ax, one.space.ranges[name])
        ax.axhline(RELIABLE, color=MUTED, lw=0.7, ls=DASHED)
        ax.set(ylim=(-0.02, 1.02))
        ax.set_title(short(name))
    for ax in all_axes[len(names) :]:
        ax.axis("off")
    handles = {label: handle for ax in all_axes for handle, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2)
    return save_png(figure, path, mode="RGB")
