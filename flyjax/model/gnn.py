r"""The learner: a jraph message-passing network on the connectome's graph.

    msg_i   = sum_j W_ij g(v_j, a_j),        g = phi(v_j, a_j)^2
    dv_i/dt = f(v_i, a_i, msg_i, I_i)

`phi` and `f` are small MLPs shared by all neurons, `a_i` is a learned embedding of neuron i and
`W_ij` a free weight per edge (Allier et al., flyvis-gnn). `g` depends on the source neuron alone,
so it is evaluated once per neuron and not once per edge: 31.6 times less work at extent 8.

Arrays put neurons first and frames second, (N, B): on CPU a gather along the leading axis with the
batch behind it was about twice as fast as the other way round.
"""

from __future__ import annotations

from typing import Callable

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from flyjax.circuit import Connectome
from flyjax.config import Model
from flyjax.model import pieces

ACTIVATIONS: dict[str, Callable] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "softplus": jax.nn.softplus,
}


class Network(nnx.Module):
    """An MLP from a few signals and a neuron's embedding to one number per neuron and frame."""

    def __init__(self, n_signals: int, config: Model, rngs: nnx.Rngs):
        width, fan_in = config.width, n_signals + config.embedding_size

        # Unit-variance (LeCun) starts: with a third of that variance, torch's default, two seeds of three
        # stayed on the first plateau for 2,000 steps at extent 1.
        def kernel(fan):
            return lambda key, shape, dtype: fan**-0.5 * jax.random.truncated_normal(key, -2, 2, shape, dtype) / 0.88

        def linear(n_in, n_out, fan):
            return nnx.Linear(n_in, n_out, kernel_init=kernel(fan), rngs=rngs)

        self.activation = ACTIVATIONS[config.activation]
        self.signals = nnx.Param(kernel(fan_in)(rngs.params(), (n_signals, width), jnp.float32))
        self.embedded = linear(config.embedding_size, width, fan_in)
        self.hidden = nnx.List([linear(width, width, width) for _ in range(config.n_layers - 2)])
        self.readout = linear(width, 1, width)

    def __call__(
        self, signals: tuple[Float[Array, "N B"], ...], embedding: Float[Array, "N d"]
    ) -> Float[Array, "N B"]:
        n, b = signals[0].shape
        # Signals, embedding and bias in one product: its gradient is then one product too, and no slow sums over rows.
        kernel = jnp.concatenate([self.signals[...], self.embedded.kernel[...], self.embedded.bias[...][None]])
        known = jnp.broadcast_to(embedding[:, None, :], (n, b, embedding.shape[1]))
        rows = jnp.concatenate([jnp.stack(signals, axis=-1), known, jnp.ones((n, b, 1))], axis=-1)
        hidden = self.activation(rows.reshape(n * b, -1) @ kernel)
        for layer in self.hidden:
            hidden = self.activation(layer(hidden))
        return self.readout(hidden).reshape(n, b)


def pure(network: Network):
    """A network as a function of (its parameters, signals, embedding), and the parameters."""
    graphdef, state = nnx.split(network)
    return lambda state, signals, embedding: nnx.merge(graphdef, state)(signals, embedding), state


class GNN(nnx.Module):
    """The message-passing learner of one connectome.

    Attributes:
        W: (E,) one weight per edge, in the order of the graph's edges.
        embedding: (N, d) initialised to ones.
        message_network, update_network: phi and f.
    """

    def __init__(self, n_neurons: int, n_edges: int, config: Model, rngs: nnx.Rngs):
        self.W = nnx.Param(jax.random.normal(rngs.params(), (n_edges,)) / np.sqrt(n_edges).astype(np.float32))
        self.embedding = nnx.Param(jnp.ones((n_neurons, config.embedding_size)))
        self.message_network = Network(1, config, rngs)
        self.update_network = Network(3, config, rngs)

    def message(self, voltage: Float[Array, "N B"], embedding: Float[Array, "N d"]) -> Float[Array, "N B"]:
        """g: what a neuron sends, the square of its message network."""
        return jnp.square(self.message_network((voltage,), embedding))

    def update(
        self,
        voltage: Float[Array, "N B"],
        embedding: Float[Array, "N d"],
        msg: Float[Array, "N B"],
        stimulus: Float[Array, "N B"],
    ) -> Float[Array, "N B"]:
        """f: dv/dt in 1/s."""
        return self.update_network((voltage, msg, stimulus), embedding)

    def __call__(self, graph: jraph.GraphsTuple):
        """dv/dt of every neuron, (N, B).

        `graph.nodes` holds `voltage` and `stimulus`, each (N, B); `graph.receivers` is sorted. With a
        `target` (N, B) among them the sum of squares of prediction - target instead, whose gradient
        needs no stored activations (`pieces.square_sum`).
        """
        embedding = self.embedding[...]
        phi, message_state = pure(self.message_network)
        f, update_state = pure(self.update_network)

        def g(state, rows):
            return jnp.square(phi(state, (rows[0],), rows[1]))

        def predict(state, rows):
            signals, embedding = rows
            return f(state, signals, embedding)

        def error(state, rows):
            rows, target = rows
            return predict(state, rows) - target

        def send(nodes):
            cut = pieces.n_pieces(nodes["voltage"].size)
            return {**nodes, "message": pieces.mapped(g, cut, message_state, (nodes["voltage"], embedding))}

        def weigh(weight, sent, received, globals_):
            return weight[:, None] * sent["message"]

        def integrate(nodes, sent_sum, received_sum, globals_):
            rows = (nodes["voltage"], received_sum, nodes["stimulus"]), embedding
            cut = pieces.n_pieces(nodes["voltage"].size)
            if "target" in nodes:
                return pieces.square_sum(error, cut, update_state, rows, nodes["target"])
            return pieces.mapped(predict, cut, update_state, rows)

        def total(messages, receivers, n_neurons):
            return jax.ops.segment_sum(messages, receivers, n_neurons, indices_are_sorted=True)

        network = jraph.GraphNetwork(weigh, integrate, aggregate_edges_for_nodes_fn=total)
        graph = jraph.GraphMapFeatures(embed_node_fn=send)(graph)
        return network(graph._replace(edges=self.W[...])).nodes


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


class Learner:
    """Pure functions of one model on one connectome: `init(key) -> params` and the rest of params.

    `params` is a plain dictionary of arrays, which vmap, jit, optax and orbax take as it is.
    """

    def __init__(self, connectome: Connectome, config: Model):
        self.connectome, self.config = connectome, config
        abstract = nnx.eval_shape(lambda: self._build(jax.random.key(0)))
        self._graphdef, self._abstract = nnx.split(abstract)

    def _build(self, key):
        return GNN(self.connectome.n_neurons, self.connectome.n_edges, self.config, nnx.Rngs(params=key))

    def init(self, key) -> dict:
        """Fresh parameters, a pure function of the key."""
        return nnx.to_pure_dict(nnx.state(self._build(key)))

    def bind(self, params: dict) -> GNN:
        """The model with these parameters."""
        state = jax.tree.map(lambda x: x, self._abstract)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(self._graphdef, state)

    def derivative(
        self, params, voltage: Float[Array, "B N"], luminance: Float[Array, "B n_col"]
    ) -> Float[Array, "B N"]:
        """Predicted dv/dt (1/s) at B frames: the forward pass that is trained."""
        graph = make_graph(self.connectome, voltage=voltage.T, stimulus=stimulus_of_neurons(self.connectome, luminance))
        return self.bind(params)(graph).T

    def square_error(self, params, voltage, luminance, target: Float[Array, "B N"]) -> Float[Array, ""]:
        """Sum of squares of derivative - target: the same network with the sum in its node update."""
        seen = stimulus_of_neurons(self.connectome, luminance)
        return self.bind(params)(make_graph(self.connectome, voltage=voltage.T, stimulus=seen, target=target.T))

    def message(self, params, voltage: Float[Array, "N B"]) -> Float[Array, "N B"]:
        """g(v_j, a_j) at B voltages per neuron."""
        model = self.bind(params)
        return model.message(voltage, model.embedding[...])

    def update(self, params, voltage, msg, stimulus) -> Float[Array, "N B"]:
        """f(v_i, a_i, msg_i, I_i), all arguments (N, B)."""
        model = self.bind(params)
        return model.update(voltage, model.embedding[...], msg, stimulus)


def group_of(path) -> str:
    """Learning-rate group of a parameter: 'W', 'embedding' or 'networks'."""
    first = str(getattr(path[0], "key", path[0]))
    return first if first in ("W", "embedding") else "networks"


def parameter_groups(params):
    """A tree like `params` of group names, for optax.multi_transform."""
    return jax.tree_util.tree_map_with_path(lambda path, _: group_of(path), params)


def make_learner(connectome: Connectome, config: Model) -> Learner:
    """The learner a config names."""
    return {"gnn": Learner}[config.variant](connectome, config)
