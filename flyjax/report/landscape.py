"""The page of a landscape: every condition, what changes between them, and the section of a run's report."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from markupsafe import Markup, escape

from flyjax.config import Range
from flyjax.landscape import FAST, Estimate, Landscape, Trainings, fit, regions
from flyjax.landscape.landscape import LEVELS
from flyjax.landscape.surrogate import LEVEL, resampled
from flyjax.landscape.trainings import TABLE, describe
from flyjax.report.figures import landscape as figures
from flyjax.report.figures.landscape import short
from flyjax.report.landscape_text import (
    COMPARED,
    DEFAULTS,
    PAGE,
    SHOWN,
    TEMPLATES,
    Block,
    chance_text,
    class_rate,
    condition_blocks,
    decided_settings,
    html,
    markdown,
    percent,
    skilled_metrics,
    spell,
    table,
    traded_settings,
    trend_text,
)
from flyjax.report.tables import format_setting
from flyjax.utils.atomic_io import write_atomic
from flyjax.utils.errors import UserError
from flyjax.utils.format import MISSING
from flyjax.utils.metric_names import CONVERGED


def comparison_blocks(landscapes: Mapping[str, Landscape], folder: Path) -> list[Block]:
    """Conditions side by side."""
    good = {name: one for name, one in landscapes.items() if not one.problem}
    blocks = [table(("condition", *_SUMMARY), [[name, *_summary(one)] for name, one in landscapes.items()])]
    if not good:
        return blocks
    varied = list(dict.fromkeys(name for one in good.values() for name in one.space.names))
    blocks += [
        Block("h3", "Recommended settings"),
        table(
            ("condition", *map(short, varied), "W R² expected"),
            [[name, *_recommended(one, varied)] for name, one in good.items()],
        ),
        Block("h3", "Which settings matter, for whom"),
        Block("p", _counted({name: decided_settings(one, one.metric)[0] for name, one in good.items()}, varied)),
        table(("condition", *_DEPENDS), [[name, *_depends(one)] for name, one in good.items()]),
    ]
    metrics = [m for m in SHOWN if any(m in skilled_metrics(one) for one in good.values())]
    path = figures.conditions_figure(folder / "figures/conditions_importance.png", good, metrics)
    blocks += [
        Block("figure", "Importance of each setting in each condition.", path=f"figures/{path.name}"),
        Block("h3", "Where W is recovered in nine seeds of ten, and the published settings"),
        Block("p", _LEVEL_NOTE),
        table(("condition", *_REACHED), [[name, *_reached(one)] for name, one in good.items()]),
    ]
    levels = {name: one.above.level for name, one in good.items() if one.above is not None}
    if levels:
        level = min(levels.values())
        drawn = {name: good[name] for name in levels}
        path = figures.probability_figure(folder / "figures/conditions_probability.png", drawn, level)
        caption = (
            f"{chance_text(level)} along each setting, the others averaged over their ranges; {level:g} is the highest "
            "level known in every condition that is drawn."
        )
        blocks.append(Block("figure", caption, path=f"figures/{path.name}"))
    return blocks


_SUMMARY = (
    "trainings",
    "converged",
    "failed",
    "skill for W",
    "attainable",
    "skill for V_rest",
    "seed's share of W",
    "",
)


def _summary(one: Landscape) -> list[str]:
    counts = [str(len(one.trainings)), percent(class_rate(one, 2)), percent(class_rate(one, 0))]
    if one.problem:
        return [*counts, *[MISSING] * 4, f"no map: {one.problem}"]
    w, rest = one.surrogate(), SHOWN[1] in one.metrics and one.surrogate(SHOWN[1])
    share = percent(one.seed_noise().share)
    return [*counts, spell(w.skill), f"{w.attainable:.2f}", spell(rest.skill) if rest else MISSING, share, ""]


def _recommended(one: Landscape, varied: Sequence[str]) -> list[str]:
    given = one.recommended.settings
    return [*(format_setting(given[n]) if n in given else MISSING for n in varied), spell(one.recommended.expected)]


def _counted(matters: Mapping[str, Sequence[str]], varied: Sequence[str]) -> str:
    """In how many conditions each setting matters, the most frequent first."""
    times = {n: sum(n in names for names in matters.values()) for n in varied}
    ranked = sorted((n for n in varied if times[n]), key=lambda n: -times[n])
    return f"W depends on {', '.join(f'{short(n)} in {times[n]}' for n in ranked)} of {len(matters)} conditions."


_DEPENDS = ("W depends on", "not decided", "V_rest depends on", "trade W against V_rest")


def _depends(one: Landscape) -> list[str]:
    skilled = skilled_metrics(one)
    matters, _, open_ = decided_settings(one, one.metric)
    rest = decided_settings(one, SHOWN[1])[0] if SHOWN[1] in skilled else []
    trades = traded_settings(one) if len(skilled) > 1 else []
    return [", ".join(map(short, names)) or MISSING for names in (matters, open_, rest)] + [
        ", ".join(trades) or MISSING
    ]


_LEVEL_NOTE = (
    f"Level: {CONVERGED:g}, or where too few trainings converge to tell where, the highest of "
    f"{', '.join(f'{level:g}' for level in LEVELS[1:])} of which that is known. P: the probability that a training "
    f"exceeds it; the space above it, and a stable region: where P is at least {regions.RELIABLE:g}."
)
_REACHED = (
    "level",
    "trainings above it",
    "space above it",
    "at the recommended",
    *(f"at the {name}" for name in COMPARED),
    "in a stable region?",
)


def _reached(one: Landscape) -> list[str]:
    """What is expected, with the probability to exceed a level where it is predicted."""
    above = one.above
    given = [one.given({**DEFAULTS, **changes}) for changes in COMPARED.values()]
    cells = [spell(setting.expected) for setting in (one.recommended, *given)]
    if above is None:
        return [MISSING] * 3 + [*cells, "not known: P is not predicted"]
    chances = [one.reaches(setting.place, above.level) for setting in (one.recommended, *given)]
    cells = [f"{cell}; P {spell(chance)}" for cell, chance in zip(cells, chances, strict=True)]
    stable = []
    for name, setting, p in zip(COMPARED, given, chances[1:], strict=True):
        verdict = "yes" if p.low >= regions.RELIABLE else "no" if p.high < regions.RELIABLE else "not decided"
        stable.append(f"{name}: {verdict}" + (" (outside the map)" if setting.outside else ""))
    share = percent(regions.share_reliable(above, one.space))
    return [f"{above.level:g}", f"{above.rate:.0%}", share, *cells, "; ".join(stable)]


def paired_blocks(trainings: Trainings, ranges: Mapping[str, Range], metrics: Sequence[str]) -> list[Block]:
    """What changes where one condition only changes: means over the configurations that both have."""
    names = trainings.varied(trainings.conditions)
    parts = list(trainings.split(ranges).values())
    rows = []
    for name in names:
        for a, b in ((a, b) for k, a in enumerate(parts) for b in parts[k + 1 :]):
            values = [{n: part.conditions[n][0] for n in names} for part in (a, b)]
            if [n for n in names if values[0][n] != values[1][n]] != [name]:
                continue
            rest = ", ".join(describe(n, values[0][n]) for n in names if n != name)
            n_pairs, gains = _paired(a, b, ranges, metrics)
            if n_pairs > 1:
                change = f"{values[0][name]} → {values[1][name]}"
                rows.append([name.replace("_", " "), change, rest, str(n_pairs), *map(trend_text, gains)])
    if not rows:
        return []
    note = (
        "Differences of means over the configurations that both conditions have, with 90 % intervals by resampling "
        "configurations; converged: of the share of trainings."
    )
    columns = ["what changes", "from → to", "at", "configurations", *map(short, metrics), "converged"]
    return [table(columns, rows), Block("p", note)]


def _paired(a: Trainings, b: Trainings, ranges: Mapping[str, Range], metrics: Sequence[str]):
    """(number of configurations that both have, the change of each metric and of the share that converges)."""

    def means(part: Trainings) -> dict[tuple, np.ndarray]:
        values = np.stack([*(part.values(m) for m in metrics), part.values("connectivity_R2") > CONVERGED], 1)
        keys: dict[tuple, list[int]] = {}
        for k in range(len(part)):
            keys.setdefault(tuple(part.settings[n][k] for n in ranges), []).append(k)
        return {key: values[rows].mean(0) for key, rows in keys.items()}

    first, second = means(a), means(b)
    gains = np.array([second[key] - first[key] for key in first if key in second])
    if not len(gains):
        return 0, []
    draws = gains[resampled(len(gains), np.random.default_rng(0))].mean(1)
    # Where nothing changed in any configuration there is no spread to make an interval of.
    changed = np.where(gains.any(0), gains.mean(0), np.nan)
    return len(gains), [Estimate.of(change, draws[:, k]) for k, change in enumerate(changed)]


def page_blocks(
    landscapes: Mapping[str, Landscape], trainings: Trainings, ranges: Mapping[str, Range], folder: Path
) -> list[Block]:
    """The page of any number of conditions."""
    intro = (
        f"How to read it: docs/landscape.md. All intervals are {LEVEL:.0%} intervals and have the uncertainty of the "
        "map in them."
    )
    blocks = [Block("p", intro)]
    if len(landscapes) > 1:
        metrics = [m for m in (*SHOWN, "tau_R2", "test_R2") if m in trainings.metrics]
        blocks += [Block("h2", "All conditions"), *comparison_blocks(landscapes, folder)]
        if pairs := paired_blocks(trainings, ranges, metrics):
            blocks += [Block("h3", "One change at a time"), *pairs]
    for k, (name, one) in enumerate(landscapes.items(), 1):
        counts, *rest = condition_blocks(one, folder, f"map_{k}")
        if len(landscapes) > 1 and not one.problem:
            rest = [Block("details", "Its map: settings, effects, boundaries, recommended setting", blocks=tuple(rest))]
        blocks += [Block("h2", name[:1].upper() + name[1:]), counts, *rest]
    return blocks


_LINKED = re.compile(r"\]\((figures/(?:map_\d+|conditions)_[a-z]+\.png)\)")


def _linked_figures(page: Path) -> set[str]:
    """The figures of a page that was written before, and no others: a user may keep files beside them."""
    return set(_LINKED.findall(page.read_text(encoding="utf-8", errors="replace"))) if page.is_file() else set()


def write_page(
    folder: str | Path,
    title: str,
    landscapes: Mapping[str, Landscape],
    trainings: Trainings,
    ranges: Mapping[str, Range],
    sources: Iterable[Path] = (),
) -> list[Path]:
    """Write landscape.md, landscape.html, figures/ and trainings.csv.gz, and return their paths.

    Figures of the page that is replaced, and that the new one no longer has, are deleted.

    **Arguments:**

    - `landscapes`: by the description of their condition.
    - `trainings`: all of them.
    - `ranges`: the axes of the maps.
    - `sources`: what the trainings were read from; a table among them stays as it is, with all its columns.

    **Raises:** `UserError` where a file cannot be written.
    """
    folder = Path(folder)
    paths = [folder / name for name in ("landscape.md", "landscape.html", TABLE)]
    try:
        before = _linked_figures(paths[0])
        if paths[2].resolve() not in {p.resolve() for source in sources for p in (source, source / TABLE)}:
            trainings.write(paths[2])
        blocks = page_blocks(landscapes, trainings, ranges, folder)
        write_atomic(paths[0], markdown(title, blocks))
        css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
        write_atomic(paths[1], PAGE.format(title=escape(title), css=css, body=html(blocks, folder)))
        for name in before - _linked_figures(paths[0]):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}; choose another --out") from None
    return paths


#: Sections that were made before: in a run that goes on, most blocks no longer change.
_SECTIONS: dict[bytes, Markup] = {}


def report_section(run_dir: str | Path, ranges: Mapping[str, Range], metric: str) -> Markup:
    """The maps of a run's conditions for its report, made small enough to be redrawn while the run goes on."""
    try:
        parts = Trainings.read([run_dir]).split(ranges)
    except UserError as error:
        return Markup("<p class='empty'>No map: {}.</p>").format(error)
    out = []
    for name, part in parts.items():
        key = hashlib.sha256(pickle.dumps((part, dict(ranges), metric))).digest()
        if key not in _SECTIONS:
            with TemporaryDirectory() as folder:
                try:
                    blocks = condition_blocks(fit(part, ranges, metric, sizes=FAST), Path(folder))
                except UserError as error:
                    blocks = [Block("p", f"No map: {error}.")]
                _SECTIONS[key] = html(blocks, Path(folder))
        out.append(Markup("<h3>{}</h3>\n").format(name) + _SECTIONS[key])
    return Markup("\n").join(out)
