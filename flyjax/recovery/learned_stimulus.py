"""The luminance that a network has learned as a field where the stimulus was unknown.

All estimators that need the luminance of training frames (the read-outs at training frames, the refit, one-step errors)
are given the learned one. The true luminance is used for the comparison with it only.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from jaxtyping import Float, Int

from flyjax.data.recording import Recording
from flyjax.recovery.metrics import Metrics, compare
from flyjax.utils.errors import UserError

#: Frames of one compiled call.
CHUNK = 500
#: Why there is no rollout on another movie.
NO_STIMULUS = "the stimulus is unknown: a field learned from one movie does not predict another"


@dataclass(frozen=True, eq=False, kw_only=True)
class RecordingWithLearnedStimulus(Recording):
    """A recording with learned luminance; targets are those of the original recording.

    Attributes:
        source: the original recording, with the luminance that was shown.
    """

    source: Recording

    def pairs(self, frames) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `Recording.pairs`: (voltage, learned luminance, derivative)."""
        voltage, _, derivative = self.source.pairs(frames)
        return voltage, self.luminance[frames], derivative


@partial(jax.jit, static_argnums=0)
def _luminance(learner, params, frames):
    return learner.luminance(params, frames)


def learned_luminance(learner, params, n_frames: int) -> Float[np.ndarray, "T n_col"]:
    """Luminance of the learned field at the first frames of its recording."""
    starts = range(0, n_frames, CHUNK)
    chunks = [np.arange(start, start + CHUNK, dtype=np.int32).clip(max=n_frames - 1) for start in starts]
    return np.concatenate([np.asarray(_luminance(learner, params, frames)) for frames in chunks])[:n_frames]


def with_learned_stimulus(learner, params, recording: Recording) -> Recording:
    """The training recording, with the luminance of the learned field where the learner has one."""
    if not getattr(learner, "learns_stimulus", False):
        return recording
    fields = {field.name: getattr(recording, field.name) for field in dataclasses.fields(Recording)}
    fields |= {"luminance": learned_luminance(learner, params, len(recording.voltage)), "cache_key": None}
    return RecordingWithLearnedStimulus(**fields, source=recording)


def learned_stimulus_metrics(recording: RecordingWithLearnedStimulus, held_out: Int[np.ndarray, " frames"]) -> Metrics:
    """external_input_R2 of a field: its luminance against the true one, squared Pearson over frames and columns.

    A field determines luminance up to gain and offset, so there is no `_identity`, and the slope has no meaning.
    `external_input_R2` is on frames whose voltages and targets entered no loss, `external_input_R2_training` on all
    others.

    **Raises:** `UserError` where no frame was held out.
    """
    if not len(held_out):
        raise UserError("a learned stimulus is evaluated on frames that it was not trained on: name them (held_out)")
    metrics, true = Metrics(), recording.source.luminance
    for name, frames in (("", held_out), ("_training", np.setdiff1d(np.arange(len(true)), held_out))):
        fit = compare(true[frames], recording.luminance[frames])
        metrics.put(f"external_input_R2{name}", fit.R2, fit.reason)
        metrics.put(f"external_input_frames{name}", len(frames))
    return metrics
