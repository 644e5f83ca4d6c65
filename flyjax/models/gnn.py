r"""Variants A and B: graph neural networks on the connectome.

    msg_i   = sum_j W_ij g(v_j, a_j),        g = phi(v_j, a_j)^2
    dv_i/dt = f(v_i, a_i, msg_i, I_i)

`phi` and `f` are small MLPs shared by all neurons, `a_i` is a learned embedding of neuron i and
`W_ij` a free weight per edge (Allier et al., flyvis-gnn). `g` depends on the sending neuron alone,
so it is evaluated once per neuron and not once per edge: 31.6 times less work at extent 8. That is
variant A; in variant B (`PairGNN`) phi also depends on v_i and a_i.

With `units: data` the networks work on numbers of the order of one: with s the standard deviation of
all voltages and r that of all derivatives, g = s phi(v/s, a)^2 and dv/dt = r f(v/s, a, msg/s, I). Voltages
are some 0.1 in a typical recording, where a fresh network is all but linear: training then first fits
linear messages, and some seeds never leave them.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from flyjax.circuit import Connectome
from flyjax.config import Model
from flyjax.models import chunked_map
from flyjax.models.graph_network import GraphsTuple, graph_network
from flyjax.models.message_passing import MessagePassing, Stateful
from flyjax.models.network import Network, functional
from flyjax.models.stimulus_field import Field
from flyjax.utils.errors import UserError


class GNN(MessagePassing):
    """Variant A.

    **Attributes**, beside those of `MessagePassing`:

    - `embedding`: (N, d), initialised to ones.
    - `message_network`, `update_network`: phi and f.
    - `units`: None, or (2,) standard deviation of voltages and of derivatives (1/s), set and not trained.
    - `field`: None, or the `Field` that replaces an unknown stimulus.
    """

    def __init__(self, n_neurons: int, n_edges: int, config: Model, segment_rows: int, rngs: nnx.Rngs):
        super().__init__(n_neurons, n_edges, config, segment_rows, rngs)
        self.embedding = nnx.Param(jnp.ones((n_neurons, config.embedding_size)))
        self.message_network = Network(1, config, rngs)
        self.update_network = Network(3, config, rngs)
        self.units = nnx.Param(jnp.ones((2,))) if config.units == "data" else None
        self.field = Field(config, rngs) if config.stimulus == "field" else None

    @property
    def _units(self) -> Float[Array, " 2"] | None:
        return None if self.units is None else self.units[...]

    def message_fn(self) -> Stateful:
        """g of the voltages (of the sender, in variant B also of the receiver), and its state."""
        phi, state = functional(self.message_network)

        def g(state, signals, embedding):
            state, units = state
            if units is None:
                return jnp.square(phi(state, signals, embedding))
            volt = jax.lax.stop_gradient(units)[0]
            return volt * jnp.square(phi(state, tuple(v / volt for v in signals), embedding))

        return g, (state, self._units)

    def update_fn(self) -> Stateful:
        network, state = functional(self.update_network)

        def f(state, signals, embedding):
            state, units = state
            if units is None:
                return network(state, signals, embedding)
            volt, rate = jax.lax.stop_gradient(units)
            voltage, msg, stimulus = signals
            return rate * network(state, (voltage / volt, msg / volt, stimulus), embedding)

        return f, (state, self._units)

    def message(self, voltage: Float[Array, "N B"]) -> Float[Array, "N B"]:
        g, state = self.message_fn()
        return g(state, (voltage,), self.embedding[...])

    def _messages(
        self, signals: tuple[Float[Array, "n B"], ...], embedding: Float[Array, "n d"]
    ) -> Float[Array, "n B"]:
        """g of each row, segment by segment."""
        g, state = self.message_fn()
        n_segments = self.n_segments(signals[0].size)
        return chunked_map.mapped(lambda s, rows: g(s, *rows), n_segments, state, (signals, embedding))

    def propagate(self, graph: GraphsTuple, update_node):
        nodes = {**graph.nodes, "message": self._messages((graph.nodes["voltage"],), self.embedding[...])}

        def update_edge(weight, sender, receiver, globals_):
            return weight[:, None] * sender["message"]

        network = graph_network(update_edge, update_node)
        return network(graph._replace(nodes=nodes, edges=self.W[...])).nodes

    def message_probe(self, voltage: Float[Array, " N"], connectome: Connectome):
        g, state = self.message_fn()
        return lambda state, points, rows: g(state, (points,), rows[0]), state, (self.embedding[...],)


class PairGNN(GNN):
    """Variant B: a message depends on both ends of its edge, phi(v_j, v_i, a_j, a_i)^2.

    It is evaluated on every edge, a segment of edges at a time, so that memory stays bounded: at extent 8,
    31.6 times the work of variant A.
    """

    def __init__(self, n_neurons: int, n_edges: int, config: Model, segment_rows: int, rngs: nnx.Rngs):
        super().__init__(n_neurons, n_edges, config, segment_rows, rngs)
        self.message_network = Network(2, config, rngs, n_neurons=2)

    def message(self, voltage):
        """**Raises:** `UserError`: there is no message of the sending neuron alone."""
        raise UserError(
            "model.variant B: a message depends on both neurons, so W*, tau and V_rest cannot be read off it; "
            "use variant A to recover a circuit (training, prediction and rollouts work with B)"
        )

    def propagate(self, graph: GraphsTuple, update_node):
        def update_edge(weight, sender, receiver, globals_):
            both = jnp.concatenate([sender["embedding"], receiver["embedding"]], axis=1)
            return weight[:, None] * self._messages((sender["voltage"], receiver["voltage"]), both)

        nodes = {**graph.nodes, "embedding": self.embedding[...]}
        network = graph_network(update_edge, update_node)
        return network(graph._replace(nodes=nodes, edges=self.W[...])).nodes

    def message_probe(self, voltage, connectome):
        """As in `GNN`; every sender is probed on its first edge, or on itself where it has none."""
        g, state = self.message_fn()
        partner = np.arange(connectome.n_neurons)
        partner[connectome.senders[::-1]] = connectome.receivers[::-1]
        embedding = self.embedding[...]

        def probe(state, points, rows):
            embedded, received = rows
            return g(state, (points, jnp.broadcast_to(received[:, None], points.shape)), embedded)

        return probe, state, (jnp.concatenate([embedding, embedding[partner]], axis=1), voltage[partner])
