"""The connectome as a jraph graph and the graph network of every variant.

The only module that imports jraph, which is no longer maintained.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jraph
from jaxtyping import Array, Float
from jraph import GraphsTuple

from flyjax.circuit import Connectome

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
