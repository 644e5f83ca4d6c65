"""What all variants share: one pass of messages over the graph, then the update of every neuron.

The derivative is a jraph graph network whose node update is f. For the loss the same network's node
update returns the inputs of f, and f, the error and its gradient are evaluated segment by segment in one pass
(`chunked_map.square_sum`): the activations of all neurons and frames never exist at once.

Arrays put neurons first and frames second, (N, B): on CPU a gather along the leading axis with the
batch behind it was about twice as fast as the other way round.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from flyjax.circuit import Connectome
from flyjax.config import Model
from flyjax.models import chunked_map
from flyjax.models.graph_network import GraphsTuple

#: A function of (its state, signals (n, B), embedding (n, d)), and the state.
Stateful = tuple[Callable[[Any, tuple[Array, ...], Array], Array], Any]


class MessagePassing(nnx.Module):
    """A model of dv/dt with one weight per edge.

    **Attributes:**

    - `W`: (E,) weights, in the order of the graph's edges.
    - `segment_rows`: rows (neurons x frames) that are evaluated at once.
    - `embedding`: (N, d) a neuron's own numbers.
    """

    embedding: Any
    field: Any  #: the `Field` that replaces an unknown stimulus, or None

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

    def propagate(self, graph: GraphsTuple, update_node: Callable):
        """The nodes of the graph network with this node update."""
        raise NotImplementedError

    def message(self, voltage: Float[Array, "N B"]) -> Float[Array, "N B"]:
        """g: what every neuron sends."""
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
