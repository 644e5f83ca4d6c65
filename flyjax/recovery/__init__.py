"""The circuit recovered from a trained network, and how good it is."""

from flyjax.recovery.activity import activity, activity_line
from flyjax.recovery.closed_form import ClosedForm, closed_form
from flyjax.recovery.evaluate import Evaluation, evaluate
from flyjax.recovery.linear_readout import LinearReadout, linear_readout
from flyjax.recovery.metrics import CircuitEstimate, Metrics, compare
from flyjax.recovery.readout import PublishedReadout, extract
from flyjax.recovery.refit import Refit, refit
from flyjax.recovery.rollout import Rollout, rollout

__all__ = [
    "CircuitEstimate",
    "ClosedForm",
    "Evaluation",
    "LinearReadout",
    "Metrics",
    "PublishedReadout",
    "Refit",
    "Rollout",
    "activity",
    "activity_line",
    "closed_form",
    "compare",
    "evaluate",
    "extract",
    "linear_readout",
    "refit",
    "rollout",
]
