"""The learners and their loss."""

from flyjax.models.gnn import GNN, KnownODE, PairGNN, make_graph, neuron_stimulus
from flyjax.models.learner import Learner, make_learner
from flyjax.models.losses import loss, rollout_loss

__all__ = [
    "GNN",
    "KnownODE",
    "Learner",
    "PairGNN",
    "loss",
    "make_graph",
    "make_learner",
    "neuron_stimulus",
    "rollout_loss",
]
