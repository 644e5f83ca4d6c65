"""A lesion that the training never saw: cut the same synapses in fly and network, then compare their free runs."""

from __future__ import annotations

from flyjax.data.recording import Recording
from flyjax.data.transforms import Lesioned, lesioned
from flyjax.recovery.metrics import Metrics
from flyjax.recovery.rollout import Rollout, rollout, rollout_metrics


def without(params, kept):
    """The parameters with W = 0 on the edges that were cut."""
    return {**params, "W": params["W"][...] * kept.astype("float32")}


def lesion_metrics(
    learner, params, what: Recording | Lesioned, fraction: float = 0.5, seed: int = 0
) -> tuple[Metrics, Rollout]:
    """`rollout_metrics` under a lesion, names with `lesion_` for `test_`, and the run itself.

    Args:
        learner, params: as `evaluate` takes them.
        what: a recording of the whole fly, or a lesion that many networks share.
        fraction, seed: of the lesion, where it is to be made.
    """
    cut = what if isinstance(what, Lesioned) else lesioned(what, fraction, seed)
    run = rollout(learner, without(params, cut.intact), cut.recording)
    found, renamed = rollout_metrics(run, cut.recording), Metrics()
    for name, value in found.values.items():
        renamed.put(name.replace("test_", "lesion_"), value, found.reasons.get(name))
    renamed.put("lesion_edges", float((~cut.intact).mean()))
    return renamed, run
