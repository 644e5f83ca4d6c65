"""Figures of a trained node: recovered parameters, embedding, functions, learned stimulus.

Each shows a tuple of arrays and texts that `flyjax.report.figures.contents` takes from an evaluation, so that a process
that draws needs neither the recordings nor JAX.
"""

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes

from flyjax.report.figures.style import (
    ACCENT,
    DPI,
    GROUPS,
    LEARNED,
    MAX_TYPES,
    MUTED,
    TRUE,
    bulk,
    cell,
    density_scatter,
    diagonal,
    groups_of,
    heading,
    house_style,
    limits,
    new_figure,
    panels,
    save_png,
)

DASHED_TRUTH = {"color": TRUE, "ls": (0, (4, 2))}


class Recovery(NamedTuple):
    """True and learned parameters."""

    cell_types: tuple[str, ...]
    cell_type: Int[np.ndarray, " N"]
    true_weight: Float[np.ndarray, " E"]
    weight: Float[np.ndarray, " E"]  #: corrected; NaN where it is left out
    raw_weight: Float[np.ndarray, " E"]  #: as trained
    true_tau: Float[np.ndarray, " N"]  #: s
    tau: Float[np.ndarray, " N"]
    true_v_rest: Float[np.ndarray, " N"]
    v_rest: Float[np.ndarray, " N"]
    fits: tuple[str, ...]  #: of the four panels


def _write_fit(axes: Axes, title: str, fit: str, note: str = "") -> None:
    """The title, and under it the fit: outside the panel, where no point lies."""
    axes.set_title(title, pad=16)
    axes.text(0, 1.03, ", ".join(filter(None, (fit, note))), transform=axes.transAxes, fontsize=7)


def _weight_scatter(axes: Axes, true: np.ndarray, learned: np.ndarray, title: str, fit: str) -> None:
    """Learned against true weights, coloured by the density of points."""
    finite = np.isfinite(learned)
    if finite.any():
        density_scatter(axes, true[finite], learned[finite], size=5)
    _write_fit(axes, title, fit)
    axes.set(xlabel="true W", ylabel="learned W")


def _parameter_scatter(
    axes: Axes, shown: Recovery, true: np.ndarray, learned: np.ndarray, title: str, fit: str
) -> None:
    """Learned against true values: neurons in grey, means of the cell types in the colours of their groups."""
    axes.scatter(true, learned, s=4, lw=0, color=MUTED, alpha=0.35)
    means = [[x[shown.cell_type == t].mean() for t in range(len(shown.cell_types))] for x in (true, learned)]
    colours = [GROUPS[k].colour for k in groups_of(shown.cell_types)]
    axes.scatter(means[0], means[1], s=16, lw=0.4, ec="white", color=colours, zorder=3)
    ends = limits(true, pad=0.12)
    diagonal(axes, *ends)
    lower, upper = limits(ends, bulk(learned, 0.01), pad=0.03)
    axes.set_ylim(lower, upper)
    outside = int(np.sum(~((learned >= lower) & (learned <= upper))))
    _write_fit(axes, title, fit, f"{outside} outside" if outside else "")


@house_style
def recovery_figure(path: str | Path, shown: Recovery) -> Path:
    """Learned against true parameters: W corrected and as trained, tau and V_rest of neurons and cell types."""
    true = shown.true_weight.astype(np.float64)
    figure, axes = panels(9.6, 3.0, 1, 4, left=0.065, right=0.99, bottom=0.18, top=0.83, wspace=0.42)
    _weight_scatter(axes[0], true, shown.weight.astype(np.float64), "W, corrected", shown.fits[0])
    diagonal(axes[0], *limits(true, pad=0.12))
    _weight_scatter(axes[1], true, shown.raw_weight.astype(np.float64), "W, as trained", shown.fits[1])
    parameters = (
        (axes[2], shown.true_tau, shown.tau, "Time constant", r"$\tau$ (s)", shown.fits[2]),
        (axes[3], shown.true_v_rest, shown.v_rest, "Resting potential", r"$V_\mathrm{rest}$ (a.u.)", shown.fits[3]),
    )
    for ax, true, learned, title, quantity, fit in parameters:
        _parameter_scatter(ax, shown, true, learned, title, fit)
        ax.set(xlabel=f"true {quantity}", ylabel=f"learned {quantity}")
    figure.text(0.99, 0.02, "coloured: types, grey: neurons", ha="right", fontsize=6, color=MUTED)
    return save_png(figure, path)


class Embedding(NamedTuple):
    """The learned embedding, and lines of scores beside it."""

    cell_types: tuple[str, ...]
    cell_type: Int[np.ndarray, " N"]
    embedding: Float[np.ndarray, "N d"]
    scores: tuple[str, ...]


def _name_points(axes: Axes, points: Float[np.ndarray, "n 2"], centres: Float[np.ndarray, "m 2"], names) -> None:
    """Names beside their centres, where they cover no point and no other name; without such a place, none."""
    unit = DPI / 72  # pixels
    points, at = (axes.transData.transform(xy[np.isfinite(xy).all(axis=1)]) for xy in (points, centres))
    names = [name for name, xy in zip(names, centres, strict=True) if np.isfinite(xy).all()]
    frame, placed = axes.get_window_extent(), np.zeros((0, 4))
    directions = [(0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1)]
    for k in np.argsort([-np.sort(np.hypot(*(at - xy).T))[:2].sum() for xy in at]):  # isolated ones first
        half = np.array([2.1 * len(names[k]), 3.6]) * unit
        for distance, direction in itertools.product((4, 8, 13, 19, 26), directions):
            centre = at[k] + direction * (half + distance * unit)
            low, high = centre - half, centre + half
            is_free = not (np.abs(points - centre) < half + 2 * unit).all(axis=1).any()
            is_free &= not ((low < placed[:, 2:]) & (high > placed[:, :2])).all(axis=1).any()
            if is_free and frame.x0 < low[0] and frame.y0 < low[1] and high[0] < frame.x1 and high[1] < frame.y1:
                placed = np.vstack([placed, [*low, *high]])
                line = {"arrowstyle": "-", "lw": 0.4, "color": MUTED, "shrinkA": 0, "shrinkB": 0}
                axes.annotate(
                    names[k], tuple(axes.transData.inverted().transform(at[k])),
                    xytext=tuple(axes.transData.inverted().transform(centre)),
                    arrowprops=line if distance > 8 else None,
                    fontsize=6, color="#222222", ha="center", va="center",
                )  # fmt: skip
                break


def _two_dimensions(
    embedding: Float[np.ndarray, "N d"], cell_type: np.ndarray
) -> tuple[Float[np.ndarray, "N 2"], tuple[str, str]]:
    """The embedding as points of a plane, and the names of the two axes."""
    x = np.asarray(embedding, np.float64)
    if x.shape[1] == 1:
        return np.stack([x[:, 0], cell_type], axis=1), ("a", "cell type")
    if x.shape[1] > 2 and np.isfinite(x).all():
        centred = x - x.mean(axis=0)
        return centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T, ("PC 1 of a", "PC 2 of a")
    return x, ("a₁", "a₂")


@house_style
def embedding_figure(path: str | Path, shown: Embedding) -> Path:
    """The learned embedding of every neuron; its first two principal components beyond two dimensions."""
    names, cell_type = shown.cell_types, shown.cell_type
    x, labels = _two_dimensions(shown.embedding, cell_type)
    figure = new_figure(7.2, 5.4)
    axes = figure.add_axes((0.08, 0.09, 0.7, 0.86))
    groups = groups_of(names)
    markers = "osD^vP"  # distinguish the types of a group
    for t in range(len(names)):
        points = x[cell_type == t]
        marker = markers[int(np.sum(groups[:t] == groups[t])) % len(markers)]
        colour = GROUPS[groups[t]].colour
        axes.scatter(points[:, 0], points[:, 1], s=14, lw=0.3, ec="white", color=colour, marker=marker, alpha=0.85)
    axes.autoscale(False)
    if len(names) <= MAX_TYPES:
        _name_points(axes, x, np.array([np.median(x[cell_type == t], axis=0) for t in range(len(names))]), names)
    axes.set(xlabel=labels[0], ylabel=labels[1], title="Embedding of the neurons")
    keys = [axes.plot([], [], "o", color=group.colour, label=group.name, ms=5)[0] for group in GROUPS]
    axes.legend(handles=keys, loc="upper left", bbox_to_anchor=(1.02, 1.0), title="group of types", title_fontsize=7)
    figure.text(0.8, 0.2, "\n".join(shown.scores), fontsize=7, linespacing=1.5)
    return save_png(figure, path)


class Functions(NamedTuple):
    """Learned functions of one neuron per cell type."""

    cell_types: tuple[str, ...]  #: one per row of the others
    voltage: Float[np.ndarray, "types points"]
    message: Float[np.ndarray, "types points"]  #: over its slope
    update: Float[np.ndarray, "types points"]  #: 1/s
    true_update: Float[np.ndarray, "types points"]  #: NaN where V_rest or tau is unknown


@house_style
def functions_figure(path: str | Path, shown: Functions) -> Path:
    """Learned message and update functions of one neuron per type over the voltages it visits, beside the true ones.

    The comparison is left out where V_rest or tau is unknown.
    """
    figure, axes = panels(9.6, 3.1, 1, 3, left=0.055, right=0.99, bottom=0.15, top=0.89, wspace=0.26)
    message, update, comparison = axes
    has_truth = bool(np.isfinite(shown.true_update).any())
    for k, group in enumerate(groups_of(shown.cell_types)):
        style = {"color": GROUPS[group].colour, "alpha": 0.7, "lw": 0.8}
        message.plot(shown.voltage[k], shown.message[k], **style)
        update.plot(shown.voltage[k], shown.update[k], **style)
        comparison.plot(shown.true_update[k], shown.update[k], **style)
        if has_truth:
            update.plot(shown.voltage[k][[0, -1]], shown.true_update[k][[0, -1]], lw=0.5, zorder=0, **DASHED_TRUTH)
    grid = np.linspace(shown.voltage.min(), shown.voltage.max(), 200)
    relu = np.maximum(grid, 0)
    message.plot(grid, relu, lw=1.4, label="relu(v)", **DASHED_TRUTH)
    message.set(title="Message g / slope", xlabel="voltage (a.u.)")
    message.set_ylim(*limits(relu, bulk(shown.message, 0.02)))
    message.legend(loc="upper left")
    update.set(title="Update f(v, a, 0, 0)", xlabel="voltage (a.u.)", ylabel="dv/dt (1/s)")
    if not has_truth:
        comparison.remove()
        return save_png(figure, path)
    update.plot([], [], lw=1.4, label="(V_rest - v) / tau", **DASHED_TRUTH)
    update.legend(loc="upper right")
    diagonal(comparison, *limits(shown.true_update))
    comparison.set(title="Learned against true update", xlabel="true f (1/s)", ylabel="learned f (1/s)")
    return save_png(figure, path)


class StimulusField(NamedTuple):
    """True luminance of a few columns and the learned one, rescaled; and of a sample of all held-out values."""

    columns: Int[np.ndarray, "n 2"]
    seconds: Float[np.ndarray, " T"]
    true: Float[np.ndarray, "T n"]
    learned: Float[np.ndarray, "T n"]
    held_out: Int[np.ndarray, " frames"]  #: among the T
    true_sample: Float[np.ndarray, " points"]
    learned_sample: Float[np.ndarray, " points"]
    score: str


@house_style
def stimulus_field_figure(path: str | Path, shown: StimulusField) -> Path:
    """True and learned luminance of a few columns over time, held-out frames marked, and held-out values.

    A field is determined up to gain and offset; the figure takes those that fit best over the training frames.
    """
    seconds, marked = shown.seconds, shown.held_out
    figure = new_figure(9.6, 1.15 * len(shown.columns) + 1.0)
    height = figure.get_figheight()
    top, bottom = 1 - 0.45 / height, 0.45 / height
    each = (top - bottom) / len(shown.columns)
    for k, (u, v) in enumerate(shown.columns):
        axes = cell(figure, k, 0, (0.06, top), (0.56, each), share=(1, 0.82), lift=0.12)
        axes.plot(seconds, shown.true[:, k], color=TRUE, lw=1.1)
        axes.plot(seconds, shown.learned[:, k], color=LEARNED, lw=0.8)
        axes.plot(seconds[marked], shown.learned[marked, k], ".", color=ACCENT, ms=3.5)
        axes.set(xlim=(seconds[0], seconds[-1]), ylim=(-0.05, 1.05))
        axes.text(1.008, 0.5, f"({u}, {v})", transform=axes.transAxes, fontsize=6, color=MUTED, va="center")
        axes.tick_params(labelbottom=k == len(shown.columns) - 1)
    axes.set_xlabel("time (s)")
    y = 1 - 0.25 / height
    heading(figure, "Luminance per column", 0.06, y)
    for x, text, colour in ((0.27, "true", TRUE), (0.31, "learned field", LEARNED), (0.41, "held-out frames", ACCENT)):
        figure.text(x, y, text, color=colour, fontweight="bold")

    side = 0.9 * min(0.29 * 9.6, (top - bottom) * height)
    axes = figure.add_axes((0.715, bottom + 0.12 * each, side / 9.6, side / height))
    density_scatter(axes, shown.true_sample, shown.learned_sample, size=2)
    diagonal(axes, 0.0, 1.0)
    axes.set(ylim=(-0.05, 1.05), xlabel="true luminance, held-out frames")
    axes.set_ylabel("learned luminance, rescaled", labelpad=2)
    axes.set_title(shown.score, fontsize=8)
    return save_png(figure, path)
