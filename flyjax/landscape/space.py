"""The settings of a map as points of the unit cube, each axis on the scale of its range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import qmc

from flyjax.config import PROTOCOL_RANGES, Range
from flyjax.config.ranges import at, unit
from flyjax.landscape.trainings import Trainings
from flyjax.utils.errors import UserError


@dataclass(frozen=True)
class Space:
    """The axes of a map.

    **Attributes:**

    - `ranges`: of the settings that vary, by name.
    - `constant`: settings that have a range and one value only; the map does not tell what they do.
    """

    ranges: Mapping[str, Range]
    constant: Mapping[str, Any]

    @classmethod
    def of(cls, trainings: Trainings, ranges: Mapping[str, Range]) -> Space:
        """The space of trainings.

        **Raises:** `UserError` where a setting is missing, outside its range, or varies without having a range.
        """
        for name, span in ranges.items():
            values = trainings.settings.get(name, (None,))
            outside = [v for v in values if v is None or not span.contains(v)]
            if outside:
                raise UserError(
                    f"{name}: {len(outside)} of {len(values)} trainings are outside the range of the map, "
                    f"{span.describe()} (for example {outside[0]}): they are of another space, map them on their own"
                )
        if other := [n for n in trainings.varied(trainings.settings) if n not in ranges]:
            raise UserError(f"{other[0]} differs between the trainings and has no range: map each value on its own")
        varied = trainings.varied(ranges)
        return cls(
            {name: ranges[name] for name in varied},
            {name: trainings.settings[name][0] for name in ranges if name not in varied},
        )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.ranges)

    def places(self, settings: Sequence[Mapping[str, Any]]) -> Float[np.ndarray, "n d"]:
        """Configurations as points of the unit cube; values outside a range are taken to its nearest end."""
        rows = [[min(1.0, max(0.0, self._place(name, s[name]))) for name in self.ranges] for s in settings]
        return np.array(rows, float).reshape(len(rows), len(self.ranges))

    def _place(self, name: str, value: Any) -> float:
        span = self.ranges[name]
        if span.scale == "choice":
            if not span.contains(value):
                raise UserError(f"{name}={value} is not {span.describe()}")
            return unit(span, value)
        return unit(span, max(value, span.min) if span.scale == "log" else value)

    def settings(self, places: Float[np.ndarray, "n d"]) -> list[dict[str, Any]]:
        """Points of the unit cube as configurations."""
        return [{name: at(span, p) for (name, span), p in zip(self.ranges.items(), row)} for row in places]

    def snap(self, points: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """Points of the unit cube at the places that exist: choices and whole numbers have few.

        Points uniform in the cube become uniform over the values.
        """
        out = np.array(points, float)
        for k, span in enumerate(self.ranges.values()):
            if n := n_values(span):
                out[:, k] = np.minimum(np.floor(out[:, k] * n), n - 1) / max(1, n - 1)
        return out

    def sample(self, n: int, seed: int = 0) -> Float[np.ndarray, "n d"]:
        """`n` scrambled Sobol' points; `n` should be a power of 2."""
        return self.snap(qmc.Sobol(len(self.ranges), rng=seed).random(n))

    def grid(self, name: str, n: int) -> Float[np.ndarray, " n"]:
        """Places along an axis: `n` of an interval, or all values of a choice."""
        return np.linspace(0, 1, min(n, n_values(self.ranges[name]) or n))


def n_values(span: Range) -> int:
    """The number of values of a choice or a range of whole numbers; 0 for a continuous range."""
    if span.scale == "choice":
        return len(span.values or ())
    return int(span.max) - int(span.min) + 1 if span.scale == "int" else 0  # type: ignore[arg-type]


def ranges_of(trainings: Trainings) -> dict[str, Range]:
    """The protocol's ranges of the settings that the trainings have, widened where trainings lie outside.

    **Raises:** `UserError` where there is none.
    """
    out = {}
    for name, span in PROTOCOL_RANGES.items():
        values = [v for v in trainings.settings.get(name, ()) if v is not None]
        if span.scale == "choice":
            out[name] = span.model_copy(update={"values": tuple(sorted({*(span.values or ()), *values}))})
        elif values:
            ends = {"min": float(min(span.min, *values)), "max": float(max(span.max, *values))}  # type: ignore[type-var]
            whole = all(float(v).is_integer() for v in values)
            out[name] = span.model_copy(update=ends if whole or span.scale != "int" else {**ends, "scale": "linear"})
    if not out:
        raise UserError(f"the trainings have none of the protocol's settings: {', '.join(PROTOCOL_RANGES)}")
    return out
