"""Where trainings converge: the stable range of each setting around a configuration, and how far failure is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from flyjax.config import Range
from flyjax.config.ranges import at
from flyjax.landscape.classes import ClassMap, Exceedance
from flyjax.landscape.space import Space
from flyjax.landscape.surrogate import EDGES, Estimate

RELIABLE = 0.9  # nine seeds of ten
LIKELY = 0.5
N_PLACES = 61
N_POINTS = 2048


@dataclass(frozen=True)
class StableRange:
    """The values of one setting, the others fixed, with which trainings exceed a level of connectivity_R2.

    **Attributes:**

    - `low`, `high`: its ends, in values of the setting; `low_interval` and `high_interval` are their 90 % intervals.
    - `whole`: it is the whole range of the map.
    - `fails_at`: the nearest value with which a training rather fails, None where there is none.
    """

    name: str
    low: Any
    high: Any
    low_interval: tuple[Any, Any]
    high_interval: tuple[Any, Any]
    whole: bool
    fails_at: Any


def reliability_at(above: Exceedance, place: Float[np.ndarray, " d"]) -> float | None:
    """The probability that a stable range keeps: 0.9, else 0.5, None where even that is not reached."""
    probability = above.probability(place[None])[0]
    return next((p for p in (RELIABLE, LIKELY) if probability >= p), None)


def stable_ranges(
    above: Exceedance, space: Space, place: Float[np.ndarray, " d"], reliability: float
) -> list[StableRange]:
    """Ranges within which the probability to exceed a level stays at least `reliability`, one axis at a time."""
    out = []
    for k, (name, span) in enumerate(space.ranges.items()):
        places = np.union1d(space.grid(name, N_PLACES), place[k])
        x = np.repeat(place[None], len(places), 0)
        x[:, k] = places
        home = int(np.searchsorted(places, place[k]))
        draws = above.draws(x)
        low, high = _around(draws.mean(0) >= reliability, home)
        members = np.array([_around(one >= reliability, home) for one in draws])
        failing = np.flatnonzero(above.classes.probabilities(x)[:, 0] >= LIKELY)
        nearest = min(failing, key=lambda i: abs(places[i] - place[k]), default=None)
        out.append(
            StableRange(
                name,
                at(span, places[low]),
                at(span, places[high]),
                _interval(span, places[members[:, 0]]),
                _interval(span, places[members[:, 1]]),
                low == 0 and high == len(places) - 1,
                None if nearest is None else at(span, places[nearest]),
            )
        )
    return out


def _around(holds, home: int) -> tuple[int, int]:
    """First and last index of the run of True around `home`; `home` itself where it is False."""
    low = high = home
    while holds[home] and low > 0 and holds[low - 1]:
        low -= 1
    while holds[home] and high < len(holds) - 1 and holds[high + 1]:
        high += 1
    return low, high


def _interval(span: Range, places: Float[np.ndarray, " members"]) -> tuple[Any, Any]:
    low, high = np.quantile(places, EDGES)
    return at(span, low), at(span, high)


def share_reliable(above: Exceedance, space: Space) -> Estimate:
    """The share of the space in which nine seeds of ten or more exceed a level."""
    draws = above.draws(space.sample(N_POINTS))
    return Estimate.of(float(np.mean(draws.mean(0) >= RELIABLE)), (draws >= RELIABLE).mean(1))


def distance_to_failure(classes: ClassMap, space: Space, place: Float[np.ndarray, " d"]) -> Estimate:
    """The distance to the nearest point at which a training rather fails, every range scaled to length 1.

    Infinite where none of 2,048 points is one.
    """
    x = space.sample(N_POINTS)
    distance = np.sqrt(((x - place) ** 2).sum(1))

    def nearest(failed) -> float:
        return float(np.min(distance[failed >= LIKELY], initial=np.inf))

    members = np.array([nearest(one[:, 0]) for one in classes.draws(x)])
    low, high = np.quantile(members, EDGES, method="nearest")
    value = nearest(classes.probabilities(x)[:, 0])
    return Estimate(value, min(float(low), value), max(float(high), value))
