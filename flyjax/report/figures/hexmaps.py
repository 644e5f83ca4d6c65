"""The fly's view as hexagonal maps: all cell types at one frame, and successive frames of one type per stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from flyjax.report.figures.hexagons import (
    DEVIATION_COLOURS,
    SQUEEZE,
    VoltageMaps,
    draw_hexagons,
    hexagon_centres,
    most_eventful_frame,
    pathway_layers,
)
from flyjax.report.figures.style import (
    LEARNED,
    MUTED,
    TRUE,
    heading,
    house_style,
    new_figure,
    save_png,
    type_colour,
    type_order,
)

SMALL_TITLE: dict[str, Any] = {"fontweight": "normal", "loc": "center", "pad": 2}


def _draw_colour_bar(axes: Axes) -> None:
    axes.imshow(np.linspace(0, 1, 128)[None], aspect="auto", cmap=DEVIATION_COLOURS)
    axes.set_xticks([0, 63.5, 127], ["−", "own mean", "+"], fontsize=6.5)
    axes.set_yticks([])
    axes.tick_params(length=0, pad=1.5)
    axes.set_title("deviation; ± scale of the type", fontsize=6.5, **SMALL_TITLE)
    for spine in axes.spines.values():
        spine.set_visible(False)


@house_style
def maps_figure(path: str | Path, maps: VoltageMaps, frame: int | None = None) -> Path:
    """The stimulus at one frame (by default an eventful one) and the voltage of all cell types after it."""
    recording, c = maps.recording, maps.connectome
    frame = most_eventful_frame(recording.luminance) if frame is None else frame
    after = min(frame + 1, recording.n_frames - 1)  # the voltage of frame t is the state before it
    n_columns = 11
    figure = new_figure(9.6, 6.6)
    panels = [None, *type_order(c.cell_types)]
    width, height = 0.985 / n_columns, 0.9 / -(-len(panels) // n_columns)
    for k, t in enumerate(panels):
        row, column = divmod(k, n_columns)
        place = (0.0075 + column * width, 0.905 - (row + 1) * height, width * 0.94, height * 0.8)
        axes = figure.add_axes(place)
        if t is None:
            draw_hexagons(axes, c.columns, recording.luminance[frame], colours="gray", low=0)
            title, colour = "stimulus", TRUE
        else:
            draw_hexagons(axes, c.columns, maps.maps(t, [after])[0], colours=DEVIATION_COLOURS, low=-1)
            title, colour = c.cell_types[t], type_colour(c.cell_types[t])
            axes.text(
                0.98,
                -0.06,
                f"±{maps.scale(t):.2g}",
                transform=axes.transAxes,
                fontsize=5.5,
                color=MUTED,
                ha="right",
                va="bottom",
            )
        axes.set_title(title, fontsize=7, color=colour, loc="center", pad=1.5)
    heading(
        figure,
        f"Voltage of every cell type {frame * recording.dt:.2f} s into {recording.visual_input_type}",
        y=0.955,
    )
    _draw_colour_bar(figure.add_axes((0.83, 0.95, 0.13, 0.013)))
    return save_png(figure, path, "RGB")


def _draw_flow(axes: Axes, columns: np.ndarray, flow: Float[np.ndarray, "n_col 2"]) -> None:
    """Arrows of velocities (x right, y up) on a map."""
    x, y = hexagon_centres(columns).T
    axes.quiver(
        x,
        y,
        SQUEEZE * flow[:, 0],
        -flow[:, 1],
        angles="xy",
        scale_units="xy",
        scale=1,
        color=LEARNED,
        width=0.016,
        headwidth=3.5,
        minlength=0.5,
    )


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
    layers = pathway_layers(maps, frames, frames + 1)
    figure = new_figure(9.6, 0.5 + 0.77 * len(layers))
    left, top = 0.075, 1 - 0.45 / figure.get_figheight()
    width, height = (0.995 - left) / n_shown, (top - 0.005) / len(layers)
    arrows, fastest = None, 0.0
    if flow is not None:
        shown = flow[frames]
        fastest = max(float(np.hypot(shown[..., 0], shown[..., 1]).max()), 1e-6)
        arrows = 1.5 * shown / fastest
    for row, layer in enumerate(layers):
        y = top - (row + 1) * height
        figure.text(
            left - 0.012, y + 0.56 * height, layer.name, color=layer.name_colour, fontsize=8, ha="right", va="center"
        )
        figure.text(left - 0.012, y + 0.28 * height, layer.scale, color=MUTED, fontsize=6, ha="right", va="center")
        for k, values in enumerate(layer.values):
            axes = figure.add_axes((left + k * width, y + 0.03 * height, width * 0.97, height * 0.94))
            draw_hexagons(axes, c.columns, values, colours=layer.colours, low=layer.low)
            if row == 0:
                milliseconds = 1000 * (frames[k] - frames[0]) * recording.dt
                axes.set_title(f"{milliseconds:.0f} ms", fontsize=6.5, color=MUTED, **SMALL_TITLE)
                if arrows is not None and np.abs(arrows[k]).max() > 0:
                    _draw_flow(axes, c.columns, arrows[k])
    y = 1 - 0.2 / figure.get_figheight()
    step = every * recording.dt * 1000
    heading(figure, f"{recording.visual_input_type} and the response, in steps of {step:.0f} ms", y=y, va="center")
    if flow is not None:
        note = f"arrows: true flow, the longest {fastest:.0f} columns/s"
        figure.text(0.995, y, note, ha="right", va="center", fontsize=7, color=LEARNED)
    return save_png(figure, path, "RGB")
