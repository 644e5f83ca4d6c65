"""The right-hand side of the circuit,

    tau*_i dV_i/dt = -V_i + V_rest_i + sum_j w_ij relu(V_j) + x_i,    tau* = max(tau, dt),

as flyvis integrates it (Lappalainen et al. 2024, Nature). x is the luminance of the neuron's column for R1..R8
and 0 elsewhere. The simulator, the targets of recordings and training all use the one function `vector_field`.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from flyjax.circuit.connectome import Connectome
from flyjax.circuit.parameters import Parameters
from flyjax.simulation.checks import check_luminance, check_parameters, is_concrete
from flyjax.simulation.kernels import CSR_STATES, Kernel
from flyjax.utils.errors import UserError


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


@partial(jax.jit, static_argnames=("kernel", "clamp_tau", "block"))
def _derivative(plan, p, voltage, luminance, dt, *, kernel, clamp_tau, block):
    """dV/dt of (T, N) states, `block` frames at a time."""
    args = vector_field_args(kernel, plan, p, dt, clamp_tau)
    n_frames = voltage.shape[0]
    padded = -(-n_frames // block) * block

    def of_block(frames):
        v, x = frames  # (block, N), (block, n_col): each frame is a state of its own
        return (vector_field(kernel, args, v.T, kernel.pack_stimulus(x.T)) / dt).T

    v, x = (jnp.pad(a, ((0, padded - n_frames), (0, 0))).reshape(-1, block, a.shape[1]) for a in (voltage, luminance))
    return jax.lax.map(of_block, (v, x)).reshape(padded, -1)[:n_frames]


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
