"""The map of a search: a surrogate of the objective over the settings, from the run's own nodes of one simulation."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from flyjax.config import Range
from flyjax.search.journal.state import State

if TYPE_CHECKING:
    from flyjax.landscape import Landscape


def run_map(state: State, block: int) -> Landscape | None:
    """The map of all trained nodes with the simulation of `block`; None where they lie in no common ranges.

    It says in `problem` why it may not be used. A pure function of the journal. Its classes are those of the
    objective, so that a blind search sees no ground truth.
    """
    spans = state.experiment.get("search", {}).get("ranges") or {}
    simulation = state.blocks[block].simulation if block in state.blocks else None
    rows = [
        [{name: node.config.get(name) for name in spans}, values]
        for node in state.nodes.values()
        if node.status != "running" and state.blocks[node.block].simulation == simulation
        for values in [list(node.values) or [0.0]]  # a failed node
    ]
    return _fit(json.dumps([spans, rows]))


# The prompt, the rules and the confirmation of one iteration ask for the same map.
@lru_cache(maxsize=8)
def _fit(table: str) -> Landscape | None:
    from flyjax import landscape  # scikit-learn takes a second to import

    data: tuple[dict[str, dict[str, Any]], list] = tuple(json.loads(table))
    ranges = {name: Range(**span) for name, span in data[0].items()}
    rows = [
        {"settings": settings, "seed": seed, "metrics": {"connectivity_R2": value}}
        for settings, values in data[1]
        if all(span.contains(settings[name]) for name, span in ranges.items())
        for seed, value in enumerate(values)
    ]
    if not rows or not ranges:
        return None
    return landscape.fit(landscape.Trainings.from_rows(rows), ranges, sizes=landscape.FAST)
