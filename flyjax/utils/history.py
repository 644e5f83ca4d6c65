"""The history of trainings: JSON Lines, an object per training and logged step."""

import json
import operator
from pathlib import Path

HISTORY = "history.jsonl"  # "lane", "step" and the values by name


def read_history(path: str | Path) -> dict[str, list[dict[str, float]]]:
    """By lane, its entries in the order of steps; of a step logged twice, the last. Damaged lines are skipped."""
    lanes: dict[str, dict[int, dict]] = {}
    for line in Path(path).read_bytes().splitlines():
        try:
            entry = json.loads(line)
            lanes.setdefault(entry.pop("lane"), {})[operator.index(entry["step"])] = entry
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            continue
    return {lane: [steps[k] for k in sorted(steps)] for lane, steps in lanes.items() if steps}
