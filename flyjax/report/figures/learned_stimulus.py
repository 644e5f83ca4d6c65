"""A stimulus learned as a field, beside the true one that the network was not given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes

from flyjax.recovery import Evaluation
from flyjax.report.figures.style import (
    ACCENT,
    LEARNED,
    MUTED,
    TRUE,
    density,
    diagonal,
    heading,
    house_style,
    new_figure,
    save_png,
)

#: Frames and columns of the traces.
N_FRAMES, N_COLUMNS = 250, 4
#: Points of the scatter plot at most.
MAX_POINTS = 6000


def rescaled(
    learned: Float[np.ndarray, "T n_col"], true: Float[np.ndarray, "T n_col"], frames: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "T n_col"]:
    """The learned luminance in units of the true one: a gain and an offset by least squares over `frames`."""
    gain, offset = np.polyfit(learned[frames].ravel().astype(np.float64), true[frames].ravel().astype(np.float64), 1)
    return gain * learned + offset


def columns_shown(columns: Int[np.ndarray, "n_col 2"], n: int = N_COLUMNS) -> Int[np.ndarray, " n"]:
    """Indices of the central column and of others, spread evenly from near to far."""
    u, v = np.asarray(columns, np.int64).T
    order = np.lexsort((v, u, np.maximum.reduce([abs(u), abs(v), abs(u + v)])))
    return order[np.unique(np.linspace(0, len(order) - 1, min(n, len(order))).round().astype(int))]


def _scatter(axes: Axes, true: np.ndarray, learned: np.ndarray) -> None:
    """Held-out values, learned against true."""
    sample = np.unique(np.linspace(0, true.size - 1, MAX_POINTS).round().astype(int))
    x, y = true.ravel()[sample], learned.ravel()[sample]
    colour = density(x, y)
    order = np.argsort(colour)
    axes.scatter(x[order], y[order], c=np.log(colour[order]), s=2, lw=0)
    diagonal(axes, 0.0, 1.0)
    axes.set(xlim=(0, 1), ylim=(-0.05, 1.05), xlabel="true luminance, held-out frames")
    axes.set_ylabel("learned luminance, rescaled", labelpad=2)


@house_style
def stimulus_field_figure(path: str | Path, evaluation: Evaluation, first_frame: int = 0) -> Path:
    """True and learned luminance of a few columns over time, held-out frames marked, and all held-out values.

    A field is determined up to gain and offset; the figure takes those that fit best over the training frames.
    """
    recording: Any = evaluation.recording  # with the stimulus as learned, and the true recording as its source
    held_out = np.asarray(evaluation.held_out)
    true = np.asarray(recording.source.luminance)
    trained = np.setdiff1d(np.arange(len(true)), held_out)
    learned = rescaled(recording.luminance, true, trained)
    frames = np.arange(first_frame, min(first_frame + N_FRAMES, len(true)))
    marked = np.intersect1d(frames, held_out)
    dt, c = recording.dt, recording.connectome
    columns = columns_shown(c.columns)

    figure = new_figure(9.6, 1.15 * len(columns) + 1.0)
    height = figure.get_figheight()
    top, bottom = 1 - 0.45 / height, 0.45 / height
    each = (top - bottom) / len(columns)
    for k, column in enumerate(columns):
        axes = figure.add_axes((0.06, top - (k + 1) * each + 0.12 * each, 0.56, 0.82 * each))
        axes.plot(frames * dt, true[frames, column], color=TRUE, lw=1.1)
        axes.plot(frames * dt, learned[frames, column], color=LEARNED, lw=0.8)
        axes.plot(marked * dt, learned[marked, column], ".", color=ACCENT, ms=3.5)
        axes.set(xlim=(frames[0] * dt, frames[-1] * dt), ylim=(-0.05, 1.05))
        u, v = c.columns[column]
        axes.text(1.008, 0.5, f"({u}, {v})", transform=axes.transAxes, fontsize=6, color=MUTED, va="center")
        if k < len(columns) - 1:
            axes.set_xticklabels([])
        else:
            axes.set_xlabel("time (s)")
    y = 1 - 0.25 / height
    heading(figure, "Luminance per column", 0.06, y)
    for x, text, colour in ((0.25, "true", TRUE), (0.29, "learned field", LEARNED), (0.39, "held-out frames", ACCENT)):
        figure.text(x, y, text, color=colour, fontweight="bold")

    side = 0.9 * min(0.29 * 9.6, (top - bottom) * height)
    axes = figure.add_axes((0.715, bottom + 0.12 * each, side / 9.6, side / height))
    _scatter(axes, true[held_out], learned[held_out])
    metrics = evaluation.metrics
    if metrics["external_input_R2"] is not None:
        held_out_r2, training_r2 = metrics["external_input_R2"], metrics["external_input_R2_training"]
        axes.set_title(f"R² {held_out_r2:.3f} (training frames {training_r2:.3f})", fontsize=8)
    return save_png(figure, path)
