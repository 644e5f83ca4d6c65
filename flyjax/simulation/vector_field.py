"""The right-hand side of the circuit,

    tau*_i dV_i/dt = -V_i + V_rest_i + sum_j w_ij relu(V_j) + x_i,    tau* = max(tau, dt),

as flyvis integrates it (Lappalainen et al. 2024, Nature). x is the luminance of the neuron's column for R1..R8
and 0 elsewhere. The simulator, the targets of recordings and training all use the one function `vector_field`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

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
