"""The circuit in time: dV/dt = (-V + V_rest + sum_j w_ij relu(V_j) + x) / tau*.

tau* = max(tau, dt), as flyvis integrates (Lappalainen et al. 2024). x is the luminance of the
neuron's column for R1..R8 and 0 elsewhere. The output of frame t is the state after it.

Time is counted in steps (one step = one frame = dt seconds), so that a frame is found by its
number and never by dividing float times.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from flyjax.circuit.connectome import Connectome
from flyjax.circuit.messages import Buckets, buckets, message_sum, pack
from flyjax.circuit.parameters import Parameters
from flyjax.errors import UserError, nearest

GREY = 0.5
#: Solvers by name and whether they choose their own steps inside a frame.
SOLVERS = {
    "euler": (diffrax.Euler, False),
    "heun": (diffrax.Heun, False),
    "midpoint": (diffrax.Midpoint, False),
    "ralston": (diffrax.Ralston, False),
    "bosh3": (diffrax.Bosh3, True),
    "tsit5": (diffrax.Tsit5, True),
    "dopri5": (diffrax.Dopri5, True),
    "dopri8": (diffrax.Dopri8, True),
}
#: Explicit Euler's stability margin for unclamped time constants.
MAX_DT_PER_TAU = 1.5


class _System(NamedTuple):
    """What the vector field needs, in the layout of the kernels; a pytree."""

    plan: Buckets
    packed: tuple[jax.Array, ...]
    input_slot: jax.Array  # (N,) column of each input neuron; n_columns for all others
    v_rest: jax.Array  # (N, 1)
    rate: jax.Array  # (N, 1) dt / tau*: the vector field per step


@lru_cache(maxsize=8)
def _input_slot(c: Connectome) -> jax.Array:
    slot = np.full(c.n_neurons, c.n_columns, np.int32)
    slot[c.inputs] = c.input_column
    with jax.ensure_compile_time_eval():
        return jnp.asarray(slot)


def _drive(system: _System, voltage, luminance):
    """-V + V_rest + messages + x for states (N, B) and luminance (n_col, B)."""
    lit = jnp.concatenate([luminance, jnp.zeros((1, luminance.shape[1]), luminance.dtype)])
    messages = message_sum(system.plan, system.packed, jax.nn.relu(voltage))
    return system.v_rest - voltage + messages + lit[system.input_slot]


def _system(plan, input_slot, p: Parameters, dt, clamp_tau: bool) -> _System:
    tau = jnp.maximum(p.tau, dt) if clamp_tau else p.tau
    return _System(plan, pack(plan, p.weight), input_slot, p.v_rest[:, None], (dt / tau)[:, None])


def _noise(keys, step, n: int):
    """Standard normal (n, B), a function of the key and the number of the step alone."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, step), (n,)), out_axes=1)(keys)


@partial(jax.jit, static_argnames=("clamp_tau", "solver", "noisy"))
def _rollout(plan, input_slot, p, start, luminance, dt, noise, keys, first_step, *, clamp_tau, solver, noisy):
    """(T, n_col, B) luminance -> (T, N, B) states; one diffrax solve for Euler, one per frame otherwise."""
    system = _system(plan, input_slot, p, dt, clamp_tau)
    n_steps = luminance.shape[0]
    make, adaptive = SOLVERS[solver]

    if solver == "euler":

        def field(t, voltage, args):
            system, luminance, noise, keys, first_step = args
            step = jnp.round(t).astype(jnp.int32)
            change = system.rate * _drive(system, voltage, luminance[step])
            if noisy:  # steps have length 1, so this adds `noise` per step
                change = change + noise * _noise(keys, first_step + step, voltage.shape[0])
            return change

        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            make(),
            t0=0.0,
            t1=float(n_steps),
            dt0=1.0,
            y0=start,
            args=(system, luminance, noise, keys, first_step),
            saveat=diffrax.SaveAt(steps=True),
            max_steps=n_steps,
            throw=False,
        )
        return solution.ys

    term = diffrax.ODETerm(lambda t, voltage, args: args[0].rate * _drive(args[0], voltage, args[1]))
    control = diffrax.PIDController(rtol=1e-6, atol=1e-7) if adaptive else diffrax.ConstantStepSize()

    def frame(voltage, luminance):  # held constant within the frame
        solution = diffrax.diffeqsolve(
            term, make(), 0.0, 1.0, 0.1 if adaptive else 1.0, voltage, (system, luminance),
            stepsize_controller=control, saveat=diffrax.SaveAt(t1=True), max_steps=256 if adaptive else 1,
        )  # fmt: skip
        return solution.ys[0], solution.ys[0]

    return jax.lax.scan(frame, start, luminance)[1]


def _concrete(*arrays) -> bool:
    return not any(isinstance(a, jax.core.Tracer) for a in arrays)


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
        raise UserError(f"luminance has the shape {luminance.shape}, expected (frames, {c.n_columns}) at extent {c.extent}")
    if 0 in luminance.shape:
        raise UserError("luminance has no frames: an empty stimulus cannot be simulated")
    if _concrete(luminance):
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
            raise UserError(f"parameter {name} has the shape {array.shape}, expected ({n},): was it made for another extent?")
        if _concrete(array) and not bool(jnp.isfinite(array).all()):
            raise UserError(f"parameter {name} holds NaN or infinite values")
    if not (np.isfinite(dt) and dt > 0):
        raise UserError(f"dt must be a positive number of seconds, got {dt!r}")
    if solver not in SOLVERS:
        raise UserError(f"no solver {solver!r}.{nearest(solver, SOLVERS)} Known: {', '.join(SOLVERS)}.")
    if _concrete(noise) and not (np.isfinite(noise) and noise >= 0):
        raise UserError(f"noise must be a standard deviation >= 0, got {noise!r}")
    if not _concrete(noise) or noise > 0:
        if key is None:
            raise UserError("noise > 0 needs a key, for example key=jax.random.key(0)")
        if solver != "euler":
            raise UserError(f"solver {solver!r} is noise-free: process noise is defined per Euler step; use solver='euler'")
    if _concrete(p.tau):
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
        raise UserError(f"{key.shape} keys for {n_batch or 'an unbatched'} sequence(s): give one key or one per sequence")
    return key


def steady_state(
    c: Connectome, p: Parameters, dt: float = 0.02, luminance: float = GREY, duration: float = 1.0, clamp_tau: bool = True
) -> Float32[Array, " N"]:
    """State after `duration` seconds of uniform light from V = V_rest, without noise (flyvis: 1 s of 0.5).

    **Raises:** `UserError` for luminance outside [0, 1] or bad parameters.
    """
    n_steps = max(1, round(duration / dt))
    uniform = np.full((n_steps, c.n_columns), luminance, np.float32)
    return simulate(c, p, uniform, dt, initial="rest", clamp_tau=clamp_tau)[-1]


def _initial(c: Connectome, p: Parameters, initial, luminance, dt: float, clamp_tau: bool) -> jax.Array:
    """(N, 1) or (N, B) start."""
    if isinstance(initial, str):
        if initial == "rest":
            return p.v_rest[:, None]
        if initial == "grey":
            return steady_state(c, p, dt, clamp_tau=clamp_tau)[:, None]
        raise UserError(f"initial is 'grey', 'rest' or an array of ({c.n_neurons},) voltages, got {initial!r}")
    start = jnp.asarray(initial, jnp.float32)
    allowed = [(c.n_neurons,)] + ([(luminance.shape[0], c.n_neurons)] if luminance.ndim == 3 else [])
    if start.shape not in allowed:
        raise UserError(f"initial has the shape {start.shape}, expected {' or '.join(map(str, allowed))}")
    return start[:, None] if start.ndim == 1 else start.T


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
) -> Float32[Array, "T N"]:
    """Voltages under a stimulus; v[t] is the state after frame t. Differentiable, compiled once per shape.

    Args:
        luminance: (T, n_columns) in [0, 1]; or (B, T, n_columns) for B independent sequences,
            which gives (B, T, N).
        dt: duration of one frame, s.
        noise: standard deviation added to every voltage after each step (not scaled by dt).
        key: of the noise, drawn per step as `fold_in(key, first_step + t)`; a batch takes one key
            per sequence, or splits a single one.
        initial: "grey" (1 s of uniform 0.5), "rest" (V_rest) or (N,) voltages.
        clamp_tau: integrate with max(tau, dt).
        solver: a name in `SOLVERS`. All but "euler" are noise-free and hold the luminance constant
            within a frame; the embedded Runge-Kutta methods adapt their steps (PID controller).
        first_step: number of the first frame, for a rollout that goes on from an earlier one.
        chunk: frames per compiled call; any value gives the same numbers.

    **Raises:** `UserError` for a stimulus of the wrong shape or outside [0, 1], non-finite
    parameters, noise without a key or with a higher-order solver, and `clamp_tau=False` where
    dt > 1.5 min(tau).
    """
    luminance = check_luminance(c, luminance)
    n_frames = luminance.shape[-2]
    if chunk is None or chunk >= n_frames:
        chunk = n_frames
    parts = list(_chunks(c, p, luminance, dt, noise, key, initial, clamp_tau, solver, first_step, chunk))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-2)


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
    chunk: int = 1000,
) -> Iterator[Float32[Array, "chunk N"]]:
    """`simulate` piece by piece, for recordings larger than memory; the last piece may be shorter."""
    return _chunks(c, p, check_luminance(c, luminance), dt, noise, key, initial, clamp_tau, solver, first_step, chunk)


def _chunks(c, p, luminance, dt, noise, key, initial, clamp_tau, solver, first_step, chunk):
    if chunk < 1:
        raise UserError(f"chunk must be a positive number of frames, got {chunk}")
    p = _check(c, p, dt, noise, key, clamp_tau, solver)
    batched = luminance.ndim == 3
    keys = _keys(key, luminance.shape[0] if batched else None)
    state = _initial(c, p, initial, luminance, dt, clamp_tau)
    if batched:
        state = jnp.broadcast_to(state, (c.n_neurons, luminance.shape[0]))
    noisy = not _concrete(noise) or noise > 0
    columns_first = jnp.moveaxis(luminance, 0, -1) if batched else luminance[..., None]  # (T, n_col, B)
    for begin in range(0, columns_first.shape[0], chunk):
        states = _rollout(
            buckets(c), _input_slot(c), p, state, columns_first[begin : begin + chunk], jnp.float32(dt),
            jnp.asarray(noise, jnp.float32), keys, jnp.int32(first_step + begin),
            clamp_tau=clamp_tau, solver=solver, noisy=noisy,
        )  # fmt: skip
        state = states[-1]
        yield jnp.moveaxis(states, -1, 0) if batched else states[..., 0]


@partial(jax.jit, static_argnames=("clamp_tau", "block"))
def _derivative(plan, input_slot, p, voltage, luminance, dt, *, clamp_tau, block):
    system = _system(plan, input_slot, p, dt, clamp_tau)
    per_second = system.rate / dt

    def piece(args):
        v, x = args  # (block, N), (block, n_col)
        return (per_second * _drive(system, v.T, x.T)).T

    n = voltage.shape[0]
    padded = -(-n // block) * block
    v, x = (jnp.pad(a, ((0, padded - n), (0, 0))).reshape(-1, block, a.shape[1]) for a in (voltage, luminance))
    return jax.lax.map(piece, (v, x)).reshape(padded, -1)[:n]


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
        raise UserError(f"voltage has the shape {voltage.shape}, expected ({luminance.shape[0]}, {c.n_neurons}), one row per frame")
    block = min(32, luminance.shape[0])
    return _derivative(buckets(c), _input_slot(c), p, voltage, luminance, jnp.float32(dt), clamp_tau=clamp_tau, block=block)
