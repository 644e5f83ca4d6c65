"""Effects of one setting and of two: averages of a surrogate over all other settings (partial dependence)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from flyjax.landscape.space import Space
from flyjax.landscape.surrogate import EDGES

#: Members' values at points of the unit cube.
Evaluate = Callable[[Float[np.ndarray, "n d"]], Float[np.ndarray, "members n"]]


@dataclass(frozen=True)
class Curve:
    """The average over the other settings along one axis, with its 90 % band.

    **Attributes:**

    - `places`: on the axis, 0 to 1.
    """

    name: str
    places: Float[np.ndarray, " n"]
    mean: Float[np.ndarray, " n"]
    low: Float[np.ndarray, " n"]
    high: Float[np.ndarray, " n"]


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
    draws = _average(evaluate, space, {name: places}, n_points)
    low, high = np.quantile(draws, EDGES, axis=0)
    return Curve(name, places, draws.mean(0), low, high)


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
