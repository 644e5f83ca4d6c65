r"""The models of dv/dt on the connectome: graph neural networks (variants A and B) and the known equation.

    msg_i   = sum_j W_ij g(v_j, a_j),        g = phi(v_j, a_j)^2
    dv_i/dt = f(v_i, a_i, msg_i, I_i)

`phi` and `f` are small MLPs shared by all neurons, `a_i` is a learned embedding of neuron i and
`W_ij` a free weight per edge (Allier et al., flyvis-gnn). `g` depends on the sending neuron alone,
so it is evaluated once per neuron and not once per edge: 31.6 times less work at extent 8. That is
variant A; in variant B (`PairGNN`) phi also depends on v_i and a_i.

With `units: data` the networks work on numbers of the order of one: with s the standard deviation of
all voltages and r that of all derivatives, g = s phi(v/s, a)^2 and dv/dt = r f(v/s, a, msg/s, I). Voltages
are about 0.1 in a typical recording, where a new network is almost linear: training then first fits
linear messages, and the messages of some seeds stay linear.

The variants that know the equation and not its constants have W, tau and V_rest as parameters:

    tau_i dv_i/dt = -v_i + V_rest_i + h(sum_j W_ij relu(v_j)) + I_i,   h = identity, or tanh

Their error is what the data leave open: a reference for the networks. tau = exp(log_tau) stays positive;
log_tau and V_rest learn at the embedding's rate. There are no networks, so the regularisers on them are 0.

The derivative is a jraph graph network whose node update is f; no other module imports jraph, which is no longer
maintained. For the loss, the node update of the same network returns the inputs of f; then f, the error and its
gradient are evaluated segment by segment in one pass (`chunked_map.square_sum`), so that the activations of all
neurons and frames never exist at once.

Arrays put neurons first and frames second, (N, B): on CPU a gather along the leading axis with the
batch behind it was about twice as fast as the other way round.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from jraph import GraphsTuple

from flyjax.circuit import Connectome
from flyjax.config import Model
from flyjax.models import chunked_map
from flyjax.models.network import Network, functional, with_first_again
from flyjax.models.stimulus_field import Field
from flyjax.utils.errors import UserError

__all__ = ["GraphsTuple", "graph_network", "make_graph", "neuron_stimulus"]


def graph_network(update_edge: Callable, update_node: Callable) -> jraph.GraphNetwork:
    """An edge update, a sum over the edges into each neuron and a node update.

    **Arguments:**

    - `update_edge`: maps (edge features, features of the sender, of the receiver, globals) to messages (E, B).
    - `update_node`: maps (node features, sums of sent and of received messages, globals) to node features.
    """

    def sum_messages(messages, receivers, n_neurons):
        return jax.ops.segment_sum(messages, receivers, n_neurons, indices_are_sorted=True)

    return jraph.GraphNetwork(update_edge, update_node, aggregate_edges_for_nodes_fn=sum_messages)


def make_graph(connectome: Connectome, **nodes: Float[Array, "N B"]) -> GraphsTuple:
    """The connectome as a graph whose nodes carry B frames of `voltage` and `stimulus`."""
    return GraphsTuple(
        nodes=nodes,
        edges=None,
        senders=jnp.asarray(connectome.senders),
        receivers=jnp.asarray(connectome.receivers),
        globals=None,
        n_node=jnp.asarray([connectome.n_neurons]),
        n_edge=jnp.asarray([connectome.n_edges]),
    )


def neuron_stimulus(connectome: Connectome, luminance: Float[Array, "B n_col"]) -> Float[Array, "N B"]:
    """The external input of every neuron: its column's luminance for a photoreceptor, 0 for the others."""
    stimulus = jnp.zeros((connectome.n_neurons, luminance.shape[0]), luminance.dtype)
    return stimulus.at[connectome.inputs].set(luminance.T[connectome.input_column])


#: A function of (its state, signals (n, B), embedding (n, d)), and the state.
Stateful = tuple[Callable[..., Array], Any]


class MessagePassing(nnx.Module):
    """A model of dv/dt with one weight per edge.

    **Attributes:**

    - `W`: (E,) weights, in the order of the graph's edges.
    - `segment_rows`: rows (neurons x frames) that are evaluated at once.
    - `embedding`: (N, d) a neuron's own numbers.
    """

    embedding: Any
    field: Any  #: the `Field` that replaces an unknown stimulus, or None
    joins_messages = False  #: whether the loss takes what is sent and what regularisers vary from `sent_and_probed`

    def __init__(self, n_neurons: int, n_edges: int, config: Model, segment_rows: int, rngs: nnx.Rngs):
        self.W = nnx.Param(
            jax.random.normal(rngs.params(), (n_edges,), "float32") / np.sqrt(n_edges).astype(np.float32)
        )
        self.segment_rows = segment_rows

    def update_fn(self) -> Stateful:
        """f of the signals (voltage, message sum, stimulus), and its state; dv/dt in 1/s."""
        raise NotImplementedError

    def message_probe(self, voltage: Float[Array, " N"], connectome: Connectome):
        """What the regularisers on messages vary: a function of (state, voltages of the sender (n, P), rows), its
        state and the rows, which get no gradient. None where the messages are given."""
        return None

    def messages(self, voltage: Float[Array, "N B"], **known) -> tuple[dict[str, Array], Callable[[dict, dict], Array]]:
        """Further node features, and the message along an edge of the features of its sender and receiver.

        **Arguments:** the features of `graph.nodes`.
        """
        raise NotImplementedError

    def propagate(self, graph: GraphsTuple, update_node: Callable):
        """The nodes of the graph network with this node update."""
        features, message = self.messages(**graph.nodes)

        def update_edge(weight, sender, receiver, globals_):
            return weight[:, None] * message(sender, receiver)

        network = graph_network(update_edge, update_node)
        return network(graph._replace(nodes=graph.nodes | features, edges=self.W[...])).nodes

    def message(self, voltage: Float[Array, "N B"]) -> Float[Array, "N B"]:
        """g: what every neuron sends."""
        raise NotImplementedError

    def sent_and_probed(
        self, voltage: Float[Array, "N B"], points: Float[Array, "N P"]
    ) -> tuple[Float[Array, "N B"], Float[Array, "N 1"], Float[Array, "N P"]]:
        """g at the voltages; at those of the first frame and at points, without gradient of the embedding.

        The network is evaluated once, and at no voltage twice.
        """
        raise NotImplementedError

    def update(
        self, voltage: Float[Array, "N B"], msg: Float[Array, "N B"], stimulus: Float[Array, "N B"]
    ) -> Float[Array, "N B"]:
        """f: dv/dt in 1/s."""
        f, state = self.update_fn()
        return f(state, (voltage, msg, stimulus), self.embedding[...])

    def n_segments(self, n_rows: int) -> int:
        """Segments that so many rows are evaluated in."""
        return chunked_map.n_segments(n_rows, self.segment_rows)

    def message_sum(self, graph: GraphsTuple) -> Float[Array, "N B"]:
        """msg: the sum of the messages into every neuron."""
        return self.propagate(graph, lambda nodes, sent, received, globals_: received)

    def __call__(self, graph: GraphsTuple) -> Float[Array, "N B"]:
        """dv/dt of every neuron in 1/s.

        **Arguments:** `graph.nodes` holds `voltage` and `stimulus`, each (N, B); `graph.receivers` is sorted.
        """
        f, state = self.update_fn()
        embedding = self.embedding[...]

        def update_node(nodes, sent, received, globals_):
            rows = (nodes["voltage"], received, nodes["stimulus"]), embedding
            return chunked_map.mapped(lambda s, r: f(s, *r), self.n_segments(received.size), state, rows)

        return self.propagate(graph, update_node)

    def squared_error(self, graph: GraphsTuple, target: Float[Array, "N B"]) -> Float[Array, ""]:
        """Sum of squares of dv/dt - target, 1/s^2; its gradient stores no activations."""
        f, state = self.update_fn()
        signals = self.propagate(
            graph, lambda nodes, sent, received, _: (nodes["voltage"], received, nodes["stimulus"])
        )

        def error(state, rows):
            inputs, target = rows
            return f(state, *inputs) - target

        n_segments = self.n_segments(target.size)
        return chunked_map.square_sum(error, n_segments, state, (signals, self.embedding[...]), target)


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
        self.joins_messages = self.message_network.by_neuron
        self.update_network = Network(3, config, rngs)
        self.units = nnx.Param(jnp.ones((2,))) if config.units == "data" else None
        self.field = Field(config, rngs) if config.stimulus == "field" else None

    @property
    def _units(self) -> Float[Array, " 2"] | None:
        return None if self.units is None else self.units[...]

    def message_fn(self) -> Stateful:
        """g of the voltages (of the sender, in variant B also of the receiver), and its state."""
        phi, state = functional(self.message_network)

        def g(state, signals, embedding, *own):
            state, units = state
            volt = 1.0 if units is None else jax.lax.stop_gradient(units)[0]
            return volt * jnp.square(phi(state, tuple(v / volt for v in signals), embedding, *own))

        return g, (state, self._units)

    def update_fn(self) -> Stateful:
        network, state = functional(self.update_network)

        def f(state, signals, embedding):
            state, units = state
            volt, rate = (1.0, 1.0) if units is None else jax.lax.stop_gradient(units)
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

    def messages(self, voltage, **known):
        sent = known["message"] if "message" in known else self._messages((voltage,), self.embedding[...])
        return {"message": sent}, lambda sender, receiver: sender["message"]

    def sent_and_probed(self, voltage, points):
        g, state = self.message_fn()
        n_free, together = voltage.shape[1], jnp.concatenate([voltage, points], axis=1)

        def each(state, signal, embedding, own):
            return g(state, (signal,), embedding, own)

        def joined(state, rows):
            return with_first_again(each, n_free, state, *rows)

        rows = together, self.embedding[...]
        found = chunked_map.mapped(joined, self.n_segments(together.size), state, rows)
        return found[:, :n_free], found[:, -1:], found[:, n_free:-1]

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
        self.joins_messages = False

    def message(self, voltage):
        """**Raises:** `UserError`: there is no message of the sending neuron alone."""
        raise UserError(
            "model.variant B: a message depends on both neurons, so W*, tau and V_rest cannot be read off it; "
            "use variant A to recover a circuit (training, prediction and rollouts work with B)"
        )

    def messages(self, voltage, **known):
        def message(sender, receiver):
            both = jnp.concatenate([sender["embedding"], receiver["embedding"]], axis=1)
            return self._messages((sender["voltage"], receiver["voltage"]), both)

        return {"embedding": self.embedding[...]}, message

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

    def messages(self, voltage, **known):
        return {}, lambda sender, receiver: self.message(sender["voltage"])
