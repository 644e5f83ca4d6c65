"""How much of a metric is luck: the variance between seeds of one configuration against that between configurations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from flyjax.landscape.surrogate import Estimate, Targets, resampled

N_REGIONS = 4
MIN_FREEDOM = 8  # degrees of freedom of a region's variance


@dataclass(frozen=True)
class SeedNoise:
    """Seed noise of one metric, from configurations that were trained more than once.

    **Attributes:**

    - `share`: of the variance of a single training, the part of the seed (one-way random effects; Searle et al. 1992).
    - `deviation`: standard deviation between the seeds of a configuration, pooled.
    - `edges`, `deviations`: the same in regions, by the value that the surrogate expects: region k lies between
      `edges[k]` and `edges[k + 1]`.
    - `n_repeated`: number of configurations with two seeds or more.
    """

    share: Estimate
    deviation: Estimate
    edges: Float[np.ndarray, " k+1"]
    deviations: tuple[Estimate, ...]
    n_repeated: int

    def at(self, expected: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """The standard deviation of a training around its expected value."""
        if not self.n_repeated:
            return np.zeros(len(expected))
        region = np.clip(np.searchsorted(self.edges, expected, side="right") - 1, 0, len(self.deviations) - 1)
        return np.array([d.value for d in self.deviations])[region]


def targets(
    x: Float[np.ndarray, "trainings d"], values: Float[np.ndarray, " trainings"], groups, bounded: bool
) -> Targets:
    """Means over the seeds of each configuration; `groups` numbers the configuration of every training.

    **Arguments:** `bounded`: whether the values lie between 0 and 1.
    """
    known = np.isfinite(values)
    rows, first, inverse = np.unique(groups[known], return_index=True, return_inverse=True)
    n = np.bincount(inverse, minlength=len(rows))
    y = np.bincount(inverse, values[known], len(rows)) / n
    squares = np.bincount(inverse, (values[known] - y[inverse]) ** 2, len(rows))
    freedom = float(np.sum(n - 1))
    bounds = (0.0, 1.0) if bounded else (-np.inf, np.inf)
    return Targets(x[known][first], y, n, np.full(len(rows), squares.sum() / freedom if freedom else 0.0) / n, bounds)


def seed_noise(values: Float[np.ndarray, " n"], groups: Int[np.ndarray, " n"], expected, seed: int = 0) -> SeedNoise:
    """Measure the seed noise.

    **Arguments:**

    - `values`: of the trainings; NaN where there is none.
    - `groups`: the configuration of every training.
    - `expected`: what the surrogate expects of every configuration, by its number.
    """
    known = np.isfinite(values)
    n = np.bincount(groups[known], minlength=len(expected))
    mean = np.bincount(groups[known], values[known], len(expected)) / np.maximum(n, 1)
    squares = np.bincount(groups[known], (values[known] - mean[groups[known]]) ** 2, len(expected))
    rows = np.flatnonzero(n > 0)
    n, mean, squares, expected = n[rows], mean[rows], squares[rows], np.asarray(expected)[rows]
    draws = resampled(len(rows), np.random.default_rng(seed))

    def share(k) -> float:
        within = _variance(squares, n, k)
        between = max(0.0, float(np.var(mean[k], ddof=1)) - within * float(np.mean(1 / n[k])))
        return within / (within + between) if within + between > 0 else np.nan

    def deviation(part) -> Estimate:
        inside = [k[np.isin(k, part)] for k in draws]
        return Estimate.of(
            np.sqrt(_variance(squares, n, part)), np.array([np.sqrt(_variance(squares, n, k)) for k in inside])
        )

    everything = np.arange(len(rows))
    repeated = n > 1
    if not repeated.any():
        missing = Estimate(np.nan, np.nan, np.nan)
        return SeedNoise(missing, missing, np.array([-np.inf, np.inf]), (missing,), 0)
    n_regions = int(np.clip(np.sum(n - 1) // MIN_FREEDOM, 1, N_REGIONS))
    edges = np.unique(np.quantile(expected[repeated], np.linspace(0, 1, n_regions + 1)))
    edges = edges if len(edges) > 1 else np.array([edges[0], np.inf])
    region = np.clip(np.searchsorted(edges, expected, side="right") - 1, 0, len(edges) - 2)
    parts = [np.flatnonzero(region == k) for k in range(len(edges) - 1)]
    shares = np.array([share(k) for k in draws])
    return SeedNoise(
        Estimate.of(share(everything), shares),
        deviation(everything),
        edges,
        tuple(deviation(part) for part in parts),
        int(repeated.sum()),
    )


def _variance(squares, n, rows) -> float:
    """Pooled variance within configurations."""
    freedom = float(np.sum(n[rows] - 1))
    return float(np.sum(squares[rows])) / freedom if freedom else np.nan
