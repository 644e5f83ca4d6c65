"""The map of one condition in plain words: numbers with their intervals, tables and figures.

A page is a list of blocks, which become Markdown and HTML. No sentence claims what its interval does not carry.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup, escape
from scipy.stats import binomtest

from flyjax.config import Training
from flyjax.landscape import CLASSES, Estimate, Landscape, Setting, regions
from flyjax.landscape.classes import classify
from flyjax.landscape.surrogate import LEVEL
from flyjax.report.figures import landscape as figures
from flyjax.report.figures.landscape import short
from flyjax.report.tables import format_setting
from flyjax.utils.format import MISSING, markdown_table, plural
from flyjax.utils.metric_names import CONVERGED

#: A setting matters where the interval of its share is above the first, hardly matters where it is below the second.
MATTERS, HARDLY = 0.02, 0.10
SHOWN = ("connectivity_R2", "V_rest_R2")  # in figures, where the trainings have them
#: What the recommended setting is compared with: changes of the protocol's defaults. The recipe is that of the first
#: publication with this learner (experiments/recovery_learner.yaml has it as its last row).
COMPARED: dict[str, dict[str, float]] = {
    "protocol's defaults": {},
    "published recipe": {
        "learning_rate_W_start": 9e-4,
        "learning_rate_start": 1.8e-3,
        "learning_rate_embedding_start": 2.3e-3,
        "coeff_W_L1": 1.5e-4,
        "coeff_edge_diff": 750.0,
        "coeff_edge_norm": 0.9,
    },
}
DEFAULTS = Training().model_dump()
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
    """A heading, a paragraph, a table, a figure, or a part of a page that opens on request."""

    kind: str  # h2 | h3 | p | table | figure | details
    text: str = ""  # of a figure: its caption; of details: the line that opens them
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    path: str = ""  # of a figure, relative to the page
    blocks: tuple[Block, ...] = ()  # of details


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Block:
    return Block("table", columns=tuple(columns), rows=tuple(map(tuple, rows)))


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """A page as Markdown."""
    return f"# {title}\n\n{_markdown(blocks)}\n"


def _markdown(blocks: Sequence[Block]) -> str:
    parts = []
    for block in blocks:
        if block.kind == "table":
            parts.append(markdown_table(block.columns, block.rows).rstrip())
        elif block.kind == "figure":
            parts.append(f"![{block.text}]({block.path})\n\n*{block.text}*")
        elif block.kind == "details":
            summary = f"<details><summary>{escape(block.text)}</summary>"
            parts += [summary, _markdown(block.blocks), "</details>"]
        else:
            parts.append({"h2": "## ", "h3": "### ", "p": ""}[block.kind] + block.text)
    return "\n\n".join(parts)


def html(blocks: Sequence[Block], folder: Path) -> Markup:
    """Blocks as HTML with embedded figures, which lie in `folder`."""
    parts = []
    for block in blocks:
        if block.kind == "table":
            head = "".join(f"<th>{escape(c)}</th>" for c in block.columns)
            body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in block.rows)
            parts.append(
                f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
            )
        elif block.kind == "figure":
            data = base64.b64encode((folder / block.path).read_bytes()).decode()
            image = f'<div class="plate"><img src="data:image/png;base64,{data}" alt="{escape(block.text)}"></div>'
            parts.append(f"<figure>{image}<figcaption>{escape(block.text)}</figcaption></figure>")
        elif block.kind == "details":
            summary = f"<summary>{escape(block.text)}</summary>"
            parts.append(f"<details>{summary}\n{html(block.blocks, folder)}</details>")
        else:
            parts.append(f"<{block.kind}>{escape(block.text)}</{block.kind}>")
    return Markup("\n".join(parts))


def _cell(text: str) -> str:
    """A cell, in which no number breaks at the sign of its exponent."""
    return f"<td{'' if ' ' in text else ' class=nw'}>{escape(text)}</td>"


def chance_text(level: float) -> str:
    """The probability to exceed a level, as a heading."""
    return f"P({short('connectivity_R2')} > {level:g})"


def spell(e: Estimate, digits: int = 2) -> str:
    """A number with its interval: 0.62 (0.55 to 0.68)."""
    if math.isnan(e.value):
        return MISSING
    return f"{e.value:.{digits}f} ({e.low:.{digits}f} to {e.high:.{digits}f})"


def percent(e: Estimate) -> str:
    return MISSING if math.isnan(e.value) else f"{e.value:.0%} ({e.low:.0%} to {e.high:.0%})"


# --- one condition ---


def condition_blocks(landscape: Landscape, folder: Path, name: str = "landscape") -> list[Block]:
    """The map of one condition.

    **Arguments:**

    - `folder`: where the figures are written, in figures/.
    - `name`: begins the names of the figures.
    """
    blocks = [Block("p", _counts(landscape))]
    if landscape.problem:
        return [*blocks, Block("p", f"No map: {landscape.problem}.")]
    metrics = skilled_metrics(landscape)
    blocks += [Block("p", text) for text in (_skill(landscape), _seeds(landscape))]
    blocks += [_metrics_table(landscape), Block("h3", "Which settings matter"), *_importance(landscape, metrics)]
    figure = figures.overview_figure(folder / f"figures/{name}_overview.png", landscape, metrics, DEFAULTS)
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
    blocks += [Block("h3", "Recommended setting"), *_settings(landscape)]
    blocks += [Block("p", text) for text in _blind(landscape)]
    return blocks


def _counts(landscape: Landscape) -> str:
    trainings = landscape.trainings
    text = f"{plural(len(trainings), 'training')} of {plural(landscape.n_configurations, 'configuration')}"
    if trainings.diverged:
        text += f"; {trainings.diverged} diverged and count as 0"
    reached = trainings.values("connectivity_R2") > CONVERGED
    always = np.bincount(landscape.groups, reached) == np.bincount(landscape.groups)
    rates = ", ".join(f"{percent(class_rate(landscape, k))} {CLASSES[k]}" for k in (2, 1, 0))
    return f"{text}; {rates}. {plural(int(always.sum()), 'configuration')} converged with every seed."


def class_rate(landscape: Landscape, label: int) -> Estimate:
    """The share of trainings of a class (Wilson interval; a configuration counts as one, whatever its seeds)."""
    share = float(np.mean(classify(landscape.trainings.values("connectivity_R2")) == label))
    n = landscape.n_configurations
    interval = binomtest(round(share * n), n).proportion_ci(LEVEL, "wilson")
    return Estimate(share, min(share, interval.low), max(share, interval.high))


def _skill(landscape: Landscape) -> str:
    own, classes = landscape.surrogate(), landscape.classes
    text = (
        f"Skill on configurations that the map was not fitted on: R2 {spell(own.skill)} for {short(landscape.metric)} "
        f"({own.kind}; the noise of the seeds would limit a perfect one to {own.attainable:.2f})."
    )
    if classes.skill.low > 0:
        return (
            f"{text} The class probabilities have a log loss of {classes.score.log_loss:.2f} per held-out training, "
            f"{percent(classes.skill)} below that of the base rates ({classes.score.base_log_loss:.2f}); Brier score "
            f"{classes.score.brier:.2f}."
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
    names = landscape.importance().ranked()
    columns, rows = ["setting"], [[short(n)] for n in names]
    for metric in metrics:
        columns += [f"{short(metric)}: total", "alone", "trend"]
        for row, n in zip(rows, names, strict=True):
            trend = landscape.curve(n, metric).rise
            row += [spell(found[metric].total[n]), spell(found[metric].first[n]), trend_text(trend)]
    texts = []
    for metric, one in found.items():
        matters, hardly, open_ = decided_settings(landscape, metric)
        groups = {
            "depends on": matters,
            f"shows no effect above {HARDLY:.0%} of what the map explains of": hardly,
            "may or may not depend on": open_,
        }
        stated = "; ".join(f"{verb} {', '.join(map(short, g))}" for verb, g in groups.items() if g)
        texts.append(f"{short(metric)} {stated}.")
        real = [f"{short(a)} and {short(b)} {spell(e)}" for (a, b), e in one.pairs.items() if e.low > MATTERS]
        texts.append(
            f"Interactions of pairs: {', '.join(real)}." if real else "No interaction of a pair is established."
        )
    if len(metrics) > 1:
        opposed, between = traded_settings(landscape), " against ".join(map(short, metrics[:2]))
        texts.append(
            f"Settings that trade {between}: {', '.join(opposed)}."
            if opposed
            else f"No setting is established to trade {between}."
        )
    note = (
        "Shares of the variance that the settings cause, over their whole ranges (Sobol' indices; total: with all "
        "interactions). Trend: change of the straight line through the effect from the low to the high end."
    )
    return [*(Block("p", t) for t in texts), table(columns, rows), Block("p", note)]


def decided_settings(landscape: Landscape, metric: str) -> tuple[list[str], list[str], list[str]]:
    """The settings that a metric depends on, that it hardly depends on, and those that are not decided."""
    total = landscape.importance(metric).total
    names = landscape.importance(metric).ranked()
    matters = [n for n in names if total[n].low > MATTERS]
    hardly = [n for n in names if total[n].low <= MATTERS and total[n].high < HARDLY]
    return matters, hardly, [n for n in names if total[n].low <= MATTERS and total[n].high >= HARDLY]


def traded_settings(landscape: Landscape) -> list[str]:
    """The settings with opposite trends in W and V_rest, as far as their intervals carry it."""
    out = []
    for n in landscape.importance().ranked():
        a, b = (landscape.curve(n, metric).rise for metric in SHOWN)
        if _sign(a) * _sign(b) < 0:
            out.append(f"{short(n)} ({short(SHOWN[0])} {trend_text(a)}, {short(SHOWN[1])} {trend_text(b)})")
    return out


def skilled_metrics(landscape: Landscape) -> list[str]:
    """The metrics of `SHOWN`, and the map's own, that the map predicts."""
    return [
        m
        for m in dict.fromkeys((*SHOWN, landscape.metric))
        if m in landscape.metrics and landscape.surrogate(m).skill.low > 0
    ]


def _sign(e: Estimate) -> int:
    """The sign of a trend that its interval carries and that is worth a word; 0 otherwise."""
    if abs(e.value) < TREND or e.low <= 0 <= e.high:
        return 0
    return 1 if e.value > 0 else -1


def trend_text(e: Estimate) -> str:
    return MISSING if math.isnan(e.value) else f"{e.value:+.2f} ({e.low:+.2f} to {e.high:+.2f})"


def _boundaries(landscape: Landscape) -> list[Block]:
    classes, space, above = landscape.classes, landscape.space, landscape.above
    blocks = []
    if not landscape.tells_where:
        rate = f"{percent(class_rate(landscape, 2))} of the trainings converged (above {CONVERGED:g})"
        blocks.append(Block("p", f"{rate}, too few to tell where: no boundary of convergence is stated."))
    if above is None:
        return [*blocks, Block("p", "Nor is it known where trainings exceed a lower level.")]
    share, setting, w = regions.share_reliable(above, space), landscape.recommended, short("connectivity_R2")
    below = "" if landscape.tells_where else (
        f"The highest level for which it is known is {above.level:g}, which {above.rate:.0%} of the trainings exceed "
        f"(skill {spell(above.skill)}). "
    )  # fmt: skip
    text = f"{w} exceeds {above.level:g} in nine seeds of ten in {percent(share)} of the space of settings."
    blocks.append(Block("p", below + text))
    level, found = landscape.stable_ranges(setting)
    if level is None:
        highest = spell(landscape.reaches(setting.place, above.level))
        text = f"Even at the recommended setting the probability of it is {highest}: there is no stable range."
        return [*blocks, Block("p", text)]
    tight = [s for s in found if not s.whole]
    listed = "; ".join(f"{short(s.name)} holds from {format_setting(s.low)} to {format_setting(s.high)}" for s in tight)
    blocks.append(
        Block(
            "p",
            f"Around the recommended setting, changing one setting at a time keeps the probability of a {w} above "
            f"{above.level:g} at {level:g} or more: "
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


def _settings(landscape: Landscape) -> list[Block]:
    compared = {name: landscape.given({**DEFAULTS, **changes}) for name, changes in COMPARED.items()}
    columns = {"recommended": landscape.recommended, "best node": landscape.best_node, **compared}
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
    if (above := landscape.above) is not None:
        chances = (spell(landscape.reaches(s.place, above.level)) for s in columns.values())
        rows.append([chance_text(above.level), *chances])
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
    for name, one in compared.items():
        if one.outside:
            listed = ", ".join(map(short, one.outside))
            texts.append(f"{name[:1].upper() + name[1:]}: {listed} outside the map, shown at the nearest value.")
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
