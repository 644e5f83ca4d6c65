"""Regret of proposers over the nodes that they trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from flyjax.report.figures.style import house_style, save_png

COLOURS = {
    "rules": "#d55e00",
    "random": "#8c8c8c",
    "tpe": "#0072b2",
    "cmaes": "#009e73",
    "llm": "#cc79a7",
    "hybrid": "#e69f00",
    "replay": "#56b4e9",
}


@house_style
def regret_figure(path: str | Path, groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
    """Normalised regret over nodes: mean over searches and its standard error, one panel per group.

    **Arguments:**

    - `groups`: rows with `regret` by the name of their landscape, see `flyjax.report.proposers`.
    """
    n_columns = min(3, len(groups))
    n_rows = -(-len(groups) // n_columns)
    figure = Figure(figsize=(3.2 * n_columns, 2.5 * n_rows), dpi=100, layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    panels = list(axes.flat)
    lines = {}
    for k, (ax, (name, group)) in enumerate(zip(panels, groups.items(), strict=False)):
        for proposer in dict.fromkeys(r["proposer"] for r in group):
            curves = np.array([r["regret"] for r in group if r["proposer"] == proposer])
            x = np.arange(1, curves.shape[1] + 1) * group[0]["nodes"] / curves.shape[1]
            mean, error = curves.mean(axis=0), curves.std(axis=0, ddof=min(1, len(curves) - 1)) / np.sqrt(len(curves))
            (lines[proposer],) = ax.plot(x, mean, color=COLOURS[proposer], lw=1.5)
            ax.fill_between(x, mean - error, mean + error, color=COLOURS[proposer], alpha=0.2, lw=0)
        ax.set_title(f"{name} ({len({(r['landscape'], r['seed']) for r in group})})", loc="center", fontweight="normal")
        ax.set_ylim(0, None)
        ax.tick_params(labelsize=8)
        if k + n_columns >= len(groups):
            ax.set_xlabel("nodes trained")
    for ax in axes[:, 0]:
        ax.set_ylabel("normalised regret")
    for ax in panels[len(groups) :]:
        ax.set_axis_off()
    # One legend for the proposers of all panels, in an empty panel where there is one.
    free = len(groups) < len(panels)
    panel, place = (panels[len(groups)], "upper left") if free else (panels[0], "best")
    title = "mean ± standard error"
    panel.legend(lines.values(), lines.keys(), fontsize=8, loc=place, title=title, title_fontsize=7)
    return save_png(figure, path)
