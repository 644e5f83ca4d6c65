"""The learner and its loss."""

from flyjax.model.gnn import GNN, Learner, make_graph, make_learner, parameter_groups, stimulus_of_neurons
from flyjax.model.losses import loss

__all__ = ["GNN", "Learner", "loss", "make_graph", "make_learner", "parameter_groups", "stimulus_of_neurons"]
