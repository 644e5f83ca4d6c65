"""A rollout of the circuit: a diffrax solve per chunk of frames, chunk after chunk.

Time is counted in steps (one step = one frame = dt seconds), so that a frame is found by its
number and never by dividing float times. Euler carries nothing but the state, so that borders
between chunks leave no trace.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from threading import Lock
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from flyjax.circuit.parameters import Parameters
from flyjax.simulation.kernels import LANES, Kernel, concrete

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
#: Voltages one compiled call returns by default, 4 bytes each: small enough that malloc hands the memory of
#: one call to the next; above 32 MB every call waits for fresh pages from the system.
CHUNK_VALUES = 1 << 22


class System(NamedTuple):
    """What the vector field needs, in the kernel's layout; a pytree."""

    plan: tuple
    packed: tuple
    v_rest: jax.Array
    rate: jax.Array  # dt / tau*: the vector field counts time in steps; 0 where there is no neuron


def _system(kernel: Kernel, plan, p: Parameters, dt, clamp_tau: bool) -> System:
    tau = jnp.maximum(p.tau, dt) if clamp_tau else p.tau
    v_rest, rate = (kernel.enter(x[:, None]) for x in (p.v_rest, dt / tau))
    return System(plan, kernel.pack(plan, p.weight), v_rest, rate)


def _change(kernel: Kernel, system: System, voltage, light):
    """dV per step."""
    messages = kernel.sum(system.plan, system.packed, jax.nn.relu(voltage))
    return system.rate * (system.v_rest - voltage + messages + kernel.shine(light))


def _noise(keys, steps, n: int):
    """Standard normal (T, n, B), each step a function of the key and its number alone.

    Drawn for many steps at once: one by one costs five times as much.
    """

    def draw(step, key):
        return jax.random.normal(jax.random.fold_in(key, step), (n,))

    return jax.vmap(jax.vmap(draw, in_axes=(None, 0), out_axes=1), in_axes=(0, None))(steps, keys)


@partial(jax.jit, static_argnames=("kernel", "clamp_tau", "solver", "noisy"))
def _run(plan, p, start, luminance, n_steps, dt, noise, keys, first_step, *, kernel, clamp_tau, solver, noisy):
    """(T, B, n_col) luminance and (N, B) start -> (T, N, B) states, of which the first n_steps are computed."""
    system = _system(kernel, plan, p, dt, clamp_tau)
    light, start = kernel.light(jnp.swapaxes(luminance, 1, 2)), kernel.enter(start)
    make, adaptive = SOLVERS[solver]
    if solver == "euler":
        shocks = None
        if noisy:  # a step has length 1, so this adds `noise` per step
            steps = first_step + jnp.arange(luminance.shape[0])
            shocks = kernel.enter(noise * _noise(keys, steps, kernel.c.n_neurons))

        def field(t, voltage, args):
            system, light, shocks = args
            step = jnp.round(t).astype(jnp.int32)
            change = _change(kernel, system, voltage, light[step])
            return change if shocks is None else change + shocks[step]

        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            make(),
            t0=0.0,
            t1=n_steps.astype(jnp.float32),
            dt0=1.0,
            y0=start,
            args=(system, light, shocks),
            # Only neurons are kept: the grids are twice as large and would be written to fresh memory.
            saveat=diffrax.SaveAt(steps=True, fn=lambda t, voltage, args: kernel.leave(voltage)),
            max_steps=luminance.shape[0],
            throw=False,
        ).ys

    term = diffrax.ODETerm(lambda t, voltage, args: _change(kernel, args[0], voltage, args[1]))
    # The worst neuron decides, in steps of at most 1/8 frame: a root mean square, or one long step, hides
    # the few neurons that pass the kink of the relu.
    control = diffrax.ConstantStepSize()
    if adaptive:
        control = diffrax.PIDController(rtol=1e-6, atol=1e-6, dtmax=0.125, norm=lambda error: jnp.max(jnp.abs(error)))

    def frame(voltage, light):  # held constant within the frame
        after = diffrax.diffeqsolve(
            term, make(), 0.0, 1.0, 0.1 if adaptive else 1.0, voltage, (system, light),
            stepsize_controller=control, saveat=diffrax.SaveAt(t1=True), max_steps=256 if adaptive else 1,
        ).ys[0]  # fmt: skip
        return after, kernel.leave(after)

    return jax.lax.scan(frame, start, light)[1]


@partial(jax.jit, static_argnames=("kernel", "clamp_tau", "block"))
def right_hand_side(plan, p, voltage, luminance, dt, *, kernel, clamp_tau, block):
    """dV/dt (T, N) at states (T, N) under light (T, n_col), `block` frames at a time."""
    system = _system(kernel, plan, p, dt, clamp_tau)
    n = voltage.shape[0]
    padded = -(-n // block) * block

    def piece(args):
        v, x = args  # (block, N), (block, n_col): frames are lanes here
        return (_change(kernel, system, v.T, kernel.light(x.T)) / dt).T

    v, x = (jnp.pad(a, ((0, padded - n), (0, 0))).reshape(-1, block, a.shape[1]) for a in (voltage, luminance))
    return jax.lax.map(piece, (v, x)).reshape(padded, -1)[:n]


@dataclass(frozen=True)
class Rollout:
    """What to integrate and how; iterating gives the states piece by piece, (B, chunk, N) or (chunk, N)."""

    kernel: Kernel
    parameters: Parameters
    luminance: jax.Array  #: (B, T, n_col)
    start: jax.Array  #: (B, N)
    keys: jax.Array  #: (B,)
    dt: jax.Array
    noise: jax.Array
    first_step: int
    chunk: int
    batched: bool
    static: dict  #: clamp_tau, solver, noisy

    def _groups(self) -> list[slice]:
        """Batches are cut into groups of equal width, which share one program: for the cache and the cores."""
        width = n_lanes = len(self.luminance)
        if self.kernel.name == "unrolled":
            width = min(LANES, -(-n_lanes // (os.cpu_count() or 1)))
        return [slice(k, k + width) for k in range(0, n_lanes, width)]

    def _parts(self, group: slice) -> Iterator[jax.Array]:
        """(T, N, B) states of a group, chunk by chunk, the next under way before one is handed out."""
        n_frames, ahead = self.luminance.shape[1], None
        # The last group is filled up with what is there.
        lanes = np.arange(group.start, group.stop) % len(self.luminance)
        keys, state, luminance = self.keys[lanes], self.start[lanes].T, self.luminance[lanes]
        plan = self.kernel.plan()
        for begin in range(0, n_frames, self.chunk):
            n_steps = min(self.chunk, n_frames - begin)
            light = jnp.swapaxes(luminance[:, begin : begin + n_steps], 0, 1)
            if n_steps < self.chunk:  # a short last piece runs the same program and stops early
                light = jnp.pad(light, ((0, self.chunk - n_steps), (0, 0), (0, 0)))
            part = self._run(plan, state, light, jnp.int32(n_steps), keys, jnp.int32(self.first_step + begin))
            if begin + n_steps < n_frames:
                state = part[-1]
            if ahead is not None:
                yield ahead
            ahead = part if n_steps == self.chunk else part[:n_steps]
        yield ahead

    def _run(self, plan, state, light, n_steps, keys, first_step):
        args = (plan, self.parameters, state, light, n_steps, self.dt, self.noise, keys, first_step)
        static = dict(kernel=self.kernel, **self.static)
        if not self._threaded():
            return _run(*args, **static)
        with _COMPILING:  # the first thread compiles, the others wait and find its program
            program = _one_core_program(
                jax.tree.structure(args), tuple(map(jax.typeof, jax.tree.leaves(args))), **static
            )
        return program(*args)

    def _threaded(self) -> bool:
        """Whether groups share the cores of this machine."""
        return (
            jax.default_backend() == "cpu"
            and len(self._groups()) > 1
            and concrete(self.parameters, self.luminance, self.start, self.noise, self.keys)
        )

    def __iter__(self) -> Iterator[jax.Array]:
        for parts in zip(*map(self._parts, self._groups())):
            states = jnp.concatenate(parts, axis=2) if len(parts) > 1 else parts[0]
            yield jnp.moveaxis(states, 2, 0)[: len(self.luminance)] if self.batched else states[:, :, 0]

    def whole(self) -> jax.Array:
        """All states in one array."""
        n_lanes, n_frames = self.luminance.shape[:2]
        groups = self._groups()
        if self.chunk == n_frames and len(groups) == 1:
            return next(iter(self))
        if jax.default_backend() != "cpu" or not concrete(self.parameters, self.luminance, self.start):
            return jnp.concatenate(list(self), axis=-2)
        # On a CPU every piece is copied once, into memory that the result then owns.
        states = _aligned((n_lanes, n_frames, self.kernel.c.n_neurons))

        def fill(group):
            for k, part in enumerate(self._parts(group)):
                own = states[group, k * self.chunk : (k + 1) * self.chunk]
                part = np.asarray(part)
                for t in range(len(part)):  # a frame at a time is turned inside the cache
                    own[:, t] = part[t].T[: len(own)]

        if len(groups) == 1:
            fill(groups[0])
        else:
            with ThreadPoolExecutor(min(len(groups), os.cpu_count() or 1)) as pool:
                list(pool.map(fill, groups))
        return jax.device_put(states if self.batched else states[0], may_alias=True)


_COMPILING = Lock()


@lru_cache(maxsize=32)
def _one_core_program(structure, types, **static):
    """`_run` compiled for one core, because each of several threads runs its own.

    XLA cuts an operation into as many pieces as the compiling thread may use cores; with a thread
    per core those pieces only wait for each other (a batch of 32 at extent 8: 1.5 times slower).
    """
    args = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(t.shape, t.dtype) for t in types])
    with _one_core():
        return _run.lower(*args, **static).compile()


@contextmanager
def _one_core():
    """The calling thread on one core, where the system lets it choose."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Uninitialised float32 that a CPU device can take over without a copy (64-byte boundary)."""
    n_bytes = int(np.prod(shape)) * 4
    raw = np.empty(n_bytes + 64, np.uint8)
    begin = -raw.ctypes.data % 64
    return raw[begin : begin + n_bytes].view(np.float32).reshape(shape)
