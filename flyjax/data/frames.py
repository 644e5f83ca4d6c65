"""Frames in the making: light, states, noise and targets of one part of a recording."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flyjax import stimulus
from flyjax.circuit import Connectome
from flyjax.config import Simulation
from flyjax.simulation import derivative, simulate, simulate_chunks, steady_state
from flyjax.utils.errors import UserError

GREY = 0.5


class Part(NamedTuple):
    """A run of frames that follow from one another."""

    n_frames: int
    seed: int


def measured(simulation: Simulation, split: str) -> float:
    """Std of the measurement noise of a split."""
    return 0.0 if split == "test" else simulation.measurement_noise_level


def differenced(simulation: Simulation, split: str) -> bool:
    """Whether targets are differences of the recorded voltages; the test split has exact ones."""
    return split == "train" and simulation.target == "difference"


def stored_as(simulation: Simulation, split: str) -> str:
    """Type of the voltages on disk; those that metrics are taken from are exact."""
    return simulation.voltage_dtype if split == "train" else "float32"


def target_of(truth, simulation: Simulation, voltage, luminance, noise, step) -> np.ndarray:
    """dV/dt (1/s) at the state behind `voltage`, as differenced from it."""
    state = voltage if noise is None else voltage - noise
    target = np.asarray(derivative(*truth, state, luminance, simulation.delta_t, simulation.clamp_tau))
    return target if noise is None else target + step / np.float32(simulation.delta_t)


def noise_and_step(simulation: Simulation, seed: int, frames, n_neurons: int) -> tuple[np.ndarray, np.ndarray]:
    """Measurement noise of frames and what it changes by until the next one."""
    noise = measurement_noise(simulation, seed, frames, n_neurons)
    return noise, measurement_noise(simulation, seed, np.asarray(frames) + 1, n_neurons) - noise


def _key(simulation: Simulation, seed: int):
    return jax.random.fold_in(jax.random.key(simulation.seed), seed)


@partial(jax.jit, static_argnames="n")
def _normal(key, frames, n: int):
    return jax.vmap(lambda t: jax.random.normal(jax.random.fold_in(key, t), (n,)))(frames)


def measurement_noise(simulation: Simulation, seed: int, frames, n_neurons: int) -> np.ndarray:
    """(len(frames), N) float32 that the training voltages of these frames carry; by frame number alone."""
    # A stream of its own beside the process noise, whose step numbers stay below 2^31.
    key = jax.random.fold_in(_key(simulation, seed), 2**31 + 1)
    drawn = _normal(key, jnp.asarray(frames, jnp.uint32), n_neurons)
    return np.asarray(drawn) * np.float32(simulation.measurement_noise_level)


def light_of(simulation: Simulation, name: str, connectome: Connectome, part: Part, split: str) -> np.ndarray:
    """(T, n_col) luminance of a part."""
    # Injective for any seed a person would type; seed 0 is the configuration's own film.
    seed = simulation.seed + 1_000_003 * part.seed
    dt, path, rate = simulation.delta_t, simulation.data_path, simulation.frame_rate
    return stimulus.luminance(name, connectome.columns, part.n_frames, dt, split, seed, path, rate)


def states_of(simulation: Simulation, truth, luminance, noise: float, part: Part, test: bool, chunk: int):
    """States before each frame of a part in pieces, and last, alone, the state after it."""
    common = dict(dt=simulation.delta_t, clamp_tau=simulation.clamp_tau)
    start = "grey" if test else simulation.initial
    if start == "grey":
        state = steady_state(*truth, **common)
    elif start == "rest":
        state = truth[1].v_rest
    else:  # one second from grey to the first frame, as flyvis fades in
        ramp = np.linspace(0, 1, max(1, int(1 / simulation.delta_t)), dtype=np.float32)[:, None]
        state = simulate(*truth, GREY + ramp * (luminance[:1] - GREY), initial="rest", **common)[-1]
    pieces = simulate_chunks(
        *truth,
        luminance,
        noise=noise,
        key=_key(simulation, part.seed),
        initial=state,
        solver=simulation.solver,
        chunk=chunk,
        **common,
    )
    last, after = np.asarray(state)[None], 0
    for piece in pieces:
        piece = np.asarray(piece)
        if not np.isfinite(piece).all():
            frame = after + int(np.argmax(~np.isfinite(piece).all(axis=1)))
            raise UserError(
                f"the simulation diverged at frame {frame} (delta_t={simulation.delta_t} s, "
                f"clamp_tau={simulation.clamp_tau}): use clamp_tau=true, a smaller delta_t or weaker noise"
            )
        # States after frames are states before the next ones.
        yield np.concatenate([last, piece[:-1]])
        last, after = piece[-1:], after + len(piece)
    yield last
