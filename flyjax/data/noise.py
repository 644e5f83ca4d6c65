"""The noise of a recording: a function of (configuration, seed, frame number), whatever is drawn before.

Process noise is added to the state after each step. Measurement noise is added to what is recorded and moves
no state; it has a stream of random numbers of its own.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int

from flyjax.config import Simulation


def process_noise_key(simulation: Simulation, seed: int):
    """Key of the process noise of a part; `simulate` folds the step number in."""
    return jax.random.fold_in(jax.random.key(simulation.seed), seed)


@partial(jax.jit, static_argnames="n")
def _normal(key, frames, n: int):
    return jax.vmap(lambda t: jax.random.normal(jax.random.fold_in(key, t), (n,), jnp.float32))(frames)


def measurement_noise(
    simulation: Simulation, seed: int, frames: Int[np.ndarray, " T"], n_neurons: int
) -> Float32[np.ndarray, "T N"]:
    """Measurement noise in the training voltages of some frames of a part."""
    # Numbers of steps, which the process noise folds in, stay below 2^31.
    key = jax.random.fold_in(process_noise_key(simulation, seed), 2**31 + 1)
    drawn = _normal(key, jnp.asarray(frames, jnp.uint32), n_neurons)
    return np.asarray(drawn) * np.float32(simulation.measurement_noise_level)


def noise_and_increment(
    simulation: Simulation, seed: int, frames: Int[np.ndarray, " T"], n_neurons: int
) -> tuple[Float32[np.ndarray, "T N"], Float32[np.ndarray, "T N"]]:
    """Measurement noise n[t] of some frames and its change n[t + 1] - n[t] until the next ones."""
    noise = measurement_noise(simulation, seed, frames, n_neurons)
    return noise, measurement_noise(simulation, seed, np.asarray(frames) + 1, n_neurons) - noise
