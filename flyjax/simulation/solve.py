"""The circuit's equation and its solution by diffrax over one chunk of frames.

    tau*_i dV_i/dt = -V_i + V_rest_i + sum_j w_ij relu(V_j) + x_i,    tau* = max(tau, dt),

as flyvis integrates it (Lappalainen et al. 2024, Nature). x is the luminance of the neuron's column for R1..R8
and 0 elsewhere. The simulator, the targets of recordings and training all use the one function `vector_field`.

**Time counts steps**: one step is one frame of dt seconds, so that t = 0, 1, 2, … is exact in float32 and frame
number round(t) is the right one. In seconds, floor(t / dt) in float32 picks a neighbouring frame in about one step
of four. The vector field is multiplied by dt accordingly (`VectorFieldArgs.rate`).

Euler carries nothing but the state from step to step, so that a rollout may be cut into chunks anywhere.
"""

from functools import partial
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from flyjax.circuit.parameters import Parameters
from flyjax.simulation.kernels import Kernel


class VectorFieldArgs(NamedTuple):
    """Arrays of the vector field in the layout of a kernel; a pytree."""

    plan: Any  #: index arrays of the message sum
    weight: jax.Array | tuple[jax.Array, ...]  #: in the kernel's order
    v_rest: jax.Array
    rate: jax.Array  #: dt / tau*: time counts steps; 0 in cells of the layout without a neuron


def vector_field_args(kernel: Kernel, plan, p: Parameters, dt, clamp_tau: bool) -> VectorFieldArgs:
    """Parameters as `vector_field` reads them; once per solve, not per step."""
    tau = jnp.maximum(p.tau, dt) if clamp_tau else p.tau
    v_rest, rate = (kernel.to_layout(x[:, None]) for x in (p.v_rest, dt / tau))
    return VectorFieldArgs(plan, kernel.pack_weights(plan, p.weight), v_rest, rate)


def vector_field(
    kernel: Kernel, args: VectorFieldArgs, voltage: Float[Array, "N B"], stimulus: Float[Array, "n_col+1 B"]
) -> Float[Array, "N B"]:
    """dt * dV/dt, the change of voltage per step, for B independent states.

    **Arguments:**

    - `kernel`: the message sum; voltages and result are in its layout, (N, B) for most.
    - `stimulus`: luminance of one frame in [0, 1], from `kernel.pack_stimulus`.
    """
    messages = kernel.sum(args.plan, args.weight, jax.nn.relu(voltage))
    return args.rate * (args.v_rest - voltage + messages + kernel.inject_input(stimulus))


def derivatives(
    kernel: Kernel, args: VectorFieldArgs, dt, voltage: Float[Array, "B N"], luminance: Float[Array, "B n_col"]
) -> Float[Array, "B N"]:
    """dV/dt, 1/s, of B states with a luminance each."""
    return (vector_field(kernel, args, voltage.T, kernel.pack_stimulus(luminance.T)) / dt).T


#: Steps whose noise a CPU draws at once.
NOISE_STEPS = 16
#: Solvers by name. All but Euler are for smooth, noise-free problems.
SOLVERS = {
    "euler": diffrax.Euler,
    "heun": diffrax.Heun,
    "midpoint": diffrax.Midpoint,
    "ralston": diffrax.Ralston,
    "bosh3": diffrax.Bosh3,
    "tsit5": diffrax.Tsit5,
    "dopri5": diffrax.Dopri5,
    "dopri8": diffrax.Dopri8,
}
#: Solvers that choose their own steps within a frame.
ADAPTIVE = ("bosh3", "tsit5", "dopri5", "dopri8")


@partial(jax.jit, static_argnames=("kernel", "clamp_tau", "solver", "noisy", "batched"))
def solve(
    plan,
    p: Parameters,
    initial: Float32[Array, "N B"],
    luminance: Float32[Array, "T B n_col"],
    dt: Float32[Array, ""],
    noise: Float32[Array, ""],
    keys,
    first_step: Int32[Array, ""],
    *,
    kernel: Kernel,
    clamp_tau: bool,
    solver: str,
    noisy: bool,
    batched: bool,
) -> tuple[Float32[Array, "... T N"], Float32[Array, "N B"]]:
    """States after each frame for B independent sequences, or of the only one without an axis for it; and the last.

    **Arguments:**

    - `plan`: `kernel.plan()`.
    - `dt`: duration of a frame, s.
    - `noise`: standard deviation added per step, where `noisy`.
    - `keys`: (B,) keys of the noise.
    - `first_step`: number of the chunk's first frame, from which the noise is drawn.
    """
    args = vector_field_args(kernel, plan, p, dt, clamp_tau)
    stimulus, initial = kernel.pack_stimulus(jnp.swapaxes(luminance, 1, 2)), kernel.to_layout(initial)
    if solver != "euler":
        return _by_sequence(_solve_frame_by_frame(kernel, args, solver, stimulus, initial), batched)
    shocks = None
    if noisy:
        shocks = _normal(keys, first_step, luminance.shape[0], kernel.c.n_neurons, noise)

    def field(t, voltage, args):
        args, stimulus, shocks = args
        step = jnp.round(t).astype(jnp.int32)
        change = vector_field(kernel, args, voltage, stimulus[step])
        # Of all frames at once the layouts would be written to memory and read again.
        return change if shocks is None else change + kernel.to_layout(shocks[step])

    # Of times that are arrays diffrax checks the order by a call of the host, which keeps the program out of JAX's
    # persistent cache. Python numbers would be float64 where JAX_ENABLE_X64 is set.
    number = jnp.float32 if jax.config.values["jax_enable_x64"] else float
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        SOLVERS[solver](),
        t0=number(0),
        t1=number(luminance.shape[0]),
        dt0=number(1),
        y0=initial,
        args=(args, stimulus, shocks),
        # Neurons only: the grids of some kernels are twice as large.
        saveat=diffrax.SaveAt(steps=True, fn=lambda t, voltage, args: kernel.from_layout(voltage)),
        stepsize_controller=diffrax.ConstantStepSize(),
        max_steps=luminance.shape[0],
        throw=False,
    )
    return _by_sequence(solution.ys, batched)


def _by_sequence(states: Float32[Array, "T N B"], batched: bool):
    """Sequences first, and the last state. Here and not outside the program, which would copy them."""
    return (jnp.moveaxis(states, 2, 0) if batched else states[:, :, 0]), states[-1]


def _solve_frame_by_frame(kernel, args, solver: str, stimulus, initial):
    """One solve per frame, under constant luminance."""
    controller: diffrax.AbstractStepSizeController = diffrax.ConstantStepSize()
    dt0, max_steps = 1.0, 1
    if solver in ADAPTIVE:
        # The largest error of any neuron controls the step, of at most 1/8 frame: a root mean square, or one
        # long step, hides the few neurons that cross the kink of the relu.
        controller = diffrax.PIDController(rtol=1e-6, atol=1e-6, dtmax=0.125, norm=lambda e: jnp.max(jnp.abs(e)))
        dt0, max_steps = 0.1, 256
    term = diffrax.ODETerm(lambda t, voltage, args: vector_field(kernel, args[0], voltage, args[1]))

    def frame(voltage, stimulus):
        solution = diffrax.diffeqsolve(
            term,
            SOLVERS[solver](),
            t0=jnp.float32(0),
            t1=jnp.float32(1),
            dt0=jnp.float32(dt0),
            y0=voltage,
            args=(args, stimulus),
            saveat=diffrax.SaveAt(t1=True),
            stepsize_controller=controller,
            max_steps=max_steps,
        )
        return solution.ys[0], kernel.from_layout(solution.ys[0])

    return jax.lax.scan(frame, initial, stimulus)[1]


def _normal(keys, first_step, n_steps: int, n: int, std) -> Float32[Array, "at_least_T n B"]:
    """Noise, each step a function of the key and its number alone; many steps at once, as many as stay in cache."""

    def draw(step, key):
        return std * jax.random.normal(jax.random.fold_in(key, step), (n,), jnp.float32)

    several = jax.vmap(jax.vmap(draw, in_axes=(None, 0), out_axes=1), in_axes=(0, None))
    width = NOISE_STEPS if jax.default_backend() == "cpu" else n_steps
    steps = first_step + jnp.arange(-(-n_steps // width) * width, dtype=jnp.int32)
    drawn = jax.lax.map(lambda own: several(own, keys), steps.reshape(-1, width))
    return drawn.reshape(len(steps), n, -1)
