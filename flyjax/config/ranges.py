"""Moves inside a range: draw, step, push to an extreme. And training seeds, which are no parameter.

A value's `unit` place is 0 at the low end of its range and 1 at the high end, on the range's scale;
steps are taken there, so that one step size suits rates and counts alike.
"""

import hashlib
import math
from typing import Any

import numpy as np

from flyjax.config.search_space import Range


def derive_seed(run_seed: int, node: int, index: int) -> int:
    """Training seed `index` of a node: 31 bits of a hash, so no configuration can ask for one."""
    digest = hashlib.sha256(f"flyjax/{int(run_seed)}/{int(node)}/{int(index)}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def coerce(span: Range, value: Any) -> Any:
    """`value` in the range's own type.

    **Raises:** `ValueError` naming the range for a value outside it, of another type, or not finite.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is not a finite number; the range is {span.describe()}")
        if span.scale == "int" and value == int(value):
            value = int(value)
    if not span.contains(value):
        shown = repr(value) if isinstance(value, str) else str(value) if number else type(value).__name__
        raise ValueError(f"{shown[:40]} is outside its range, {span.describe()}")
    if span.scale == "choice":
        return next(v for v in span.ends if v == value)  # JSON writers differ on 4 and 4.0
    return value if span.scale == "int" else float(value)


def unit(span: Range, value: Any) -> float:
    """The place of `value` in its range, 0 to 1."""
    if span.scale == "choice":
        return span.ends.index(value) / max(1, len(span.ends) - 1)
    low, high = span.ends
    if span.scale == "log":
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def at(span: Range, place: float) -> Any:
    """The value at a unit place: three significant digits, always inside the range."""
    place = min(1.0, max(0.0, place))
    if span.scale == "choice":
        return span.ends[round(place * (len(span.ends) - 1))]
    low, high = span.ends
    if span.scale == "log":
        return tidy(span, low * math.exp(place * math.log(high / low)))
    return tidy(span, low + place * (high - low))


def tidy(span: Range, value: float) -> Any:
    """A number clipped to an interval and rounded to three significant digits."""
    low, high = span.ends
    if span.scale == "int":
        return int(min(math.floor(high), max(math.ceil(low), round(value))))
    return float(min(high, max(low, float(f"{value:.3g}"))))


def sample(span: Range, rng: np.random.Generator) -> Any:
    """A value drawn uniformly on the range's scale."""
    if span.scale == "choice":
        return span.ends[int(rng.integers(len(span.ends)))]
    if span.scale == "int":
        low, high = span.ends
        return int(rng.integers(math.ceil(low), math.floor(high) + 1))
    return at(span, float(rng.random()))


def quantile(span: Range, u: float) -> Any:
    """The value below which a share `u` in [0, 1) of a range lies, on its scale: uniform where `u` is."""
    if span.scale == "choice":
        return span.ends[int(u * len(span.ends))]
    if span.scale == "int":
        low, high = (math.ceil(span.ends[0]), math.floor(span.ends[1]))
        return low + int(u * (high - low + 1))
    return at(span, u)


def perturb(span: Range, value: Any, rng: np.random.Generator, size: float = 0.15, direction: int = 0) -> Any:
    """Another value about `size` of the range away; up (+1), down (-1) or either (0).

    At the end of the range the step goes the other way.
    """
    way = direction or (1 if rng.random() < 0.5 else -1)
    step = size * (0.5 + float(rng.random()))
    place = unit(span, value)
    if span.scale == "choice":
        step = max(step, 1 / max(1, len(span.ends) - 1))
    for sign in (way, -way):
        for stretch in (1, 2, 4, 8, 16, 64, 256):  # a count may need a longer step to move at all
            moved = at(span, place + sign * step * stretch)
            if moved != value:
                return moved
    return value


def extreme(span: Range, value: Any, factor: float) -> Any | None:
    """`value` times `factor`, clipped to the range: a probe. None where that moves nothing.

    A factor below 1 probes downwards; a choice goes to its last or first value; zero, which no factor moves, goes to
    the upper end.
    """
    up = factor > 1
    if span.scale == "choice":
        moved = span.ends[-1 if up else 0]
    else:
        moved = tidy(span, value * factor if value else span.ends[up])
    return None if moved == value else moved
