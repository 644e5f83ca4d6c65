"""Voltages under a stimulus: rollouts of any length, chunk by chunk.

Every chunk of frames runs the same compiled program (`flyjax.simulation.solve`), a short last one included.
"""

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from flyjax.circuit.connectome import Connectome
from flyjax.circuit.parameters import Parameters
from flyjax.simulation.kernels import CSR_STATES, Kernel, choose
from flyjax.simulation.solve import SOLVERS, derivatives, solve, vector_field_args
from flyjax.utils.errors import UserError, nearest

#: Explicit Euler's stability margin for unclamped time constants.
MAX_DT_PER_TAU = 1.5


def is_concrete(*values) -> bool:
    """Whether none of the values is being traced by jax."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def check_luminance(c: Connectome, luminance) -> Float32[Array, "... T n_col"]:
    """A stimulus as float32.

    **Raises:** `UserError` unless it is (T, n_col) or (B, T, n_col), non-empty, finite and in [0, 1].
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
    if is_concrete(luminance):
        values = np.asarray(luminance)  # NumPy compiles nothing
        low, high = float(values.min()), float(values.max())
        if not np.isfinite([low, high]).all():
            raise UserError("luminance contains NaN or infinite values: clean the stimulus first")
        if low < 0 or high > 1:
            raise UserError(f"luminance must lie in [0, 1], found {low:.4g} to {high:.4g}: rescale the stimulus")
    return luminance


def check_parameters(c: Connectome, p: Parameters, dt: float, clamp_tau: bool) -> Parameters:
    """Parameters as float32.

    **Raises:** `UserError` for a shape of another circuit, values that are not finite, time constants <= 0,
    a `dt` that is no positive number, or `clamp_tau=False` where dt > 1.5 min(tau).
    """
    p = Parameters(*(jnp.asarray(a, jnp.float32) for a in p))
    for name, array, n in zip(p._fields, p, (c.n_edges, c.n_neurons, c.n_neurons), strict=True):
        if array.shape != (n,):
            raise UserError(
                f"parameter {name} has the shape {array.shape}, expected ({n},): was it made for another extent?"
            )
        if is_concrete(array) and not np.isfinite(array).all():
            raise UserError(f"parameter {name} contains NaN or infinite values")
    if not (np.isfinite(dt) and dt > 0):
        raise UserError(f"dt must be a positive number of seconds, got {dt!r}")
    if is_concrete(p.tau):
        shortest = float(np.asarray(p.tau).min())
        if shortest <= 0:
            raise UserError(f"time constants must be positive, found {shortest:g} s")
        if not clamp_tau and dt > MAX_DT_PER_TAU * shortest:
            raise UserError(
                f"clamp_tau=False with dt={dt:g} s diverges: the smallest time constant is {shortest:g} s; "
                f"use clamp_tau=True or dt <= {MAX_DT_PER_TAU * shortest:.4g}"
            )
    return p


GREY = 0.5
#: Voltages one compiled call returns by default, 4 bytes each: small enough that malloc passes the memory of
#: one call on to the next; above 32 MB every call waits for fresh pages from the system.
CHUNK_VALUES = 1 << 21


def simulate(
    c: Connectome,
    p: Parameters,
    luminance: Float32[Any, "T n_col"],
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

    **Arguments:**

    - `luminance`: (T, n_col) in [0, 1]; or (B, T, n_col) for B independent sequences, which gives (B, T, N).
    - `dt`: duration of one frame, s.
    - `noise`: standard deviation added to every voltage after each step (not scaled by dt).
    - `key`: of the noise, drawn per step as `fold_in(key, first_step + t)`; a batch takes one key per sequence,
        or splits a single one.
    - `initial`: "grey" (1 s of uniform 0.5), "rest" (V_rest), "fade_in" (1 s from grey to the first frame, from
        V_rest, as flyvis fades in) or (N,) voltages; (B, N) for a batch.
    - `clamp_tau`: integrate with max(tau, dt).
    - `solver`: a name in `flyjax.simulation.SOLVERS`. All but "euler" are noise-free and hold the luminance
        constant within a frame; the embedded Runge-Kutta methods adapt their steps (PID controller).
    - `first_step`: number of the first frame, for a rollout that continues an earlier one.
    - `chunk`: frames per compiled call; any value gives the same numbers.
    - `kernel`: message sum, a name in `flyjax.simulation.kernels.KERNELS`; "auto" takes the fastest. Kernels
        agree to float32 rounding; "segment" (the choice under jit and grad) and "gather" are differentiable.

    **Raises:** `UserError` for a stimulus of the wrong shape or outside [0, 1], non-finite parameters, noise
    without a key or with a higher-order solver, and `clamp_tau=False` where dt > 1.5 min(tau).
    """
    chunks = simulate_chunks(
        c,
        p,
        luminance,
        dt=dt,
        noise=noise,
        key=key,
        initial=initial,
        clamp_tau=clamp_tau,
        solver=solver,
        first_step=first_step,
        chunk=chunk,
        kernel=kernel,
    )
    return collect(chunks, luminance)


def simulate_chunks(
    c: Connectome,
    p: Parameters,
    luminance: Float32[Any, "T n_col"],
    *,
    dt: float,
    noise: float,
    key,
    initial,
    clamp_tau: bool,
    solver: str,
    first_step: int = 0,
    chunk: int | None = None,
    kernel: str = "auto",
) -> Iterator[Float32[Array, "chunk N"]]:
    """`simulate` chunk by chunk, for recordings larger than memory; the last chunk may be shorter.

    The default chunk has about 8 MB of voltages; under jit and grad all frames are one chunk. Arguments and errors
    are those of `simulate`. The next chunk is dispatched before one is handed out.
    """
    luminance = check_luminance(c, luminance)
    p = check_parameters(c, p, dt, clamp_tau)
    noisy = _check_solver(noise, key, solver)
    concrete = is_concrete(p, luminance, initial, dt, noise, key)
    batched = luminance.ndim == 3
    n_states, n_frames = (luminance.shape[0] if batched else 1), luminance.shape[-2]
    if chunk is None:
        chunk = max(16, CHUNK_VALUES // (c.n_neurons * n_states)) if concrete else n_frames
    if chunk < 1:
        raise UserError(f"chunk must be a positive number of frames, got {chunk}")
    chunk = min(chunk, n_frames)
    xp: Any = np if concrete else jnp  # NumPy compiles nothing for shapes that differ from call to call
    start = xp.asarray(initial_state(c, p, initial, luminance, dt, clamp_tau))
    start, luminance = xp.broadcast_to(start, (n_states, c.n_neurons)), xp.asarray(luminance)
    chosen = choose(c, p.weight, not concrete, n_frames, n_states, kernel)
    static: dict[str, Any] = dict(kernel=chosen, clamp_tau=clamp_tau, solver=solver, noisy=noisy, batched=batched)
    run = partial(solve, chosen.plan(), p, **static)
    settings = jnp.float32(dt), jnp.asarray(noise, jnp.float32), _keys(key, n_states if batched else None)
    state = jnp.asarray(start.T)
    stimulus = xp.moveaxis(luminance, -2, 0) if batched else luminance[:, None]
    pending: Any = None
    for begin in range(0, n_frames, chunk):
        frames = stimulus[begin : begin + chunk]
        n_steps = len(frames)
        if n_steps < chunk:
            frames = xp.pad(frames, ((0, chunk - n_steps), (0, 0), (0, 0)))
        states, state = run(state, frames, *settings, jnp.int32(first_step + begin))
        if n_steps < chunk:
            states = states[..., :n_steps, :]
        if pending is not None:
            yield pending
        pending = states
    yield pending


@partial(jax.jit, donate_argnums=0)
def _insert(states, chunk, begin):
    return jax.lax.dynamic_update_slice_in_dim(states, chunk, begin, axis=-2)


def collect(chunks: Iterator[Float32[Array, "... chunk N"]], luminance) -> Float32[Array, "... T N"]:
    """All chunks of a rollout under a stimulus in one array, in memory that is allocated once."""
    first, n_frames = next(chunks), np.shape(luminance)[-2]
    if first.shape[-2] == n_frames:
        return first
    states = jnp.zeros((*first.shape[:-2], n_frames, first.shape[-1]), first.dtype)
    begin = 0
    for chunk in itertools.chain([first], chunks):
        states = _insert(states, chunk, begin)
        begin += chunk.shape[-2]
    return states


def steady_state(
    c: Connectome,
    p: Parameters,
    dt: float = 0.02,
    luminance: float = GREY,
    duration: float = 1.0,
    clamp_tau: bool = True,
) -> Float32[Array, " N"]:
    """State after `duration` seconds of uniform luminance from V = V_rest, without noise (flyvis: 1 s of 0.5).

    **Raises:** `UserError` for luminance outside [0, 1] or bad parameters.
    """
    n_steps = max(1, round(duration / dt))
    uniform = np.full((n_steps, c.n_columns), luminance, np.float32)
    return simulate(c, p, uniform, dt, initial="rest", clamp_tau=clamp_tau)[-1]


def initial_state(
    c: Connectome,
    p: Parameters,
    initial,
    luminance: Float32[Any, "T n_col"],
    dt: float,
    clamp_tau: bool = True,
    warm_up: float = 1.0,
) -> Float32[Array, " N"]:
    """State before the first frame of `luminance`, by the names that `simulate` knows or as given.

    `warm_up` is the duration of 'grey', s.

    **Raises:** `UserError` for another name, or voltages of another shape.
    """
    if isinstance(initial, str):
        if initial == "rest":
            return p.v_rest
        if initial == "grey":
            return steady_state(c, p, dt, duration=warm_up, clamp_tau=clamp_tau)
        if initial == "fade_in":
            ramp = jnp.linspace(0, 1, max(1, int(1 / dt)), dtype=jnp.float32)[:, None]
            frames = GREY + ramp * (luminance[..., :1, :] - GREY)
            return simulate(c, p, frames, dt, initial="rest", clamp_tau=clamp_tau)[..., -1, :]
        raise UserError(
            f"initial is 'grey', 'rest', 'fade_in' or an array of ({c.n_neurons},) voltages, got {initial!r}"
        )
    start = jnp.asarray(initial, jnp.float32)
    allowed = [(c.n_neurons,)] + ([(luminance.shape[0], c.n_neurons)] if luminance.ndim == 3 else [])
    if start.shape not in allowed:
        raise UserError(f"initial has the shape {start.shape}, expected {' or '.join(map(str, allowed))}")
    return start


def _check_solver(noise, key, solver: str) -> bool:
    """Whether there is process noise. **Raises:** `UserError` for an unknown solver, or noise that it cannot add."""
    if solver not in SOLVERS:
        raise UserError(f"no solver {solver!r}.{nearest(solver, SOLVERS)} Known: {', '.join(SOLVERS)}.")
    if is_concrete(noise) and not (np.isfinite(noise) and noise >= 0):
        raise UserError(f"noise must be a standard deviation >= 0, got {noise!r}")
    noisy = not is_concrete(noise) or bool(noise > 0)
    if noisy and key is None:
        raise UserError("noise > 0 needs a key, for example key=jax.random.key(0)")
    if noisy and solver != "euler":
        raise UserError(f"solver {solver!r} is noise-free: process noise is defined per Euler step; use solver='euler'")
    return noisy


def _keys(key, n_batch: int | None):
    """(B,) typed keys: the key itself for one sequence, split for a batch."""
    if key is None:
        key = 0  # without noise no number is drawn
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


@partial(jax.jit, static_argnames=("kernel", "clamp_tau", "block"))
def _derivative(plan, p, voltage, luminance, dt, *, kernel, clamp_tau, block):
    """dV/dt of (T, N) states, `block` frames at a time."""
    args = vector_field_args(kernel, plan, p, dt, clamp_tau)
    n_frames = voltage.shape[0]
    padded = -(-n_frames // block) * block

    blocks = (jnp.pad(a, ((0, padded - n_frames), (0, 0))).reshape(-1, block, a.shape[1]) for a in (voltage, luminance))
    return jax.lax.map(lambda frames: derivatives(kernel, args, dt, *frames), tuple(blocks)).reshape(padded, -1)[
        :n_frames
    ]


def derivative(
    c: Connectome,
    p: Parameters,
    voltage: Float32[Any, "T N"],
    luminance: Float32[Any, "T n_col"],
    dt: float = 0.02,
    clamp_tau: bool = True,
) -> Float32[Array, "T N"]:
    """The exact right-hand side dV/dt (1/s) at given states, without process noise.

    **Arguments:**

    - `voltage`: state *before* each frame.
    - `luminance`: of the frame, in [0, 1].
    - `dt`: step in s, which enters through tau* = max(tau, dt).

    **Raises:** `UserError` for shapes that do not match.
    """
    p = check_parameters(c, p, dt, clamp_tau)
    luminance = check_luminance(c, luminance)
    voltage = jnp.asarray(voltage, jnp.float32)
    if luminance.ndim != 2 or voltage.shape != (luminance.shape[0], c.n_neurons):
        raise UserError(
            f"voltage has the shape {voltage.shape}, expected ({luminance.shape[0]}, {c.n_neurons}), one row per frame"
        )
    block = min(32, luminance.shape[0])
    few = block < CSR_STATES or jax.default_backend() != "cpu"
    concrete = is_concrete(p, voltage, luminance, dt)
    kernel = Kernel(("gather" if few else "csr") if concrete else "segment", c)
    return _derivative(
        kernel.plan(), p, voltage, luminance, jnp.float32(dt), kernel=kernel, clamp_tau=clamp_tau, block=block
    )
