"""Generalisation to lesions: the same synapses are cut in fly and network, and their rollouts compared."""

from __future__ import annotations

from flyjax.data.recording import Recording
from flyjax.data.transforms import Lesioned, lesioned
from flyjax.recovery.metrics import Metrics
from flyjax.recovery.rollout import Rollout, rollout, rollout_metrics


def lesion_metrics(
    learner, params, recording: Recording | Lesioned, fraction: float = 0.5, seed: int = 0
) -> tuple[Metrics, Rollout]:
    """`rollout_metrics` under a lesion, with `lesion_` for `test_` in their names, and the rollout.

    **Arguments:**

    - `learner`, `params`: as in `evaluate`.
    - `recording`: a recording of the intact fly, or a lesion to use for several networks.
    - `fraction`, `seed`: of a lesion made here.
    """
    cut = recording if isinstance(recording, Lesioned) else lesioned(recording, fraction, seed)
    weight = params["W"][...] * cut.intact.astype("float32")
    run = rollout(learner, {**params, "W": weight}, cut.recording)
    found, renamed = rollout_metrics(run, cut.recording), Metrics()
    for name, value in found.values.items():
        renamed.put(name.replace("test_", "lesion_"), value, found.reasons.get(name))
    renamed.put("lesion_edges", float((~cut.intact).mean()))
    return renamed, run
