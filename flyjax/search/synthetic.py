"""Synthetic landscapes on which proposers are compared: random functions over the ranges, adapted to no proposer.

    landscape = make_landscape("valley", seed=3, experiment=experiment)
    landscape.value(config)              # noise-free, 1 at the optimum, None where a training would fail
    run_loop(..., evaluate=landscape.evaluate, ...)

The optimum lies anywhere (uniform on every range's scale), which parameters matter and how they interact is
drawn, and all families are equally hard to hit: half of all configurations reach less than `TYPICAL`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from flyjax.config import Experiment, Range
from flyjax.config.ranges import sample, unit
from flyjax.search.iteration import IterationPlan, root_config

#: What each family tries a proposer with.
FAMILIES = {
    "bowl": "one smooth optimum; some parameters matter much, some not at all",
    "valley": "a narrow ridge across the axes: parameters have to move together",
    "hills": "five hills, one of them the highest",
    "plateau": "five levels with nothing between them, and nothing far from the optimum",
    "cliff": "a smooth optimum with a third of the space where trainings fail",
}
REAL = "trainings"  # among the names of landscapes: not made up, but real trainings
#: Conditions of the study, answered by its benchmark: those for final numbers, and those to tune a proposer on.
STUDY, STUDY_TUNING = "study", "study-tuning"
TYPICAL = 0.3  # median value over the space (before levels and cliffs)
EASY = 0.7  # a root above this leaves too little to find: the landscape is drawn again
NOISE = 0.02  # std of a training's result over seeds
LEVELS = 5
FAILING = 1 / 3  # share of the space beyond the cliff

Places = np.ndarray  # (n, d) unit places
Surface = Callable[[Places], np.ndarray]  # (n, d) -> (n,); nan where a training fails


@dataclass(frozen=True)
class Landscape:
    """One drawn function of a configuration."""

    family: str
    seed: int
    ranges: dict[str, Range]
    surface: Surface

    def value(self, config: dict[str, Any]) -> float | None:
        """The noise-free value, 0 to 1; None where a training fails."""
        place = np.array([[unit(span, config[name]) for name, span in self.ranges.items()]])
        value = float(self.surface(place)[0])
        return None if math.isnan(value) else value

    def observe(self, config: dict[str, Any], seed: int) -> float | None:
        """What one training with this seed would measure."""
        value = self.value(config)
        return (
            None if value is None else min(1.0, max(0.0, value + NOISE * np.random.default_rng(seed).standard_normal()))
        )

    def evaluate(self, plan: IterationPlan) -> dict[int, dict[str, Any]]:
        """The nodes of a plan, as `run_loop` wants them."""
        return evaluate_plan(self.observe, plan)


def evaluate_plan(
    observe: Callable[[dict[str, Any], int], float | None], plan: IterationPlan
) -> dict[int, dict[str, Any]]:
    """The nodes of a plan, as `run_loop` wants them, by what `observe` gives for a configuration and a seed."""
    out: dict[int, dict[str, Any]] = {}
    for node in plan.nodes:
        observed = [observe(node.config, seed) for seed in node.seeds]
        values = [v for v in observed if v is not None]
        if len(values) < len(observed):
            out[node.id] = {"metrics": None, "reason": "beyond the cliff"}
        else:
            per_seed = [{"connectivity_R2": v} for v in values]
            out[node.id] = {"metrics": {"connectivity_R2": sum(values) / len(values)}, "per_seed": per_seed}
    return out


def make_landscape(family: str, seed: int, experiment: Experiment) -> Landscape:
    """A landscape over the experiment's ranges on which its root is no good yet."""
    ranges = experiment.search.ranges
    rng = np.random.default_rng([list(FAMILIES).index(family), seed])
    typical = _places(ranges, rng, 500)
    while True:
        optimum = _places(ranges, rng, 1)[0]
        landscape = Landscape(family, seed, ranges, _FAMILY[family](optimum, typical, rng))
        root = landscape.value(root_config(experiment))
        if root is not None and root < EASY:
            return landscape


def _places(ranges: dict[str, Range], rng, n: int) -> Places:
    """(n, d) places that configurations can have: counts and choices only take theirs."""
    return np.array([[unit(span, sample(span, rng)) for span in ranges.values()] for _ in range(n)])


def _weights(rng, d: int) -> np.ndarray:
    """How much each parameter matters: log-normal, about a third not at all."""
    weights = np.exp(rng.standard_normal(d)) * (rng.random(d) > 1 / 3)
    weights[rng.integers(d)] += 1.0  # one of them does matter
    return weights


def _peak(distance: Surface, typical: Places) -> Surface:
    """exp(-s distance), s such that half of the `typical` places are below TYPICAL."""
    scale = -math.log(TYPICAL) / float(np.median(distance(typical)))
    return lambda x: np.exp(-scale * distance(x))


def _bowl(optimum, typical, rng) -> Surface:
    weights = _weights(rng, len(optimum))
    return _peak(lambda x: (weights * (x - optimum) ** 2).sum(axis=1), typical)


def _valley(optimum, typical, rng) -> Surface:
    d = len(optimum)
    axes, _ = np.linalg.qr(rng.standard_normal((d, d)))
    steep = np.geomspace(1.0, 100.0, d)
    return _peak(lambda x: (steep * ((x - optimum) @ axes) ** 2).sum(axis=1), typical)


def _hills(optimum, typical, rng) -> Surface:
    d = len(optimum)
    tops = [optimum, *rng.random((4, d))]
    heights = [1.0, *rng.uniform(0.5, 0.85, 4)]

    def hill(top: np.ndarray) -> Surface:
        weights = _weights(rng, d)
        return _peak(lambda x: (weights * (x - top) ** 2).sum(axis=1), typical)

    hills = [(height, hill(top)) for height, top in zip(heights, tops, strict=True)]
    # Narrower hills (a power), so that the highest of five is no more often reached than a single one.
    return lambda x: np.max([height * peak(x) ** 2 for height, peak in hills], axis=0)


def _plateau(optimum, typical, rng) -> Surface:
    bowl = _bowl(optimum, typical, rng)
    return lambda x: np.round(LEVELS * np.clip((bowl(x) - TYPICAL) / (1 - TYPICAL), 0, 1)) / LEVELS


def _cliff(optimum, typical, rng) -> Surface:
    bowl = _bowl(optimum, typical, rng)
    while True:
        across = rng.standard_normal(len(optimum))
        edge = float(np.quantile(typical @ across, 1 - FAILING))
        if optimum @ across < edge:
            return lambda x: np.where(x @ across < edge, bowl(x), np.nan)


_FAMILY = {"bowl": _bowl, "valley": _valley, "hills": _hills, "plateau": _plateau, "cliff": _cliff}
