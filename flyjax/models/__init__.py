"""The learner and its loss."""

from flyjax.models.gnn import GNN, PairGNN, make_graph, stimulus_of_neurons
from flyjax.models.known_ode import KnownODE
from flyjax.models.learner import Learner, make_learner, parameter_groups
from flyjax.models.losses import loss, rollout_loss

__all__ = [
    "GNN",
    "KnownODE",
    "Learner",
    "PairGNN",
    "loss",
    "make_graph",
    "make_learner",
    "parameter_groups",
    "rollout_loss",
    "stimulus_of_neurons",
]
