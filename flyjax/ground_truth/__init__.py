"""Ground truths: the circuits whose recovery is studied, and the circuit that a learner is given."""

from flyjax.ground_truth.build import build_ground_truth, files_of, known_circuit, learner_view, seen_neurons
from flyjax.ground_truth.flyvis_ensemble import checkpoint_file
from flyjax.ground_truth.sampling import sample_parameters

__all__ = [
    "build_ground_truth",
    "checkpoint_file",
    "files_of",
    "known_circuit",
    "learner_view",
    "sample_parameters",
    "seen_neurons",
]
