"""Values of the fly's columns as maps of hexagons, and voltages as such maps.

A hexagon is a column, with x to the right and y down as the eye sees the scene. Colours are each neuron's
deviation from its own mean over time, on a scale per cell type, because types differ a hundredfold.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection

from flyjax.circuit.hexgrid import positions
from flyjax.data.recording import Recording
from flyjax.report.figures.style import TRUE, type_colour

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
    high: float = 1.0,
    squeeze: float = SQUEEZE,
) -> None:
    """One map.

    **Arguments:**

    - `values`: NaN where there is nothing to show.
    - `colours`: name of a matplotlib colour map, from `low` to `high`.
    """
    centres = hexagon_centres(columns, squeeze)
    corners = _CORNERS * [squeeze / SQUEEZE, 1.0]
    place = (np.asarray(values, np.float64) - low) / max(high - low, 1e-12)
    faces = matplotlib.colormaps[colours](np.clip(place, 0, 1))
    faces[~np.isfinite(values)] = matplotlib.colors.to_rgba("#eeeeee")
    if colours == "gray":  # an outline for white columns on white paper
        outline = centres[:, None] + 1.1 * corners
        axes.add_collection(PolyCollection(outline, facecolors="#9a9a9a", edgecolors="#9a9a9a", lw=0.8))
    # Edges in the colour of the face: no seams.
    axes.add_collection(PolyCollection(centres[:, None] + corners, facecolors=faces, edgecolors="face", lw=0.35))
    reach = np.abs(centres).max(axis=0) + 0.62
    axes.set(xlim=(-reach[0], reach[0]), ylim=(reach[1], -reach[1]), aspect="equal")
    axes.axis("off")


class VoltageMaps:
    """Voltages of a recording as deviations from each neuron's mean, in units of a scale per cell type."""

    def __init__(self, recording: Recording):
        self.recording, self.connectome = recording, recording.connectome
        self._statistics = cache(self._compute_statistics)

    def _compute_statistics(self, cell_type: int) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"], float]:
        """(neurons of the type, their mean voltages, scale of the type)."""
        neurons = np.flatnonzero(self.connectome.cell_type == cell_type)
        voltage = np.asarray(self.recording.voltage[:, neurons], np.float32)
        mean = voltage.mean(axis=0, dtype=np.float64).astype(np.float32)
        sample = np.abs(voltage[:: max(1, len(voltage) // 400)] - mean)
        return neurons, mean, max(float(np.quantile(sample, SCALE_QUANTILE)), SMALLEST_SCALE)

    def scale(self, cell_type: int) -> float:
        """Deviation at the end of the type's colour scale."""
        return self._statistics(cell_type)[2]

    def deviations(self, cell_type: int, frames: Frames) -> Float[np.ndarray, "frames n"]:
        """Deviations of a type's neurons in units of the type's scale."""
        neurons, mean, scale = self._statistics(cell_type)
        return (self.recording.voltage[np.asarray(frames)][:, neurons] - mean) / scale

    def maps(self, cell_type: int, frames: Frames) -> Float[np.ndarray, "frames n_col"]:
        """The same by column; NaN where the type has no neuron."""
        out = np.full((len(frames), self.connectome.n_columns), np.nan, np.float32)
        out[:, self.connectome.column[self._statistics(cell_type)[0]]] = self.deviations(cell_type, frames)
        return out


class Layer(NamedTuple):
    """The stimulus or a cell type over some frames, ready to be drawn."""

    name: str
    values: Float[np.ndarray, "frames n_col"]
    colours: str
    low: float  # value at the lower end of the colours; the upper end is 1
    name_colour: str
    scale: str  # printed beside the map


def pathway_layers(maps: VoltageMaps, stimulus_frames: Frames, voltage_frames: Frames) -> list[Layer]:
    """The stimulus and one cell type per stage of the visual system."""
    layers = [Layer("stimulus", maps.recording.luminance[np.asarray(stimulus_frames)], "gray", 0.0, TRUE, "")]
    for name in PATHWAY:
        if name in maps.connectome.cell_types:
            t = maps.connectome.cell_types.index(name)
            values = maps.maps(t, voltage_frames)
            layers.append(Layer(name, values, DEVIATION_COLOURS, -1.0, type_colour(name), f"±{maps.scale(t):.2g}"))
    return layers


def most_eventful_frame(luminance: Float[np.ndarray, "T n_col"]) -> int:
    """The frame around which contrast moves steadily; a cut between two scenes alone does not count."""
    luminance = np.asarray(luminance)
    change = np.abs(np.diff(luminance, axis=0, prepend=luminance[:1])).mean(axis=1)
    window = min(15, len(luminance))
    around = np.lib.stride_tricks.sliding_window_view
    motion = np.median(around(change, window), axis=1) * around(luminance.std(axis=1), window).mean(axis=1)
    return min(int(np.argmax(motion)) + window // 2, len(luminance) - 1)
