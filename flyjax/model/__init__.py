"""The learner and its loss."""

from flyjax.model.gnn import GNN, PairGNN, make_graph, stimulus_of_neurons
from flyjax.model.known_ode import KnownODE
from flyjax.model.learner import Learner, make_learner, parameter_groups
from flyjax.model.losses import loss, rollout_loss

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
