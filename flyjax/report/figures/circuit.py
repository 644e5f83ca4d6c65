"""Figures of a recovered circuit beside the true one: eigenvalues, and the spread and functions of every cell type.

Truth is black; orange is the published read-out, blue the least-squares refit.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Complex, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flyjax.circuit import Connectome
from flyjax.data.recording import Recording
from flyjax.recovery import Evaluation
from flyjax.recovery.metrics import true_tau
from flyjax.report.figures.style import (
    ACCENT,
    DASHED,
    GUIDE,
    LEARNED,
    MUTED,
    TRUE,
    bulk,
    cell,
    colour_types,
    house_style,
    limits,
    new_figure,
    panels,
    save_png,
    type_colour,
    type_order,
)

#: The estimates that are drawn: name and colour.
READ_OUTS = (("published read-out", LEARNED), ("refit", ACCENT))
PER_ROW = 13  # panels of the functions

Eigenvalues = Complex[np.ndarray, " n"]


def _draw_plane(axes: Axes, true: Eigenvalues | None, learned: Eigenvalues | None, colour: str, reach: float) -> None:
    """Eigenvalues in the complex plane, -reach to reach upwards and as much as fits sideways."""
    axes.axhline(0, color=GUIDE, lw=0.6, zorder=0)
    axes.axvline(0, color=GUIDE, lw=0.6, zorder=0)
    if reach > 1:
        circle = np.exp(1j * np.linspace(0, 2 * np.pi, 200))
        axes.plot(circle.real, circle.imag, color=MUTED, lw=0.6, ls=DASHED, zorder=0)
    if true is not None:
        axes.scatter(true.real, true.imag, s=22, fc="none", ec=TRUE, lw=0.6, zorder=2)
    if learned is None:
        axes.text(0.5, 0.5, "none: not finite", transform=axes.transAxes, ha="center", color=MUTED)
    else:
        axes.scatter(learned.real, learned.imag, s=9, lw=0, color=colour, alpha=0.8, zorder=3)
        radius = f"radius {abs(learned[0]):.2f}" + (f", true {abs(true[0]):.2f}" if true is not None else "")
        box = {"facecolor": "white", "alpha": 0.75, "lw": 0, "pad": 1}
        axes.text(0.02, 0.98, radius, transform=axes.transAxes, va="top", zorder=5, bbox=box)
    # As wide as the panel: circles stay round.
    panel = axes.get_window_extent()
    axes.set(
        ylim=(-reach, reach),
        xlim=(-reach * panel.width / panel.height, reach * panel.width / panel.height),
        xlabel="real part",
    )


@house_style
def spectrum_figure(
    path: str | Path,
    connectome: Connectome,
    true: Eigenvalues | None,
    learned: tuple[Eigenvalues | None, Eigenvalues | None],
) -> Path:
    """Eigenvalues in the complex plane and their sorted magnitudes.

    **Arguments:**

    - `true`: eigenvalues of the true W, in order of falling magnitude.
    - `learned`: those of the published read-out and of the refit; None where there are none.
    """
    figure, axes = panels(9.6, 3.3, 1, 3, left=0.06, right=0.985, bottom=0.145, top=0.86, wspace=0.27)
    *planes, magnitudes = axes
    curves = [(true, TRUE, "true", 1.8), *((z, c, n, 1.1) for z, (n, c) in zip(learned, READ_OUTS, strict=True))]
    given = [z for z, *_ in curves if z is not None]
    reach = 1.08 * max([float(np.abs(z).max()) for z in given] + [1e-9])
    for axes, (name, colour), z in zip(planes, READ_OUTS, learned, strict=True):
        _draw_plane(axes, true, z, colour, reach)
        axes.set_title(f"Eigenvalues of W, {name}")
    planes[0].set_ylabel("imaginary part")
    for z, colour, label, width in curves:
        if z is not None:
            magnitudes.plot(np.arange(1, len(z) + 1), np.abs(z), color=colour, lw=width, label=label)
    if given:
        n = max(len(z) for z in given)
        magnitudes.set(xlim=(1, n), xscale="log", ylim=(0, reach))
        note = f"{'all' if n == connectome.n_neurons else f'the {n} largest'} of {connectome.n_neurons:,}"
        magnitudes.text(0.97, 0.66, note, transform=magnitudes.transAxes, ha="right", color=MUTED, fontsize=7)
        magnitudes.legend(loc="upper right")
    magnitudes.set(title="Sorted magnitudes", xlabel="rank", ylabel="|eigenvalue|")
    figure.text(0.06, 0.955, "open circles: the true circuit; dashed: the unit circle", fontsize=7, color=MUTED)
    return save_png(figure, path)


def _quartiles(
    values: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"], order: Int[np.ndarray, " n_types"]
) -> Float[np.ndarray, "3 n_types"]:
    """Lower quartile, median and upper quartile of the finite values of each label; NaN where there are none."""
    out = np.full((3, len(order)), np.nan)
    for k, label in enumerate(order):
        mine = values[labels == label]
        mine = mine[np.isfinite(mine)]
        if len(mine):
            out[:, k] = np.quantile(mine, [0.25, 0.5, 0.75])
    return out


def _draw_types(
    axes: Axes, true: Float[np.ndarray, " n_types"] | None, estimates: list[Float[np.ndarray, "3 n_types"] | None]
) -> None:
    """Quartiles of each estimate per type beside the true medians; without these, around zero."""
    given = [e for e in estimates if e is not None]
    x = np.arange(len(given[0][1]))  # there is a published read-out in any case
    if true is None:
        axes.axhline(0, color=TRUE, lw=1)
    else:
        axes.hlines(true, x - 0.42, x + 0.42, color=TRUE, lw=1.6, label="true")
    # Nine types in ten set the scale: a few estimates far off do not flatten the others.
    scale = [np.zeros(1) if true is None else true, *(bulk(median, 0.05) for _, median, _ in given)]
    if true is not None:
        scale += [given[-1][0], given[-1][2]]
    bottom, top = limits(*scale, pad=0.12)
    for (name, colour), side, estimate in zip(READ_OUTS, (x - 0.17, x + 0.17), estimates, strict=True):
        if estimate is None:
            continue
        low, median, high = estimate
        axes.vlines(side, low, high, color=colour, lw=1.5, alpha=0.55)
        axes.scatter(side, median, s=13, lw=0.3, ec="white", color=colour, zorder=3, label=name)
        for mask, edge, marker in ((median > top, top, "^"), (median < bottom, bottom, "v")):
            axes.scatter(side[mask], np.full(mask.sum(), edge), marker=marker, s=16, lw=0, color=colour, clip_on=False)
    axes.set(ylim=(bottom, top), xlim=(-0.7, len(x) - 0.3))
    axes.grid(axis="x", color="#eeeeee", lw=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", length=0)


@house_style
def types_figure(path: str | Path, evaluation: Evaluation, train_recording: Recording) -> Path:
    """Time constant, resting potential and error of incoming weights of every cell type: median and quartiles."""
    c, p = train_recording.connectome, train_recording.parameters
    order = type_order(c.cell_types)
    estimates = [evaluation.estimate, evaluation.refit]
    weight, receiving = np.asarray(p.weight, np.float64), c.cell_type[c.receivers]
    with np.errstate(invalid="ignore"):  # a type without incoming edges
        count = np.bincount(receiving, minlength=c.n_types)
        rms = np.sqrt(np.bincount(receiving, weight**2, c.n_types) / count)
    error = [e and (e.weight - weight) / rms[receiving] for e in estimates]
    quantities = (
        ("Time constant (s)", true_tau(train_recording), [e and e.tau for e in estimates], c.cell_type),
        ("Resting potential (a.u.)", np.asarray(p.v_rest), [e and e.v_rest for e in estimates], c.cell_type),
        ("Incoming W: (learned - true) / rms", None, error, receiving),
    )
    figure, axes = panels(9.6, 6.6, 3, 1, sharex=True, left=0.06, right=0.99, bottom=0.085, top=0.93, hspace=0.2)
    for ax, (title, true, learned, labels) in zip(axes, quantities, strict=True):
        quartiles = [None if v is None else _quartiles(np.asarray(v, np.float64), labels, order) for v in learned]
        _draw_types(ax, None if true is None else _quartiles(true, labels, order)[1], quartiles)
        ax.set_title(title)
    names = [c.cell_types[t] for t in order]
    axes[2].set_xticks(np.arange(len(names)), names, rotation=90, fontsize=6)
    colour_types(axes[2].get_xticklabels(), names)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="upper right", ncols=3, bbox_to_anchor=(0.99, 0.995))
    note = "Every cell type: median and quartiles over its neurons or incoming edges; triangles: beyond the scale"
    figure.text(0.06, 0.972, note, fontsize=7, color=MUTED)
    return save_png(figure, path)


def _draw_functions(
    figure: Figure,
    top: float,
    names: list[str],
    voltage: Float[np.ndarray, "n_types points"],
    true: Float[np.ndarray, "n_types points"],
    learned: Float[np.ndarray, "n_types points"],
    smallest_span: float,
) -> None:
    """One small panel per cell type below `top`, and the median error above them."""
    size = 0.982 / PER_ROW, 0.46 / -(-len(names) // PER_ROW)
    for k, name in enumerate(names):
        axes = cell(figure, *divmod(k, PER_ROW), (0.012, top - 0.013), size, share=(0.9, 0.74))
        axes.plot(voltage[k], learned[k], color=type_colour(name), lw=1.5)
        axes.plot(voltage[k], true[k], color=TRUE, lw=0.8, ls=(0, (3, 2)))
        # The truth sets the scale: a learned function far from it leaves the panel.
        low, high = limits(true[k], pad=0.35)
        axes.set_ylim(low, high if high - low > 1e-3 else low + 1)
        if not (true[k] > 0).any() and smallest_span:
            axes.set_ylim(-0.15, smallest_span)
        if voltage[k, 0] < 0 < voltage[k, -1]:
            axes.axvline(0, color=GUIDE, lw=0.6, zorder=0)
        axes.set(xlim=(voltage[k, 0], voltage[k, -1]), xticks=[], yticks=[])
        axes.set_title(name, fontsize=6, fontweight="normal", loc="center", pad=1.5)
    error = np.sqrt(np.mean((learned - true) ** 2, axis=1)) / np.maximum(np.std(true, axis=1), 1e-2)
    finite = error[np.isfinite(error)]
    text = f"rms error / std of the truth: median {np.median(finite):.2f}" if len(finite) else "not finite"
    figure.text(0.988, top, text, ha="right", va="center", fontsize=7, color=MUTED)


@house_style
def type_functions_figure(path: str | Path, evaluation: Evaluation, train_recording: Recording) -> Path:
    """Learned g and f of one neuron of every type over the voltages it visits, a panel each, beside the true ones."""
    c, curves = train_recording.connectome, evaluation.curves
    order = type_order(c.cell_types)  # the curves are those of one neuron per type
    names = [c.cell_types[t] for t in order]
    figure = new_figure(9.6, 2 * (-(-len(names) // PER_ROW) * 0.78 + 0.42))
    halves = (
        ("Messages g / slope (dashed: relu)", curves.message, np.maximum(curves.voltage, 0), 0.5),
        ("Updates f(v, a, 0, 0) in 1/s (dashed: (V_rest - v) / tau)", curves.update, curves.true_update, 0.0),
    )
    for top, (title, learned, true, span) in zip((0.975, 0.475), halves, strict=True):
        figure.text(0.012, top, title, fontweight="bold", fontsize=9, va="center")
        _draw_functions(figure, top, names, curves.voltage[order], true[order], learned[order], span)
    return save_png(figure, path)
