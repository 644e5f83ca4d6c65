"""The fly's view as hexagonal maps: all types at one frame, successive frames, and kinographs (space against time)."""

from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from flyjax.circuit import Connectome
from flyjax.circuit.hexgrid import positions
from flyjax.data.recording import Recording
from flyjax.report.figures.exports import note
from flyjax.report.figures.style import (
    GROUPS,
    LEARNED,
    MUTED,
    TRUE,
    cell,
    groups_of,
    heading,
    house_style,
    new_figure,
    save_png,
    type_colour,
    type_order,
)

DEVIATION_COLOURS = "RdBu_r"
#: One type per stage from the eye to the motion detectors, ON path and OFF path.
PATHWAY = ("R1", "L1", "L2", "Mi1", "Tm3", "Tm1", "Tm2", "T4a", "T4b", "T5a", "T5b")
#: Voltage deviations below this are drawn as none.
SMALLEST_SCALE = 1e-4
#: Quantile of |deviation| at which a type's colours end.
SCALE_QUANTILE = 0.99
#: Regular hexagons: columns are closer in x than the eye's boxes.
SQUEEZE = np.sqrt(3) / 2
_CORNERS = np.array([[1, 0], [0.5, SQUEEZE], [-0.5, SQUEEZE], [-1, 0], [-0.5, -SQUEEZE], [0.5, -SQUEEZE]]) / np.sqrt(3)

Frames = list[int] | Int[np.ndarray, " frames"]


def hexagon_centres(columns: Int[np.ndarray, "n_col 2"], squeeze: float = SQUEEZE) -> Float[np.ndarray, "n_col 2"]:
    """x to the right and y down of hexagons one unit apart; `squeeze=1` gives the centres of the eye's boxes."""
    x, y = positions(columns)
    return np.stack([squeeze * x, y], axis=1)


def draw_hexagons(
    axes: Axes,
    columns: Int[np.ndarray, "n_col 2"],
    values: Float[np.ndarray, " n_col"],
    *,
    colours: str,
    low: float,
    squeeze: float = SQUEEZE,
) -> None:
    """One map.

    **Arguments:**

    - `values`: NaN where there is nothing to show.
    - `colours`: name of a matplotlib colour map, from `low` to 1.
    """
    centres = hexagon_centres(columns, squeeze)
    corners = _CORNERS * [squeeze / SQUEEZE, 1.0]
    faces = matplotlib.colormaps[colours](np.clip((np.asarray(values, np.float64) - low) / (1 - low), 0, 1))
    faces[~np.isfinite(values)] = matplotlib.colors.to_rgba("#eeeeee")
    if colours == "gray":  # an outline for white columns on white paper
        outline = centres[:, None] + 1.1 * corners
        axes.add_collection(PolyCollection(outline, facecolors="#9a9a9a", edgecolors="#9a9a9a", lw=0.8))
    # Edges in the colour of the face: no seams.
    cells = PolyCollection(centres[:, None] + corners, facecolors=faces, edgecolors="face", lw=0.35)
    axes.add_collection(cells)
    note(cells, "column", np.asarray(values))
    reach = np.abs(centres).max(axis=0) + 0.62
    axes.set(xlim=(-reach[0], reach[0]), ylim=(reach[1], -reach[1]), aspect="equal")
    axes.axis("off")


class Layer(NamedTuple):
    """The stimulus or a cell type over some frames, ready to be drawn."""

    name: str
    values: Float[np.ndarray, "frames n_col"]
    colours: str
    low: float  # value at the lower end of the colours; the upper end is 1
    name_colour: str
    scale: str  # printed beside the map


class VoltageMaps:
    """Voltages of a recording as deviations from each neuron's mean, in units of a scale per cell type."""

    def __init__(self, recording: Recording):
        self.recording, self.connectome = recording, recording.connectome
        self._statistics = cache(self._compute_statistics)

    @classmethod
    def on_scale_of(cls, other: "VoltageMaps", voltage: Float[np.ndarray, "T N"]) -> "VoltageMaps":
        """Maps of other voltages of the same circuit under the same stimulus, with the means and scales of `other`."""
        maps = cls(replace(other.recording, voltage=voltage))
        maps._statistics = other._statistics
        return maps

    def _compute_statistics(self, cell_type: int) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"], float]:
        """(neurons of the type, their mean voltages, scale of the type)."""
        neurons = np.flatnonzero(self.connectome.cell_type == cell_type)
        voltage = np.asarray(self.recording.voltage[:, neurons], np.float32)
        mean = voltage.mean(axis=0, dtype=np.float64).astype(np.float32)
        sample = np.abs(voltage[:: max(1, len(voltage) // 400)] - mean)
        return neurons, mean, max(float(np.quantile(sample, SCALE_QUANTILE)), SMALLEST_SCALE)

    def deviations(self, cell_type: int, frames: Frames) -> Float[np.ndarray, "frames n"]:
        """Deviations of a type's neurons in units of the type's scale."""
        neurons, mean, scale = self._statistics(cell_type)
        return (self.recording.voltage[np.asarray(frames)][:, neurons] - mean) / scale

    def maps(self, cell_type: int, frames: Frames) -> Float[np.ndarray, "frames n_col"]:
        """The same by column; NaN where the type has no neuron."""
        out = np.full((len(frames), self.connectome.n_columns), np.nan, np.float32)
        out[:, self.connectome.column[self._statistics(cell_type)[0]]] = self.deviations(cell_type, frames)
        return out

    def layers(self, cell_types: Iterable[str], stimulus_frames: Frames, voltage_frames: Frames) -> list[Layer]:
        """The stimulus and those of the cell types that the circuit has."""
        layers = [Layer("stimulus", self.recording.luminance[np.asarray(stimulus_frames)], "gray", 0.0, TRUE, "")]
        known = self.connectome.cell_types
        for name, t in [(name, known.index(name)) for name in cell_types if name in known]:
            scale = f"±{self._statistics(t)[2]:.2g}"
            layers.append(Layer(name, self.maps(t, voltage_frames), DEVIATION_COLOURS, -1.0, type_colour(name), scale))
        return layers


def most_eventful_frame(luminance: Float[np.ndarray, "T n_col"]) -> int:
    """The frame around which contrast moves steadily; a cut between two scenes alone does not count."""
    luminance = np.asarray(luminance)
    change = np.abs(np.diff(luminance, axis=0, prepend=luminance[:1])).mean(axis=1)
    window = min(15, len(luminance))
    around = np.lib.stride_tricks.sliding_window_view
    motion = np.median(around(change, window), axis=1) * around(luminance.std(axis=1), window).mean(axis=1)
    return min(int(np.argmax(motion)) + window // 2, len(luminance) - 1)


ARROWS: dict[str, Any] = {
    "angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.016, "headwidth": 3.5, "minlength": 0.5
}  # fmt: skip
SMALL_TITLE: dict[str, Any] = {"fontweight": "normal", "loc": "center", "pad": 2}


def _draw_colour_bar(axes: Axes) -> None:
    axes.imshow(np.linspace(0, 1, 128)[None], aspect="auto", cmap=DEVIATION_COLOURS)
    axes.set_xticks([0, 63.5, 127], ["−", "own mean", "+"], fontsize=6.5)
    axes.set_yticks([])
    axes.tick_params(length=0, pad=1.5)
    axes.set_title("deviation; ± scale of the type", fontsize=6.5, **SMALL_TITLE)
    axes.spines[:].set_visible(False)


@house_style
def maps_figure(path: str | Path, maps: VoltageMaps, frame: int | None = None) -> Path:
    """The stimulus at one frame (by default an eventful one) and the voltage of all cell types after it."""
    recording, c = maps.recording, maps.connectome
    frame = most_eventful_frame(recording.luminance) if frame is None else frame
    after = min(frame + 1, recording.n_frames - 1)  # the voltage of frame t is the state before it
    n_columns = 11
    figure = new_figure(9.6, 6.6)
    layers = maps.layers([c.cell_types[t] for t in type_order(c.cell_types)], [frame], [after])
    size = 0.985 / n_columns, 0.9 / -(-len(layers) // n_columns)
    for k, layer in enumerate(layers):
        axes = cell(figure, *divmod(k, n_columns), (0.0075, 0.905), size, share=(0.94, 0.8))
        draw_hexagons(axes, c.columns, layer.values[0], colours=layer.colours, low=layer.low)
        axes.text(
            0.98, -0.06, layer.scale, transform=axes.transAxes, fontsize=5.5, color=MUTED, ha="right", va="bottom"
        )
        axes.set_title(layer.name, fontsize=7, color=layer.name_colour, loc="center", pad=1.5)
    time = f"{frame * recording.dt:.2f} s into {recording.visual_input_type}"
    heading(figure, f"Voltage of every cell type {time}", y=0.955)
    _draw_colour_bar(figure.add_axes((0.83, 0.95, 0.13, 0.013)))
    return save_png(figure, path, "RGB")


@house_style
def strip_figure(
    path: str | Path,
    maps: VoltageMaps,
    first_frame: int | None = None,
    every: int = 3,
    n_shown: int = 11,
    flow: Float[np.ndarray, "T n_col 2"] | None = None,
) -> Path:
    """Successive maps of the stimulus and of one cell type per stage.

    **Arguments:**

    - `first_frame`: by default such that an eventful frame is in the middle.
    - `every`: frames between two maps.
    - `flow`: true velocities of the image in columns/s (x right, y up), drawn as arrows on the stimulus.
    """
    recording, c = maps.recording, maps.connectome
    n_shown = min(n_shown, max(1, (recording.n_frames - 1) // every))
    span = (n_shown - 1) * every
    first = most_eventful_frame(recording.luminance) - span // 2 if first_frame is None else first_frame
    frames = int(np.clip(first, 0, recording.n_frames - 2 - span)) + every * np.arange(n_shown)
    layers = maps.layers(PATHWAY, frames, frames + 1)
    figure = new_figure(9.6, 0.5 + 0.77 * len(layers))
    left, top = 0.075, 1 - 0.45 / figure.get_figheight()
    size = width, height = (0.995 - left) / n_shown, (top - 0.005) / len(layers)
    fastest = 1e-6 if flow is None else max(float(np.hypot(*flow[frames].T).max()), 1e-6)
    right: dict[str, Any] = {"ha": "right", "va": "center"}
    for row, layer in enumerate(layers):
        y = top - (row + 1) * height
        figure.text(left - 0.012, y + 0.56 * height, layer.name, color=layer.name_colour, fontsize=8, **right)
        figure.text(left - 0.012, y + 0.28 * height, layer.scale, color=MUTED, fontsize=6, **right)
        for k, values in enumerate(layer.values):
            axes = cell(figure, row, k, (left, top), size, share=(0.97, 0.94), lift=0.03)
            draw_hexagons(axes, c.columns, values, colours=layer.colours, low=layer.low)
            if row == 0:
                milliseconds = 1000 * (frames[k] - frames[0]) * recording.dt
                axes.set_title(f"{milliseconds:.0f} ms", fontsize=6.5, color=MUTED, **SMALL_TITLE)
            if row == 0 and flow is not None and flow[frames[k]].any():
                arrows = 1.5 * flow[frames[k]] * [SQUEEZE, -1] / fastest  # y is down on the map
                axes.quiver(*hexagon_centres(c.columns).T, *arrows.T, color=LEARNED, **ARROWS)
    y = 1 - 0.2 / figure.get_figheight()
    step = every * recording.dt * 1000
    heading(figure, f"{recording.visual_input_type} and the response, in steps of {step:.0f} ms", y=y, va="center")
    if flow is not None:
        note = f"arrows: true flow, the longest {fastest:.0f} columns/s"
        figure.text(0.995, y, note, ha="right", va="center", fontsize=7, color=LEARNED)
    return save_png(figure, path, "RGB")


KINOGRAPHS_PER_ROW = 6
LEFT, RIGHT = 0.05, 0.985


def midline_columns(connectome: Connectome) -> Int[np.ndarray, " n"]:
    """Columns nearest to the horizontal midline, from left to right."""
    index = {(int(u), int(v)): k for k, (u, v) in enumerate(connectome.columns)}
    extent = connectome.extent
    return np.array([index[-((v + 1) // 2) if v >= 0 else (-v) // 2, v] for v in range(-extent, extent + 1)])


def _draw_midlines(figure: Figure, maps: VoltageMaps, frames: np.ndarray, seconds: float) -> None:
    """The stimulus and one cell type per stage, a panel each, six in a row."""
    c = maps.connectome
    gap = 0.022
    size = (RIGHT - LEFT + gap) / KINOGRAPHS_PER_ROW, 0.18
    for k, layer in enumerate(maps.layers(PATHWAY, frames, frames)):
        row, column = divmod(k, KINOGRAPHS_PER_ROW)
        ax = cell(figure, row, column, (LEFT, 0.975), size, share=(1 - gap / size[0], 0.125 / 0.18))
        image = layer.values[:, midline_columns(c)].T
        extent = (0, seconds, c.extent + 0.5, -c.extent - 0.5)
        ax.imshow(
            image, cmap=layer.colours, vmin=layer.low, vmax=1, aspect="auto", interpolation="nearest", extent=extent
        )
        ax.set_title(layer.name, fontsize=7.5, color=layer.name_colour)
        ax.text(1, 1.05, layer.scale, transform=ax.transAxes, fontsize=6, color=MUTED, ha="right")
        ax.tick_params(labelsize=6, pad=1.5, labelleft=column == 0, labelbottom=row > 0)
        ax.set_xticks(np.linspace(0, seconds, 3))
        ax.xaxis.set_major_formatter("{x:.3g}")
        if column == 0:
            ax.set_ylabel("column, left\nto right", fontsize=6.5)
            ax.set_xlabel("time (s)" if row else "", fontsize=6.5, labelpad=1)


def _draw_neurons(axes: Axes, maps: VoltageMaps, frames: np.ndarray, seconds: float) -> None:
    """Every neuron of the circuit, sorted by cell type, the groups of types marked at the left."""
    c = maps.connectome
    image = np.concatenate([maps.deviations(t, frames).T for t in type_order(c.cell_types)])
    axes.imshow(
        image,
        cmap=DEVIATION_COLOURS,
        vmin=-1,
        vmax=1,
        aspect="auto",
        interpolation="nearest" if len(image) < 900 else "antialiased",
        extent=(0, seconds, len(image), 0),
    )
    sizes = np.bincount(groups_of(c.cell_types)[c.cell_type], minlength=len(GROUPS))
    for group, size, end in zip(GROUPS, sizes, np.cumsum(sizes), strict=True):
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
        axes.text(
            -0.012,
            (begin + end) / 2,
            group.name.replace(" ", "\n"),
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
