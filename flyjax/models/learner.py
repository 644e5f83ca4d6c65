"""A learner as pure functions of its parameters, whatever its variant."""

import logging
from dataclasses import dataclass, replace
from functools import cached_property

import jax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from flyjax.circuit import Connectome
from flyjax.config import Model
from flyjax.models import chunked_map
from flyjax.models.gnn import GraphsTuple, MessagePassing, make_graph, neuron_stimulus
from flyjax.utils import registry
from flyjax.utils.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Learner:
    """Pure functions of one model on one connectome: `init(key) -> params`, and the others of params.

    Learners are equal where circuit content, model and segment size are, and compiled programs are found by that
    equality. A circuit is compared by its fingerprint, so that hashing reads no array.

    **Attributes:**

    - `connectome`: the circuit whose edges are learned.
    - `config`: shapes of the model.
    - `segment_rows`: rows (neurons x frames) that a network evaluates at once (`chunked_map`).

    `params` is a plain dictionary of arrays, as vmap, jit, optax and orbax take it.
    """

    connectome: Connectome
    config: Model
    segment_rows: int

    def _build(self, key: PRNGKeyArray) -> MessagePassing:
        c, variant = self.connectome, registry.model[self.config.variant]
        return variant(c.n_neurons, c.n_edges, self.config, self.segment_rows, nnx.Rngs(params=key))

    @cached_property
    def _abstract(self) -> tuple[nnx.GraphDef, nnx.State]:
        return nnx.split(nnx.eval_shape(lambda: self._build(jax.random.key(0))))

    @cached_property
    def _for_read_out(self) -> "Learner":
        """The same in the form that has derivatives in forward mode, too."""
        return replace(self, config=self.config.model_copy(update={"form": "cpu"}))

    def init(self, key: PRNGKeyArray) -> dict:
        """Initial parameters, a pure function of the key."""
        return nnx.to_pure_dict(nnx.state(self._build(key)))

    @property
    def shapes(self) -> dict:
        """The parameters as `jax.ShapeDtypeStruct`."""
        return nnx.to_pure_dict(self._abstract[1])

    def bind(self, params: dict) -> MessagePassing:
        """The model with these parameters."""
        graphdef, abstract = self._abstract
        state = jax.tree.map(lambda x: x, abstract)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graphdef, state)

    def graph(self, voltage: Float[Array, "B N"], luminance: Float[Array, "B n_col"]) -> GraphsTuple:
        """The circuit at B frames."""
        return make_graph(self.connectome, voltage=voltage.T, stimulus=neuron_stimulus(self.connectome, luminance))

    def derivative(
        self, params, voltage: Float[Array, "B N"], luminance: Float[Array, "B n_col"]
    ) -> Float[Array, "B N"]:
        """Predicted dv/dt (1/s) at B frames: the forward pass that is trained."""
        return self.bind(params)(self.graph(voltage, luminance)).T

    def squared_error(
        self, params, voltage, luminance, target: Float[Array, "B N"], **known: Float[Array, "N B"]
    ) -> Float[Array, ""]:
        """Sum of squares of derivative - target, 1/s^2; `known`: features of neurons that need not be computed."""
        graph = self.graph(voltage, luminance)
        return self.bind(params).squared_error(graph._replace(nodes=graph.nodes | known), target.T)

    @property
    def learns_stimulus(self) -> bool:
        """Whether the luminance of the training frames is unknown and a field among the parameters replaces it."""
        return self.config.stimulus == "field"

    def luminance(self, params, frames: Int[Array, " B"]) -> Float[Array, "B n_col"]:
        """The learned field at frames of the training recording."""
        return self.bind(params).field(frames, self.connectome.columns)

    def message(self, params, voltage: Float[Array, "N B"]) -> Float[Array, "N B"]:
        """g(v_j, a_j) at B voltages per neuron."""
        return self._for_read_out.bind(params).message(voltage)

    def update(self, params, voltage, msg, stimulus) -> Float[Array, "N B"]:
        """f(v_i, a_i, msg_i, I_i) in 1/s; voltage, msg and stimulus (N, B)."""
        return self._for_read_out.bind(params).update(voltage, msg, stimulus)


def make_learner(connectome: Connectome, config: Model, segment_rows: int | None = None) -> Learner:
    """The learner that a configuration names; by default segments suit the default backend.

    **Raises:** `UserError` where JAX would stop at a NaN, which marks steps not taken and trainings that diverged.
    """
    if jax.config.values["jax_debug_nans"] or jax.config.values["jax_debug_infs"]:
        raise UserError(
            "JAX_DEBUG_NANS or JAX_DEBUG_INFS is set, but NaN and infinity mark steps that are not taken and trainings "
            "that diverged: unset it"
        )
    if jax.config.values["jax_enable_x64"]:
        log.warning("flyjax trains in float32: JAX_ENABLE_X64 is switched off in this process")
        jax.config.update("jax_enable_x64", False)
    return Learner(connectome, config, segment_rows or chunked_map.segment_rows(jax.default_backend()))
