"""What is shown a stimulus: the circuit of a ground truth or an estimate, or a trained network."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int

from flyjax.circuit import Connectome, Parameters
from flyjax.models import Learner
from flyjax.simulation import simulate_chunks, steady_state
from flyjax.stimulus.lab_stimuli import GREY
from flyjax.utils.errors import UserError

#: Seconds of grey before a stimulus (flyvis: 1 s from V_rest, and the first second of the stimulus).
WARM_UP = 2.0
#: Frames of one compiled call; shorter rests are padded.
CHUNK = 64


class Circuit(NamedTuple):
    """The known equation with these parameters: those of a ground truth, or an estimate."""

    connectome: Connectome
    parameters: Parameters

    def grey(self, dt: float) -> Float32[Any, " N"]:
        """State after `WARM_UP` seconds of grey from V_rest."""
        return steady_state(self.connectome, self.parameters, dt, duration=WARM_UP)

    def voltages(self, luminance: Float32[np.ndarray, "B T n_col"], dt: float, neurons, start):
        """Chunk by chunk, (B, frames, len(neurons)) voltages after each frame."""
        chunks = simulate_chunks(
            self.connectome, self.parameters, luminance, dt=dt, noise=0.0, key=None, initial=start, clamp_tau=True,
            solver="euler", chunk=min(CHUNK, luminance.shape[1]),
        )  # fmt: skip
        return (np.asarray(chunk[..., neurons]) for chunk in chunks)


@partial(jax.jit, static_argnums=0)
def _roll_out(learner, params, state, frames, neurons, dt):
    def frame(state, luminance):
        state = state + dt * learner.derivative(params, state, luminance)
        return state, state[:, neurons]

    return jax.lax.scan(frame, state, frames)


class Network(NamedTuple):
    """The free rollout of a trained network: its own voltages are its states."""

    learner: Learner
    params: Any

    @property
    def connectome(self) -> Connectome:
        """The circuit whose edges the network has."""
        return self.learner.connectome

    def grey(self, dt: float) -> Float32[Any, " N"]:
        """State after `WARM_UP` seconds of grey from 0."""
        c = self.connectome
        film = np.full((1, max(1, round(WARM_UP / dt)), c.n_columns), GREY, np.float32)
        every = np.arange(c.n_neurons)
        return list(self.voltages(film, dt, every, jnp.zeros(c.n_neurons)))[-1][0, -1]

    def voltages(self, luminance: Float32[np.ndarray, "B T n_col"], dt: float, neurons, start):
        """Chunk by chunk, (B, frames, len(neurons)) voltages after each frame."""
        n_films, n_frames, _ = luminance.shape
        state = jnp.broadcast_to(jnp.asarray(start, jnp.float32), (n_films, self.connectome.n_neurons))
        chunk = min(CHUNK, n_frames)
        for begin in range(0, n_frames, chunk):
            frames = np.swapaxes(luminance[:, begin : begin + chunk], 0, 1)
            padded = np.concatenate([frames, np.repeat(frames[-1:], chunk - len(frames), axis=0)])
            state, shown = _roll_out(self.learner, self.params, state, padded, np.asarray(neurons), np.float32(dt))
            yield np.swapaxes(np.asarray(shown[: len(frames)]), 0, 1)


Fly = Circuit | Network


def respond(
    fly: Fly, luminance: Float32[np.ndarray, "B T n_col"], dt: float, neurons: Int[np.ndarray, " n"], start=None
) -> Float[np.ndarray, "B T n"]:
    """Voltages of some neurons after each frame of B films, each from the state of grey.

    **Arguments:** `start` is another state (N,) before the first frame.

    **Raises:** `UserError` where a voltage is not finite: the network's rollout diverged.
    """
    start = fly.grey(dt) if start is None else start
    out = np.concatenate(list(fly.voltages(np.asarray(luminance, np.float32), dt, neurons, start)), axis=1)
    if not np.isfinite(out).all():
        frame = int(np.argmax(~np.isfinite(out).all(axis=(0, 2))))
        raise UserError(f"the rollout diverged at frame {frame}: choose another network, or a smaller dt than {dt:g} s")
    return out
