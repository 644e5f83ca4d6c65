"""What was learned: the circuit read off a trained network, and how good it is."""

from flyjax.recovery.activity import activity, activity_line
from flyjax.recovery.closed_form import Ceiling, closed_form
from flyjax.recovery.evaluate import Evaluation, evaluate
from flyjax.recovery.linear_readout import OnData, on_data
from flyjax.recovery.metrics import Metrics, compare
from flyjax.recovery.readout import Recovered, extract
from flyjax.recovery.refit import Refitted, refit
from flyjax.recovery.rollout import Rollout, rollout

__all__ = [
    "Ceiling",
    "Evaluation",
    "Metrics",
    "OnData",
    "Recovered",
    "Refitted",
    "Rollout",
    "activity",
    "activity_line",
    "closed_form",
    "compare",
    "evaluate",
    "extract",
    "on_data",
    "refit",
    "rollout",
]
