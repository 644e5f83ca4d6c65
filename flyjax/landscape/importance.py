"""Which settings matter: the functional analysis of variance of a surrogate by Sobol' indices.

Settings count as independent and uniform on the scales of their ranges (Sobol' 1993; Saltelli et al. 2010, as
`scipy.stats.sobol_indices` computes them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float
from scipy.stats import qmc, sobol_indices

from flyjax.landscape.space import Space
from flyjax.landscape.surrogate import Estimate, Surrogate

N_PAIRED = 4  # settings whose pairs are looked at: those of the largest total index


@dataclass(frozen=True)
class Importance:
    """Shares of the variance that the settings cause, each with a 90 % interval.

    **Attributes:**

    - `first`: of a setting alone.
    - `total`: of a setting with all its interactions.
    - `pairs`: of the interaction of two settings alone, for the most important ones.
    """

    first: dict[str, Estimate]
    total: dict[str, Estimate]
    pairs: dict[tuple[str, str], Estimate]

    def ranked(self) -> list[str]:
        """The settings by total index, the largest first."""
        return sorted(self.total, key=lambda name: -self.total[name].value)


def importance(surrogate: Surrogate, space: Space, n_points: int = 512, seed: int = 0) -> Importance:
    """Sobol' indices of a surrogate; intervals are those of the members of its ensemble.

    **Arguments:** `n_points`: of the estimate, a power of 2.
    """
    d = len(space.names)
    a, b = np.hsplit(qmc.Sobol(2 * d, rng=seed).random(n_points), 2)
    at_a, at_b = (_outputs(surrogate, space.snap(points)) for points in (a, b))

    def indices(groups: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """(closed, total) indices of groups of settings, for the ensemble and each member."""
        mixed = np.repeat(a[None], len(groups), 0)
        for k, group in enumerate(groups):
            mixed[k][:, group] = b[:, group]
        outputs = _outputs(surrogate, space.snap(mixed.reshape(-1, d))).reshape(len(at_a), len(groups), n_points)
        # A second, constant group: scipy drops the axis of a single one.
        func = {"f_A": at_a, "f_B": at_b, "f_AB": np.concatenate([outputs.swapaxes(0, 1), at_a[None]])}
        found = sobol_indices(func=func, n=n_points)
        closed, total = (getattr(found, k).reshape(len(at_a), -1)[:, :-1] for k in ("first_order", "total_order"))
        return closed, total

    first, total = indices([[k] for k in range(d)])
    top = sorted(np.argsort(-total[0])[:N_PAIRED])
    paired = [list(pair) for pair in combinations(top, 2)]
    pairs = {}
    if paired:
        closed, _ = indices(paired)
        for k, (i, j) in enumerate(paired):
            pairs[space.names[i], space.names[j]] = _estimate(closed[:, k] - first[:, i] - first[:, j])
    return Importance(
        {name: _estimate(first[:, k]) for k, name in enumerate(space.names)},
        {name: _estimate(total[:, k]) for k, name in enumerate(space.names)},
        pairs,
    )


def _outputs(surrogate: Surrogate, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "outputs n"]:
    """The mean of the ensemble, then every member."""
    draws = surrogate.draws(x)
    return np.concatenate([draws.mean(0, keepdims=True), draws])


def _estimate(index: Float[np.ndarray, " outputs"]) -> Estimate:
    """An index lies between 0 and 1; its estimate may leave that by its own error."""
    clipped = np.clip(index, 0, 1)
    return Estimate.of(clipped[0], clipped[1:])
