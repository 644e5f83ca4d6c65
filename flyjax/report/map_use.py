"""What a search did with its map: what the map had predicted of the candidates it trained next, and what came out.

Everything is rebuilt from the journal. The map of an iteration is the one that its proposer could see: of the nodes
that were trained before, in the simulation in which the candidates were trained.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from scipy.stats import binomtest

from flyjax.landscape import CLASSES, Estimate, Landscape
from flyjax.landscape.classes import classify
from flyjax.landscape.landscape import REACH, Z
from flyjax.landscape.surrogate import LEVEL
from flyjax.report.figures.landscape import short
from flyjax.report.landscape_text import Block, html, percent, table
from flyjax.search.journal.state import Node, State, objective_metric
from flyjax.search.policy.run_map import information, skilled_map
from flyjax.utils.format import MISSING, plural
from flyjax.utils.metric_names import limits

REGIONS = ("recommended", "stable range", "uncertain", "elsewhere")
UNCERTAIN = 0.1  # of the space: where a training would tell most
N_POINTS = 256
N_MAPS = 12  # iterations that are looked at: each has a map of its own
#: Rows of the protocol whose mutation the rules choose by the map where it has skill.
INFORMED = ("failure-probe", "explore", "force-branch")
_NAMED = re.compile(r"\b(map|uncertain|stable range|recommended)\b", re.IGNORECASE)
N_SHOWN = 40  # candidates that are listed, the newest


@dataclass(frozen=True)
class Foreseen:
    """A candidate and what the map had said of it before it was trained.

    **Attributes:**

    - `region`: where it lies on that map: "recommended" (within a tenth of every range of the recommended setting),
      "stable range" (every setting within its stable range), "uncertain" (of the tenth of the space of which a
      training would tell most), or "elsewhere".
    - `probabilities`: of `CLASSES`; None where the map did not predict them.
    - `rates`, `n_before`: the shares of the classes among the trainings before, and their number.
    - `expected`, `low`, `high`: of the node's mean over its seeds, with a 90 % interval.
    - `found`: what came out.
    """

    node: int
    region: str
    probabilities: tuple[float, ...] | None
    rates: tuple[float, ...]
    n_before: int
    expected: float
    low: float
    high: float
    found: float

    @property
    def label(self) -> int:
        """The class that came out, an index of `CLASSES`."""
        return int(classify(np.array([self.found]))[0])


#: What was found before: in a run that goes on, what was predicted of earlier candidates does not change.
_FOUND: dict[bytes, list[Foreseen]] = {}


def foreseen(state: State) -> list[Foreseen]:
    """What the maps of a search had said of its candidates, by node, in its newest `N_MAPS` iterations.

    Repetitions of a trained configuration tell nothing of the map and are left out. Empty while no map has skill.
    """
    out: list[Foreseen] = []
    for number in sorted(state.iterations)[-N_MAPS:]:
        known = {i: node for i, node in state.nodes.items() if node.iteration < number}
        configs = [node.config for node in known.values()]
        nodes = [state.nodes[i] for i in state.iterations[number].nodes if state.nodes[i].reward is not None]
        if nodes := [node for node in nodes if node.config not in configs]:
            before = replace(state, nodes=known)
            key = hashlib.sha256(pickle.dumps((state.experiment, known, nodes))).digest()
            if key not in _FOUND:
                found = skilled_map(before, state.iterations[number].block)
                within = limits(objective_metric(state.objective))
                _FOUND[key] = [] if found is None else _predicted(found, nodes, within)
            out += _FOUND[key]
    return out


def _predicted(found: Landscape, nodes: Sequence[Node], within: tuple[float, float]) -> list[Foreseen]:
    configs = [{**found.space.constant, **node.config} for node in nodes]
    expected = found.predict(configs)
    noise = np.nan_to_num(found.seed_noise().at(expected.mean))
    half = Z * np.sqrt(expected.deviation**2 + noise**2 / [max(1, len(node.values)) for node in nodes])
    low, high = np.clip([expected.mean - half, expected.mean + half], *within)
    certain = found.classes.skill.low > 0
    probabilities = found.class_probabilities(configs)
    return [
        Foreseen(
            node.id,
            region,
            tuple(p.tolist()) if certain else None,
            tuple(found.classes.rates.tolist()),
            len(found.trainings),
            float(mean),
            float(a),
            float(b),
            float(node.reward or 0.0),
        )
        for node, region, p, mean, a, b in zip(
            nodes, _regions(found, configs), probabilities, expected.mean, low, high, strict=True
        )
    ]


def _regions(found: Landscape, configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where configurations lie on a map, see `Foreseen`."""
    best, places = found.recommended, found.space.places(configs)
    near = (np.abs(places - best.place) <= REACH).all(1)
    stable = np.zeros(len(places), bool)
    if ranges := found.stable_ranges(best)[1]:
        low, high = (found.space.places([{s.name: getattr(s, end) for s in ranges}])[0] for end in ("low", "high"))
        stable = ((places >= low) & (places <= high)).all(1)
    anywhere = found.space.settings(found.space.sample(N_POINTS))
    tells_most = information(found, configs) >= np.quantile(information(found, anywhere), 1 - UNCERTAIN)
    names = np.select([near, stable, tells_most], REGIONS[:-1], REGIONS[-1])
    return names.tolist()


def use_blocks(state: State) -> list[Block]:
    """The account: a summary, a calibration line, and the newest candidates with what had been predicted of them."""
    rows, metric = foreseen(state), short(objective_metric(state.objective))
    if not rows:
        text = "No candidate was trained while the map of the search had skill, so that it predicted none of them."
        return [Block("p", text)]
    reasons = [_reason(state.nodes[row.node]) for row in rows]
    regions = ", ".join(f"{n} {name}" for name in REGIONS if (n := sum(r.region == name for r in rows)))
    text = (
        f"The map had skill when {plural(len(rows), 'new candidate')} of {len(state.nodes)} nodes were proposed. "
        f"{reasons.count(CHOSEN)} were chosen by it, the hypotheses of {reasons.count(NAMED)} others name it. Where "
        f"they lie on it: {regions}. Recommended: within a tenth of every range of the setting that it recommended; "
        "stable range: every setting within its stable range; uncertain: in the tenth of the space where a training "
        "would tell most."
    )
    note = (
        f"Predicted before the training, from the nodes until then: probabilities of {', '.join(CLASSES)}, and the "
        f"mean over the node's seeds with its {LEVEL:.0%} interval."
    )
    columns = (
        *("iteration", "node", "strategy", "by", "because of the map", "on the map"),
        *("P failed", "partial", "converged", f"{metric} predicted", "found", "class"),
    )
    cells = [_cells(row, state.nodes[row.node]) for row in rows[-N_SHOWN:]]
    return [
        Block("p", text),
        Block("p", _calibration(rows)),
        table(columns, cells),
        Block("p", note),
    ]


def report_section(state: State) -> Markup:
    """The account for the report of a run."""
    return html(use_blocks(state), Path())


CHOSEN, NAMED = "chosen", "named"


def _reason(node: Node) -> str:
    """Whether the map chose a candidate, as far as the journal tells, or its hypothesis names the map."""
    if node.by == "map" or (node.by == "rules" and node.strategy in INFORMED):
        return CHOSEN
    return NAMED if _NAMED.search(node.hypothesis) else ""


def _cells(row: Foreseen, node: Node) -> list[str]:
    chances = [MISSING] * 3 if row.probabilities is None else [f"{p:.2f}" for p in row.probabilities]
    missed = "" if row.low <= row.found <= row.high else " (outside)"
    expected = f"{row.expected:.2f} ({row.low:.2f} to {row.high:.2f})"
    return [
        *(str(node.iteration), str(row.node), node.strategy, node.by or MISSING, _reason(node) or MISSING, row.region),
        *(*chances, expected, f"{row.found:.2f}{missed}", node.classification),
    ]


def _calibration(rows: Sequence[Foreseen]) -> str:
    """How well the predictions held, in a line."""
    inside, n = sum(row.low <= row.found <= row.high for row in rows), len(rows)
    ends = binomtest(inside, n).proportion_ci(LEVEL, "wilson")
    bias = np.mean([row.found - row.expected for row in rows])
    text = (
        f"Calibration: {percent(Estimate(inside / n, ends.low, ends.high))} of the {LEVEL:.0%} intervals held "
        f"({inside} of {n}); results were {bias:+.3f} from what was expected, on average."
    )
    certain = [row for row in rows if row.probabilities is not None]
    if not certain:
        return f"{text} The classes were not predicted."
    loss = np.mean([-np.log(row.probabilities[row.label]) for row in certain])  # type: ignore[index]
    # Half a training more of each class: one that was not seen before is not impossible.
    base = np.mean([-np.log((row.rates[row.label] * row.n_before + 0.5) / (row.n_before + 1.5)) for row in certain])
    return (
        f"{text} Log loss of the class probabilities of {plural(len(certain), 'node')} {loss:.2f}, of the rates of the "
        f"nodes before them {base:.2f}."
    )
