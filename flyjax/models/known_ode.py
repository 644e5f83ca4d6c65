r"""The learner that knows the equation and not its numbers: W, tau and V_rest are the parameters.

    tau_i dv_i/dt = -v_i + V_rest_i + h(sum_j W_ij relu(v_j)) + I_i,   h = identity, or tanh

What it misses, the data do not tell: a yardstick for the networks. tau = exp(log_tau) stays positive;
log_tau and V_rest learn at the embedding's rate. It has no networks, so the regularisers on them are 0.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from flyjax.circuit import Connectome
from flyjax.config import Model
from flyjax.models.gnn import graph_network

#: Where every time constant starts, s.
START_TAU = 0.1


class KnownODE(nnx.Module):
    """The equation as a jraph network.

    Attributes:
        W: (E,) weights. log_tau: (N,) log of s. v_rest: (N,).
    """

    def __init__(self, n_neurons: int, n_edges: int, config: Model, rngs: nnx.Rngs):
        self.W = nnx.Param(jax.random.normal(rngs.params(), (n_edges,)) / np.sqrt(n_edges).astype(np.float32))
        self.log_tau = nnx.Param(jnp.full((n_neurons,), np.log(START_TAU), jnp.float32))
        self.v_rest = nnx.Param(jnp.zeros((n_neurons,)))
        self.bounded = config.variant == "known_ode_tanh"

    @property
    def embedding(self) -> Float[Array, "N 2"]:
        """A neuron's own numbers, where other learners have an embedding."""
        return jnp.stack([self.log_tau[...], self.v_rest[...]], axis=1)

    def message(self, voltage: Float[Array, "N B"], embedding=None) -> Float[Array, "N B"]:
        """What a neuron sends."""
        return jax.nn.relu(voltage)

    def update(self, voltage, embedding: Float[Array, "N 2"], msg, stimulus) -> Float[Array, "N B"]:
        """dv/dt, 1/s."""
        total = jnp.tanh(msg) if self.bounded else msg
        return (embedding[:, 1:] - voltage + total + stimulus) / jnp.exp(embedding[:, :1])

    def __call__(self, graph: jraph.GraphsTuple):
        """dv/dt (N, B), or the sum of squared errors where nodes have a `target`: as `GNN`."""

        def weigh(weight, sent, received, globals_):
            return weight[:, None] * self.message(sent["voltage"])

        def integrate(nodes, sent_sum, received_sum, globals_):
            change = self.update(nodes["voltage"], self.embedding, received_sum, nodes["stimulus"])
            return jnp.sum(jnp.square(change - nodes["target"])) if "target" in nodes else change

        return graph_network(weigh, integrate)(graph._replace(edges=self.W[...])).nodes

    def probes(self, voltage, connectome: Connectome):
        """Messages are given: there is nothing to regularise."""
        return None

    def update_probes(self):
        """The update is given too."""
        return None
