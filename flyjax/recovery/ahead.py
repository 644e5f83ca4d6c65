"""Programs of an evaluation that are compiled while networks are trained."""

from flyjax.models import Learner
from flyjax.recovery.clusters import N_FEATURES, compile_mixtures_ahead
from flyjax.recovery.network_outputs import compile_outputs_ahead
from flyjax.recovery.rollout import compile_rollout_ahead


def compile_evaluation_ahead(learner: Learner) -> None:
    """Begin to compile, in the background, the largest programs of `evaluate` that do not depend on a recording."""
    compile_outputs_ahead(learner)
    if not learner.learns_stimulus:
        compile_rollout_ahead(learner)
    embedding = learner.shapes.get("embedding")
    n_embedded = 0 if embedding is None else embedding.shape[1]
    compile_mixtures_ahead(learner.connectome.n_neurons, n_embedded + N_FEATURES)
