"""Tuning as people draw it: polar plots of motion, indices per cell type, and receptive fields on the eye."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes

from flyjax.report.figures.hexmaps import DEVIATION_COLOURS, PATHWAY, draw_hexagons
from flyjax.report.figures.style import (
    LEARNED,
    MUTED,
    TRUE,
    colour_types,
    heading,
    house_style,
    new_figure,
    panels,
    save_png,
    type_order,
)
from flyjax.tuning import EdgeResponses, FlashResponses, ReceptiveFields
from flyjax.tuning.known import POLARITY, PREFERRED_DIRECTIONS

ON_COLOUR, OFF_COLOUR = "#e69f00", "#0072b2"
#: Polar plots of one figure.
N_POLAR = 8
LEGEND = "black: true circuit; orange: learned circuit"


def _shown(cell_types: Sequence[str], wanted: Sequence[str], score: Float[np.ndarray, " types"], n: int) -> list[str]:
    """Those of the wanted types that there are, or else the `n` of the highest score."""
    known = [name for name in wanted if name in cell_types]
    return known or [cell_types[k] for k in np.argsort(-score)[:n]]


def _draw_polar(axes: Axes, found: Sequence[EdgeResponses], name: str, intensity: int) -> None:
    settings, k = found[0].settings, found[0].cell_types.index(name)
    angles = np.deg2rad([*settings.angles, settings.angles[0]])
    for responses, colour in zip(found, (TRUE, LEARNED), strict=False):
        curve = responses.tuning[:, intensity, k]
        largest = max(float(curve.max()), 1e-9)
        axes.plot(angles, np.append(curve, curve[0]) / largest, color=colour, lw=1.1)
        preferred = np.deg2rad(responses.preferred[intensity, k])
        axes.plot([preferred] * 2, [0, responses.dsi[intensity, k]], color=colour, lw=2.2, solid_capstyle="round")
    if name in PREFERRED_DIRECTIONS:
        axes.plot(np.deg2rad(PREFERRED_DIRECTIONS[name]), 1.13, marker="v", ms=4, color=ON_COLOUR, clip_on=False)
    axes.set(ylim=(0, 1), xticks=np.deg2rad([0, 90, 180, 270]), yticks=[0.5, 1])
    axes.set_xticklabels([])
    axes.set_yticklabels([])
    axes.grid(color="#dddddd", lw=0.5)
    axes.spines["polar"].set_color("#bbbbbb")
    axes.set_title(f"{name} {'ON' if settings.intensities[intensity] > 0.5 else 'OFF'}", loc="center", pad=8)


def _draw_bars(axes: Axes, names: Sequence[str], values: Sequence[np.ndarray], colours: Sequence[str], label: str):
    """Bars of the first values, dots of the others."""
    axes.bar(np.arange(len(names)), values[0], color=colours, width=0.75)
    for other in values[1:]:
        axes.plot(np.arange(len(names)), other, ".", color=LEARNED, ms=4)
    axes.axhline(0, color=MUTED, lw=0.5)
    axes.set(xlim=(-0.7, len(names) - 0.3), ylabel=label)
    axes.set_xticks(np.arange(len(names)), names, rotation=90, fontsize=6)
    axes.tick_params(axis="x", length=0, pad=1)
    colour_types(axes.get_xticklabels(), names)


@house_style
def edges_figure(path: str | Path, found: Sequence[EdgeResponses], title: str) -> Path:
    """Polar tuning curves of T4 (ON) and T5 (OFF), or of the most selective types, and the DSI of every type.

    **Arguments:** `found` has the true circuit, and the learned one where there is one.
    """
    first, order = found[0], type_order(found[0].cell_types)
    intensities = np.argsort(first.settings.intensities)
    off, on = int(intensities[0]), int(intensities[-1])
    names = _shown(first.cell_types, tuple(PREFERRED_DIRECTIONS), first.dsi.max(axis=0), N_POLAR)
    figure = new_figure(9.6, 5.2)
    for k, name in enumerate(names[:N_POLAR]):
        place = (0.02 + k * 0.1235, 0.61, 0.096, 0.2)
        best = int(np.argmax(first.dsi[:, first.cell_types.index(name)]))
        intensity = on if name.startswith("T4") else off if name.startswith("T5") else best
        _draw_polar(figure.add_axes(place, projection="polar"), found, name, intensity)
    types = [first.cell_types[t] for t in order]
    for k, (intensity, label, colour) in enumerate(
        ((on, "DSI, ON edge", ON_COLOUR), (off, "DSI, OFF edge", OFF_COLOUR))
    ):
        axes = figure.add_axes((0.055, 0.365 - 0.25 * k, 0.935, 0.17))
        _draw_bars(axes, types, [r.dsi[intensity, order] for r in found], [colour] * len(types), label)
        axes.set_ylim(0, 1)
        if k == 0:
            axes.set_xticklabels([])
    heading(figure, title, y=0.955)
    note = "curve: peak response by direction; stroke: DSI towards the preferred direction; triangle: as published"
    figure.text(0.012, 0.915, f"{note}. {LEGEND if len(found) > 1 else ''}", fontsize=7, color=MUTED)
    return save_png(figure, path, "RGB")


@house_style
def flashes_figure(path: str | Path, found: Sequence[FlashResponses], title: str) -> Path:
    """Flash response index of every cell type, in the colour of the contrast that it is known to prefer."""
    first = found[0]
    rank = {1: 0, -1: 1, 0: 2}
    order = sorted(
        range(len(first.cell_types)), key=lambda k: (rank[POLARITY.get(first.cell_types[k], 0)], -first.fri[k])
    )
    names = [first.cell_types[k] for k in order]
    colours = [{1: ON_COLOUR, -1: OFF_COLOUR, 0: "#bbbbbb"}[POLARITY.get(name, 0)] for name in names]
    figure, axes = panels(9.6, 2.6, 1, 1, left=0.06, right=0.99, bottom=0.24, top=0.82)
    _draw_bars(axes, names, [r.fri[order] for r in found], colours, "flash response index")
    heading(figure, title, y=0.92)
    note = "known preference: orange ON, blue OFF, grey none"
    figure.text(
        0.99, 0.92, note + ("; dots: learned circuit" if len(found) > 1 else ""), ha="right", fontsize=7, color=MUTED
    )
    return save_png(figure, path, "RGB")


@house_style
def fields_figure(
    path: str | Path, found: Sequence[ReceptiveFields], columns: Int[np.ndarray, "n_col 2"], title: str
) -> Path:
    """Receptive fields on the eye at the lag of the largest value, and over lags in the column of that value."""
    first = found[0]
    names = _shown(first.cell_types, PATHWAY, np.abs(first.kernel).max(axis=(1, 2)), len(PATHWAY))
    figure, width = new_figure(9.6, 0.9 + 0.95 * len(found) + 0.8), 0.99 / len(names)
    height = 0.95 / figure.get_figheight()
    seconds = 1000 * first.settings.hold * np.arange(first.settings.n_lags)
    for k, name in enumerate(names):
        index = first.cell_types.index(name)
        lag, column = np.unravel_index(np.argmax(np.abs(first.kernel[index])), first.kernel.shape[1:])
        scale = max(float(np.abs(first.kernel[index]).max()), 1e-9)
        left, top = 0.006 + k * width, 1 - 0.77 / figure.get_figheight()
        for row, fields in enumerate(found):
            axes = figure.add_axes((left, top - (row + 1) * height, width * 0.94, height * 0.94))
            draw_hexagons(axes, columns, fields.kernel[index, lag] / scale, colours=DEVIATION_COLOURS, low=-1)
            if row == 0:
                axes.set_title(f"{name}  {seconds[lag]:.0f} ms", fontsize=7, loc="center", pad=2)
        axes = figure.add_axes((left + 0.1 * width, 0.13, width * 0.78, 0.62 / figure.get_figheight()))
        for fields, colour in zip(found, (TRUE, LEARNED), strict=False):
            axes.plot(seconds, fields.kernel[index, :, column] / scale, color=colour, lw=1)
        axes.axhline(0, color=MUTED, lw=0.4)
        axes.set(ylim=(-1.1, 1.1), yticks=[], xlim=(0, seconds[-1]), xticks=[0, seconds[-1]])
        axes.tick_params(labelsize=6)
        axes.spines["left"].set_visible(False)
    heading(figure, title, y=1 - 0.2 / figure.get_figheight())
    note = "red: more luminance, higher voltage. below: the column of the largest value against the delay (ms)"
    text = note + (f". {LEGEND}, upper and lower row" if len(found) > 1 else "")
    figure.text(0.012, 1 - 0.4 / figure.get_figheight(), text, fontsize=7, color=MUTED)
    return save_png(figure, path, "RGB")
