"""Space against time: the columns along the midline of the eye, and every neuron of the circuit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flyjax.circuit import Connectome
from flyjax.report.figures.hexagons import DEVIATION_COLOURS, VoltageMaps, pathway_layers
from flyjax.report.figures.style import GROUPS, MUTED, groups_of, heading, house_style, new_figure, save_png, type_order

N_COLUMNS = 6
LEFT, RIGHT = 0.05, 0.985


def midline_columns(connectome: Connectome) -> Int[np.ndarray, " n"]:
    """Columns nearest to the horizontal midline, from left to right."""
    index = {(int(u), int(v)): k for k, (u, v) in enumerate(connectome.columns)}
    extent = connectome.extent
    return np.array([index[-((v + 1) // 2) if v >= 0 else (-v) // 2, v] for v in range(-extent, extent + 1)])


def _draw_midlines(figure: Figure, maps: VoltageMaps, frames: np.ndarray, seconds: float) -> None:
    """The stimulus and one cell type per stage, a panel each, six in a row."""
    c = maps.connectome
    extent = (0, seconds, c.extent + 0.5, -c.extent - 0.5)
    gap = 0.022
    width = (RIGHT - LEFT - gap * (N_COLUMNS - 1)) / N_COLUMNS
    for k, layer in enumerate(pathway_layers(maps, frames, frames)):
        row, column = divmod(k, N_COLUMNS)
        ax = figure.add_axes((LEFT + column * (width + gap), 0.795 - 0.18 * row, width, 0.125))
        image = layer.values[:, midline_columns(c)].T
        ax.imshow(
            image, cmap=layer.colours, vmin=layer.low, vmax=1, aspect="auto", interpolation="nearest", extent=extent
        )
        ax.set_title(layer.name, fontsize=7.5, color=layer.name_colour)
        ax.text(1, 1.05, layer.scale, transform=ax.transAxes, fontsize=6, color=MUTED, ha="right")
        ax.tick_params(labelsize=6, pad=1.5)
        ax.set_xticks(np.linspace(0, seconds, 3))
        ax.xaxis.set_major_formatter("{x:.3g}")
        if column:
            ax.set_yticklabels([])
        else:
            ax.set_ylabel("column, left\nto right", fontsize=6.5)
        if not row:
            ax.set_xticklabels([])
        elif not column:
            ax.set_xlabel("time (s)", fontsize=6.5, labelpad=1)


def _draw_neurons(axes: Axes, maps: VoltageMaps, frames: np.ndarray, seconds: float) -> None:
    """Every neuron of the circuit, sorted by cell type, the groups of types marked at the left."""
    c = maps.connectome
    order = type_order(c.cell_types)
    image = np.concatenate([maps.deviations(t, frames).T for t in order])
    interpolation = "nearest" if len(image) < 900 else "antialiased"
    axes.imshow(
        image,
        cmap=DEVIATION_COLOURS,
        vmin=-1,
        vmax=1,
        aspect="auto",
        interpolation=interpolation,
        extent=(0, seconds, len(image), 0),
    )
    sizes = np.bincount(groups_of(c.cell_types)[c.cell_type], minlength=len(GROUPS))
    for group, size, end in zip(GROUPS, sizes, np.cumsum(sizes), strict=True):
        if not size:
            continue
        begin = end - size
        if begin:
            axes.axhline(begin, color="black", lw=0.6)
        line = {"arrowstyle": "-", "color": group.colour, "lw": 3, "shrinkA": 1, "shrinkB": 1}
        axes.annotate(
            "",
            (-0.004, begin),
            (-0.004, end),
            arrowprops=line,
            xycoords=("axes fraction", "data"),
            annotation_clip=False,
        )
        label = group.name.replace(" ", "\n")
        axes.text(
            -0.012,
            (begin + end) / 2,
            label,
            transform=axes.get_yaxis_transform(),
            ha="right",
            va="center",
            fontsize=7,
            color=group.colour,
        )
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("time (s)")
    axes.set_title(f"All {len(image):,} neurons, in units of each type's scale", fontsize=8.5)


@house_style
def kinograph_figure(path: str | Path, maps: VoltageMaps, first_frame: int = 0, n_frames: int = 250) -> Path:
    """Space against time along the eye's midline for one type per stage; below, every neuron."""
    recording = maps.recording
    frames = np.arange(first_frame, min(first_frame + n_frames, recording.n_frames))
    seconds = len(frames) * recording.dt
    figure = new_figure(9.6, 7.4)
    _draw_midlines(figure, maps, frames, seconds)
    heading(figure, f"Kinographs of {recording.visual_input_type}: the midline of the eye against time")
    _draw_neurons(figure.add_axes((0.105, 0.055, RIGHT - 0.105, 0.475)), maps, frames, seconds)
    return save_png(figure, path, "RGB")
