"""The map of a landscape as a page: plain words, numbers with their intervals, tables and figures.

A page is a list of blocks, which become Markdown and HTML. No sentence claims what its interval does not carry.
"""

from __future__ import annotations

import base64
import hashlib
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from flyjax.config import Range, Training
from flyjax.landscape import CLASSES, FAST, Estimate, Landscape, Setting, Trainings, fit, regions
from flyjax.landscape.classes import classify
from flyjax.landscape.surrogate import LEVEL, resampled
from flyjax.landscape.trainings import TABLE
from flyjax.report.figures import landscape as figures
from flyjax.report.figures.landscape import short
from flyjax.report.tables import format_setting
from flyjax.utils.atomic_io import write_atomic
from flyjax.utils.errors import UserError
from flyjax.utils.format import MISSING, markdown_table, plural

#: A setting matters where the interval of its share is above the first, hardly matters where it is below the second.
MATTERS, HARDLY = 0.02, 0.10
SHOWN = ("connectivity_R2", "V_rest_R2")  # in figures, where the trainings have them
#: A trend of less than this over the whole range is not named as one.
TREND = 0.02


TEMPLATES = Path(__file__).with_name("templates")
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{css}</style></head>
<body><header><p class="kicker"><b>flyjax</b></p><h1>{title}</h1></header>
<main><section>
{body}
</section></main></body></html>
"""


@dataclass(frozen=True)
class Block:
    """A heading, a paragraph, a table or a figure of a page."""

    kind: str  # h2 | h3 | p | table | figure
    text: str = ""  # of a figure: its caption
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    path: str = ""  # of a figure, relative to the page


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Block:
    return Block("table", columns=tuple(columns), rows=tuple(map(tuple, rows)))


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """A page as Markdown."""
    parts = [f"# {title}"]
    for block in blocks:
        if block.kind == "table":
            parts.append(markdown_table(block.columns, block.rows).rstrip())
        elif block.kind == "figure":
            parts.append(f"![{block.text}]({block.path})\n\n*{block.text}*")
        else:
            parts.append({"h2": "## ", "h3": "### ", "p": ""}[block.kind] + block.text)
    return "\n\n".join(parts) + "\n"


def html(blocks: Sequence[Block], folder: Path) -> Markup:
    """Blocks as HTML with embedded figures, which lie in `folder`."""
    parts = []
    for block in blocks:
        if block.kind == "table":
            head = "".join(f"<th>{escape(c)}</th>" for c in block.columns)
            body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in block.rows)
            parts.append(
                f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
            )
        elif block.kind == "figure":
            data = base64.b64encode((folder / block.path).read_bytes()).decode()
            image = f'<div class="plate"><img src="data:image/png;base64,{data}" alt="{escape(block.text)}"></div>'
            parts.append(f"<figure>{image}<figcaption>{escape(block.text)}</figcaption></figure>")
        else:
            parts.append(f"<{block.kind}>{escape(block.text)}</{block.kind}>")
    return Markup("\n".join(parts))


def spell(e: Estimate, digits: int = 2) -> str:
    """A number with its interval: 0.62 (0.55 to 0.68)."""
    if math.isnan(e.value):
        return MISSING
    return f"{e.value:.{digits}f} ({e.low:.{digits}f} to {e.high:.{digits}f})"


def percent(e: Estimate) -> str:
    return MISSING if math.isnan(e.value) else f"{e.value:.0%} ({e.low:.0%} to {e.high:.0%})"


# --- one condition ---


def condition_blocks(
    landscape: Landscape, folder: Path, name: str = "landscape", defaults: Mapping[str, Any] | None = None
) -> list[Block]:
    """The map of one condition.

    **Arguments:**

    - `folder`: where the figures are written, in figures/.
    - `name`: begins the names of the figures.
    - `defaults`: the setting that is compared with the recommended one, by default the protocol's.
    """
    defaults = Training().model_dump() if defaults is None else defaults
    blocks = [Block("p", _counts(landscape))]
    if landscape.problem:
        return [*blocks, Block("p", f"No map: {landscape.problem}.")]
    metrics = [m for m in SHOWN if m in landscape.metrics and landscape.surrogate(m).skill.low > 0]
    blocks += [Block("p", text) for text in (_skill(landscape), _seeds(landscape))]
    blocks += [_metrics_table(landscape), Block("h3", "Which settings matter"), *_importance(landscape, metrics)]
    figure = figures.overview_figure(folder / f"figures/{name}_overview.png", landscape, metrics, defaults)
    caption = "Importance of the settings; reliability of the class probabilities; stable ranges."
    blocks.append(Block("figure", caption, path=f"figures/{figure.name}"))
    figure = figures.effects_figure(folder / f"figures/{name}_effects.png", landscape, metrics)
    caption = (
        "The effect of each setting, all others averaged over their ranges (bands: 90 %). Dots: configurations, mean "
        "over seeds."
    )
    blocks.append(Block("figure", caption, path=f"figures/{figure.name}"))
    if drawn := figures.pairs_figure(folder / f"figures/{name}_pairs.png", landscape):
        caption = "Pairs of settings, all others averaged; white line: 0.9; dots: configurations; star: recommended."
        blocks.append(Block("figure", caption, path=f"figures/{drawn.name}"))
    if constant := landscape.space.constant:
        listed = ", ".join(f"{short(k)} = {format_setting(v)}" for k, v in constant.items())
        blocks.append(Block("p", f"Not varied, so that nothing is known of their effect: {listed}."))
    blocks += [Block("h3", "Where it converges"), *_boundaries(landscape)]
    blocks += [Block("h3", "Recommended setting"), *_settings(landscape, defaults)]
    blocks += [Block("p", text) for text in _blind(landscape)]
    return blocks


def _counts(landscape: Landscape) -> str:
    trainings = landscape.trainings
    text = f"{plural(len(trainings), 'training')} of {plural(landscape.n_configurations, 'configuration')}"
    if trainings.diverged:
        text += f"; {trainings.diverged} diverged and count as 0"
    labels = classify(trainings.values("connectivity_R2"))
    text += "; " + ", ".join(f"{np.mean(labels == k):.0%} {CLASSES[k]}" for k in (2, 1, 0))
    return text + "."


def _skill(landscape: Landscape) -> str:
    own, classes = landscape.surrogate(), landscape.classes
    text = (
        f"Skill on configurations that the map was not fitted on: R2 {spell(own.skill)} for {short(landscape.metric)} "
        f"({own.kind}; the noise of the seeds would limit a perfect one to {own.attainable:.2f})."
    )
    if classes.skill.low > 0:
        return (
            f"{text} The class probabilities have a log loss of {classes.log_loss:.2f} per held-out training, "
            f"{percent(classes.skill)} below that of the base rates ({classes.base_log_loss:.2f}); Brier score "
            f"{classes.brier:.2f}."
        )
    return f"{text} The class of a training cannot be predicted better than by the base rates: {_no_classes(landscape)}"


def _no_classes(landscape: Landscape) -> str:
    return f"skill {spell(landscape.classes.skill)}, so that no boundary is stated."


def _seeds(landscape: Landscape) -> str:
    noise = landscape.seed_noise()
    if not noise.n_repeated:
        return "No configuration was trained with two seeds: what is luck is not known."
    regions_ = [
        f"{d.value:.3f} where {low:.2f} to {high:.2f} is expected"
        for d, low, high in zip(noise.deviations, noise.edges, noise.edges[1:])
        if np.isfinite(high)
    ]
    return (
        f"Of the variance of a single training's {short(landscape.metric)}, {percent(noise.share)} is the seed's; the "
        f"standard deviation between seeds is {spell(noise.deviation, 3)}"
        + (f": {', '.join(regions_)}." if len(regions_) > 1 else ".")
    )


def _metrics_table(landscape: Landscape) -> Block:
    rows = []
    for metric in landscape.metrics:
        one = landscape.surrogate(metric)
        share = landscape.seed_noise(metric).share
        rows.append([short(metric), one.kind, spell(one.skill), f"{one.attainable:.2f}", percent(share)])
    return table(["metric", "surrogate", "skill (R2)", "attainable", "seed's share of the variance"], rows)


def _importance(landscape: Landscape, metrics: Sequence[str]) -> list[Block]:
    found = {metric: landscape.importance(metric) for metric in metrics}
    names = found[landscape.metric].ranked() if landscape.metric in found else next(iter(found.values())).ranked()
    trends = {(n, m): landscape.curve(n, m).rise for n in names for m in metrics}
    columns = ["setting"]
    for metric in metrics:
        columns += [f"{short(metric)}: total", "alone", "trend"]
    rows = [
        [
            short(n),
            *(t for m in metrics for t in (spell(found[m].total[n]), spell(found[m].first[n]), _trend(trends[n, m]))),
        ]
        for n in names
    ]
    texts = []
    for metric in metrics:
        total = found[metric].total
        groups = {
            "depends on": [n for n in names if total[n].low > MATTERS],
            f"shows no effect above {HARDLY:.0%} of what the map explains of": [
                n for n in names if total[n].high < HARDLY and total[n].low <= MATTERS
            ],
            "may or may not depend on": [n for n in names if total[n].high >= HARDLY and total[n].low <= MATTERS],
        }
        stated = "; ".join(f"{verb} {', '.join(map(short, g))}" for verb, g in groups.items() if g)
        texts.append(f"{short(metric)} {stated}.")
        real = [f"{short(a)} and {short(b)} {spell(e)}" for (a, b), e in found[metric].pairs.items() if e.low > MATTERS]
        texts.append(
            f"Interactions of pairs: {', '.join(real)}." if real else "No interaction of a pair is established."
        )
    if len(metrics) > 1:
        a, b = metrics[:2]
        opposed = [
            f"{short(n)} ({short(a)} {_trend(trends[n, a])}, {short(b)} {_trend(trends[n, b])})"
            for n in names
            if _sign(trends[n, a]) * _sign(trends[n, b]) < 0
        ]
        texts.append(
            f"Settings that trade {short(a)} against {short(b)}: {', '.join(opposed)}."
            if opposed
            else f"No setting has opposite trends in {short(a)} and {short(b)}."
        )
    note = (
        "Shares of the variance that the settings cause, over their whole ranges (Sobol' indices; total: with all "
        "interactions). Trend: change of the straight line through the effect from the low to the high end."
    )
    return [*(Block("p", t) for t in texts), table(columns, rows), Block("p", note)]


def _sign(e: Estimate) -> int:
    """The sign of a trend that its interval carries and that is worth a word; 0 otherwise."""
    if abs(e.value) < TREND or e.low <= 0 <= e.high:
        return 0
    return 1 if e.value > 0 else -1


def _trend(e: Estimate) -> str:
    return f"{e.value:+.2f} ({e.low:+.2f} to {e.high:+.2f})"


def _boundaries(landscape: Landscape) -> list[Block]:
    classes, space = landscape.classes, landscape.space
    if classes.skill.low <= 0:
        return [Block("p", f"The classes cannot be predicted: {_no_classes(landscape)}")]
    share, setting = regions.share_reliable(classes, space), landscape.recommended
    blocks = [
        Block(
            "p",
            f"Trainings converge in nine seeds of ten in {percent(share)} of the space of settings (probability of "
            f"converged at least {regions.RELIABLE:g}).",
        )
    ]
    level, found = landscape.stable_ranges(setting)
    if level is None:
        text = (
            f"Even at the recommended setting the probability of convergence is {setting.probabilities[2]:.2f}: there "
            "is no stable range."
        )
        return [*blocks, Block("p", text)]
    tight = [s for s in found if not s.whole]
    listed = "; ".join(f"{short(s.name)} holds from {format_setting(s.low)} to {format_setting(s.high)}" for s in tight)
    blocks.append(
        Block(
            "p",
            f"Around the recommended setting, changing one setting at a time keeps the probability of convergence at "
            f"{level:g} or more: "
            + (listed + ("; the others hold over their whole ranges." if len(tight) < len(found) else ".") if tight
               else "every setting holds over its whole range."),
        )
    )  # fmt: skip
    rows = [
        [
            short(s.name),
            f"{format_setting(s.low)} ({format_setting(s.low_interval[0])} to {format_setting(s.low_interval[1])})",
            f"{format_setting(s.high)} ({format_setting(s.high_interval[0])} to {format_setting(s.high_interval[1])})",
            MISSING if s.fails_at is None else format_setting(s.fails_at),
        ]
        for s in found
    ]
    blocks.append(table(["setting", "holds from", "to", "fails at"], rows))
    distance = regions.distance_to_failure(classes, space, setting.place)
    if math.isinf(distance.value):
        text = "No point of the space rather fails than not."
    else:
        text = (
            f"The nearest point that rather fails is {distance.value:.2f} "
            f"({distance.low:.2f} to {distance.high:.2f}) away, every range scaled to length 1."
        )
    return [*blocks, Block("p", text)]


def _settings(landscape: Landscape, defaults: Mapping[str, Any]) -> list[Block]:
    columns = {"recommended": landscape.recommended, "best node": landscape.best_node}
    columns["protocol's defaults"] = landscape.given(defaults)
    if landscape.recommended_blind is not None:
        columns["recommended without ground truth"] = landscape.recommended_blind
    rows = [[short(n), *(format_setting(s.settings[n]) for s in columns.values())] for n in landscape.space.names]
    for metric in landscape.metrics:
        if landscape.surrogate(metric).skill.low > 0:
            rows.append(
                [
                    f"{short(metric)} expected",
                    *(spell(landscape.expected(s.place, metric)) for s in columns.values()),
                ]
            )
    rows.append([f"{short(landscape.metric)} around it", *(spell(s.around) for s in columns.values())])
    if landscape.classes.skill.low > 0:
        rows.append(["P(converged)", *(f"{s.probabilities[2]:.2f}" for s in columns.values())])
    rows.append(["observed mean (trainings)", *(_observed(s) for s in columns.values())])
    best, own = landscape.best_node, landscape.recommended
    texts = [
        f"Recommended is the setting with the highest lower bound of {short(landscape.metric)}, averaged over a tenth "
        f"of every range to either side: {own.around.low:.2f}, against {best.around.low:.2f} of the best node.",
        f"The best node has {best.observed:.2f} over {plural(best.n, 'seed')}; the map expects "
        f"{spell(best.expected)} of it: the largest of {landscape.n_configurations} means is partly luck."
        if best.observed > best.expected.value
        else f"The best node has {best.observed:.2f} over {plural(best.n, 'seed')}, which the map expects of it "
        f"({spell(best.expected)}).",
    ]
    if outside := columns["protocol's defaults"].outside:
        listed = ", ".join(map(short, outside))
        texts.append(f"The protocol's {listed} lies outside the map, which was evaluated at the nearest value.")
    return [table(["", *columns], rows), *(Block("p", t) for t in texts)]


def _observed(setting: Setting) -> str:
    return MISSING if not setting.n else f"{setting.observed:.3f} ({setting.n})"


def _blind(landscape: Landscape) -> list[str]:
    if "test_R2" not in landscape.metrics:
        return []
    if landscape.blind_cost is None:
        skill = landscape.surrogate("test_R2").skill
        return [
            f"Without the ground truth no setting can be recommended: test R² has no skill on held-out configurations "
            f"(R2 {spell(skill)})."
        ]
    return [
        f"Choosing by test R² alone, as a real recording would allow, costs {spell(landscape.blind_cost)} of "
        f"{short(landscape.metric)}."
    ]


# --- several conditions ---


def comparison_blocks(landscapes: Mapping[str, Landscape], folder: Path) -> list[Block]:
    """Conditions side by side."""
    good = {name: one for name, one in landscapes.items() if not one.problem}
    defaults = Training().model_dump()
    rows = []
    for name, one in landscapes.items():
        if one.problem:
            rows.append([name, str(len(one.trainings)), *[MISSING] * 6, one.problem])
            continue
        classes = one.classes.skill.low > 0
        given = one.given({**one.space.constant, **defaults})
        rows.append(
            [
                name,
                str(len(one.trainings)),
                spell(one.surrogate().skill),
                percent(one.seed_noise().share),
                f"{one.classes.rates[2]:.0%}",
                percent(regions.share_reliable(one.classes, one.space)) if classes else MISSING,
                spell(one.recommended.expected),
                spell(given.expected) + (f", P {given.probabilities[2]:.2f}" if classes else ""),
                ", ".join(short(n) for n in one.importance().ranked() if one.importance().total[n].low > MATTERS),
            ]
        )
    columns = [
        *("condition", "trainings", "skill", "seed's share", "converged", "space that converges in 9 of 10"),
        *("expected at the recommended", "expected at the defaults", "what matters"),
    ]
    blocks = [table(columns, rows)]
    if good:
        metrics = [m for m in SHOWN if any(m in one.metrics for one in good.values())]
        path = figures.conditions_figure(folder / "figures/conditions_importance.png", good, metrics)
        blocks.append(Block("figure", "Importance of each setting in each condition.", path=f"figures/{path.name}"))
        drawn = {name: one for name, one in good.items() if one.classes.skill.low > 0}
        if drawn:
            path = figures.probability_figure(folder / "figures/conditions_converged.png", drawn)
            caption = "Probability of convergence along each setting, the others averaged over their ranges."
            blocks.append(Block("figure", caption, path=f"figures/{path.name}"))
    return blocks


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
            rest = ", ".join(str(values[0][n]) for n in names if n != name)
            n_pairs, gains = _paired(a, b, ranges, metrics)
            if n_pairs > 1:
                change = f"{values[0][name]} → {values[1][name]}"
                rows.append([name.replace("_", " "), change, rest, str(n_pairs), *map(_trend, gains)])
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
        values = np.stack([*(part.values(m) for m in metrics), part.values("connectivity_R2") > 0.9], 1)
        keys: dict[tuple, list[int]] = {}
        for k in range(len(part)):
            keys.setdefault(tuple(part.settings[n][k] for n in ranges), []).append(k)
        return {key: values[rows].mean(0) for key, rows in keys.items()}

    first, second = means(a), means(b)
    gains = np.array([second[key] - first[key] for key in first if key in second])
    if not len(gains):
        return 0, []
    draws = gains[resampled(len(gains), np.random.default_rng(0))].mean(1)
    return len(gains), [Estimate.of(gains[:, k].mean(), draws[:, k]) for k in range(gains.shape[1])]


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
        blocks += [Block("h2", name[:1].upper() + name[1:]), *condition_blocks(one, folder, f"map_{k}")]
    return blocks


def write_page(
    folder: str | Path,
    title: str,
    landscapes: Mapping[str, Landscape],
    trainings: Trainings,
    ranges: Mapping[str, Range],
) -> list[Path]:
    """Write landscape.md, landscape.html, figures/ and trainings.csv.gz, and return their paths.

    **Arguments:**

    - `landscapes`: by the description of their condition.
    - `trainings`: all of them.
    - `ranges`: the axes of the maps.

    **Raises:** `UserError` where a file cannot be written.
    """
    folder = Path(folder)
    paths = [folder / name for name in ("landscape.md", "landscape.html", TABLE)]
    try:
        trainings.write(paths[2])
        blocks = page_blocks(landscapes, trainings, ranges, folder)
        write_atomic(paths[0], markdown(title, blocks))
        css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
        write_atomic(paths[1], PAGE.format(title=escape(title), css=css, body=html(blocks, folder)))
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
