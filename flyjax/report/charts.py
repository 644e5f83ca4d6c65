"""Where the values of a chart lie and which colour they have; `templates/charts.html` draws the report's charts."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.ticker import MaxNLocator

from flyjax.config import Range
from flyjax.report.tables import format_setting
from flyjax.utils.format import finite

#: Values without a range are drawn on a log axis from this ratio of the largest to the smallest on.
WIDE = 20.0
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Axis:
    """Positions of one setting's values between 0 and 1, and the values that are labelled.

    **Arguments:**

    - `values`: all values to be drawn.
    - `span`: the range of the setting; the axis shows all of it.
    - `few`: with so many different values or fewer, each has a place of its own.
    """

    def __init__(self, values: Sequence[Any], span: Range | None = None, few: int = 0):
        numbers = [v for v in values if finite(v) is not None]
        distinct = {json.dumps(v): v for v in values}
        choices = list(span.values or ()) if span is not None and span.scale == "choice" else []
        if choices or len(numbers) < len(values) or len(distinct) <= few:
            self.kind = "choice"
            others = [v for v in distinct.values() if v not in choices]
            self.ticks = choices + sorted(others, key=lambda v: (finite(v) is None, finite(v) or 0.0, str(v)))
            return
        low, high = min(numbers), max(numbers)
        if span is not None:
            low, high = min(low, span.min), max(high, span.max)
        log = span.scale == "log" if span is not None else low > 0 and high / low > WIDE
        self.kind = "log" if log and low > 0 else "linear"
        self.low, self.high = low, high if high > low else low + 1
        self.ticks = self._decades() if self.kind == "log" else self._round_numbers()

    def _decades(self) -> list[float]:
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        every = -(-(last - first + 1) // 6)  # at most six labels
        if last > first:
            return [10.0**k for k in range(first, last + 1, every)]
        marks = [m * 10.0**k for k in range(first - 1, last + 2) for m in (1, 2, 5)]
        inside = [float(f"{m:.0e}") for m in marks if self.low <= m * (1 + 1e-9) and m <= self.high * (1 + 1e-9)]
        return inside if len(inside) > 1 else [self.low, self.high]

    def _round_numbers(self) -> list[float]:
        ticks = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        margin = 1e-9 * (self.high - self.low)
        inside = (ticks >= self.low - margin) & (ticks <= self.high + margin)
        return [float(t) + 0.0 for t in np.round(ticks[inside], 12)]

    def place(self, value: Any) -> float | None:
        """Where `value` lies, 0 to 1; None where the axis has no place for it."""
        if self.kind == "choice":
            return (self.ticks.index(value) + 0.5) / len(self.ticks) if value in self.ticks else None
        value = finite(value)
        if value is None or (self.kind == "log" and value <= 0):
            return None
        if self.kind == "log":
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def tick_labels(self) -> list[tuple[float, str]]:
        """Place and text of every tick."""
        return [(place, self._label(value)) for value in self.ticks if (place := self.place(value)) is not None]

    def _label(self, value: Any) -> str:
        """Where all ticks are powers of ten, the power; all else as settings are written."""
        if self.kind == "log" and all(math.log10(tick).is_integer() for tick in self.ticks):
            return "10" + str(round(math.log10(value))).translate(_SUPERSCRIPT)
        return format_setting(value)


#: Values of R2 that an axis may label.
SCORES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9999)


class ScoreAxis:
    """Positions of R2 between 0 and 1, logarithmic in 1 - R2: 0.9, 0.99 and 0.999 are equally far apart.

    **Arguments:** `values`: all values to be drawn; those below 0 lie at 0.
    """

    kind = "score"

    def __init__(self, values: Iterable[float | None]):
        best = max((v for v in values if v is not None), default=0.0)
        self.top = next((s for s in SCORES if s >= max(best, 0.95)), SCORES[-1])

    def place(self, value: Any) -> float | None:
        """Where `value` lies, 0 to 1; None where it is no finite number."""
        value = finite(value)
        return None if value is None else self.height(value)

    def height(self, value: float) -> float:
        """Where a number lies, 0 to 1."""
        return math.log(1 - min(max(0.0, value), self.top)) / math.log(1 - self.top)

    def tick_labels(self, only: Sequence[float] = SCORES) -> list[tuple[float, str]]:
        """Place and text of the values of `only` on the axis."""
        return [(self.height(s), f"{s:g}") for s in only if s <= self.top]


@dataclass(frozen=True)
class PlotArea:
    """A chart and its edges in pixels; places inside are fractions from the lower left corner."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float

    def x(self, fraction: float) -> float:
        return self.left + fraction * (self.right - self.left)

    def y(self, fraction: float) -> float:
        return self.bottom - min(1.0, max(0.0, fraction)) * (self.bottom - self.top)

    def path(self, points: Iterable[tuple[float, float]]) -> str:
        """The SVG path through points in fractions."""
        return "M" + "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points)


#: Points of a training curve at most.
MAX_POINTS = 80


@dataclass(frozen=True)
class Curves:
    """One quantity of some trainings over their steps; `lines` has the lane and the places of its points."""

    axis: Axis | ScoreAxis
    last_step: int
    lines: list[tuple[str, list[tuple[float, float]]]]

    @classmethod
    def of(cls, lanes: Mapping[str, Sequence[Mapping[str, Any]]], name: str, score: bool) -> "Curves | None":
        """The curves of `name`; None where nothing of it was logged. `score`: it is an R2."""
        known = {
            lane: [(e["step"], v) for e in entries if (v := finite(e.get(name))) is not None and (score or v > 0)]
            for lane, entries in lanes.items()
        }
        known = {lane: points for lane, points in known.items() if points}
        values = [value for points in known.values() for _, value in points]
        if not values:
            return None
        axis = ScoreAxis(values) if score else Axis(values)
        last, lines = max(points[-1][0] for points in known.values()), []
        for lane, points in known.items():
            every = -(-len(points) // MAX_POINTS) or 1
            kept = points[::-every][::-1]  # the last one is always shown
            lines.append((lane, [(step / last, place) for step, v in kept if (place := axis.place(v)) is not None]))
        return cls(axis, last, lines)


#: Low to high; each colour is legible on white and on near-black paper.
RAMP = ("#4c63d2", "#8a52c6", "#c9488f", "#e5704f", "#d99a26")
_COLOURS = LinearSegmentedColormap.from_list("noise", RAMP, N=1024)


class NoiseScale:
    """Colours of noise_model_level: one per level while they are few, else a gradient."""

    def __init__(self, levels: list[float], few: int = 8):
        self.levels, self.few = levels, len(levels) <= few

    def __call__(self, level: Any) -> str:
        """The colour of a level; grey for another value."""
        if level not in self.levels:
            return "#888888"
        low, high = self.levels[0], self.levels[-1]
        even = self.levels.index(level) / max(1, len(self.levels) - 1)
        return to_hex(_COLOURS(even if self.few else (level - low) / (high - low)))
