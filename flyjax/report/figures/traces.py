"""Voltage over time, one line per cell type, in three columns under the stimulus: as recorded, and as predicted."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from flyjax.report.figures.exports import note
from flyjax.report.figures.style import (
    LEARNED,
    MUTED,
    TRUE,
    colour_types,
    heading,
    house_style,
    new_figure,
    save_png,
    type_colour,
    type_order,
)

if TYPE_CHECKING:  # a process that draws does without JAX
    from flyjax.data.recording import Recording

N_COLUMNS = 3
#: Distance of neighbouring traces, in units of their range.
SPACING = 1.45
LEFT, RIGHT, GAP = 0.066, 0.958, 0.1
TITLE_Y = 0.968


class Trace(NamedTuple):
    """Voltages of one neuron per cell type, and how they are drawn; no colour: that of the type's group."""

    voltage: Float[np.ndarray, "T n"]
    width: float
    colour: str | None = None
    name: str = "voltage"


def draw_traces(
    seconds: Float[np.ndarray, " T"],
    cell_types: Sequence[str],
    traces: Sequence[Trace],
    stimulus: Float[np.ndarray, "T *n_col"],
    smallest: float,
    zero_line: bool = False,
) -> Figure:
    """A figure of traces, each in units of the range of the first one; the range is printed beside it.

    **Arguments:**

    - `traces`: drawn over each other; later ones are cut off shortly outside the range of the first.
    - `stimulus`: above each column, as a curve or, with several columns of the eye, as an image.
    - `smallest`: neurons of a smaller range are drawn on this scale, which all can share.
    - `zero_line`: mark v = 0, above which a neuron sends messages.
    """
    figure, first, end = new_figure(9.6, 8.6), traces[0].voltage, seconds[-1]
    low, span = first.min(axis=0), np.maximum(np.ptp(first, axis=0), smallest)
    scaled = [(first - low) / span]
    with np.errstate(invalid="ignore"):
        scaled += [np.clip((t.voltage - low) / span, -0.2, 1.2) for t in traces[1:]]
    n_rows = -(-len(cell_types) // N_COLUMNS)
    width = (RIGHT - LEFT - GAP * (N_COLUMNS - 1)) / N_COLUMNS
    for k in range(-(-len(cell_types) // n_rows)):  # a small circuit fills fewer
        x = LEFT + k * (width + GAP)
        top = figure.add_axes((x, 0.895, width, 0.055))
        if stimulus.ndim > 1:
            extent = (0, end, 0, 1)
            top.imshow(stimulus.T, "gray", aspect="auto", vmin=0, vmax=1, interpolation="nearest", extent=extent)
        else:
            top.fill_between(seconds, stimulus, color="#bbbbbb", lw=0)
            top.plot(seconds, stimulus, color=TRUE, lw=0.8)
            top.set_ylim(0, 1)
        top.set(xlim=(0, end), xticks=[], yticks=[])
        top.text(1.012, -0.35, "range", transform=top.transAxes, fontsize=6, color=MUTED, clip_on=False)
        if k == 0:
            top.set_ylabel("stimulus", rotation=0, ha="right", va="center", fontsize=7)
        axes = figure.add_axes((x, 0.05, width, 0.835))
        shown = range(k * n_rows, min((k + 1) * n_rows, len(cell_types)))
        names = [cell_types[i] for i in shown]
        base = -SPACING * np.arange(len(names))
        for i, y in zip(shown, base, strict=True):
            if zero_line and low[i] < 0 < low[i] + span[i]:
                axes.plot([0, end], [y - low[i] / span[i]] * 2, color="#cccccc", lw=0.6, zorder=0)
            for trace, values in zip(traces, scaled, strict=True):
                colour = trace.colour or type_colour(cell_types[i])
                (line,) = axes.plot(seconds, values[:, i] + y, color=colour, lw=trace.width)
                note(line, f"{cell_types[i]}, {trace.name}", trace.voltage[:, i])
            own = float(np.ptp(first[:, i]))
            text = f"{own:.2g}" if own >= 1e-3 else "< 0.001"
            axes.text(end * 1.012, y + 0.5, text, fontsize=6, color=MUTED, va="center", clip_on=False)
        axes.set(xlim=(0, end), ylim=(base.min() - 0.35, 1.3))
        axes.set_yticks(base + 0.5, names)
        colour_types(axes.get_yticklabels(), names)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("time (s)")
    return figure


@house_style
def traces_figure(path: str | Path, recording: "Recording", first_frame: int = 0, n_frames: int = 250) -> Path:
    """The central neuron of every cell type over time, under the luminance of the central column."""
    c, order = recording.connectome, type_order(recording.connectome.cell_types)
    frames = np.arange(first_frame, min(first_frame + n_frames, recording.n_frames))
    voltage = Trace(np.asarray(recording.voltage[frames][:, c.central[order]], np.float64), 0.9)
    luminance = recording.luminance[frames, int(np.flatnonzero((c.columns == 0).all(axis=1))[0])]
    names, seconds = [c.cell_types[t] for t in order], (frames - first_frame) * recording.dt
    figure = draw_traces(seconds, names, [voltage], luminance, smallest=1e-4, zero_line=True)
    text = f"Voltage of the central neuron of every cell type, {recording.visual_input_type}"
    heading(figure, text, LEFT, TITLE_Y)
    note = "grey line: v = 0, above which a neuron sends messages"
    figure.text(RIGHT, TITLE_Y, note, ha="right", color=MUTED, fontsize=7)
    return save_png(figure, path, "RGB")


class Activity(NamedTuple):
    """Held-out voltage of one neuron per cell type, and its free rollout."""

    cell_types: tuple[str, ...]
    seconds: Float[np.ndarray, " T"]
    true: Float[np.ndarray, "T n"]
    rollout: Float[np.ndarray, "T n"]
    luminance: Float[np.ndarray, "T n_col"]
    score: str


@house_style
def activity_figure(path: str | Path, shown: Activity) -> Path:
    """True voltage and free rollout of one neuron per cell type over the same held-out frames, under the stimulus.

    All rows share a scale, so that an error is as large in the figure as it is in the score.
    """
    scale = max(float(np.ptp(shown.true, axis=0).max()), 1e-3)
    traces = [Trace(shown.true, 1.1, TRUE, "true"), Trace(shown.rollout, 0.8, LEARNED, "rollout")]
    figure = draw_traces(shown.seconds, shown.cell_types, traces, shown.luminance, smallest=scale)
    heading(figure, "Held-out activity, one neuron per type", LEFT, TITLE_Y)
    figure.text(0.398, TITLE_Y, "true", color=TRUE, fontweight="bold")
    figure.text(0.445, TITLE_Y, "free rollout", color=LEARNED, fontweight="bold")
    figure.text(RIGHT, TITLE_Y, shown.score, ha="right")
    return save_png(figure, path)
