"""The study as a benchmark: what one training of a configuration would measure, without training it.

for condition, study in benchmark().items():
    print(condition, study.ask(Training().model_dump(), seed=0), study.fidelity)

A training is the surrogate's expected value plus the deviation of a seed. The deviation is that of one real training,
drawn among those of about the same expected connectivity_R2, from their mean, scaled to the variance between the seeds
of a configuration: seeds that either converge or fail do so here too, in all metrics together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import ks_2samp, spearmanr

from flyjax.config import PROTOCOL_RANGES, Range
from flyjax.landscape.landscape import Landscape, fit
from flyjax.landscape.surrogate import FULL, Estimate, Sizes
from flyjax.landscape.trainings import TABLE, Trainings
from flyjax.utils.errors import UserError

METRICS = ("connectivity_R2", "tau_R2", "V_rest_R2", "test_R2")
NEAREST = 32  # trainings from which the deviation of a seed is drawn
N_BEST = 1 << 12  # points among which the best expected value is looked for


@dataclass(frozen=True)
class Fidelity:
    """How well a benchmark stands for real trainings, on configurations that its surrogate was not fitted on.

    **Attributes:**

    - `skill`: R2 of the expected connectivity_R2; 0 is no skill.
    - `attainable`: the R2 of a perfect surrogate, given the noise of the seeds.
    - `rank`: Spearman correlation of one drawn training with a real one of the same configuration.
    - `rank_of_seeds`: the same of two real trainings that differ in their seed: no benchmark ranks better.
    - `distance`: largest difference of the distributions of drawn and of real values (Kolmogorov and Smirnov).
    - `n`: real trainings.
    """

    skill: Estimate
    attainable: float
    rank: float
    rank_of_seeds: float
    distance: float
    n: int


class Benchmark:
    """One condition of a study.

    **Attributes:**

    - `landscape`: the map, with the real trainings.
    """

    def __init__(self, landscape: Landscape):
        self.landscape = landscape
        self._expected: dict[tuple[str, bytes], float] = {}

    @property
    def ranges(self) -> Mapping[str, Range]:
        """The settings that matter; others may be given and change nothing."""
        return self.landscape.space.ranges

    @cached_property
    def _repeated(self) -> tuple[np.ndarray, Float[np.ndarray, "n metrics"], Float[np.ndarray, "n metrics"]]:
        """Of the real trainings whose configuration has several: (expected connectivity_R2, metrics, variance of the
        seeds), in the order of the first."""
        groups = self.landscape.groups
        n = np.bincount(groups)
        values = np.stack([self.landscape.trainings.values(name) for name in METRICS], 1)
        means = np.stack([np.bincount(groups, column) / n for column in values.T], 1)
        variance = (values - means[groups]) ** 2 * (n / np.maximum(n - 1, 1))[groups, None]
        keep = np.flatnonzero(n[groups] > 1)
        expected = self.landscape.surrogate().held_out[groups]
        keep = keep[np.argsort(expected[keep])]
        return expected[keep], values[keep], variance[keep]

    def expected(self, settings: Mapping[str, Any], metrics: Sequence[str] = METRICS) -> dict[str, float]:
        """Metrics of a configuration, seeds averaged. A configuration that was asked before is looked up."""
        place = self.landscape.space.places([settings])
        for name in metrics:
            if (name, place.tobytes()) not in self._expected:
                self._expected[name, place.tobytes()] = float(self.landscape.surrogate(name).predict(place)[0][0])
        return {name: self._expected[name, place.tobytes()] for name in metrics}

    def ask(self, settings: Mapping[str, Any], seed: int = 0, metrics: Sequence[str] = METRICS) -> dict[str, float]:
        """What one training would measure; the same for the same settings and seed.

        **Arguments:** `metrics`: the first of `METRICS` that are asked for; one alone takes a quarter of the time.
        """
        expected = np.array([*self.expected(settings, metrics).values()])
        place = np.frombuffer(self.landscape.space.places([settings]).tobytes(), np.uint32)
        return dict(zip(metrics, self._drawn(expected, np.random.default_rng([seed, *place])).tolist()))

    def _drawn(self, expected: Float[np.ndarray, " metrics"], rng: np.random.Generator) -> np.ndarray:
        known, values, variance = self._repeated
        values, variance = values[:, : len(expected)], variance[:, : len(expected)]
        first = np.clip(np.searchsorted(known, expected[0]) - NEAREST // 2, 0, max(0, len(known) - NEAREST))
        near, seeds = values[first : first + NEAREST], variance[first : first + NEAREST].mean(0)
        # The rest of the variance is what the surrogate does not know of the configurations.
        scale = np.sqrt(np.minimum(1, seeds / np.maximum(near.var(0), 1e-12)))
        return np.clip(expected + scale * (near[rng.integers(len(near))] - near.mean(0)), 0, 1)

    @cached_property
    def best(self) -> float:
        """The highest expected connectivity_R2 of the space, as far as a dense sample finds it."""
        points = np.concatenate([self.landscape.space.sample(N_BEST), self.landscape.x])
        return float(self.landscape.surrogate().predict(points)[0].max())

    @cached_property
    def fidelity(self) -> Fidelity:
        """Measured on held-out configurations."""
        surrogate, groups = self.landscape.surrogate(), self.landscape.groups
        real = self.landscape.trainings.values(METRICS[0])
        held_out, rng = np.stack([self.landscape.surrogate(name).held_out for name in METRICS], 1), np.random
        drawn = np.array([self._drawn(held_out[g], rng.default_rng(k))[0] for k, g in enumerate(groups)])
        order = np.argsort(groups, kind="stable")
        same = np.flatnonzero(np.diff(groups[order]) == 0)
        return Fidelity(
            surrogate.skill,
            surrogate.attainable,
            float(spearmanr(drawn, real).statistic),
            float(spearmanr(real[order[same]], real[order[same + 1]]).statistic),
            float(ks_2samp(drawn, real).statistic),
            len(real),
        )


def benchmark(
    path: str | Path | None = None, ranges: Mapping[str, Range] = PROTOCOL_RANGES, sizes: Sizes = FULL
) -> dict[str, Benchmark]:
    """The benchmark of every condition of a table of trainings that has a map, by its description.

    **Arguments:**

    - `path`: of the table or a run; by default the study of this repository.

    **Raises:** `UserError` where there is no table, or no condition with enough trainings.
    """
    path = Path(__file__).parents[2] / "experiments" / "results" / "landscape" / TABLE if path is None else Path(path)
    if not path.exists():
        raise UserError(f"{path} is missing: an installed package has no study, so give the path of its {TABLE}")
    maps = {name: fit(part, ranges, sizes=sizes) for name, part in Trainings.read([path]).split(ranges).items()}
    out = {name: Benchmark(one) for name, one in maps.items() if not one.problem and len(set(one.groups)) < len(one.x)}
    if not out:
        reasons = "; ".join(f"{name}: {one.problem or 'one seed each'}" for name, one in maps.items())
        raise UserError(f"{path} has no condition to ask: {reasons}")
    return out
