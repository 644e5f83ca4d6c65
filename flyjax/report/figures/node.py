"""Figures of a trained node: recovered parameters, embedding, functions, learned stimulus."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes

from flyjax.data.recording import Recording
from flyjax.recovery import Evaluation, compare
from flyjax.recovery.metrics import MAX_WEIGHT_ERROR, Fit, true_tau
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
from flyjax.report.tables import format_score

DASHED_TRUTH = {"color": TRUE, "ls": (0, (4, 2))}


def _write_fit(axes: Axes, title: str, fit: Fit, note: str = "") -> None:
    """The title, and under it the fit: outside the panel, where no point lies."""
    text = f"R² {fit.R2:.3f}, slope {fit.slope:.2f}" if fit.R2 is not None else (fit.reason or "")
    axes.set_title(title, pad=16)
    axes.text(0, 1.03, ", ".join(filter(None, (text, note))), transform=axes.transAxes, fontsize=7)


def _weight_scatter(axes: Axes, true: np.ndarray, learned: np.ndarray, title: str, max_error: float = np.inf) -> None:
    """Learned against true weights, coloured by the density of points; errors above `max_error` are left out."""
    close = np.abs(learned - true) <= max_error
    if close.any():
        density_scatter(axes, true[close], learned[close], size=5)
    dropped = np.isfinite(learned) & ~close
    fit = compare(true[~dropped], learned[~dropped])
    _write_fit(axes, title, fit, f"{dropped.sum()} left out" if dropped.any() else "")
    axes.set(xlabel="true W", ylabel="learned W")


def _parameter_scatter(axes: Axes, connectome, true: np.ndarray, learned: np.ndarray, title: str) -> None:
    """Learned against true values: neurons in grey, means of the cell types in the colours of their groups."""
    axes.scatter(true, learned, s=4, lw=0, color=MUTED, alpha=0.35)
    means = [[x[connectome.cell_type == t].mean() for t in range(connectome.n_types)] for x in (true, learned)]
    colours = [GROUPS[k].colour for k in groups_of(connectome.cell_types)]
    axes.scatter(means[0], means[1], s=16, lw=0.4, ec="white", color=colours, zorder=3)
    ends = limits(true, pad=0.12)
    diagonal(axes, *ends)
    lower, upper = limits(ends, bulk(learned, 0.01), pad=0.03)
    axes.set_ylim(lower, upper)
    outside = int(np.sum(~((learned >= lower) & (learned <= upper))))
    _write_fit(axes, title, compare(true, learned), f"{outside} outside" if outside else "")


@house_style
def recovery_figure(path: str | Path, evaluation: Evaluation, train_recording: Recording) -> Path:
    """Learned against true parameters: W corrected and as trained, tau and V_rest of neurons and cell types."""
    c, p, found = train_recording.connectome, train_recording.parameters, evaluation.estimate
    true = np.asarray(p.weight, np.float64)
    figure, axes = panels(9.6, 3.0, 1, 4, left=0.065, right=0.99, bottom=0.18, top=0.83, wspace=0.42)
    _weight_scatter(axes[0], true, np.asarray(found.weight, np.float64), "W, corrected", MAX_WEIGHT_ERROR)
    diagonal(axes[0], *limits(true, pad=0.12))
    _weight_scatter(axes[1], true, np.asarray(evaluation.raw_weight, np.float64), "W, as trained")
    parameters = (
        (axes[2], true_tau(train_recording), np.asarray(found.tau), "Time constant", r"$\tau$ (s)"),
        (axes[3], np.asarray(p.v_rest), np.asarray(found.v_rest), "Resting potential", r"$V_\mathrm{rest}$ (a.u.)"),
    )
    for ax, true, learned, title, quantity in parameters:
        _parameter_scatter(ax, c, true, learned, title)
        ax.set(xlabel=f"true {quantity}", ylabel=f"learned {quantity}")
    figure.text(0.99, 0.02, "coloured: types, grey: neurons", ha="right", fontsize=6, color=MUTED)
    return save_png(figure, path)


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
    embedding: Float[np.ndarray, "N d"] | None, cell_type: np.ndarray
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
def embedding_figure(path: str | Path, evaluation: Evaluation, train_recording: Recording) -> Path:
    """The learned embedding of every neuron; its first two principal components beyond two dimensions."""
    c = train_recording.connectome
    x, labels = _two_dimensions(evaluation.embedding, c.cell_type)
    figure = new_figure(7.2, 5.4)
    axes = figure.add_axes((0.08, 0.09, 0.7, 0.86))
    groups = groups_of(c.cell_types)
    markers = "osD^vP"  # distinguish the types of a group
    for t in range(c.n_types):
        points = x[c.cell_type == t]
        marker = markers[int(np.sum(groups[:t] == groups[t])) % len(markers)]
        colour = GROUPS[groups[t]].colour
        axes.scatter(points[:, 0], points[:, 1], s=14, lw=0.3, ec="white", color=colour, marker=marker, alpha=0.85)
    axes.autoscale(False)
    if c.n_types <= MAX_TYPES:
        _name_points(
            axes, x, np.array([np.median(x[c.cell_type == t], axis=0) for t in range(c.n_types)]), c.cell_types
        )
    axes.set(xlabel=labels[0], ylabel=labels[1], title="Embedding of the neurons")
    keys = [axes.plot([], [], "o", color=group.colour, label=group.name, ms=5)[0] for group in GROUPS]
    axes.legend(handles=keys, loc="upper left", bbox_to_anchor=(1.02, 1.0), title="group of types", title_fontsize=7)
    scores = {
        "clusters, 100": "cluster_accuracy",
        "clusters, 65": "cluster_accuracy_65",
        "embedding only": "cluster_accuracy_embedding",
        "ARI": "ARI",
    }
    lines = [f"{name}  {format_score(evaluation.metrics.get(key))}" for name, key in scores.items()]
    figure.text(0.8, 0.2, "\n".join(lines), fontsize=7, linespacing=1.5)
    return save_png(figure, path)


@house_style
def functions_figure(path: str | Path, evaluation: Evaluation, train_recording: Recording) -> Path:
    """Learned message and update functions of one neuron per type over the voltages it visits, beside the true ones.

    The comparison is left out where V_rest or tau is unknown.
    """
    curves, c = evaluation.curves, train_recording.connectome
    figure, axes = panels(9.6, 3.1, 1, 3, left=0.055, right=0.99, bottom=0.15, top=0.89, wspace=0.26)
    message, update, comparison = axes
    has_truth = bool(np.isfinite(curves.true_update).any())
    for k, group in enumerate(groups_of(c.cell_types)[c.cell_type[c.central]]):
        style = {"color": GROUPS[group].colour, "alpha": 0.7, "lw": 0.8}
        message.plot(curves.voltage[k], curves.message[k], **style)
        update.plot(curves.voltage[k], curves.update[k], **style)
        comparison.plot(curves.true_update[k], curves.update[k], **style)
        if has_truth:
            update.plot(curves.voltage[k][[0, -1]], curves.true_update[k][[0, -1]], lw=0.5, zorder=0, **DASHED_TRUTH)
    grid = np.linspace(curves.voltage.min(), curves.voltage.max(), 200)
    relu = np.maximum(grid, 0)
    message.plot(grid, relu, lw=1.4, label="relu(v)", **DASHED_TRUTH)
    message.set(title="Message g / slope", xlabel="voltage (a.u.)")
    message.set_ylim(*limits(relu, bulk(curves.message, 0.02)))
    message.legend(loc="upper left")
    update.set(title="Update f(v, a, 0, 0)", xlabel="voltage (a.u.)", ylabel="dv/dt (1/s)")
    if not has_truth:
        comparison.remove()
        return save_png(figure, path)
    update.plot([], [], lw=1.4, label="(V_rest - v) / tau", **DASHED_TRUTH)
    update.legend(loc="upper right")
    diagonal(comparison, *limits(curves.true_update))
    comparison.set(title="Learned against true update", xlabel="true f (1/s)", ylabel="learned f (1/s)")
    return save_png(figure, path)


#: Frames and columns of the traces.
FIELD_FRAMES, FIELD_COLUMNS = 250, 4
#: Points of the scatter plot at most.
FIELD_POINTS = 6000


def rescaled(
    learned: Float[np.ndarray, "T n_col"], true: Float[np.ndarray, "T n_col"], frames: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "T n_col"]:
    """The learned luminance in units of the true one: a gain and an offset by least squares over `frames`."""
    gain, offset = np.polyfit(learned[frames].ravel().astype(np.float64), true[frames].ravel().astype(np.float64), 1)
    return gain * learned + offset


def columns_shown(columns: Int[np.ndarray, "n_col 2"], n: int = FIELD_COLUMNS) -> Int[np.ndarray, " n"]:
    """Indices of the central column and of others, spread evenly from near to far."""
    u, v = np.asarray(columns, np.int64).T
    order = np.lexsort((v, u, np.maximum.reduce([abs(u), abs(v), abs(u + v)])))
    return order[np.unique(np.linspace(0, len(order) - 1, min(n, len(order))).round().astype(int))]


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
    frames = np.arange(first_frame, min(first_frame + FIELD_FRAMES, len(true)))
    marked = np.intersect1d(frames, held_out)
    dt, c = recording.dt, recording.connectome
    columns = columns_shown(c.columns)
    figure = new_figure(9.6, 1.15 * len(columns) + 1.0)
    height = figure.get_figheight()
    top, bottom = 1 - 0.45 / height, 0.45 / height
    each = (top - bottom) / len(columns)
    for k, column in enumerate(columns):
        axes = cell(figure, k, 0, (0.06, top), (0.56, each), share=(1, 0.82), lift=0.12)
        axes.plot(frames * dt, true[frames, column], color=TRUE, lw=1.1)
        axes.plot(frames * dt, learned[frames, column], color=LEARNED, lw=0.8)
        axes.plot(marked * dt, learned[marked, column], ".", color=ACCENT, ms=3.5)
        axes.set(xlim=(frames[0] * dt, frames[-1] * dt), ylim=(-0.05, 1.05))
        u, v = c.columns[column]
        axes.text(1.008, 0.5, f"({u}, {v})", transform=axes.transAxes, fontsize=6, color=MUTED, va="center")
        axes.tick_params(labelbottom=k == len(columns) - 1)
    axes.set_xlabel("time (s)")
    y = 1 - 0.25 / height
    heading(figure, "Luminance per column", 0.06, y)
    for x, text, colour in ((0.27, "true", TRUE), (0.31, "learned field", LEARNED), (0.41, "held-out frames", ACCENT)):
        figure.text(x, y, text, color=colour, fontweight="bold")

    side = 0.9 * min(0.29 * 9.6, (top - bottom) * height)
    axes = figure.add_axes((0.715, bottom + 0.12 * each, side / 9.6, side / height))
    sample = np.unique(np.linspace(0, true[held_out].size - 1, FIELD_POINTS).round().astype(int))
    density_scatter(axes, true[held_out].ravel()[sample], learned[held_out].ravel()[sample], size=2)
    diagonal(axes, 0.0, 1.0)
    axes.set(ylim=(-0.05, 1.05), xlabel="true luminance, held-out frames")
    axes.set_ylabel("learned luminance, rescaled", labelpad=2)
    if (r2 := evaluation.metrics["external_input_R2"]) is not None:
        on_training_frames = evaluation.metrics["external_input_R2_training"]
        axes.set_title(f"R² {r2:.3f} (training frames {on_training_frames:.3f})", fontsize=8)
    return save_png(figure, path)
