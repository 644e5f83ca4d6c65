r"""Learners A and B: a jraph message-passing network on the connectome's graph.

    msg_i   = sum_j W_ij g(v_j, a_j),        g = phi(v_j, a_j)^2
    dv_i/dt = f(v_i, a_i, msg_i, I_i)

`phi` and `f` are small MLPs shared by all neurons, `a_i` is a learned embedding of neuron i and
`W_ij` a free weight per edge (Allier et al., flyvis-gnn). `g` depends on the source neuron alone,
so it is evaluated once per neuron and not once per edge: 31.6 times less work at extent 8. That is
variant A; in variant B (`PairGNN`) phi also sees v_i and a_i.

With `units: data` the networks work on numbers of the order of one: with s the standard deviation of
all voltages and r that of all derivatives, g = s phi(v/s, a)^2 and dv/dt = r f(v/s, a, msg/s, I). Voltages
are some 0.1 in a typical recording, where a fresh network is all but linear: training then first fits
linear messages, and some seeds never leave them.

Arrays put neurons first and frames second, (N, B): on CPU a gather along the leading axis with the
batch behind it was about twice as fast as the other way round.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from flyjax.circuit import Connectome
from flyjax.config import Model
from flyjax.models import chunked_map
from flyjax.models.stimulus_field import Field
from flyjax.utils.errors import UserError

ACTIVATIONS: dict[str, Callable] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "softplus": jax.nn.softplus,
}


class Network(nnx.Module):
    """An MLP from a few signals and the embedding of a neuron (or of two) to one number per row and frame."""

    def __init__(self, n_signals: int, config: Model, rngs: nnx.Rngs, n_neurons: int = 1):
        n_embedded = n_neurons * config.embedding_size
        width, fan_in = config.width, n_signals + n_embedded

        # Unit-variance (LeCun) starts: with a third of that variance, torch's default, two seeds of three
        # stayed on the first plateau for 2,000 steps at extent 1.
        def kernel(fan):
            return lambda key, shape, dtype: fan**-0.5 * jax.random.truncated_normal(key, -2, 2, shape, dtype) / 0.88

        def linear(n_in, n_out, fan):
            return nnx.Linear(n_in, n_out, kernel_init=kernel(fan), rngs=rngs)

        self.activation = ACTIVATIONS[config.activation]
        self.precision = config.matmul_precision
        self.signals = nnx.Param(kernel(fan_in)(rngs.params(), (n_signals, width), jnp.float32))
        self.embedded = linear(n_embedded, width, fan_in)
        self.hidden = nnx.List([linear(width, width, width) for _ in range(config.n_layers - 2)])
        self.readout = linear(width, 1, width)

    def __call__(self, signals: tuple[Float[Array, "N B"], ...], embedding: Float[Array, "N d"]) -> Float[Array, "N B"]:
        n, b = signals[0].shape
        # Signals, embedding and bias in one product: its gradient is then one product too, and no slow sums over rows.
        kernel = jnp.concatenate([self.signals[...], self.embedded.kernel[...], self.embedded.bias[...][None]])
        known = jnp.broadcast_to(embedding[:, None, :], (n, b, embedding.shape[1]))
        rows = jnp.concatenate([jnp.stack(signals, axis=-1), known, jnp.ones((n, b, 1))], axis=-1)
        hidden = self.activation(product(rows.reshape(n * b, -1), kernel, self.precision))
        for layer in self.hidden:
            hidden = self.activation(product(hidden, layer.kernel[...], self.precision) + layer.bias[...][None, :])
        return (product(hidden, self.readout.kernel[...], self.precision) + self.readout.bias[...][None, :]).reshape(
            n, b
        )


def product(x, w, precision: str):
    """x @ w as `Model.matmul_precision` says; float32 in and out."""
    if precision == "bfloat16":
        return jnp.matmul(x.astype(jnp.bfloat16), w.astype(jnp.bfloat16), preferred_element_type=jnp.float32)
    return jnp.matmul(x, w, precision=precision)


def pure(network: Network):
    """A network as a function of (its parameters, signals, embedding), and the parameters."""
    graphdef, state = nnx.split(network)
    return lambda state, signals, embedding: nnx.merge(graphdef, state)(signals, embedding), state


def sender(network: Network, units):
    """g as a function of (its state, voltages, embedding), and the state; `units` (2,) or None."""
    phi, state = pure(network)

    def g(state, signals, embedding):
        state, units = state
        if units is None:
            return jnp.square(phi(state, signals, embedding))
        volt = jax.lax.stop_gradient(units)[0]
        return volt * jnp.square(phi(state, tuple(v / volt for v in signals), embedding))

    return g, (state, units)


def updater(network: Network, units):
    """f as a function of (its state, (voltage, message, stimulus), embedding), and the state."""
    f, state = pure(network)

    def update(state, signals, embedding):
        state, units = state
        if units is None:
            return f(state, signals, embedding)
        volt, rate = jax.lax.stop_gradient(units)
        voltage, msg, stimulus = signals
        return rate * f(state, (voltage / volt, msg / volt, stimulus), embedding)

    return update, (state, units)


class GNN(nnx.Module):
    """The message-passing learner of one connectome.

    Attributes:
        W: (E,) one weight per edge, in the order of the graph's edges.
        embedding: (N, d) initialised to ones.
        message_network, update_network: phi and f.
        units: None, or (2,) standard deviation of voltages and of derivatives (1/s), given and not trained.
        field: None, or the `Field` that stands for a stimulus that is not given.
    """

    def __init__(self, n_neurons: int, n_edges: int, config: Model, rngs: nnx.Rngs):
        self.W = nnx.Param(jax.random.normal(rngs.params(), (n_edges,)) / np.sqrt(n_edges).astype(np.float32))
        self.embedding = nnx.Param(jnp.ones((n_neurons, config.embedding_size)))
        self.message_network = Network(1, config, rngs)
        self.update_network = Network(3, config, rngs)
        self.units = nnx.Param(jnp.ones((2,))) if config.units == "data" else None
        self.field = Field(config, rngs) if config.stimulus == "field" else None

    @property
    def _units(self):
        return None if self.units is None else self.units[...]

    def message(self, voltage: Float[Array, "N B"], embedding: Float[Array, "N d"]) -> Float[Array, "N B"]:
        """g: what a neuron sends, the square of its message network."""
        g, state = sender(self.message_network, self._units)
        return g(state, (voltage,), embedding)

    def update(
        self,
        voltage: Float[Array, "N B"],
        embedding: Float[Array, "N d"],
        msg: Float[Array, "N B"],
        stimulus: Float[Array, "N B"],
    ) -> Float[Array, "N B"]:
        """f: dv/dt in 1/s."""
        f, state = updater(self.update_network, self._units)
        return f(state, (voltage, msg, stimulus), embedding)

    def _pass(self, graph: jraph.GraphsTuple, integrate):
        """The message-passing network with this update of nodes."""
        message, message_state = sender(self.message_network, self._units)
        embedding = self.embedding[...]

        def g(state, rows):
            return message(state, *rows)

        def send(nodes):
            cut = chunked_map.n_pieces(nodes["voltage"].size)
            return {**nodes, "message": chunked_map.mapped(g, cut, message_state, ((nodes["voltage"],), embedding))}

        def weigh(weight, sent, received, globals_):
            return weight[:, None] * sent["message"]

        graph = jraph.GraphMapFeatures(embed_node_fn=send)(graph)
        return graph_network(weigh, integrate)(graph._replace(edges=self.W[...])).nodes

    def __call__(self, graph: jraph.GraphsTuple):
        """dv/dt of every neuron, (N, B).

        `graph.nodes` holds `voltage` and `stimulus`, each (N, B); `graph.receivers` is sorted. With a
        `target` (N, B) among them the sum of squares of prediction - target instead, whose gradient
        needs no stored activations (`chunked_map.square_sum`).
        """
        embedding = self.embedding[...]
        f, update_state = updater(self.update_network, self._units)

        def predict(state, rows):
            return f(state, *rows)

        def error(state, rows):
            rows, target = rows
            return predict(state, rows) - target

        def integrate(nodes, sent_sum, received_sum, globals_):
            rows = (nodes["voltage"], received_sum, nodes["stimulus"]), embedding
            cut = chunked_map.n_pieces(nodes["voltage"].size)
            if "target" in nodes:
                return chunked_map.square_sum(error, cut, update_state, rows, nodes["target"])
            return chunked_map.mapped(predict, cut, update_state, rows)

        return self._pass(graph, integrate)

    def incoming(self, graph: jraph.GraphsTuple) -> Float[Array, "N B"]:
        """What arrives at every neuron: msg."""
        return self._pass(graph, lambda nodes, sent_sum, received_sum, globals_: received_sum)

    def update_probes(self):
        """f as a function of (its state, (voltage, msg, stimulus), embedding), its state, and the embedding."""
        return *updater(self.update_network, self._units), self.embedding[...]

    def probes(self, voltage: Float[Array, " N"], connectome: Connectome):
        """What the regularisers on messages vary: a function of (state, voltages of the source (n, P), rows),
        its state, and the rows, which get no gradient."""
        message, state = sender(self.message_network, self._units)

        def g(state, points, rows):
            return message(state, (points,), rows[0])

        return g, state, (self.embedding[...],)


class PairGNN(GNN):
    """Variant B: a message depends on both ends of its edge, phi(v_j, v_i, a_j, a_i)^2.

    It is evaluated on every edge, a piece of edges at a time, so that memory stays bounded: at extent 8,
    31.6 times the work of variant A.
    """

    def __init__(self, n_neurons: int, n_edges: int, config: Model, rngs: nnx.Rngs):
        super().__init__(n_neurons, n_edges, config, rngs)
        self.message_network = Network(2, config, rngs, n_neurons=2)

    def message(self, voltage, embedding):
        """**Raises:** `UserError`: there is no message of the source neuron alone."""
        raise UserError(
            "model.variant B: a message depends on both neurons, so W*, tau and V_rest cannot be read off it; use variant A to "
            "recover a circuit (training, prediction and rollouts work with B)"
        )

    def _pass(self, graph: jraph.GraphsTuple, integrate):
        """As `GNN`; the message network is the edge update."""
        message, message_state = sender(self.message_network, self._units)

        def g(state, rows):
            return message(state, *rows)

        def weigh(weight, sent, received, globals_):
            both = jnp.concatenate([sent["embedding"], received["embedding"]], axis=1)
            rows = (sent["voltage"], received["voltage"]), both
            return weight[:, None] * chunked_map.mapped(
                g, chunked_map.n_pieces(sent["voltage"].size), message_state, rows
            )

        nodes = {**graph.nodes, "embedding": self.embedding[...]}
        return graph_network(weigh, integrate)(graph._replace(nodes=nodes, edges=self.W[...])).nodes

    def probes(self, voltage, connectome):
        """As `GNN`; every source neuron is probed on its first edge (on itself where it has none)."""
        message, state = sender(self.message_network, self._units)
        partner = np.arange(connectome.n_neurons)
        partner[connectome.senders[::-1]] = connectome.receivers[::-1]
        embedding = self.embedding[...]

        def g(state, points, rows):
            embedded, received = rows
            return message(state, (points, jnp.broadcast_to(received[:, None], points.shape)), embedded)

        return g, state, (jnp.concatenate([embedding, embedding[partner]], axis=1), voltage[partner])


def graph_network(weigh, integrate) -> jraph.GraphNetwork:
    """The network of every variant: an edge update, a sum over edges into a neuron, a node update."""

    def total(messages, receivers, n_neurons):
        return jax.ops.segment_sum(messages, receivers, n_neurons, indices_are_sorted=True)

    return jraph.GraphNetwork(weigh, integrate, aggregate_edges_for_nodes_fn=total)


def make_graph(connectome: Connectome, **nodes: Float[Array, "N B"]) -> jraph.GraphsTuple:
    """The connectome as a jraph graph whose nodes carry B frames of `voltage`, `stimulus` and maybe `target`."""
    return jraph.GraphsTuple(
        nodes=nodes,
        edges=None,
        senders=jnp.asarray(connectome.senders),
        receivers=jnp.asarray(connectome.receivers),
        globals=None,
        n_node=jnp.asarray([connectome.n_neurons]),
        n_edge=jnp.asarray([connectome.n_edges]),
    )


def stimulus_of_neurons(connectome: Connectome, luminance: Float[Array, "B n_col"]) -> Float[Array, "N B"]:
    """Each photoreceptor sees its column's luminance, every other neuron 0."""
    seen = jnp.zeros((connectome.n_neurons, luminance.shape[0]), luminance.dtype)
    return seen.at[connectome.inputs].set(luminance.T[connectome.input_column])
