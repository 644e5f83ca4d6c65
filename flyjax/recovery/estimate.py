"""An estimate of the circuit, whatever the method."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

#: NumPy arrays; JAX arrays within compiled code.
Array = np.ndarray | jax.Array


class CircuitEstimate(NamedTuple):
    """Estimated parameters of a circuit, in the connectome's order of edges and neurons; NaN where there is none.

    `flyjax.circuit.Parameters` has the same fields, so true parameters can stand wherever an estimate is expected.
    """

    weight: Float[Array, " E"]  #: synaptic weight
    tau: Float[Array, " N"]  #: time constant, s
    v_rest: Float[Array, " N"]  #: resting potential

    @classmethod
    def from_coefficients(cls, rate, source, constant, receivers) -> CircuitEstimate:
        """The circuit of dv_i/dt = -rate_i v_i + sum_j source_ij relu(v_j) + constant_i + input.

        **Arguments:**

        - `rate`: (N,) leak rate 1/tau, 1/s. Time constants are clipped to [0, 1] s.
        - `source`: (E,) coefficient of each edge's source, 1/s.
        - `constant`: (N,) coefficient V_rest / tau, 1/s.
        - `receivers`: (E,) receiving neuron of each edge.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            weight, tau, v_rest = source / rate[receivers], np.clip(1.0 / rate, 0.0, 1.0), constant / rate
        return cls(weight.astype(np.float32), tau.astype(np.float32), v_rest.astype(np.float32))

    @classmethod
    def missing(cls, connectome) -> CircuitEstimate:
        """All values NaN, for a network whose functions are not finite."""
        neurons = np.full(connectome.n_neurons, np.nan, np.float32)
        return cls(np.full(connectome.n_edges, np.nan, np.float32), neurons, neurons)
