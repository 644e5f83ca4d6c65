r"""The variants that know the equation and not its constants: W, tau and V_rest are the parameters.

    tau_i dv_i/dt = -v_i + V_rest_i + h(sum_j W_ij relu(v_j)) + I_i,   h = identity, or tanh

Their error is what the data leave open: a reference for the networks. tau = exp(log_tau) stays positive;
log_tau and V_rest learn at the embedding's rate. There are no networks, so the regularisers on them are 0.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from flyjax.config import Model
from flyjax.models.gnn import MessagePassing, Stateful

#: Initial value of every time constant, s.
START_TAU = 0.1


class KnownODE(MessagePassing):
    """The equation as a graph network.

    **Attributes**, beside those of `MessagePassing`: `log_tau` (N,) log of s; `v_rest` (N,).
    """

    def __init__(self, n_neurons: int, n_edges: int, config: Model, segment_rows: int, rngs: nnx.Rngs):
        super().__init__(n_neurons, n_edges, config, segment_rows, rngs)
        self.log_tau = nnx.Param(jnp.full((n_neurons,), np.log(START_TAU), jnp.float32))
        self.v_rest = nnx.Param(jnp.zeros((n_neurons,)))
        self.bounded = config.variant == "known_ode_tanh"

    @property
    def embedding(self) -> Float[Array, "N 2"]:
        """log_tau and V_rest of every neuron."""
        return jnp.stack([self.log_tau[...], self.v_rest[...]], axis=1)

    def message(self, voltage: Float[Array, "N B"]) -> Float[Array, "N B"]:
        return jax.nn.relu(voltage)

    def update_fn(self) -> Stateful:
        def f(state, signals, embedding):
            voltage, msg, stimulus = signals
            total = jnp.tanh(msg) if self.bounded else msg
            return (embedding[:, 1:] - voltage + total + stimulus) / jnp.exp(embedding[:, :1])

        return f, ()

    def messages(self, voltage):
        return {}, lambda sender, receiver: self.message(sender["voltage"])
