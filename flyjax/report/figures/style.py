"""The house style of all figures: colours, fonts, groups of cell types, and how a figure becomes a file.

Colours are the Okabe-Ito palette (Okabe & Ito, 2008) and perceptually uniform maps, readable with any
colour vision. The truth is black, what was learned is in colour.
"""

import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from flyjax.report.figures.exports import export
from flyjax.utils.atomic_io import write_atomic

TRUE = "#1a1a1a"
LEARNED = "#d55e00"
ACCENT = "#0072b2"
MUTED = "#8c8c8c"
GUIDE = "#dddddd"
DASHED = (0, (4, 3))
DPI = 105
#: Colours of a PNG's palette: enough for lines, at a third of the bytes of true colour.
N_COLOURS = 64

#: Decorator of functions that draw in the house style.
house_style = matplotlib.rc_context(
    {
        "font.family": "DejaVu Sans",
        "font.size": 8,
        "axes.titlesize": 9,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 8,
        "axes.linewidth": 0.7,
        "axes.edgecolor": "#444444",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "xtick.major.width": 0.7,
        "ytick.major.width": 0.7,
        "xtick.major.size": 2.5,
        "ytick.major.size": 2.5,
        "legend.fontsize": 7,
        "legend.frameon": False,
        "lines.linewidth": 0.9,
        "figure.facecolor": "white",
        "image.cmap": "viridis",
    }
)


class TypeGroup(NamedTuple):
    """Cell types of one stage of the visual system, recognised by the beginning of their names."""

    name: str
    prefixes: tuple[str, ...]
    colour: str


#: In the order in which figures show them.
GROUPS = (
    TypeGroup("photoreceptors", ("R",), "#e69f00"),
    TypeGroup("lamina", ("L1", "L2", "L3", "L4", "L5", "Lawf", "Am", "C2", "C3", "CT1"), "#0072b2"),
    TypeGroup("medulla intrinsic", ("Mi",), "#009e73"),
    TypeGroup("T1-T3", ("T1", "T2", "T3"), "#999999"),
    TypeGroup("T4, T5", ("T4", "T5"), "#d55e00"),
    TypeGroup("transmedullary", ("Tm",), "#cc79a7"),
)
MAX_TYPES = 130  # shown in one figure
OTHER = 3  # the grey group, for names that fit none


def group_of(cell_type: str) -> int:
    """Index in `GROUPS`: the longest prefix that fits decides."""
    fits = [(len(p), k) for k, group in enumerate(GROUPS) for p in group.prefixes if cell_type.startswith(p)]
    return max(fits)[1] if fits else OTHER


@lru_cache(maxsize=4)
def groups_of(cell_types: tuple[str, ...]) -> Int[np.ndarray, " n_types"]:
    """`group_of` for every cell type."""
    return np.array([group_of(name) for name in cell_types])


def type_colour(cell_type: str) -> str:
    """The colour of a cell type's group."""
    return GROUPS[group_of(cell_type)].colour


def type_order(cell_types: tuple[str, ...]) -> Int[np.ndarray, " n_types"]:
    """Indices of the cell types from the eye inwards: group by group, in the connectome's order within each.

    Of a circuit with more than `MAX_TYPES` as many, evenly spread: a figure has a row or a panel for each.
    """
    order = np.argsort(groups_of(cell_types), kind="stable")
    return order[np.unique(np.linspace(0, len(order) - 1, min(len(order), MAX_TYPES)).round().astype(int))]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches; axes are placed by hand."""
    return Figure(figsize=(width, height), dpi=DPI)


def panels(
    width: float, height: float, n_rows: int, n_columns: int, sharex: bool = False, **place: float
) -> tuple[Figure, Any]:
    """A figure of a size in inches with a grid of axes; `place` has its edges and gaps in fractions."""
    figure = new_figure(width, height)
    return figure, figure.subplots(n_rows, n_columns, sharex=sharex, gridspec_kw=place)


def cell(
    figure: Figure,
    row: int,
    column: int,
    corner: tuple[float, float],
    size: tuple[float, float],
    share: tuple[float, float],
    lift: float = 0.0,
) -> Axes:
    """Axes in a grid of cells below its upper left `corner`, on a `share` of the cell's `size`, all in fractions.

    **Arguments:** `lift` is the free space below the axes, as a share of the cell.
    """
    (left, top), (width, height) = corner, size
    place = left + column * width, top - (row + 1 - lift) * height
    return figure.add_axes((*place, width * share[0], height * share[1]))


def save_png(figure: Figure, path: str | Path, mode: str = "P") -> Path:
    """Write a small PNG file, and the formats that were asked for (`flyjax.report.figures.exports`).

    **Arguments:**

    - `mode`: `P` for a palette, enough for lines; `RGB` for true colour and `L` for greys, where shades matter.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    path, file = Path(path), io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3]))
    if mode == "P":
        image = image.quantize(N_COLOURS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    image = image.convert(mode)
    if mode == "L":  # 64 greys halve the file and look the same
        image = image.point(lambda g: round(g / 255 * 63) * 255 // 63)
    image.save(file, "PNG", optimize=mode != "P")
    write_atomic(path, file.getvalue())
    export(figure, path)
    return path


def heading(figure: Figure, text: str, x: float = 0.012, y: float = 0.96, **style) -> None:
    """The title above all panels of a figure."""
    figure.text(x, y, text, fontweight="bold", fontsize=10, **style)


def colour_types(labels: Sequence, cell_types: Sequence[str]) -> None:
    """Give tick labels the colours of the cell types they name."""
    for label, name in zip(labels, cell_types, strict=True):
        label.set_color(type_colour(name))


def limits(*arrays, pad: float = 0.06) -> tuple[float, float]:
    """Ends of an axis that holds all finite values, with a margin of `pad` times their range."""
    finite = np.concatenate([np.asarray(a)[np.isfinite(a)].ravel() for a in arrays])
    if not len(finite):
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    margin = pad * (high - low or 1.0)
    return low - margin, high + margin


def bulk(values: Float[np.ndarray, " n"], outside: float) -> Float[np.ndarray, " n"]:
    """The ends of the finite values without the share `outside` at each: a few outliers do not set a scale."""
    finite = values[np.isfinite(values)]
    return np.quantile(finite, [outside, 1 - outside]) if len(finite) else finite


def diagonal(axes: Axes, low: float, high: float) -> None:
    """The dashed line of identity, and limits from `low` to `high` on both axes."""
    axes.plot([low, high], [low, high], color=MUTED, lw=0.7, ls=DASHED, zorder=0)
    axes.set(xlim=(low, high), ylim=(low, high))


def density_scatter(
    axes: Axes, x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], size: float, max_points: int = 60_000
) -> None:
    """Points coloured by the logarithm of their density, the densest on top; hidden ones are thinned out."""
    counts, x_edges, y_edges = np.histogram2d(x, y, bins=80)
    i, j = (np.clip(np.searchsorted(e, v, side="right") - 1, 0, 79) for e, v in ((x_edges, x), (y_edges, y)))
    colour = np.log10(counts[i, j])
    order = np.argsort(colour, kind="stable")
    if len(order) > max_points:  # the rare ones are all drawn
        half = max_points // 2
        order = np.concatenate([order[:half], order[half :: max(1, (len(order) - half) // half)]])
    axes.scatter(x[order], y[order], c=colour[order], s=size, lw=0, rasterized=True)
