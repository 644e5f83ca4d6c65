"""A run in one picture: the tree of every block, the result of every node, and the edits of the protocol."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from flyjax.report.charts import ScoreAxis
from flyjax.report.figures.style import house_style, save_png
from flyjax.report.run_view import RunView
from flyjax.report.tree import SHAPES, tree_layout
from flyjax.search.proposals.types import ROOT

COLOURS = {
    "root": "#595959",
    "exploit": "#0072b2",
    "explore": "#009e73",
    "failure-probe": "#d55e00",
    "robustness-test": "#cc79a7",
    "force-branch": "#e69f00",
}
AUTHORS = {
    "user": "people",
    "llm": "the language model",
    "hybrid": "the language model",
    "replay": "the replayed answer",
    "rules": "the rules",
}
LINE = 150  # characters of a line of the protocol
N_LINES = 14  # of an edit
ADDED, REMOVED, GREY = "#2e7d4f", "#b03a2e", "0.35"


def mark(strategy: str, size: float) -> dict[str, Any]:
    """A strategy's symbol, of the shape that the report draws, in a colour for a picture that is also read in grey."""
    strategy = strategy if strategy in COLOURS else "exploit"
    n, first = SHAPES.get(strategy, (0, 0))
    style: dict[str, Any] = {"marker": (n, 0, -first) if n else "o", "color": COLOURS[strategy], "ls": "", "ms": size}
    if strategy == "root":  # a ring
        style |= {"markerfacecolor": "white", "mec": COLOURS["root"], "mew": 2}
    return style


def _draw_tree(ax: Axes, run: RunView, block: int) -> None:
    nodes = run.state.block_nodes(block)
    layout = tree_layout(nodes)
    place = {k: (column, -lane) for k, (column, lane) in layout.place.items()}
    for node in nodes:
        (x0, y0), (x1, y1) = place[layout.parent[node.id]], place[node.id]
        ax.plot([x0, x0 + 0.35, x1], [y0, y1, y1], color="0.65", lw=1, zorder=1, solid_joinstyle="round")
    for node in nodes:
        if node.id in run.chosen:
            ax.plot(*place[node.id], "o", ms=15, mfc="white", mec="black", mew=1.2, zorder=2)
        ax.plot(*place[node.id], **mark(node.strategy, 9), zorder=3)
        label = f"{node.id}: " + (f"{node.reward:.3f}" if node.reward is not None else "failed")
        ax.annotate(
            label,
            place[node.id],
            xytext=(0, 9),
            textcoords="offset points",
            ha="center",
            fontweight="bold" if node.id in run.chosen else "normal",
            fontsize=8,
            zorder=2,
            bbox={"fc": "white", "ec": "none", "pad": 0.6},
        )
    ax.plot(*place[ROOT], ".", color="0.4", ms=6)
    stimulus = run.state.blocks[block].simulation.get("visual_input_type", "")
    ax.set_title(f"Block {block}: {stimulus}", fontsize=10, loc="left")
    columns = sorted({n.iter_in_block for n in nodes})
    ax.set_xticks(columns, [f"iteration {c}" for c in columns], fontsize=8)
    ax.set(xlim=(-0.15, max(columns) + 0.35), ylim=(-layout.n_lanes + 0.5, 0.75), yticks=[])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)


def _draw_progress(ax: Axes, run: RunView) -> None:
    """The reward of every node, and the best so far of every block."""
    rewards = [(n, n.reward) for n in run.nodes if n.reward is not None]
    axis = ScoreAxis(reward for _, reward in rewards)
    for node, reward in rewards:
        style = mark(node.strategy, 6)
        ax.plot(node.id, axis.height(reward), **style, zorder=3)
        if node.spread.get("std") is not None:  # from the worst seed to as far above the mean
            low, high = node.spread["min"], min(1.0, 2 * reward - node.spread["min"])
            ax.plot([node.id] * 2, [axis.height(low), axis.height(high)], color=style["color"], lw=1.2, zorder=2)
    for block in run.state.blocks.values():
        best = np.maximum.accumulate([max(0.0, run.state.nodes[i].reward or 0.0) for i in block.nodes])
        x = np.array(block.nodes)[:, None] + [-0.5, 0.5]
        ax.plot(x.ravel(), np.repeat([axis.height(b) for b in best], 2), color="0.8", lw=1, zorder=1)
        if block.number > 1:
            ax.axvline(min(block.nodes) - 0.5, color="0.85", lw=1)
    places, labels = zip(*axis.tick_labels(), strict=True)
    ax.set_yticks(places, labels, fontsize=8)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="node", ylabel=run.metric.replace("_R2", " R²"))
    ax.tick_params(labelsize=8)
    used = [s for s in COLOURS if any(n.strategy == s for n in run.nodes)]
    ax.legend(
        handles=[Line2D([], [], **mark(s, 6), label=s) for s in used],
        fontsize=8,
        handlelength=1,
        columnspacing=1.2,
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncol=max(1, len(used)),
    )


def _edit_lines(run: RunView) -> list[tuple[str, str]]:
    """(colour, text) of every edit of the protocol: its heading, its reason, the changed lines."""
    out: list[tuple[str, str]] = []
    for edit in run.state.edits:
        author = AUTHORS.get(edit["by"], edit["by"])
        out.append(("black", f"Protocol edited at the end of block {edit['block']}, by {author}"))
        out += [(GREY, line) for line in textwrap.wrap(edit["reason"], LINE)]
        changed = [x for x in edit["diff"].splitlines() if x[:1] in "+-" and x[:3] not in ("+++", "---")]
        for line in changed[:N_LINES]:
            out.append((ADDED if line[0] == "+" else REMOVED, textwrap.shorten(line, LINE, placeholder=" …")))
        if len(changed) > N_LINES:
            out.append((GREY, f"… and {len(changed) - N_LINES} more lines"))
        out.append(("black", ""))
    return out or [(GREY, "The protocol was not edited.")]


@house_style
def run_figure(path: str | Path, run_dir: str | Path) -> Path:
    """Draw a run: a tree per block (black ring: chosen), the result of every node, the edits of the protocol.

    **Raises:** `UserError` where `run_dir` holds no run.
    """
    run = RunView(run_dir)
    blocks = [b for b in sorted(run.state.blocks) if run.state.block_nodes(b)]
    lines = _edit_lines(run)
    n_lanes = max((tree_layout(run.state.block_nodes(b)).n_lanes for b in blocks), default=1)
    heights = [0.36 * n_lanes + 0.6, 2.0, 0.165 * len(lines) + 0.1]
    figure = Figure(figsize=(10, sum(heights) + 0.8), dpi=100, layout="constrained")
    rows: Any = figure.subfigures(3, 1, height_ratios=heights)
    trees, progress, edits = rows
    for ax, block in zip(np.atleast_1d(trees.subplots(1, max(1, len(blocks)))), blocks, strict=False):
        _draw_tree(ax, run, block)
    _draw_progress(progress.subplots(), run)
    for k, (colour, text) in enumerate(lines):
        edits.text(
            0.01,
            1 - (k + 0.8) / (len(lines) + 0.5),
            text,
            color=colour,
            fontsize=7.5,
            family="monospace",
            fontweight="bold" if colour == "black" else "normal",
            va="center",
        )
    model = f" ({run.search.get('llm', {}).get('model')})" if run.state.spent.calls else ""
    figure.suptitle(
        f"{run.name}: proposals by {run.proposer}{model}", x=0.01, ha="left", fontsize=11, fontweight="bold"
    )
    return save_png(figure, path)
