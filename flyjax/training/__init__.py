"""Training: one candidate as a pure function, many as one program."""

from flyjax.training.checkpoint import load_params, save_params
from flyjax.training.grouping import Group, Lane, plan
from flyjax.training.hparams import n_steps
from flyjax.training.lanes import LaneProgress, Progress
from flyjax.training.sweep import Halving, Trained, train_sweep

__all__ = [
    "Group",
    "Halving",
    "Lane",
    "LaneProgress",
    "Progress",
    "Trained",
    "load_params",
    "n_steps",
    "plan",
    "save_params",
    "train_sweep",
]
