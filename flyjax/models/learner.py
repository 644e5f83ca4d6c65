"""A learner as pure functions of its parameters, whatever its variant."""

from __future__ import annotations

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from flyjax.circuit import Connectome
from flyjax.config import Model
from flyjax.models.gnn import GNN, PairGNN, make_graph, stimulus_of_neurons
from flyjax.models.known_ode import KnownODE

#: The modules by the name of their variant.
MODULES = {"A": GNN, "B": PairGNN, "known_ode": KnownODE, "known_ode_tanh": KnownODE}


class Learner:
    """Pure functions of one model on one connectome: `init(key) -> params` and the rest of params.

    `params` is a plain dictionary of arrays, which vmap, jit, optax and orbax take as it is.
    """

    def __init__(self, connectome: Connectome, config: Model):
        self.connectome, self.config = connectome, config
        abstract = nnx.eval_shape(lambda: self._build(jax.random.key(0)))
        self._graphdef, self._abstract = nnx.split(abstract)

    def _build(self, key):
        return MODULES[self.config.variant](
            self.connectome.n_neurons, self.connectome.n_edges, self.config, nnx.Rngs(params=key)
        )

    def init(self, key) -> dict:
        """Fresh parameters, a pure function of the key."""
        return nnx.to_pure_dict(nnx.state(self._build(key)))

    def bind(self, params: dict) -> nnx.Module:
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

    @property
    def learns_stimulus(self) -> bool:
        """Whether the light of the training frames is unknown, a field among the parameters."""
        return self.config.stimulus == "field"

    def luminance(self, params, frames: Int[Array, " B"]) -> Float[Array, "B n_col"]:
        """What the learned field says that the columns saw at some frames of the training recording."""
        return self.bind(params).field(frames, self.connectome.columns)

    def message(self, params, voltage: Float[Array, "N B"]) -> Float[Array, "N B"]:
        """g(v_j, a_j) at B voltages per neuron."""
        model = self.bind(params)
        return model.message(voltage, model.embedding[...])

    def update(self, params, voltage, msg, stimulus) -> Float[Array, "N B"]:
        """f(v_i, a_i, msg_i, I_i), all arguments (N, B)."""
        model = self.bind(params)
        return model.update(voltage, model.embedding[...], msg, stimulus)


def group_of(path) -> str:
    """Learning-rate group of a parameter: 'W', 'embedding' (all that a neuron has for itself), 'field' (the unknown
    stimulus), 'units' (given, never trained) or 'networks'."""
    first = str(getattr(path[0], "key", path[0]))
    own = {
        "W": "W",
        "embedding": "embedding",
        "log_tau": "embedding",
        "v_rest": "embedding",
        "field": "field",
        "units": "units",
    }
    return own.get(first, "networks")


def parameter_groups(params):
    """A tree like `params` of group names, for optax.multi_transform."""
    return jax.tree_util.tree_map_with_path(lambda path, _: group_of(path), params)


def make_learner(connectome: Connectome, config: Model) -> Learner:
    """The learner a config names."""
    return Learner(connectome, config)
