"""What a comparison of proposers says: regret, paired tests, a table and a figure.

A row is one search: {"landscape", "seed", "proposer", "nodes", "wall_s", "root", "curve"}; `curve` holds, after
each iteration, the quality of the node that the search would report as its best. Searches of real trainings have
`held` and `root_held` as well: the results of that last node's configuration, and of the root's, on seeds that no
search had.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from flyjax.report.figures.style import save_png
from flyjax.report.tables import csv
from flyjax.search.synthetic import REAL

Row = dict[str, Any]

COLOURS = dict(
    zip(("rules", "random", "tpe", "cmaes", "llm", "hybrid", "replay"), ("C3", "0.55", "C0", "C2", "C4", "C1", "C5"))
)


def with_regret(rows: Sequence[Row]) -> list[Row]:
    """Complete rows with `regret`: 0 at the best, 1 at the root.

    The best is 1 on a made-up landscape; of real trainings it is the best that any row found. Seeds that not
    every proposer has finished are left out: a paired test needs pairs.
    """
    out = []
    for landscape in dict.fromkeys(r["landscape"] for r in rows):
        here = [r for r in rows if r["landscape"] == landscape]
        n = len({r["proposer"] for r in here})
        here = [r for r in here if sum(o["seed"] == r["seed"] for o in here) == n]
        best = 1.0 if landscape != REAL else max((max(r["curve"]) for r in here), default=1.0)
        # Where nobody passes the root there is nothing to regret.
        out += [
            {**r, "regret": [(best - q) / (best - r["root"]) if best > r["root"] else 0.0 for q in r["curve"]]}
            for r in here
        ]
    return out


MEASURES = {
    "mean_regret": lambda r: float(np.mean(r["regret"])),
    "final_regret": lambda r: r["regret"][-1],
    "held": lambda r: float(np.mean(r["held"])),
}


TESTED = {"mean_regret": "p_", "held": "p_held_"}  # measure -> how its p values are named


def measured(rows: Sequence[Row]) -> list[str]:
    """The measures that all rows have."""
    return [name for name in MEASURES if name != "held" or all("held" in r for r in rows)]


def pairs(rows: Sequence[Row], a: str, b: str, measure: str) -> np.ndarray:
    """measure(a) - measure(b) for each (landscape, seed) that both have played."""
    value = {(r["landscape"], r["seed"], r["proposer"]): MEASURES[measure](r) for r in rows}
    cases = dict.fromkeys((r["landscape"], r["seed"]) for r in rows)
    return np.array([value[(*c, a)] - value[(*c, b)] for c in cases if (*c, a) in value and (*c, b) in value])


def p_value(differences: np.ndarray) -> float:
    """Wilcoxon's signed-rank test, two-sided; 1 where nothing differs."""
    from scipy.stats import wilcoxon

    return float(wilcoxon(differences).pvalue) if np.any(differences) else 1.0


def holm(p: dict[Any, float]) -> dict[Any, float]:
    """Holm's correction for testing all of these at once."""
    out, least = {}, 0.0
    for k, name in enumerate(sorted(p, key=p.get)):
        least = max(least, min(1.0, (len(p) - k) * p[name]))
        out[name] = least
    return out


def summary(rows: Sequence[Row], baselines: Sequence[str] = ("random", "rules")) -> list[Row]:
    """One line per proposer: its measures, and the paired tests of its mean regret and of `held` against each baseline."""
    names, measures = list(dict.fromkeys(r["proposer"] for r in rows)), measured(rows)
    out = []
    for name in names:
        own = [r for r in rows if r["proposer"] == name]
        line: Row = {"proposer": name, "runs": len(own)}
        for measure in measures:
            got = [MEASURES[measure](r) for r in own]
            line[measure], line[f"{measure}_sd"] = (
                float(np.mean(got)),
                float(np.std(got, ddof=1)) if len(got) > 1 else None,
            )
        out.append(line)
    for measure in TESTED:
        if measure in measures:
            # A pair is one hypothesis, whichever of the two is the baseline.
            tests = holm(
                {
                    frozenset((a, b)): p_value(pairs(rows, a, b, measure))
                    for b in baselines
                    if b in names
                    for a in names
                    if a != b
                }
            )
            for line in out:
                line |= {TESTED[measure] + b: tests.get(frozenset((line["proposer"], b))) for b in baselines}
    return sorted(out, key=lambda line: line["mean_regret"])


# --- what people read ---------------------------------------------------------------------------


def _groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of each landscape, and of all made-up ones together where there are several."""
    made_up = [r for r in rows if r["landscape"] != REAL]
    names = list(dict.fromkeys(r["landscape"] for r in rows))
    out = {"all made-up landscapes": made_up} if len({r["landscape"] for r in made_up}) > 1 else {}
    return out | {name: [r for r in rows if r["landscape"] == name] for name in names}


def _p(value: float | None) -> str:
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _line(line: Row, baselines: Sequence[str]) -> str:
    def cell(name):
        sd = line[f"{name}_sd"]
        return f"{line[name]:.3f}" + (f" ± {sd:.3f}" if sd is not None else "")

    cells = [
        line["proposer"],
        str(line["runs"]),
        cell("mean_regret"),
        cell("final_regret"),
        *(_p(line.get(f"p_{b}")) for b in baselines),
    ]
    if "held" in line:
        cells += [cell("held"), *(_p(line.get(f"p_held_{b}")) for b in baselines)]
    return "| " + " | ".join(cells) + " |"


def table(rows: Sequence[Row], baselines: Sequence[str] = ("random", "rules")) -> str:
    """Markdown: a line per proposer, the lowest mean regret first."""
    against = [f"p against {b}" for b in baselines]
    head = [
        "proposer",
        "runs",
        "mean regret",
        "final regret",
        *against,
        *(["on fresh seeds", *against] if "held" in measured(rows) else []),
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *(_line(line, baselines) for line in summary(rows, baselines))]) + "\n"


def figure(path: Path, rows: Sequence[Row]) -> None:
    """Regret over nodes, one panel per landscape: mean over seeds and its standard error."""
    groups = _groups(rows)
    columns = min(3, len(groups))
    lines = -(-len(groups) // columns)
    fig = Figure(figsize=(3.2 * columns, 2.5 * lines), dpi=100, layout="constrained")
    axes = fig.subplots(lines, columns, squeeze=False)
    for ax, (name, group) in zip(axes.flat, groups.items()):
        for proposer in dict.fromkeys(r["proposer"] for r in group):
            curves = np.array([r["regret"] for r in group if r["proposer"] == proposer])
            x = np.arange(1, curves.shape[1] + 1) * group[0]["nodes"] / curves.shape[1]
            mean, error = curves.mean(axis=0), curves.std(axis=0, ddof=min(1, len(curves) - 1)) / np.sqrt(len(curves))
            ax.plot(x, mean, color=COLOURS[proposer], label=proposer, lw=1.5)
            ax.fill_between(x, mean - error, mean + error, color=COLOURS[proposer], alpha=0.2, lw=0)
        ax.set_title(f"{name} ({len({(r['landscape'], r['seed']) for r in group})})", fontsize=9)
        ax.set_ylim(0, None)
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes.flat[len(groups) :]:
        ax.set_axis_off()
    for ax in axes[:, 0]:
        ax.set_ylabel("normalised regret", fontsize=8)
    for k, ax in enumerate(axes.flat[: len(groups)]):
        if k + columns >= len(groups):
            ax.set_xlabel("nodes trained", fontsize=8)
    # Not every proposer plays on every landscape: the legend names those of all panels.
    seen = {label: line for ax in axes.flat for line, label in zip(*ax.get_legend_handles_labels())}
    room = axes.flat[len(groups)] if len(groups) < axes.size else axes[0, 0]
    room.legend(
        seen.values(), seen.keys(), fontsize=8, frameon=False, loc="upper left" if room is not axes[0, 0] else "best"
    )
    save_png(fig, path)


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{x:.4f}" for x in values)


def write(folder: Path, rows: Sequence[Row], about: str) -> Path:
    """proposers.md, .csv and .png in `folder`; `about` says what was run where. Gives the path of the first."""
    rows, folder = with_regret(rows), Path(folder)
    columns = (
        "landscape",
        "seed",
        "proposer",
        "nodes",
        "wall_s",
        "root",
        "mean_regret",
        "final_regret",
        "regret",
        "held",
        "fresh_seeds",
    )
    plain = [
        {
            **r,
            **{m: MEASURES[m](r) for m in measured([r])},
            "regret": _numbers(r["regret"]),
            "fresh_seeds": _numbers(r.get("held", ())),
        }
        for r in rows
    ]
    figure(folder / "proposers.png", rows)
    (folder / "proposers.csv").write_text(csv(plain, columns))
    text = f"# Proposers compared\n\n{about}\n\n![Regret over nodes](proposers.png)\n\n"
    text += (
        "Normalised regret is 0 at the best configuration and 1 at the root; it is that of the node the search would report "
        "(highest reward so far), mean regret its mean over the iterations. p: Wilcoxon's signed-rank test on the pairs of "
        "equal landscape and seed, two-sided, corrected by Holm within a table and a measure.\n"
    )
    roots = [r["root_held"] for r in rows if "held" in r]
    if roots:
        text += (
            "On fresh seeds: the configuration that a search ends with, trained again with seeds that no search had; the mean of "
            "their results, one that failed as 0, and its standard deviation over searches. Regret scores a search by its best "
            "single training, luck included; this column says what its user would get. "
            f"The root gives {np.mean(roots):.3f} on the same seeds.\n"
        )
    for name, group in _groups(rows).items():
        text += f"\n## {name}\n\n{table(group)}"
    path = folder / "proposers.md"
    path.write_text(text)
    return path
