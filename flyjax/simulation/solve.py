"""The circuit in time: dV/dt = (-V + V_rest + sum_j w_ij relu(V_j) + x) / tau*.

tau* = max(tau, dt), as flyvis integrates (Lappalainen et al. 2024). x is the luminance of the
neuron's column for R1..R8 and 0 elsewhere. The output of frame t is the state after it.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from flyjax.circuit.connectome import Connectome
from flyjax.circuit.parameters import Parameters
from flyjax.simulation.chunks import CHUNK_VALUES, SOLVERS, Rollout, right_hand_side
from flyjax.simulation.kernels import CSR_LANES, LANES, Kernel, choose, concrete
from flyjax.utils.errors import UserError, nearest

GREY = 0.5
#: Explicit Euler's stability margin for unclamped time constants.
MAX_DT_PER_TAU = 1.5


def check_luminance(c: Connectome, luminance) -> jax.Array:
    """A stimulus as float32.

    **Raises:** `UserError` unless it is (T, n_columns) or (B, T, n_columns), non-empty, finite
    and in [0, 1].
    """
    try:
        luminance = jnp.asarray(luminance, jnp.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"luminance is not an array of numbers: {error}") from None
    if luminance.ndim not in (2, 3) or luminance.shape[-1] != c.n_columns:
        raise UserError(
            f"luminance has the shape {luminance.shape}, expected (frames, {c.n_columns}) at extent {c.extent}"
        )
    if 0 in luminance.shape:
        raise UserError("luminance has no frames: an empty stimulus cannot be simulated")
    if concrete(luminance):
        low, high = float(luminance.min()), float(luminance.max())
        if not np.isfinite([low, high]).all():
            raise UserError("luminance holds NaN or infinite values; clean the stimulus first")
        if low < 0 or high > 1:
            raise UserError(f"luminance must lie in [0, 1], found {low:.4g} to {high:.4g}; rescale the stimulus")
    return luminance


def _check(c: Connectome, p: Parameters, dt, noise, key, clamp_tau: bool, solver: str) -> Parameters:
    p = Parameters(*(jnp.asarray(a, jnp.float32) for a in p))
    for name, array, n in zip(p._fields, p, (c.n_edges, c.n_neurons, c.n_neurons)):
        if array.shape != (n,):
            raise UserError(
                f"parameter {name} has the shape {array.shape}, expected ({n},): was it made for another extent?"
            )
        if concrete(array) and not bool(jnp.isfinite(array).all()):
            raise UserError(f"parameter {name} holds NaN or infinite values")
    if not (np.isfinite(dt) and dt > 0):
        raise UserError(f"dt must be a positive number of seconds, got {dt!r}")
    if solver not in SOLVERS:
        raise UserError(f"no solver {solver!r}.{nearest(solver, SOLVERS)} Known: {', '.join(SOLVERS)}.")
    if concrete(noise) and not (np.isfinite(noise) and noise >= 0):
        raise UserError(f"noise must be a standard deviation >= 0, got {noise!r}")
    if not concrete(noise) or noise > 0:
        if key is None:
            raise UserError("noise > 0 needs a key, for example key=jax.random.key(0)")
        if solver != "euler":
            raise UserError(
                f"solver {solver!r} is noise-free: process noise is defined per Euler step; use solver='euler'"
            )
    if concrete(p.tau):
        low = float(p.tau.min())
        if low <= 0:
            raise UserError(f"time constants must be positive, found {low:g} s")
        if not clamp_tau and dt > MAX_DT_PER_TAU * low:
            raise UserError(
                f"clamp_tau=False with dt={dt:g} s diverges: the smallest time constant is {low:g} s; "
                f"use clamp_tau=True or dt <= {MAX_DT_PER_TAU * low:.4g}"
            )
    return p


def _keys(key, n_batch: int | None):
    """(B,) typed keys: the key itself for one sequence, split for a batch."""
    if key is None:
        key = 0  # never drawn from
    if isinstance(key, (int, np.integer)):
        key = jax.random.key(key)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.ndim == 0:
        return key[None] if n_batch is None else jax.random.split(key, n_batch)
    if key.shape != (n_batch,):
        raise UserError(
            f"{key.shape} keys for {n_batch or 'an unbatched'} sequence(s): give one key or one per sequence"
        )
    return key


def steady_state(
    c: Connectome,
    p: Parameters,
    dt: float = 0.02,
    luminance: float = GREY,
    duration: float = 1.0,
    clamp_tau: bool = True,
) -> Float32[Array, " N"]:
    """State after `duration` seconds of uniform light from V = V_rest, without noise (flyvis: 1 s of 0.5).

    **Raises:** `UserError` for luminance outside [0, 1] or bad parameters.
    """
    n_steps = max(1, round(duration / dt))
    uniform = np.full((n_steps, c.n_columns), luminance, np.float32)
    return simulate(c, p, uniform, dt, initial="rest", clamp_tau=clamp_tau)[-1]


def _initial(c: Connectome, p: Parameters, initial, luminance, dt: float, clamp_tau: bool) -> jax.Array:
    """(N,) or (B, N) start."""
    if isinstance(initial, str):
        if initial == "rest":
            return p.v_rest
        if initial == "grey":
            return steady_state(c, p, dt, clamp_tau=clamp_tau)
        if initial == "fade_in":
            ramp = jnp.linspace(0, 1, max(1, int(1 / dt)), dtype=jnp.float32)[:, None]
            first = luminance[..., :1, :]
            faded = simulate(c, p, GREY + ramp * (first - GREY), dt, initial="rest", clamp_tau=clamp_tau)
            return faded[..., -1, :]
        raise UserError(
            f"initial is 'grey', 'rest', 'fade_in' or an array of ({c.n_neurons},) voltages, got {initial!r}"
        )
    start = jnp.asarray(initial, jnp.float32)
    allowed = [(c.n_neurons,)] + ([(luminance.shape[0], c.n_neurons)] if luminance.ndim == 3 else [])
    if start.shape not in allowed:
        raise UserError(f"initial has the shape {start.shape}, expected {' or '.join(map(str, allowed))}")
    return start


def simulate(
    c: Connectome,
    p: Parameters,
    luminance: Float32[Array, "T n_col"],
    dt: float = 0.02,
    noise: float = 0.0,
    key=None,
    initial="grey",
    clamp_tau: bool = True,
    solver: str = "euler",
    first_step: int = 0,
    chunk: int | None = None,
    kernel: str = "auto",
) -> Float32[Array, "T N"]:
    """Voltages under a stimulus; v[t] is the state after frame t. Differentiable, compiled once per shape.

    Args:
        luminance: (T, n_columns) in [0, 1]; or (B, T, n_columns) for B independent sequences,
            which gives (B, T, N).
        dt: duration of one frame, s.
        noise: standard deviation added to every voltage after each step (not scaled by dt).
        key: of the noise, drawn per step as `fold_in(key, first_step + t)`; a batch takes one key
            per sequence, or splits a single one.
        initial: "grey" (1 s of uniform 0.5), "rest" (V_rest), "fade_in" (1 s from grey to the first
            frame, from V_rest, as flyvis fades in) or (N,) voltages; (B, N) for a batch.
        clamp_tau: integrate with max(tau, dt).
        solver: a name in `flyjax.circuit.SOLVERS`. All but "euler" are noise-free and hold the luminance constant
            within a frame; the embedded Runge-Kutta methods adapt their steps (PID controller).
        first_step: number of the first frame, for a rollout that goes on from an earlier one.
        chunk: frames per compiled call; any value gives the same numbers.
        kernel: message sum, a name in `flyjax.simulation.kernels.KERNELS`; "auto" takes the fastest.
            Kernels agree to float32 rounding; "segment" (the choice under jit and grad) and "gather"
            are differentiable.

    **Raises:** `UserError` for a stimulus of the wrong shape or outside [0, 1], non-finite
    parameters, noise without a key or with a higher-order solver, and `clamp_tau=False` where
    dt > 1.5 min(tau).
    """
    pieces = _rollout(c, p, luminance, dt, noise, key, initial, clamp_tau, solver, first_step, chunk, kernel)
    return pieces.whole()


def simulate_chunks(
    c: Connectome,
    p: Parameters,
    luminance,
    dt: float = 0.02,
    noise: float = 0.0,
    key=None,
    initial="grey",
    clamp_tau: bool = True,
    solver: str = "euler",
    first_step: int = 0,
    chunk: int | None = None,
    kernel: str = "auto",
) -> Iterator[Float32[Array, "chunk N"]]:
    """`simulate` piece by piece, for recordings larger than memory; the last piece may be shorter.

    The default chunk has about 16 MB of voltages; under jit and grad it is the whole stimulus.
    """
    pieces = _rollout(c, p, luminance, dt, noise, key, initial, clamp_tau, solver, first_step, chunk, kernel)
    return iter(pieces)


def _rollout(c, p, luminance, dt, noise, key, initial, clamp_tau, solver, first_step, chunk, kernel) -> Rollout:
    luminance = check_luminance(c, luminance)
    p = _check(c, p, dt, noise, key, clamp_tau, solver)
    traced = not concrete(p, luminance, initial, dt, noise, key)
    batched = luminance.ndim == 3
    n_lanes, n_frames = (luminance.shape[0] if batched else 1), luminance.shape[-2]
    if chunk is None:
        chunk = n_frames if traced else max(16, CHUNK_VALUES // (c.n_neurons * min(n_lanes, LANES)))
    if chunk < 1:
        raise UserError(f"chunk must be a positive number of frames, got {chunk}")
    start = _initial(c, p, initial, luminance, dt, clamp_tau)
    return Rollout(
        kernel=choose(c, p.weight, traced, n_frames, n_lanes, kernel),
        parameters=p,
        luminance=luminance if batched else luminance[None],
        start=jnp.broadcast_to(start, (n_lanes, c.n_neurons)),
        keys=_keys(key, n_lanes if batched else None),
        dt=jnp.float32(dt),
        noise=jnp.asarray(noise, jnp.float32),
        first_step=first_step,
        chunk=min(chunk, n_frames),
        batched=batched,
        static=dict(clamp_tau=clamp_tau, solver=solver, noisy=not concrete(noise) or noise > 0),
    )


def derivative(
    c: Connectome,
    p: Parameters,
    voltage: Float32[Array, "T N"],
    luminance: Float32[Array, "T n_col"],
    dt: float = 0.02,
    clamp_tau: bool = True,
) -> Float32[Array, "T N"]:
    """The exact right-hand side dV/dt (1/s) at given states, with tau* = max(tau, dt).

    Frame t pairs the voltage *before* the frame with the luminance *of* the frame: what a learner
    is asked to predict. Process noise is not part of it.

    **Raises:** `UserError` for shapes that do not match.
    """
    p = _check(c, p, dt, 0.0, None, clamp_tau, "euler")
    luminance = check_luminance(c, luminance)
    voltage = jnp.asarray(voltage, jnp.float32)
    if luminance.ndim != 2 or voltage.shape != (luminance.shape[0], c.n_neurons):
        raise UserError(
            f"voltage has the shape {voltage.shape}, expected ({luminance.shape[0]}, {c.n_neurons}), one row per frame"
        )
    block = min(32, luminance.shape[0])
    traced = not concrete(p, voltage, luminance, dt)
    few = block < CSR_LANES or jax.default_backend() != "cpu"
    kernel = Kernel("segment" if traced else "gather" if few else "csr", c)
    return right_hand_side(
        kernel.plan(), p, voltage, luminance, jnp.float32(dt), kernel=kernel, clamp_tau=clamp_tau, block=block
    )
