"""Figures of a recovered circuit beside the true one: eigenvalues, every type's spread, every type's functions.

In the house style of `figures`: truth is black; orange is the published read-out, blue the least-squares refit.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flyjax.recovery import Evaluation
from flyjax.recovery.evaluate import representatives
from flyjax.recovery.metrics import true_tau
from flyjax.report.figures.node import (
    ACCENT,
    GROUPS,
    LEARNED,
    MUTED,
    TRUE,
    _figure,
    _groups,
    _limits,
    _save,
    group_of,
    styled,
)

#: The estimates that are drawn: name, colour.
READ_OUTS = (("published read-out", LEARNED), ("refit", ACCENT))


def _ordered(connectome) -> np.ndarray:
    """Types in the order of the figures: by group, then by name's place."""
    return np.argsort(_groups(connectome.cell_types), kind="stable")


@styled
def spectrum_figure(path, connectome, true, learned) -> Path:
    """Eigenvalues in the complex plane and their sorted magnitudes.

    Args:
        true: eigenvalues of the true W, by falling magnitude.
        learned: those of the published read-out and of the refit; None where there are none.
    """
    figure = _figure(9.6, 3.3)
    axes = figure.subplots(1, 3, gridspec_kw=dict(left=0.06, right=0.985, bottom=0.145, top=0.86, wspace=0.27))
    shown = [z for z in (true, *learned) if z is not None]
    reach = 1.08 * max([float(np.abs(z).max()) for z in shown] + [1e-9])
    turn = np.exp(1j * np.linspace(0, 2 * np.pi, 200))
    for ax, (name, colour), z in zip(axes, READ_OUTS, learned):
        ax.axhline(0, color="#dddddd", lw=0.6, zorder=0)
        ax.axvline(0, color="#dddddd", lw=0.6, zorder=0)
        if reach > 1:
            ax.plot(turn.real, turn.imag, color=MUTED, lw=0.6, ls=(0, (4, 3)), zorder=0)
        if true is not None:
            ax.scatter(true.real, true.imag, s=22, fc="none", ec=TRUE, lw=0.6, zorder=2)
        title = f"Eigenvalues of W, {name}"
        if z is None:
            ax.text(0.5, 0.5, "none: not finite", transform=ax.transAxes, ha="center", color=MUTED)
        else:
            ax.scatter(z.real, z.imag, s=9, lw=0, color=colour, alpha=0.8, zorder=3)
            radius = f"radius {abs(z[0]):.2f}" + (f", true {abs(true[0]):.2f}" if true is not None else "")
            ax.text(
                0.02,
                0.98,
                radius,
                transform=ax.transAxes,
                va="top",
                zorder=5,
                bbox=dict(facecolor="white", alpha=0.75, lw=0, pad=1),
            )
        ax.set_title(title)
        # As wide as the panel: circles stay round.
        box = ax.get_position()
        ax.set_ylim(-reach, reach)
        ax.set_xlim(*(np.array([-reach, reach]) * box.width * 9.6 / (box.height * 3.3)))
        ax.set_xlabel("real part")
    axes[0].set_ylabel("imaginary part")
    ax = axes[2]
    for z, colour, label, width in (
        (true, TRUE, "true", 1.8),
        *((z, c, n, 1.1) for z, (n, c) in zip(learned, READ_OUTS)),
    ):
        if z is not None:
            ax.plot(np.arange(1, len(z) + 1), np.abs(z), color=colour, lw=width, label=label)
    if shown:
        n = max(len(z) for z in shown)
        ax.set_xlim(1, n)
        ax.set_xscale("log")
        ax.set_ylim(0, reach)
        note = "all" if n == connectome.n_neurons else f"the {n} largest"
        ax.text(
            0.97,
            0.66,
            f"{note} of {connectome.n_neurons:,}",
            transform=ax.transAxes,
            ha="right",
            color=MUTED,
            fontsize=7,
        )
    ax.set_title("Sorted magnitudes")
    ax.set_xlabel("rank")
    ax.set_ylabel("|eigenvalue|")
    if shown:
        ax.legend(loc="upper right")
    figure.text(0.06, 0.955, "open circles: the true circuit; dashed: the unit circle", fontsize=7, color=MUTED)
    return _save(figure, path)


def _quartiles(values: np.ndarray, labels: np.ndarray, n: int) -> np.ndarray:
    """(3, n) lower quartile, median and upper quartile of the finite values of each label; NaN where there are none."""
    out = np.full((3, n), np.nan)
    for k in range(n):
        mine = values[labels == k]
        mine = mine[np.isfinite(mine)]
        if len(mine):
            out[:, k] = np.quantile(mine, [0.25, 0.5, 0.75])
    return out


@styled
def types_figure(path, evaluation: Evaluation, train_recording) -> Path:
    """Every cell type: tau, V_rest and the error of incoming weights, median and quartiles, against the truth."""
    c, p = train_recording.connectome, train_recording.parameters
    order, n = _ordered(c), c.n_types
    estimates = [evaluation.found, evaluation.refitted]
    weight, receiving = np.asarray(p.weight, np.float64), c.cell_type[c.receivers]
    size = np.array(
        [np.sqrt(np.mean(weight[receiving == t] ** 2)) if (receiving == t).any() else np.nan for t in range(n)]
    )
    panels = (
        ("Time constant (s)", true_tau(train_recording), [e and e.tau for e in estimates], c.cell_type),
        ("Resting potential", np.asarray(p.v_rest), [e and e.v_rest for e in estimates], c.cell_type),
        (
            "Incoming W: (learned - true) / rms",
            None,
            [e and (e.weight - weight) / size[receiving] for e in estimates],
            receiving,
        ),
    )
    figure = _figure(9.6, 6.6)
    axes = figure.subplots(
        3, 1, sharex=True, gridspec_kw=dict(left=0.06, right=0.99, bottom=0.085, top=0.93, hspace=0.2)
    )
    x = np.arange(n)
    for ax, (title, true, learned, labels) in zip(axes, panels):
        ax.set_title(title)
        seen = []
        if true is None:
            ax.axhline(0, color=TRUE, lw=1)
            seen.append(np.zeros(1))
        else:
            middle = _quartiles(true, labels, n)[1, order]
            ax.hlines(middle, x - 0.42, x + 0.42, color=TRUE, lw=1.6, label="true")
            seen.append(middle)
        for k, values in enumerate(learned):
            if values is None:
                continue
            low, median, high = _quartiles(np.asarray(values, np.float64), labels, n)[:, order]
            at = x + (-0.17 if k == 0 else 0.17)
            name, colour = READ_OUTS[k]
            ax.vlines(at, low, high, color=colour, lw=1.5, alpha=0.55)
            ax.scatter(at, median, s=13, lw=0.3, ec="white", color=colour, zorder=3, label=name)
            # Nine types in ten decide the scale: one that is lost may not flatten the others.
            kept = median[np.isfinite(median)]
            seen += [np.quantile(kept, [0.05, 0.95])] if len(kept) else []
            if k == 1 or len(learned) == 1 or learned[1] is None:
                seen += [low, high] if true is not None else []
        limits = _limits(*seen, pad=0.12)
        ax.set_ylim(*limits)
        ax.set_xlim(-0.7, n - 0.3)
        for k, values in enumerate(learned):
            if values is None:
                continue
            median = _quartiles(np.asarray(values, np.float64), labels, n)[1, order]
            at = x + (-0.17 if k == 0 else 0.17)
            for mask, edge, marker in ((median > limits[1], limits[1], "^"), (median < limits[0], limits[0], "v")):
                ax.scatter(
                    at[mask], np.full(mask.sum(), edge), marker=marker, s=16, lw=0, color=READ_OUTS[k][1], clip_on=False
                )
        ax.grid(axis="x", color="#eeeeee", lw=0.5)
        ax.set_axisbelow(True)
        ax.tick_params(axis="x", length=0)
    axes[2].set_xticks(x)
    for label, t in zip(axes[2].set_xticklabels([c.cell_types[t] for t in order], rotation=90, fontsize=6), order):
        label.set_color(GROUPS[group_of(c.cell_types[t])][2])
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="upper right", ncols=3, bbox_to_anchor=(0.99, 0.995))
    figure.text(
        0.06,
        0.972,
        "Every cell type: median and quartiles over its neurons or incoming edges; triangles: beyond the scale",
        fontsize=7,
        color=MUTED,
    )
    return _save(figure, path)


@styled
def type_functions_figure(path, evaluation: Evaluation, train_recording) -> Path:
    """g and f of one neuron of every type over the voltages it visits, each in a panel of its own, truth dashed."""
    c, curves = train_recording.connectome, evaluation.curves
    shown = representatives(c)
    place = np.argsort(_groups(c.cell_types)[c.cell_type[shown]], kind="stable")
    n_columns = 13
    n_rows = -(-len(shown) // n_columns)
    figure = _figure(9.6, 2 * (n_rows * 0.78 + 0.42))
    scores = {}
    halves = (("Messages g / slope (dashed: relu)", curves.message, np.maximum(curves.voltage, 0)),
        ("Updates f(v, a, 0, 0) in 1/s (dashed: (V_rest - v) / tau)", curves.update, curves.true_update))  # fmt: skip
    for half, (title, learned, true) in enumerate(halves):
        top = 0.975 - half * 0.5
        figure.text(0.012, top, title, fontweight="bold", fontsize=9, va="center")
        height, width = (0.5 - 0.04) / n_rows, 0.982 / n_columns
        for k, i in enumerate(place):
            row, column = divmod(k, n_columns)
            ax = figure.add_axes([0.012 + column * width, top - 0.013 - (row + 1) * height, width * 0.9, height * 0.74])
            v, a, b = curves.voltage[i], true[i], learned[i]
            colour = GROUPS[group_of(c.cell_types[c.cell_type[shown[i]]])][2]
            ax.plot(v, b, color=colour, lw=1.5)
            ax.plot(v, a, color=TRUE, lw=0.8, ls=(0, (3, 2)))
            # The scale is the truth's: a learned function off it is seen to leave.
            low, high = _limits(a, pad=0.35)
            ax.set_ylim(low, high if high - low > 1e-3 else low + 1)
            if half == 0 and not (a > 0).any():
                ax.set_ylim(-0.15, 0.5)
            if v[0] < 0 < v[-1]:
                ax.axvline(0, color="#dddddd", lw=0.6, zorder=0)
            ax.set_xlim(v[0], v[-1])
            ax.set_xticks([])
            ax.set_yticks([])
            ax.set_title(c.cell_types[c.cell_type[shown[i]]], fontsize=6, fontweight="normal", loc="center", pad=1.5)
            error = np.sqrt(np.mean((b - a) ** 2)) / max(np.std(a), 1e-2)
            scores[half] = [*scores.get(half, []), error]
    for half in scores:
        error = np.array(scores[half])
        known = error[np.isfinite(error)]
        said = f"rms error / std of the truth: median {np.median(known):.2f}" if len(known) else "not finite"
        figure.text(0.988, 0.975 - half * 0.5, said, ha="right", va="center", fontsize=7, color=MUTED)
    return _save(figure, path)
