"""The light that a network has learned where none was given: what stands for the luminance of its training frames.

Whatever needs that luminance after training (the read-outs at training frames, the refit, one-step errors) is given
what the learned field says. The true light is used for one thing, to be compared with it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from jaxtyping import Float, Int

from flyjax.data.recording import Recording
from flyjax.recovery.metrics import Metrics, put_fit
from flyjax.recovery.readout import canonical
from flyjax.utils.errors import UserError

#: Frames of one compiled call.
PIECE = 500
#: Why nothing can be foretold of another movie.
NO_LIGHT = "the stimulus is unknown: a field learned from one movie does not know the light of another"


@dataclass(frozen=True, eq=False)
class Believed(Recording):
    """A recording with the light that a network believes in; targets are those of the recording itself.

    Attributes:
        source: the recording, with the luminance that was shown.
    """

    source: Recording | None = None

    def pairs(self, frames):
        """As `Recording.pairs`: (voltage, believed luminance, derivative)."""
        voltage, _, derivative = self.source.pairs(frames)
        return voltage, self.luminance[frames], derivative


def learns_stimulus(learner) -> bool:
    """Whether a learner has a field in the place of a stimulus; learners made for a test may not say."""
    return getattr(learner, "learns_stimulus", False)


@partial(jax.jit, static_argnums=0)
def _light(learner, params, frames):
    return learner.luminance(params, frames)


def learned_light(learner, params, n_frames: int) -> Float[np.ndarray, "T n_col"]:
    """What the field says of the first frames of its recording."""
    pieces = [
        np.arange(begin, begin + PIECE, dtype=np.int32).clip(max=n_frames - 1) for begin in range(0, n_frames, PIECE)
    ]
    return np.concatenate([np.asarray(_light(canonical(learner), params, frames)) for frames in pieces])[:n_frames]


def as_learned(learner, params, recording: Recording) -> Recording:
    """The training recording as its network knows it: as it is, or with the light of the learned field."""
    if not learns_stimulus(learner):
        return recording
    known = {field.name: getattr(recording, field.name) for field in dataclasses.fields(Recording)}
    known |= {"luminance": learned_light(learner, params, len(recording.voltage)), "cache_key": None}
    return Believed(**known, source=recording)


def light_metrics(believed: Believed, held_out: Int[np.ndarray, " frames"]) -> Metrics:
    """external_input_R2 of a field: its light against the true one, squared Pearson over frames and columns.

    A field knows luminance up to gain and offset, so there is no `_identity` and the slope says nothing.
    `external_input_R2` is on frames whose voltages and targets entered no loss, `external_input_R2_training`
    on all others.

    **Raises:** `UserError` where no frame was held out.
    """
    if not len(held_out):
        raise UserError("a learned stimulus is judged on frames that it was not trained on: name them (held_out)")
    metrics, fits = Metrics(), Metrics()
    true, learned = believed.source.luminance, believed.luminance
    for name, frames in (("", held_out), ("_training", np.setdiff1d(np.arange(len(true)), held_out))):
        fit = put_fit(fits, name, true[frames], learned[frames])
        metrics.put(f"external_input_R2{name}", fit.R2, fit.reason)
        metrics.put(f"external_input_frames{name}", len(frames))
    return metrics
