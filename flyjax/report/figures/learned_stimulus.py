"""What a network has learned of a stimulus that it was never shown, beside the stimulus."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flyjax.recovery import Evaluation
from flyjax.report.figures.node import ACCENT, LEARNED, MUTED, TRUE, _diagonal, _figure, _save, density, styled

#: Frames and columns of the traces.
N_FRAMES, N_COLUMNS = 250, 4
#: Points of the scatter at most.
MAX_POINTS = 6000


def mapped(learned: np.ndarray, true: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """The learned light in units of the true one: one gain and offset, least squares over `frames`, for all columns."""
    gain, offset = np.polyfit(learned[frames].ravel().astype(np.float64), true[frames].ravel().astype(np.float64), 1)
    return gain * learned + offset


def shown_columns(columns: np.ndarray, n: int = N_COLUMNS) -> np.ndarray:
    """The central column and others, spread evenly over the rest from near to far."""
    u, v = np.asarray(columns, np.int64).T
    order = np.lexsort((v, u, np.maximum.reduce([abs(u), abs(v), abs(u + v)])))
    return order[np.unique(np.linspace(0, len(order) - 1, min(n, len(order))).round().astype(int))]


@styled
def light_figure(path, evaluation: Evaluation, first_frame: int = 0) -> Path:
    """True and learned luminance of a few columns over time, frames held out marked; all held-out values beside.

    A field is known up to gain and offset: those of all training frames together are taken out for the figure.
    """
    believed, held_out = evaluation.seen, evaluation.held_out
    true = np.asarray(believed.source.luminance)
    trained = np.setdiff1d(np.arange(len(true)), held_out)
    learned = mapped(believed.luminance, true, trained)
    frames = np.arange(first_frame, min(first_frame + N_FRAMES, len(true)))
    held = np.intersect1d(frames, held_out)
    dt, c = believed.dt, believed.connectome
    columns = shown_columns(c.columns)

    figure = _figure(9.6, 1.15 * len(columns) + 1.0)
    height = figure.get_figheight()
    top, bottom = 1 - 0.45 / height, 0.45 / height
    each = (top - bottom) / len(columns)
    for k, column in enumerate(columns):
        axes = figure.add_axes([0.06, top - (k + 1) * each + 0.12 * each, 0.56, 0.82 * each])
        axes.plot(frames * dt, true[frames, column], color=TRUE, lw=1.1)
        axes.plot(frames * dt, learned[frames, column], color=LEARNED, lw=0.8)
        axes.plot(held * dt, learned[held, column], ".", color=ACCENT, ms=3.5)
        axes.set_xlim(frames[0] * dt, frames[-1] * dt)
        axes.set_ylim(-0.05, 1.05)
        u, v = c.columns[column]
        axes.text(1.008, 0.5, f"({u}, {v})", transform=axes.transAxes, fontsize=6, color=MUTED, va="center")
        if k < len(columns) - 1:
            axes.set_xticklabels([])
    axes.set_xlabel("time (s)")
    figure.text(0.06, 1 - 0.25 / height, "Light that was never given", fontweight="bold", fontsize=10)
    figure.text(0.30, 1 - 0.25 / height, "true", color=TRUE, fontweight="bold")
    figure.text(0.338, 1 - 0.25 / height, "learned field", color=LEARNED, fontweight="bold")
    figure.text(0.44, 1 - 0.25 / height, "its frames held out", color=ACCENT, fontweight="bold")

    side = 0.9 * min(0.29 * 9.6, (top - bottom) * height)
    axes = figure.add_axes([0.715, bottom + 0.12 * each, side / 9.6, side / height])
    x, y = true[held_out].ravel(), learned[held_out].ravel()
    some = np.unique(np.linspace(0, len(x) - 1, MAX_POINTS).round().astype(int))
    x, y = x[some], y[some]
    colour = density(x, y)
    order = np.argsort(colour)
    axes.scatter(x[order], y[order], c=np.log(colour[order]), s=2, lw=0)
    _diagonal(axes, 0.0, 1.0)
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.05, 1.05)
    axes.set_xlabel("true luminance, frames held out")
    axes.set_ylabel("learned, gain and offset taken out", labelpad=2)
    r2 = evaluation.metrics["external_input_R2"]
    axes.set_title(
        "" if r2 is None else f"R² {r2:.3f} (trained frames {evaluation.metrics['external_input_R2_training']:.3f})",
        fontsize=8,
    )
    return _save(figure, path)
