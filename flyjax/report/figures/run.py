"""A run in one picture: the tree of every block, how far each node came, and what was changed in the protocol."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from flyjax.report.figures.style import house_style, save_png
from flyjax.report.run_view import Run
from flyjax.report.svg.tree import layout
from flyjax.search.proposals.types import ROOT

#: By strategy, for a picture that is also read in grey: the marks differ as well.
MARKS = {
    "root": ("0.35", "s"), "exploit": ("#3b76af", "o"), "explore": ("#3f9b6c", "D"), "failure-probe": ("#c0504d", "v"),
    "robustness-test": ("#8064a2", "h"), "force-branch": ("#e08b2c", "P"),
}  # fmt: skip
TICKS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
LINE = 150  # characters of a line of the protocol in the picture
SHOWN = 14  # lines of an edit


def _depth(value: float) -> float:
    """R2 so that 0.9, 0.99 and 0.999 are equally far apart."""
    return -np.log10(max(1 - value, 1e-4))


def _tree(ax, run: Run, block: int) -> None:
    nodes = run.state.block_nodes(block)
    plan = layout(nodes)
    where = {k: (column, -lane) for k, (column, lane) in plan.place.items()}
    best = {
        i.number: run.state.choices[i.number].chosen
        for i in run.state.iterations.values()
        if i.number in run.state.choices
    }
    for node in nodes:
        (x0, y0), (x1, y1) = where[plan.parent[node.id]], where[node.id]
        bend = x0 + 0.35
        ax.plot([x0, bend, x1], [y0, y1, y1], color="0.65", lw=1, zorder=1, solid_joinstyle="round")
    for node in nodes:
        colour, mark = MARKS.get(node.strategy, MARKS["exploit"])
        x, y = where[node.id]
        is_chosen = node.id in best.values()
        ax.plot(
            x,
            y,
            mark,
            color=colour,
            ms=9,
            mec="black" if is_chosen else "white",
            mew=1.4 if is_chosen else 0.8,
            zorder=3,
        )
        value = f"{node.reward:.3f}" if node.reward is not None else "failed"
        ax.annotate(f"{node.id}: {value}", (x, y), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8, zorder=2,
                    fontweight="bold" if is_chosen else "normal", bbox={"fc": "white", "ec": "none", "pad": 0.6})  # fmt: skip
    x, y = where[ROOT]
    ax.plot(x, y, ".", color="0.4", ms=6)
    simulation = run.state.blocks[block].simulation
    ax.set_title(f"Block {block}: {simulation.get('visual_input_type', '')}", fontsize=10, loc="left")
    columns = sorted({n.iter_in_block for n in nodes})
    ax.set_xticks(columns, [f"iteration {c}" for c in columns], fontsize=8)
    ax.set_xlim(-0.15, max(columns) + 0.35)
    ax.set_ylim(-plan.lanes + 0.5, 0.75)
    ax.set_yticks([])
    ax.spines[["left", "right", "top", "bottom"]].set_visible(False)
    ax.tick_params(length=0)


def _progress(ax, run: Run) -> None:
    nodes = [n for n in run.state.nodes.values() if n.reward is not None]
    for node in nodes:
        colour, mark = MARKS.get(node.strategy, MARKS["exploit"])
        ax.plot(node.id, _depth(node.reward), mark, color=colour, ms=6, mec="white", mew=0.6, zorder=3)
        if node.spread.get("std") is not None:  # the seeds apart: from the worst to as far above the mean
            low, high = node.spread["min"], min(1.0, 2 * node.reward - node.spread["min"])
            ax.plot([node.id] * 2, [_depth(low), _depth(high)], color=colour, lw=1.2, zorder=2)
    for block in run.state.blocks.values():
        best, x, y = 0.0, [], []
        for i in block.nodes:
            best = max(best, run.state.nodes[i].reward or 0.0)
            x, y = [*x, i - 0.5, i + 0.5], [*y, _depth(best), _depth(best)]
        ax.plot(x, y, color="0.8", lw=1, zorder=1)
        if block.number > 1:
            ax.axvline(min(block.nodes) - 0.5, color="0.85", lw=1)
    reached = [n.reward for n in nodes]
    ticks = [t for t in TICKS if min(reached, default=0) - 0.2 <= t <= max(reached, default=1) + 0.002]
    ax.set_yticks([_depth(t) for t in ticks], [f"{t:g}" for t in ticks], fontsize=8)
    ax.set_xlabel("node", fontsize=8)
    ax.set_ylabel(run.metric.replace("_R2", " R²"), fontsize=8)
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    used = [s for s in MARKS if any(n.strategy == s for n in run.state.nodes.values())]
    ax.legend(handles=[Patch(color=MARKS[s][0], label=s) for s in used], fontsize=8, frameon=False, ncol=len(used), loc="lower right",
              bbox_to_anchor=(1.0, 1.0), handlelength=1, columnspacing=1.2)  # fmt: skip


def _edit_lines(run: Run) -> list[tuple[str, str]]:
    """(colour, text) of every edit of the protocol: its heading, its reason, the changed lines."""
    out: list[tuple[str, str]] = []
    for edit in run.state.edits:
        by = {
            "user": "people",
            "llm": "the language model",
            "hybrid": "the language model",
            "replay": "the answer that is replayed",
            "rules": "the rules",
        }.get(edit["by"], edit["by"])
        out.append(("black", f"Protocol edited at the end of block {edit['block']}, by {by}"))
        out += [("0.35", part) for part in textwrap.wrap(edit["reason"], LINE)]
        changed = [x for x in edit["diff"].splitlines() if x[:1] in "+-" and x[:3] not in ("+++", "---")]
        for line in changed[:SHOWN]:
            out.append(("#2e7d4f" if line[0] == "+" else "#b03a2e", textwrap.shorten(line, LINE, placeholder=" …")))
        if len(changed) > SHOWN:
            out.append(("0.35", f"… and {len(changed) - SHOWN} more lines"))
        out.append(("black", ""))
    return out or [("0.35", "The protocol was not edited.")]


@house_style
def run_figure(path: str | Path, run_dir: str | Path) -> Path:
    """Draw a run: a tree per block (thick edge: chosen), R2 of every node, and the edits of the protocol.

    **Raises:** `UserError` where `run_dir` holds no run.
    """
    run = Run(run_dir)
    blocks = [b for b in sorted(run.state.blocks) if run.state.block_nodes(b)]
    lines = _edit_lines(run)
    tall = 0.36 * max((layout(run.state.block_nodes(b)).lanes for b in blocks), default=1) + 0.6
    heights = [tall, 2.0, 0.165 * len(lines) + 0.1]
    figure = Figure(figsize=(10, sum(heights) + 0.8), dpi=100, layout="constrained")
    rows = figure.subfigures(3, 1, height_ratios=heights)
    for ax, block in zip(np.atleast_1d(rows[0].subplots(1, max(1, len(blocks)))), blocks):
        _tree(ax, run, block)
    _progress(rows[1].subplots(), run)
    for k, (colour, text) in enumerate(lines):
        rows[2].text(0.01, 1 - (k + 0.8) / (len(lines) + 0.5), text, color=colour, fontsize=7.5, family="monospace",
                     fontweight="bold" if colour == "black" else "normal", va="center")  # fmt: skip
    model = f" ({run.search.get('llm', {}).get('model')})" if run.state.spent.calls else ""
    figure.suptitle(
        f"{run.name}: proposals by {run.proposer}{model}", x=0.01, ha="left", fontsize=11, fontweight="bold"
    )
    return save_png(figure, Path(path))
