"""Figures of a node: one function per figure, one house style, small PNG files.

Every function writes `path` and returns it. Colours are the Okabe-Ito palette and perceptually
uniform maps, readable with any colour vision; truth is black, learned is colour.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from flyjax.recovery import Evaluation, compare
from flyjax.recovery.evaluate import representatives
from flyjax.recovery.metrics import MAX_WEIGHT_ERROR, true_tau

TRUE = "#1a1a1a"
LEARNED = "#d55e00"
ACCENT = "#0072b2"
MUTED = "#8c8c8c"
STYLE = {
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
DPI = 105
#: Frames of activity.png.
N_FRAMES = 200
#: Distance of neighbouring traces, in units of their range.
SPACING = 1.45
#: Colours of a PNG's palette: enough for these figures, a third of the bytes of true colour.
N_COLOURS = 64

#: Where a type sits in the visual system, by the beginning of its name; drawn in this order.
GROUPS = (
    ("photoreceptors", ("R",), "#e69f00"),
    ("lamina", ("L1", "L2", "L3", "L4", "L5", "Lawf", "Am", "C2", "C3", "CT1"), "#0072b2"),
    ("medulla intrinsic", ("Mi",), "#009e73"),
    ("T1-T3", ("T1", "T2", "T3"), "#999999"),
    ("T4, T5", ("T4", "T5"), "#d55e00"),
    ("transmedullary", ("Tm",), "#cc79a7"),
)


def group_of(cell_type: str) -> int:
    """Index in GROUPS: the longest prefix that fits decides."""
    fits = [(len(p), k) for k, (_, prefixes, _) in enumerate(GROUPS) for p in prefixes if cell_type.startswith(p)]
    return max(fits)[1] if fits else 3


@lru_cache(maxsize=4)
def _groups(cell_types: tuple[str, ...]) -> np.ndarray:
    return np.array([group_of(name) for name in cell_types])


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=DPI, layout=None)


def _save(figure: Figure, path, mode: str = "P") -> Path:
    """As PNG: a small palette (P), enough for lines; true colour (RGB) or greys (L) for shades."""
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    rgba = np.asarray(canvas.buffer_rgba())
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.ascontiguousarray(rgba[..., :3]))
    if mode == "P":
        image = image.quantize(N_COLOURS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    image = image.convert(mode)
    if mode == "L":  # 64 greys halve the file and look the same
        image = image.point(lambda g: round(g / 255 * 63) * 255 // 63)
    image.save(path, optimize=mode != "P")
    return path


def styled(function):
    """Draw in the house style."""

    def draw(*args, **kwargs):
        with matplotlib.rc_context(STYLE):
            return function(*args, **kwargs)

    draw.__name__, draw.__doc__ = function.__name__, function.__doc__
    return draw


@styled
def activity_figure(path, evaluation: Evaluation, test_recording, first_frame: int = 0) -> Path:
    """True and rolled-out voltage of one neuron per type over the same held-out frames, the stimulus above."""
    c, run = test_recording.connectome, evaluation.rollout
    stop = min(first_frame + N_FRAMES, len(run.voltage))
    frames = slice(first_frame, stop)
    seconds = np.arange(stop - first_frame) * test_recording.simulation.delta_t
    shown = representatives(c)
    order = np.argsort(_groups(c.cell_types)[c.cell_type[shown]], kind="stable")
    shown = shown[order]
    true = np.asarray(test_recording.voltage[frames][:, shown], np.float64)
    learned = np.asarray(run.voltage[frames][:, shown], np.float64)
    # Each trace in units of its own range, so that quiet types are seen; the range is printed.
    low, span = true.min(axis=0), np.maximum(np.ptp(true, axis=0), 1e-3)
    n_columns = 3
    rows = -(-len(shown) // n_columns)

    figure = _figure(9.6, 8.6)
    left, right, gap = 0.066, 0.958, 0.1
    width = (right - left - gap * (n_columns - 1)) / n_columns
    luminance = np.asarray(test_recording.luminance[frames]).T
    for k in range(n_columns):
        x = left + k * (width + gap)
        top = figure.add_axes([x, 0.895, width, 0.055])
        top.imshow(
            luminance,
            aspect="auto",
            cmap="gray",
            vmin=0,
            vmax=1,
            interpolation="nearest",
            extent=(0, seconds[-1], 0, 1),
        )
        top.set_xticks([])
        top.set_yticks([])
        if k == 0:
            top.set_ylabel("stimulus", rotation=0, ha="right", va="center", fontsize=7)
        axes = figure.add_axes([x, 0.05, width, 0.835])
        mine = slice(k * rows, min((k + 1) * rows, len(shown)))
        offset = -np.arange(mine.stop - mine.start)[None, :] * SPACING
        with np.errstate(invalid="ignore"):
            scaled = np.clip((learned[:, mine] - low[mine]) / span[mine], -0.2, 1.2)
        axes.plot(seconds, (true[:, mine] - low[mine]) / span[mine] + offset, color=TRUE, lw=1.1)
        axes.plot(seconds, scaled + offset, color=LEARNED, lw=0.8)
        axes.set_xlim(0, seconds[-1])
        axes.set_ylim(offset.min() - 0.35, 1.3)
        axes.set_yticks(offset[0] + 0.5)
        labels = axes.set_yticklabels([c.cell_types[t] for t in c.cell_type[shown[mine]]])
        for label, t in zip(labels, c.cell_type[shown[mine]]):
            label.set_color(GROUPS[group_of(c.cell_types[t])][2])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("time (s)")
        for y, s in zip(offset[0], span[mine]):
            axes.text(seconds[-1] * 1.012, y + 0.5, f"{s:.2g}", fontsize=6, color=MUTED, va="center", clip_on=False)
        top.text(1.012, -0.35, "range", transform=top.transAxes, fontsize=6, color=MUTED, clip_on=False)
    m = evaluation.metrics
    r2, r = m.get("test_R2"), m.get("test_pearson")
    score = (
        f"rollout R² {r2:.3f}, mean r {r:.3f}"
        if r2 is not None and r is not None
        else m["reasons"].get("test_R2", "no rollout")
    )
    figure.text(left, 0.968, "Held-out activity, one neuron per type", fontweight="bold", fontsize=10)
    figure.text(0.418, 0.968, "true", color=TRUE, fontweight="bold")
    figure.text(0.452, 0.968, "free rollout of the learned network", color=LEARNED, fontweight="bold")
    figure.text(right, 0.968, score, ha="right")
    return _save(figure, path)


def _limits(*arrays, pad: float = 0.06) -> tuple[float, float]:
    finite = np.concatenate([np.asarray(a)[np.isfinite(a)].ravel() for a in arrays])
    if not len(finite):
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    margin = pad * (high - low or 1.0)
    return low - margin, high + margin


def density(x, y, bins: int = 80) -> np.ndarray:
    """Points per cell around each point on a grid, for colouring a scatter."""
    counts, xe, ye = np.histogram2d(x, y, bins=bins)
    i = np.clip(np.searchsorted(xe, x, side="right") - 1, 0, bins - 1)
    j = np.clip(np.searchsorted(ye, y, side="right") - 1, 0, bins - 1)
    return counts[i, j]


def _diagonal(axes, low, high):
    axes.plot([low, high], [low, high], color=MUTED, lw=0.7, ls=(0, (4, 3)), zorder=0)


def _score(axes, fit, extra=""):
    text = f"R² {fit.R2:.3f}\nslope {fit.slope:.2f}" if fit.R2 is not None else (fit.reason or "")
    axes.text(0.04, 0.97, text + extra, transform=axes.transAxes, va="top", fontsize=8, linespacing=1.35, zorder=5,
        bbox=dict(facecolor="white", alpha=0.75, lw=0, pad=1.5))  # fmt: skip


def weight_scatter(axes, true, learned, title: str, max_error: float | None = MAX_WEIGHT_ERROR) -> None:
    """Learned against true weights, coloured by the density of points."""
    true, learned = np.asarray(true, np.float64), np.asarray(learned, np.float64)
    finite = np.isfinite(learned)
    kept = finite & (np.abs(learned - true) <= max_error) if max_error is not None else finite
    x, y = true[kept], learned[kept]
    if len(x):
        colour = np.log10(density(x, y))
        order = np.argsort(colour, kind="stable")
        if len(order) > 60_000:  # every dense point is hidden under others; the rare ones are all drawn
            order = np.concatenate([order[:30_000], order[30_000 :: max(1, (len(order) - 30_000) // 30_000)]])
        axes.scatter(x[order], y[order], c=colour[order], s=5, lw=0, cmap="viridis", rasterized=True)
    fit = compare(true[~(finite & ~kept)], learned[~(finite & ~kept)])
    n_dropped = int((finite & ~kept).sum())
    _score(axes, fit, f"\n{n_dropped} dropped" if n_dropped else "")
    axes.set_title(title)
    axes.set_xlabel("true W")


@styled
def recovery_figure(path, evaluation: Evaluation, train_recording) -> Path:
    """Learned against true: W corrected and raw, tau and V_rest per neuron with their type means."""
    c, p, found = train_recording.connectome, train_recording.parameters, evaluation.found
    true = np.asarray(p.weight)
    figure = _figure(9.6, 2.75)
    axes = figure.subplots(1, 4, gridspec_kw=dict(left=0.065, right=0.995, bottom=0.17, top=0.88, wspace=0.36))
    weight_scatter(axes[0], true, found.weight, "W, corrected")
    axes[0].set_ylabel("learned W")
    span = _limits(true, pad=0.12)
    _diagonal(axes[0], *span)
    axes[0].set_xlim(*span)
    axes[0].set_ylim(*span)
    weight_scatter(axes[1], true, evaluation.raw_weight, "W, as trained", max_error=None)
    colours = np.array([g[2] for g in GROUPS])[_groups(c.cell_types)]
    pairs = (
        (axes[2], true_tau(train_recording), found.tau, "Time constant", r"$\tau$", "s"),
        (axes[3], np.asarray(p.v_rest), found.v_rest, "Resting potential", r"$V_\mathrm{rest}$", ""),
    )
    for ax, a, b, title, name, unit in pairs:
        fit = compare(a, b)
        ax.scatter(a, b, s=4, lw=0, color=MUTED, alpha=0.35)
        means = [np.array([x[c.cell_type == t].mean() for t in range(c.n_types)]) for x in (a, b)]
        ax.scatter(*means, s=16, lw=0.4, ec="white", color=colours, zorder=3)
        low, high = _limits(a, pad=0.12)
        _diagonal(ax, low, high)
        # Learned outliers may not flatten everything else.
        quantiles = (
            np.nanquantile(np.where(np.isfinite(b), b, np.nan), [0.01, 0.99]) if np.isfinite(b).any() else (low, high)
        )
        lower, upper = _limits(np.array([low, high, *quantiles]), pad=0.03)
        ax.set_xlim(low, high)
        ax.set_ylim(lower, upper)
        outside = int(np.sum(~((b >= lower) & (b <= upper))))
        _score(ax, fit, f"\n{outside} neurons outside" if outside else "")
        ax.set_title(title)
        ax.set_xlabel(f"true {name}" + (f" ({unit})" if unit else ""))
        ax.set_ylabel(f"learned {name}")
    axes[2].text(
        0.97, 0.03, "coloured: types, grey: neurons", transform=axes[2].transAxes, ha="right", fontsize=6, color=MUTED
    )
    return _save(figure, path)


def _annotate(ax, at, names) -> None:
    """Names beside points, left out where they would cover one that is already there."""
    names = [name for name, here in zip(names, at) if np.isfinite(here).all()]
    at = at[np.isfinite(at).all(axis=1)]
    if not len(at):
        return
    span = np.array([np.ptp(limits) for limits in (ax.get_xlim(), ax.get_ylim())])
    placed: list[np.ndarray] = []
    # The lonely ones first: they are the types that the embedding tells apart.
    distance = np.linalg.norm((at[:, None] - at[None, :]) / span, axis=-1) + np.where(np.eye(len(at)), np.inf, 0.0)
    for t in np.argsort(-np.nan_to_num(distance.min(axis=1), nan=0.0)):
        here = at[t] / span
        if all(np.abs(here - p)[0] > 0.075 or np.abs(here - p)[1] > 0.03 for p in placed):
            placed.append(here)
            ax.annotate(
                names[t],
                at[t],
                fontsize=6,
                color="#222222",
                ha="center",
                va="bottom",
                xytext=(0, 3),
                textcoords="offset points",
            )


@styled
def embedding_figure(path, evaluation: Evaluation, train_recording) -> Path:
    """The learned embedding of every neuron (its first two principal components beyond two dimensions)."""
    c = train_recording.connectome
    x = np.asarray(evaluation.embedding, np.float64)
    figure = _figure(5.6, 4.4)
    ax = figure.add_axes([0.1, 0.11, 0.6, 0.82])
    labels = ("a₁", "a₂")
    if x.shape[1] > 2 and np.isfinite(x).all():
        centred = x - x.mean(axis=0)
        x = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
        labels = ("PC 1 of a", "PC 2 of a")
    elif x.shape[1] == 1:
        x = np.stack([x[:, 0], c.cell_type], axis=1)
        labels = ("a", "cell type")
    groups = _groups(c.cell_types)
    # Inside a group of types lightness and marker tell the types apart.
    markers = "osD^vP"
    for t in range(c.n_types):
        mine = c.cell_type == t
        rank = int(np.sum(groups[:t] == groups[t]))
        ax.scatter(
            x[mine, 0], x[mine, 1], s=14, lw=0.3, ec="white", color=GROUPS[groups[t]][2],
            marker=markers[rank % len(markers)], alpha=0.85,
        )  # fmt: skip
    _annotate(ax, np.array([np.median(x[c.cell_type == t], axis=0) for t in range(c.n_types)]), c.cell_types)
    ax.set_xlabel(labels[0])
    ax.set_ylabel(labels[1])
    ax.set_title("Embedding of the neurons")
    handles = [
        matplotlib.lines.Line2D([], [], marker="o", ls="", color=colour, ms=5, label=name) for name, _, colour in GROUPS
    ]
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1.0), title="group of types", title_fontsize=7)
    m = evaluation.metrics
    lines = [
        (name, m.get(key))
        for name, key in (
            ("clusters, 100", "cluster_accuracy"),
            ("clusters, 65", "cluster_accuracy_65"),
            ("embedding only", "cluster_accuracy_embedding"),
            ("ARI", "ARI"),
        )
    ]
    text = "\n".join(f"{name}  {'-' if value is None else f'{value:.3f}'}" for name, value in lines)
    figure.text(0.73, 0.2, text, fontsize=7, linespacing=1.5)
    return _save(figure, path)


@styled
def functions_figure(path, evaluation: Evaluation, train_recording) -> Path:
    """Learned g and f of one neuron per type over the voltages it visits, against the truth."""
    curves, c = evaluation.curves, train_recording.connectome
    figure = _figure(9.6, 3.1)
    left, middle, right = figure.subplots(
        1, 3, gridspec_kw=dict(left=0.055, right=0.99, bottom=0.15, top=0.89, wspace=0.26)
    )
    shown = representatives(c)
    colours = np.array([g[2] for g in GROUPS])[_groups(c.cell_types)[c.cell_type[shown]]]
    for v, g, f, true_f, colour in zip(curves.voltage, curves.message, curves.update, curves.true_update, colours):
        left.plot(v, g, color=colour, alpha=0.7, lw=0.8)
        middle.plot(v, f, color=colour, alpha=0.7, lw=0.8)
        right.plot(true_f, f, color=colour, alpha=0.7, lw=0.8)
    span = np.array([curves.voltage.min(), curves.voltage.max()])
    grid = np.linspace(*span, 200)
    left.plot(grid, np.maximum(grid, 0), color=TRUE, lw=1.4, ls=(0, (4, 2)), label="relu(v)")
    left.set_title("Message g / slope")
    left.set_ylim(*_limits(np.maximum(grid, 0), np.quantile(curves.message[np.isfinite(curves.message)], [0.02, 0.98])))
    left.legend(loc="upper left")
    middle.set_title("Update f(v, a, 0, 0)")
    for ax in (left, middle):
        ax.set_xlabel("voltage")
    middle.set_ylabel("dv/dt (1/s)")
    middle.plot([], [], color=TRUE, lw=1.4, ls=(0, (4, 2)), label="(V_rest - v) / tau")
    for v, f in zip(curves.voltage, curves.true_update):
        middle.plot(v[[0, -1]], f[[0, -1]], color=TRUE, lw=0.5, ls=(0, (4, 2)), zorder=0)
    middle.legend(loc="upper right")
    limits = _limits(curves.true_update)
    _diagonal(right, *limits)
    right.set_title("Update against the truth")
    right.set_xlabel("true f (1/s)")
    right.set_ylabel("learned f (1/s)")
    right.set_xlim(*limits)
    right.set_ylim(*limits)
    return _save(figure, path)
