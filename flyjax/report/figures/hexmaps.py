"""The fly's view drawn as hexagons: maps, film strips, kinographs, traces, films.

Functions write `path` and return it, in the house style of `figures`. A hexagon is a column, with x to
the right and y down as the eye has it; colours are each neuron's deviation from its own mean, on a scale
per cell type that is printed beside it, because types differ a hundredfold.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from flyjax.data.recording import Recording
from flyjax.report.figures.node import DPI, GROUPS, LEARNED, MUTED, TRUE, _save, group_of, styled
from flyjax.stimulus.scenes import positions

MAP = "RdBu_r"
#: One type per stage from the eye to the motion detectors, ON path and OFF path.
PATHWAY = ("R1", "L1", "L2", "Mi1", "Tm3", "Tm1", "Tm2", "T4a", "T4b", "T5a", "T5b")
#: Deviations below this are none.
SILENT = 1e-4
#: Quantile of |deviation| at which a type's colours end.
TOP = 0.99
#: Regular hexagons: columns are closer in x than the eye's boxes.
SQUEEZE = np.sqrt(3) / 2
_CORNERS = np.array([[1, 0], [0.5, SQUEEZE], [-0.5, SQUEEZE], [-1, 0], [-0.5, -SQUEEZE], [0.5, -SQUEEZE]]) / np.sqrt(3)


def centres(columns: np.ndarray, squeeze: float = SQUEEZE) -> np.ndarray:
    """(n_col, 2) x right, y down of regular hexagons one unit apart; squeeze=1: where the eye's boxes are."""
    x, y = positions(columns)
    return np.stack([squeeze * x, y], axis=1)


def draw_hexagons(axes, columns, values, *, cmap, low, high, squeeze: float = SQUEEZE) -> None:
    """One map: `values` (n_col,), NaN where there is nothing to show."""
    at = centres(columns, squeeze)
    corners = _CORNERS * [squeeze / SQUEEZE, 1.0]
    colours = matplotlib.colormaps[cmap](np.clip((np.asarray(values, np.float64) - low) / max(high - low, 1e-12), 0, 1))
    colours[~np.isfinite(values)] = matplotlib.colors.to_rgba("#eeeeee")
    if cmap == "gray":  # white columns on white paper
        axes.add_collection(
            PolyCollection(at[:, None] + 1.1 * corners, facecolors="#9a9a9a", edgecolors="#9a9a9a", lw=0.8)
        )
    # Edges in the colour of the face: no seams.
    axes.add_collection(PolyCollection(at[:, None] + corners, facecolors=colours, edgecolors="face", lw=0.35))
    reach = np.abs(at).max(axis=0) + 0.62
    axes.set_xlim(-reach[0], reach[0])
    axes.set_ylim(reach[1], -reach[1])
    axes.set_aspect("equal")
    axes.axis("off")


def order_of(connectome) -> list[int]:
    """Cell types from the eye inwards, group by group."""
    return sorted(range(connectome.n_types), key=lambda t: (group_of(connectome.cell_types[t]), t))


class View:
    """Voltages of a recording as maps: deviations from each neuron's mean, in units of each type's scale."""

    def __init__(self, recording: Recording):
        self.recording, self.c = recording, recording.connectome
        self._by_type: dict[int, tuple[np.ndarray, np.ndarray, float]] = {}

    def _type(self, t: int) -> tuple[np.ndarray, np.ndarray, float]:
        if t not in self._by_type:
            mine = np.flatnonzero(self.c.cell_type == t)
            v = np.asarray(self.recording.voltage[:, mine], np.float32)
            mean = v.mean(axis=0, dtype=np.float64).astype(np.float32)
            self._by_type[t] = (
                mine,
                mean,
                max(float(np.quantile(np.abs(v[:: max(1, len(v) // 400)] - mean), TOP)), SILENT),
            )
        return self._by_type[t]

    def scale(self, t: int) -> float:
        """Deviation at the end of the colour scale."""
        return self._type(t)[2]

    def neurons(self, t: int, frames) -> np.ndarray:
        """(len(frames), n) deviations of a type's neurons in units of the scale."""
        mine, mean, top = self._type(t)
        return (self.recording.voltage[np.asarray(frames)][:, mine] - mean) / top

    def maps(self, t: int, frames) -> np.ndarray:
        """(len(frames), n_col) the same by column; NaN where the type has no neuron."""
        out = np.full((len(frames), self.c.n_columns), np.nan, np.float32)
        out[:, self.c.column[self._type(t)[0]]] = self.neurons(t, frames)
        return out

    def index(self, name: str) -> int:
        return self.c.cell_types.index(name)

    def eventful(self) -> int:
        """A frame with much to see: contrast that moves steadily around it; a cut alone does not count."""
        light = np.asarray(self.recording.luminance)
        change = np.abs(np.diff(light, axis=0, prepend=light[:1])).mean(axis=1)
        window = min(15, len(light))
        around = np.lib.stride_tricks.sliding_window_view
        lively = np.median(around(change, window), axis=1) * around(light.std(axis=1), window).mean(axis=1)
        return min(int(np.argmax(lively)) + window // 2, len(light) - 1)


def _colour(name: str) -> str:
    return GROUPS[group_of(name)][2]


def _bar(figure, place, cmap, labels, title, size=6.5) -> None:
    axes = figure.add_axes(place)
    axes.imshow(np.linspace(0, 1, 128)[None], aspect="auto", cmap=cmap)
    axes.set_xticks([0, 63.5, 127], labels, fontsize=size)
    axes.set_yticks([])
    axes.tick_params(length=0, pad=1.5)
    axes.set_title(title, fontsize=size, fontweight="normal", loc="center", pad=2)
    for spine in axes.spines.values():
        spine.set_visible(False)


@styled
def maps_figure(path, recording: Recording, frame: int | None = None, view: View | None = None) -> Path:
    """What is seen at one frame and the voltage of all cell types after it."""
    view = view or View(recording)
    c = recording.connectome
    frame = view.eventful() if frame is None else frame
    after = min(frame + 1, recording.n_frames - 1)  # the state before frame t follows frame t - 1
    n_across = 11
    figure = Figure(figsize=(9.6, 6.6), dpi=DPI)
    names = [None, *order_of(c)]
    n_down = -(-len(names) // n_across)
    width, height = 0.985 / n_across, 0.9 / n_down
    for k, t in enumerate(names):
        row, col = divmod(k, n_across)
        axes = figure.add_axes([0.0075 + col * width, 0.905 - (row + 1) * height, width * 0.94, height * 0.8])
        if t is None:
            draw_hexagons(axes, c.columns, recording.luminance[frame], cmap="gray", low=0, high=1)
            title, colour = "stimulus", TRUE
        else:
            draw_hexagons(axes, c.columns, view.maps(t, [after])[0], cmap=MAP, low=-1, high=1)
            title, colour = c.cell_types[t], _colour(c.cell_types[t])
            axes.text(
                0.98,
                -0.06,
                f"±{view.scale(t):.2g}",
                transform=axes.transAxes,
                fontsize=5.5,
                color=MUTED,
                ha="right",
                va="bottom",
            )
        axes.set_title(title, fontsize=7, color=colour, loc="center", pad=1.5)
    figure.text(
        0.012,
        0.955,
        f"Voltage of every cell type {frame * recording.dt:.2f} s into {recording.visual_input_type}",
        fontweight="bold",
        fontsize=10,
    )
    _bar(figure, [0.83, 0.95, 0.13, 0.013], MAP, ["−", "own mean", "+"], "deviation; ± scale of the type")
    return _save(figure, path, "RGB")


@styled
def strip_figure(
    path,
    recording: Recording,
    first: int | None = None,
    every: int = 3,
    n_shown: int = 11,
    flow=None,
    view: View | None = None,
) -> Path:
    """Successive hexagonal maps of the stimulus and of one cell type per stage.

    Args:
        flow: (T, n_col, 2) velocities (x right, y up), drawn as arrows on the stimulus.
    """
    view = view or View(recording)
    c, dt = recording.connectome, recording.dt
    n_shown = min(n_shown, max(1, (recording.n_frames - 1) // every))
    span = (n_shown - 1) * every
    first = int(np.clip(view.eventful() - span // 2 if first is None else first, 0, recording.n_frames - 2 - span))
    frames = first + every * np.arange(n_shown)
    names = [None, *(n for n in PATHWAY if n in c.cell_types)]
    figure = Figure(figsize=(9.6, 0.5 + 0.77 * len(names)), dpi=DPI)
    left, top = 0.075, 1 - 0.45 / figure.get_figheight()
    width, height = (0.995 - left) / n_shown, (top - 0.005) / len(names)
    fastest = 0 if flow is None else max(float(np.hypot(*np.moveaxis(flow[frames], -1, 0)).max()), 1e-6)
    for row, name in enumerate(names):
        y = top - (row + 1) * height
        if name is None:
            shown, low, cmap, label, colour = recording.luminance[frames], 0, "gray", "stimulus", TRUE
        else:
            t = view.index(name)
            shown, low, cmap, label, colour = view.maps(t, frames + 1), -1, MAP, name, _colour(name)
            figure.text(
                left - 0.012,
                y + 0.28 * height,
                f"±{view.scale(t):.2g}",
                ha="right",
                va="center",
                fontsize=6,
                color=MUTED,
            )
        figure.text(left - 0.012, y + 0.56 * height, label, ha="right", va="center", color=colour, fontsize=8)
        for k, values in enumerate(shown):
            axes = figure.add_axes([left + k * width, y + 0.03 * height, width * 0.97, height * 0.94])
            draw_hexagons(axes, c.columns, values, cmap=cmap, low=low, high=1)
            if name is None:
                axes.set_title(
                    f"{1000 * (frames[k] - frames[0]) * dt:.0f} ms",
                    fontsize=6.5,
                    fontweight="normal",
                    loc="center",
                    pad=2,
                    color=MUTED,
                )
                if flow is not None and np.abs(flow[frames[k]]).max() > 0:
                    way = flow[frames[k]] * 1.5 / fastest
                    axes.quiver(
                        *centres(c.columns).T,
                        SQUEEZE * way[:, 0],
                        -way[:, 1],
                        angles="xy",
                        scale_units="xy",
                        scale=1,
                        color=LEARNED,
                        width=0.016,
                        headwidth=3.5,
                        minlength=0.5,
                    )
    figure.text(
        0.012,
        1 - 0.2 / figure.get_figheight(),
        f"{recording.visual_input_type} and the response, {every * dt * 1000:.0f} ms a step",
        fontweight="bold",
        fontsize=10,
        va="center",
    )
    if flow is not None:
        figure.text(
            0.995,
            1 - 0.2 / figure.get_figheight(),
            f"arrows: true flow, the longest {fastest:.0f} columns/s",
            ha="right",
            va="center",
            fontsize=7,
            color=LEARNED,
        )
    return _save(figure, path, "RGB")


def middle_row(c) -> np.ndarray:
    """Columns nearest to the horizontal midline, from left to right."""
    place = {(int(u), int(v)): k for k, (u, v) in enumerate(c.columns)}
    return np.array([place[-((v + 1) // 2) if v >= 0 else (-v) // 2, v] for v in range(-c.extent, c.extent + 1)])


@styled
def kinograph_figure(path, recording: Recording, first: int = 0, n_frames: int = 250, view: View | None = None) -> Path:
    """Space against time along the eye's midline for one type per stage; below, every neuron."""
    view = view or View(recording)
    c, dt = recording.connectome, recording.dt
    frames = np.arange(first, min(first + n_frames, recording.n_frames))
    seconds = len(frames) * dt
    names = [None, *(n for n in PATHWAY if n in c.cell_types)]
    figure = Figure(figsize=(9.6, 7.4), dpi=DPI)
    row = middle_row(c)
    n_across = 6
    left, right, gap = 0.05, 0.985, 0.022
    width = (right - left - gap * (n_across - 1)) / n_across
    for k, name in enumerate(names):
        down, across = divmod(k, n_across)
        axes = figure.add_axes([left + across * (width + gap), 0.795 - 0.18 * down, width, 0.125])
        if name is None:
            axes.imshow(
                recording.luminance[frames][:, row].T,
                cmap="gray",
                vmin=0,
                vmax=1,
                aspect="auto",
                interpolation="nearest",
                extent=(0, seconds, c.extent + 0.5, -c.extent - 0.5),
            )
            axes.set_title("stimulus", fontsize=7.5)
        else:
            t = view.index(name)
            axes.imshow(
                view.maps(t, frames)[:, row].T,
                cmap=MAP,
                vmin=-1,
                vmax=1,
                aspect="auto",
                interpolation="nearest",
                extent=(0, seconds, c.extent + 0.5, -c.extent - 0.5),
            )
            axes.set_title(name, fontsize=7.5, color=_colour(name))
            axes.text(1, 1.05, f"±{view.scale(t):.2g}", transform=axes.transAxes, fontsize=6, color=MUTED, ha="right")
        axes.tick_params(labelsize=6, pad=1.5)
        if across:
            axes.set_yticklabels([])
        else:
            axes.set_ylabel("column, left\nto right", fontsize=6.5)
        axes.set_xticks(np.linspace(0, seconds, 3))
        axes.xaxis.set_major_formatter("{x:.3g}")
        if not down:
            axes.set_xticklabels([])
        elif not across:
            axes.set_xlabel("time (s)", fontsize=6.5, labelpad=1)
    figure.text(
        0.012,
        0.96,
        f"Kinographs of {recording.visual_input_type}: the midline of the eye against time",
        fontweight="bold",
        fontsize=10,
    )

    begins = 0.105
    axes = figure.add_axes([begins, 0.055, right - begins, 0.475])
    order = order_of(c)
    neurons = np.concatenate([np.flatnonzero(c.cell_type == t) for t in order])
    size = np.bincount(c.cell_type, minlength=c.n_types)
    image = np.empty((len(neurons), len(frames)), np.float32)
    at = 0
    for t in order:
        image[at : at + size[t]] = view.neurons(t, frames).T
        at += size[t]
    axes.imshow(
        image,
        cmap=MAP,
        vmin=-1,
        vmax=1,
        aspect="auto",
        interpolation="nearest" if len(neurons) < 900 else "antialiased",
        extent=(0, seconds, len(neurons), 0),
    )
    ends = np.cumsum(size[order])
    groups = np.array([group_of(c.cell_types[t]) for t in order])
    for g, (label, _, colour) in enumerate(GROUPS):
        mine = np.flatnonzero(groups == g)
        if not len(mine):
            continue
        begin, end = ends[mine[0]] - size[order[mine[0]]], ends[mine[-1]]
        if begin:
            axes.axhline(begin, color="black", lw=0.6)
        axes.annotate(
            "",
            (-0.004, begin),
            (-0.004, end),
            xycoords=("axes fraction", "data"),
            arrowprops=dict(arrowstyle="-", color=colour, lw=3, shrinkA=1, shrinkB=1),
            annotation_clip=False,
        )
        axes.text(
            -0.012,
            (begin + end) / 2,
            label.replace(" ", "\n"),
            transform=axes.get_yaxis_transform(),
            ha="right",
            va="center",
            fontsize=7,
            color=colour,
        )
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("time (s)")
    axes.set_title(f"All {len(neurons):,} neurons, in units of each type's scale", fontsize=8.5)
    return _save(figure, path, "RGB")


@styled
def traces_figure(path, recording: Recording, first: int = 0, n_frames: int = 250, view: View | None = None) -> Path:
    """The central neuron of all 65 cell types under the central column's stimulus."""
    c, dt = recording.connectome, recording.dt
    frames = np.arange(first, min(first + n_frames, recording.n_frames))
    seconds = (frames - first) * dt
    shown = c.central[np.argsort([group_of(c.cell_types[t]) for t in c.cell_type[c.central]], kind="stable")]
    v = np.asarray(recording.voltage[frames][:, shown], np.float64)
    low, span = v.min(axis=0), np.maximum(np.ptp(v, axis=0), SILENT)
    centre = int(np.flatnonzero((c.columns == 0).all(axis=1))[0])
    n_across = 3
    rows = -(-len(shown) // n_across)
    figure = Figure(figsize=(9.6, 8.6), dpi=DPI)
    left, right, gap = 0.066, 0.958, 0.1
    width = (right - left - gap * (n_across - 1)) / n_across
    for k in range(n_across):
        x = left + k * (width + gap)
        top = figure.add_axes([x, 0.9, width, 0.045])
        top.fill_between(seconds, recording.luminance[frames, centre], color="#bbbbbb", lw=0)
        top.plot(seconds, recording.luminance[frames, centre], color=TRUE, lw=0.8)
        top.set_xlim(0, seconds[-1])
        top.set_ylim(0, 1)
        top.set_xticks([])
        top.set_yticks([0, 1] if k == 0 else [])
        if k == 0:
            top.set_ylabel("light", rotation=0, ha="right", va="center", fontsize=7)
        axes = figure.add_axes([x, 0.05, width, 0.84])
        mine = np.arange(k * rows, min((k + 1) * rows, len(shown)))
        for j, n in enumerate(mine):
            name = c.cell_types[c.cell_type[shown[n]]]
            base = -1.3 * j
            if low[n] < 0 < low[n] + span[n]:  # where it begins to send
                axes.plot([0, seconds[-1]], [base - low[n] / span[n]] * 2, color="#cccccc", lw=0.6, zorder=0)
            axes.plot(seconds, (v[:, n] - low[n]) / span[n] + base, color=_colour(name), lw=0.9)
            axes.text(
                seconds[-1] * 1.012,
                base + 0.5,
                f"{span[n] if span[n] >= SILENT else 0:.2g}",
                fontsize=6,
                color=MUTED,
                va="center",
                clip_on=False,
            )
        axes.set_yticks(0.5 - 1.3 * np.arange(len(mine)))
        for label, n in zip(axes.set_yticklabels([c.cell_types[c.cell_type[shown[n]]] for n in mine]), mine):
            label.set_color(_colour(c.cell_types[c.cell_type[shown[n]]]))
        axes.set_xlim(0, seconds[-1])
        axes.set_ylim(-1.3 * (rows - 1) - 0.2, 1.2)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("time (s)")
        top.text(1.012, -0.5, "range", transform=top.transAxes, fontsize=6, color=MUTED, clip_on=False)
    figure.text(
        left,
        0.968,
        f"Voltage of the central neuron of every cell type, {recording.visual_input_type}",
        fontweight="bold",
        fontsize=10,
    )
    figure.text(right, 0.968, "grey line: v = 0, above it a neuron sends", ha="right", color=MUTED, fontsize=7)
    return _save(figure, path, "RGB")
