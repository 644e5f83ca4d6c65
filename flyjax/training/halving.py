"""Successive halving: candidates that are behind stop early. Off unless asked for.

At each rung, a number of steps that all lanes have taken or finished at, the candidates are ranked and
only the best 1/factor of them go on (Jamieson & Talwalkar, 2016; rungs as in Hyperband). The ranking
needs no ground truth: it is the mean over a candidate's seeds of the root mean square error, on held-out
frames where there are some, else in the last training steps, in units of `spread`, so that noise levels
compare.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Halving(NamedTuple):
    """Keep 1/factor of the candidates at each of `rungs` rungs, at n/factor, n/factor^2 … of the longest n steps."""

    factor: float
    rungs: int


def rungs(n_chunks: int, halving: Halving | None) -> list[int]:
    """Where the lanes meet, in chunks, the end included: strictly rising."""
    if halving is None:
        return [n_chunks]
    early = {round(n_chunks / halving.factor**k) for k in range(1, halving.rungs + 1)}
    return [*sorted(c for c in early if 1 <= c < n_chunks), n_chunks]


def spread(target: np.ndarray) -> float:
    """Root mean square error of the best constant prediction per neuron; `target` (T, N) in 1/s."""
    return float(np.sqrt(np.mean(np.square(target - target.mean(axis=0), dtype=np.float64))))


def lost(scores: Mapping[int, float], finished: set[int], factor: float) -> set[int]:
    """Candidates to stop: all but the best ceil(n / factor), ties to the lower number.

    A score that is not finite is the worst. A candidate that has finished keeps its place in the ranking
    but has nothing to stop.
    """
    order = sorted(scores, key=lambda k: (scores[k] if math.isfinite(scores[k]) else math.inf, k))
    return set(order[math.ceil(len(order) / factor) :]) - finished
