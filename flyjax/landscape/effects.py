"""Effects of one setting and of two: averages of a surrogate over all other settings (partial dependence)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from flyjax.landscape.space import Space
from flyjax.landscape.surrogate import EDGES, Estimate

#: Members' values at points of the unit cube.
Evaluate = Callable[[Float[np.ndarray, "n d"]], Float[np.ndarray, "members n"]]


@dataclass(frozen=True)
class Curve:
    """The average over the other settings along one axis, by every member of the ensemble.

    **Attributes:**

    - `places`: on the axis, 0 to 1.
    """

    name: str
    places: Float[np.ndarray, " n"]
    draws: Float[np.ndarray, "members n"]

    @property
    def mean(self) -> Float[np.ndarray, " n"]:
        return self.draws.mean(0)

    @property
    def band(self) -> Float[np.ndarray, "2 n"]:
        """The 90 % band."""
        return np.quantile(self.draws, EDGES, axis=0)

    @property
    def rise(self) -> Estimate:
        """What the straight line through the curve gains from the low to the high end of the range."""
        slopes = np.polyfit(self.places, self.draws.T, 1)[0]
        return Estimate.of(slopes.mean(), slopes)


@dataclass(frozen=True)
class Surface:
    """The average over the other settings on two axes."""

    names: tuple[str, str]
    places: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]]
    mean: Float[np.ndarray, "n m"]


def curve(evaluate: Evaluate, space: Space, name: str, n_places: int = 17, n_points: int = 64) -> Curve:
    """The effect of one setting.

    **Arguments:** `n_points`: of the other settings, over which the average is taken; a power of 2.
    """
    places = space.grid(name, n_places)
    return Curve(name, places, _average(evaluate, space, {name: places}, n_points))


def surface(
    evaluate: Evaluate, space: Space, names: tuple[str, str], n_places: int = 15, n_points: int = 32
) -> Surface:
    """The effect of two settings together."""
    first, second = (space.grid(name, n_places) for name in names)
    one, other = (m.ravel() for m in np.meshgrid(first, second, indexing="ij"))
    draws = _average(evaluate, space, {names[0]: one, names[1]: other}, n_points)
    return Surface(names, (first, second), draws.mean(0).reshape(len(first), len(second)))


def _average(evaluate: Evaluate, space: Space, fixed, n_points: int) -> Float[np.ndarray, "members n"]:
    background = space.sample(n_points)
    n = len(next(iter(fixed.values())))
    x = np.repeat(background[None], n, 0)
    for name, places in fixed.items():
        x[:, :, space.names.index(name)] = places[:, None]
    draws = evaluate(x.reshape(-1, x.shape[-1]))
    return draws.reshape(len(draws), n, n_points).mean(2)
