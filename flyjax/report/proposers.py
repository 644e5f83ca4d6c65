"""A comparison of proposers: normalised regret, paired tests, and the files that report them.

A row is one search: {"landscape", "seed", "proposer", "nodes", "wall_s", "root", "curve"}; `curve` holds, after
each iteration, the quality of the node that the search would report as its best. Searches of real trainings
and of the study have `fresh` and `root_fresh`: the results of that last node's configuration, and of the root's, on
seeds that no search used; those of the study also `best`, the highest value that there is, and `log_loss` and `brier`
of a map of the search's nodes.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from flyjax.report.figures.style import house_style, save_png
from flyjax.search.synthetic import REAL
from flyjax.utils.atomic_io import write_atomic
from flyjax.utils.format import csv_table, markdown_table

#: Colour and line style of each proposer, for a picture that is also read in grey.
STYLES: dict[str, tuple[str, Any]] = {
    "rules": ("#d55e00", "-"),
    "random": ("#8c8c8c", ":"),
    "tpe": ("#0072b2", "--"),
    "cmaes": ("#009e73", "-."),
    "map": ("#000000", (0, (1, 1))),
    "llm": ("#cc79a7", (0, (6, 1, 1, 1, 1, 1))),
    "hybrid": ("#e69f00", (0, (9, 2))),
    "replay": ("#56b4e9", (0, (3, 1, 1, 1))),
}


@house_style
def regret_figure(path: str | Path, groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
    """Normalised regret over nodes: mean over searches and its standard error, one panel per group.

    **Arguments:**

    - `groups`: rows with `regret` by the name of their landscape, see `flyjax.report.proposers`.
    """
    n_columns = min(3, len(groups))
    n_rows = -(-len(groups) // n_columns)
    figure = Figure(figsize=(3.2 * n_columns, 2.5 * n_rows), dpi=100, layout="constrained")
    axes, lines = figure.subplots(n_rows, n_columns, squeeze=False), {}
    for k, (ax, (name, group)) in enumerate(zip(axes.flat, groups.items(), strict=False)):
        for proposer in dict.fromkeys(r["proposer"] for r in group):
            curves = np.array([r["regret"] for r in group if r["proposer"] == proposer])
            x = np.arange(1, curves.shape[1] + 1) * group[0]["nodes"] / curves.shape[1]
            mean, error = curves.mean(axis=0), curves.std(axis=0, ddof=min(1, len(curves) - 1)) / np.sqrt(len(curves))
            colour, style = STYLES[proposer]
            (lines[proposer],) = ax.plot(x, mean, color=colour, ls=style, lw=1.5)
            ax.fill_between(x, mean - error, mean + error, color=colour, alpha=0.2, lw=0)
        title = f"{name} ({len({(r['landscape'], r['seed']) for r in group})})"
        ax.set_title(textwrap.fill(title, 34), loc="center", fontweight="normal", fontsize=8)
        ax.set_ylim(0, None)
        ax.tick_params(labelsize=8)
        if k + n_columns >= len(groups):
            ax.set_xlabel("nodes trained")
    for ax in axes[:, 0]:
        ax.set_ylabel("regret")
    for ax in axes.flat[len(groups) :]:
        ax.set_axis_off()
    title = "line: mean over searches; band: its standard error"
    figure.legend(
        lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines), fontsize=8,
        title=title, title_fontsize=8, handlelength=3.5,
    )  # fmt: skip
    return save_png(figure, path)


Row = dict[str, Any]

MEASURES = {
    "mean_regret": lambda r: float(np.mean(r["regret"])),
    "final_regret": lambda r: r["regret"][-1],
    "fresh": lambda r: float(np.mean(r["fresh"])),
    "log_loss": lambda r: r["log_loss"],
    "brier": lambda r: r["brier"],
}
#: Their titles in tables.
TITLES = {
    "mean_regret": "mean regret", "final_regret": "final regret", "fresh": "on fresh seeds",
    "log_loss": "log loss of the map", "brier": "Brier score of the map",
}  # fmt: skip
#: The measures that are tested, with the prefix of their p values.
TESTED = {"mean_regret": "p_", "fresh": "p_fresh_", "log_loss": "p_log_loss_", "brier": "p_brier_"}
BASELINES = ("random", "rules")
CSV_COLUMNS = (
    *("landscape", "seed", "proposer", "nodes", "wall_s", "root"),
    *("mean_regret", "final_regret", "regret", "fresh", "fresh_seeds", "log_loss", "brier"),
)

REGRET_NOTE = (
    "Normalised regret is 0 at the best configuration and 1 at the root; it is that of the node the search would "
    "report (highest reward so far), mean regret its mean over the iterations; on the study, whose root may be as good "
    "as the best, it is the difference in expected R2. p: Wilcoxon's signed-rank test on the "
    "pairs of equal landscape and seed, two-sided, corrected by Holm within a table and a measure.\n"
)
FRESH_NOTE = (
    "On fresh seeds: the configuration that a search ends with, trained again with seeds that no search used; the mean "
    "of their results, a failure counted as 0, and its standard deviation over searches. Regret rates a search by its "
    "best single training, luck included; this column is what its user would get. The root gives {:.3f} on the same "
    "seeds.\n"
)


MAP_NOTE = (
    "The map of a search is fitted on its nodes and scored on the classes (converged, partial, failed) of the study's "
    "real trainings, of which it had none: log loss and Brier score, the lower the better.\n"
)


def add_regret(rows: Sequence[Row]) -> list[Row]:
    """Complete rows with `regret`: 0 at the best, 1 at the root; of the study, whose root may be good, in R2.

    The best is 1 on a synthetic landscape; of real trainings it is the best that any row found, of the study no less
    than `best`. Seeds that not every proposer has finished are left out: a paired test needs pairs.
    """
    out = []
    for landscape in dict.fromkeys(r["landscape"] for r in rows):
        here = [r for r in rows if r["landscape"] == landscape]
        n = len({r["proposer"] for r in here})
        here = [r for r in here if sum(o["seed"] == r["seed"] for o in here) == n]
        known = [r["best"] for r in here if "best" in r]
        found = [max(r["curve"]) for r in here] if landscape == REAL or known else []
        best = max([*known, *found], default=1.0)
        for r in here:
            # Where no search exceeds the root there is no regret.
            scale = 1.0 if "best" in r else best - r["root"]
            out.append({**r, "regret": [(best - q) / scale if scale > 0 else 0.0 for q in r["curve"]]})
    return out


def available_measures(rows: Sequence[Row]) -> list[str]:
    """The measures that all rows have."""
    optional = ("fresh", "log_loss", "brier")
    return [name for name in MEASURES if name not in optional or all(name in r for r in rows)]


def paired_differences(rows: Sequence[Row], a: str, b: str, measure: str) -> Float[np.ndarray, " n"]:
    """measure(a) - measure(b) for each (landscape, seed) that both proposers have searched."""
    value = {(r["landscape"], r["seed"], r["proposer"]): MEASURES[measure](r) for r in rows}
    cases = dict.fromkeys((r["landscape"], r["seed"]) for r in rows)
    return np.array([value[(*c, a)] - value[(*c, b)] for c in cases if (*c, a) in value and (*c, b) in value])


def wilcoxon_p(differences: Float[np.ndarray, " n"]) -> float:
    """p value of Wilcoxon's signed-rank test, two-sided; 1 where nothing differs."""
    from scipy.stats import wilcoxon

    return float(wilcoxon(differences).pvalue) if np.any(differences) else 1.0


def holm_correction(p: dict[Any, float]) -> dict[Any, float]:
    """p values corrected for multiple tests (Holm, 1979)."""
    out, least = {}, 0.0
    for k, name in enumerate(sorted(p, key=p.__getitem__)):
        least = max(least, min(1.0, (len(p) - k) * p[name]))
        out[name] = least
    return out


def summarise(rows: Sequence[Row], baselines: Sequence[str] = BASELINES) -> list[Row]:
    """One line per proposer, the lowest mean regret first: its measures, and paired tests against each baseline."""
    names, measures = list(dict.fromkeys(r["proposer"] for r in rows)), available_measures(rows)
    lines = []
    for name in names:
        own = [r for r in rows if r["proposer"] == name]
        line: Row = {"proposer": name, "runs": len(own)}
        for measure in measures:
            values = [MEASURES[measure](r) for r in own]
            line[measure] = float(np.mean(values))
            line[f"{measure}_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
        lines.append(line)
    # A pair is one hypothesis, whichever of the two is the baseline.
    pairs = {frozenset((a, b)): (a, b) for b in baselines if b in names for a in names if a != b}
    for measure in TESTED.keys() & measures:
        tests = holm_correction({k: wilcoxon_p(paired_differences(rows, *v, measure)) for k, v in pairs.items()})
        for line in lines:
            line |= {TESTED[measure] + b: tests.get(frozenset((line["proposer"], b))) for b in baselines}
    return sorted(lines, key=lambda line: line["mean_regret"])


def group_rows(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of each landscape, and of all synthetic ones and all conditions of the study together."""
    kinds: dict[str, list[Row]] = {"all made-up landscapes": [], "all conditions of the study": []}
    for r in rows:
        if r["landscape"] != REAL:
            kinds["all conditions of the study" if "best" in r else "all made-up landscapes"].append(r)
    out = {name: group for name, group in kinds.items() if len({r["landscape"] for r in group}) > 1}
    names = list(dict.fromkeys(r["landscape"] for r in rows))
    return out | {name: [r for r in rows if r["landscape"] == name] for name in names}


def _format_p(p: float | None) -> str:
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _format_mean(line: Row, measure: str) -> str:
    sd = line[f"{measure}_sd"]
    return f"{line[measure]:.3f}" + (f" ± {sd:.3f}" if sd is not None else "")


def proposer_table(rows: Sequence[Row], baselines: Sequence[str] = BASELINES) -> str:
    """Markdown: a line per proposer, the lowest mean regret first."""
    against = [f"p against {b}" for b in baselines]
    columns = ["proposer", "runs", TITLES["mean_regret"], TITLES["final_regret"], *against]
    others = [name for name in available_measures(rows) if name in TESTED and name != "mean_regret"]
    cells = []
    for line in summarise(rows, baselines):
        row = [line["proposer"], str(line["runs"])]
        row += [_format_mean(line, "mean_regret"), _format_mean(line, "final_regret")]
        row += [_format_p(line[f"p_{b}"]) for b in baselines]
        for name in others:
            row += [_format_mean(line, name), *(_format_p(line[TESTED[name] + b]) for b in baselines)]
        cells.append(row)
    return markdown_table([*columns, *(title for name in others for title in (TITLES[name], *against))], cells)


def write_comparison(folder: str | Path, rows: Sequence[Row], about: str) -> Path:
    """Write proposers.md, .csv and .png into `folder` and return the path of the first.

    **Arguments:**

    - `about`: what was run, and where.
    """
    rows, folder = add_regret(rows), Path(folder)
    groups = group_rows(rows)
    regret_figure(folder / "proposers.png", groups)
    curves = {"regret": "regret", "fresh_seeds": "fresh"}
    lines = [
        {
            **r,
            **{m: MEASURES[m](r) for m in available_measures([r])},
            **{column: " ".join(f"{x:.4f}" for x in r.get(key, ())) for column, key in curves.items()},
        }
        for r in rows
    ]
    write_atomic(folder / "proposers.csv", csv_table(CSV_COLUMNS, lines))
    text = f"# Proposers compared\n\n{about}\n\n![Regret over nodes](proposers.png)\n\n{REGRET_NOTE}"
    roots = [r["root_fresh"] for r in rows if "fresh" in r]
    if roots:
        text += FRESH_NOTE.format(np.mean(roots))
    if any("best" in r for r in rows):
        text += MAP_NOTE
    for name, group in groups.items():
        text += f"\n## {name}\n\n{proposer_table(group)}"
    path = folder / "proposers.md"
    write_atomic(path, text)
    return path
