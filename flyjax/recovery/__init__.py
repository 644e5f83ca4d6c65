"""The circuit recovered from a trained network, and how good it is."""

from flyjax.recovery.closed_form import closed_form
from flyjax.recovery.evaluate import Evaluation, evaluate
from flyjax.recovery.linear_readout import linear_readout
from flyjax.recovery.metrics import CircuitEstimate, compare
from flyjax.recovery.readout import extract
from flyjax.recovery.refit import refit
from flyjax.recovery.rollout import rollout

__all__ = [
    "CircuitEstimate",
    "Evaluation",
    "closed_form",
    "compare",
    "evaluate",
    "extract",
    "linear_readout",
    "refit",
    "rollout",
]
