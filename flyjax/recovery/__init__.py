"""What was learned: the circuit read off a trained network, and how good it is."""

from flyjax.recovery.activity import activity, activity_line
from flyjax.recovery.evaluate import Evaluation, evaluate
from flyjax.recovery.extract import Recovered, extract
from flyjax.recovery.metrics import Metrics, compare
from flyjax.recovery.rollout import Rollout, rollout

__all__ = [
    "Evaluation",
    "Metrics",
    "Recovered",
    "Rollout",
    "activity",
    "activity_line",
    "compare",
    "evaluate",
    "extract",
    "rollout",
]
