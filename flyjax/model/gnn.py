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

ACTIVATIONS: dict[str, Callable] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "softplus": jax.nn.softplus,
}


class Network(nnx.Module):
    """An MLP from a neuron's embedding and a few signals to one number per neuron and frame.

    The first layer is split: the embedding's share is computed once per neuron, the signals'
    share once per frame. Together they are one linear layer on the concatenated input.
    """

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
        # A matrix product even for one signal: the gradient of a broadcast product is a slow reduction.
        hidden = self.activation(jnp.stack(signals, axis=-1) @ self.signals[...] + self.embedded(embedding)[:, None, :])
        for layer in self.hidden:
            hidden = self.activation(layer(hidden))
        return self.readout(hidden)[:, :, 0]


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

    def __call__(self, graph: jraph.GraphsTuple) -> Float[Array, "N B"]:
        """dv/dt of every neuron.

        `graph.nodes` holds `voltage` and `stimulus`, each (N, B); `graph.receivers` is sorted.
        """
        embedding = self.embedding[...]

        def send(nodes):
            return {**nodes, "message": self.message(nodes["voltage"], embedding)}

        def weigh(weight, sent, received, globals_):
            return weight[:, None] * sent["message"]

        def integrate(nodes, sent_sum, received_sum, globals_):
            return self.update(nodes["voltage"], embedding, received_sum, nodes["stimulus"])

        def total(messages, receivers, n_neurons):
            return jax.ops.segment_sum(messages, receivers, n_neurons, indices_are_sorted=True)

        network = jraph.GraphNetwork(weigh, integrate, aggregate_edges_for_nodes_fn=total)
        graph = jraph.GraphMapFeatures(embed_node_fn=send)(graph)
        return network(graph._replace(edges=self.W[...])).nodes


def make_graph(
    connectome: Connectome, voltage: Float[Array, "N B"], stimulus: Float[Array, "N B"]
) -> jraph.GraphsTuple:
    """The connectome as a jraph graph whose nodes carry B frames."""
    return jraph.GraphsTuple(
        nodes={"voltage": voltage, "stimulus": stimulus},
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
        graph = make_graph(self.connectome, voltage.T, stimulus_of_neurons(self.connectome, luminance))
        return self.bind(params)(graph).T

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
