"""The ground truth of a simulation, and the circuit that a learner is given."""

from functools import lru_cache
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from flyjax import circuit
from flyjax.circuit import Connectome, Parameters
from flyjax.config import Simulation
from flyjax.ground_truth.edge_edits import with_null_edges, without_edges
from flyjax.ground_truth.flyvis_ensemble import checkpoint_file
from flyjax.ground_truth.sampling import sample_parameters


@lru_cache(maxsize=4)
def _ground_truth(extent: int, parameters: str, seed: int, cut_edges: float) -> tuple[Connectome, Parameters]:
    connectome = circuit.build_connectome(extent)
    if parameters == "sampled":
        values = sample_parameters(connectome, seed=seed)
    else:
        values = circuit.load_flyvis_parameters(connectome, checkpoint_file(parameters))
    if not cut_edges:
        return connectome, values
    remaining, values, _ = without_edges(connectome, values, cut_edges, seed)
    return remaining, values._replace(weight=jnp.asarray(values.weight))


def build_ground_truth(simulation: Simulation) -> tuple[Connectome, Parameters]:
    """The circuit and its parameters; the same objects for the same settings.

    `simulation.parameters` is 'sampled' (by `parameters_seed`), 'flow/0000/000' (looked for in FLYJAX_DATA and in
    ~/.cache/flyjax/flyvis) or the path of a checkpoint. A share `simulation.cut_edges` of the edges is left out.

    **Raises:** `UserError` if the checkpoint is not there, naming the command that fetches it.
    """
    s = simulation
    return _ground_truth(s.extent, s.parameters, s.parameters_seed, s.cut_edges)


def known_circuit(simulation: Simulation) -> tuple[Connectome, Parameters]:
    """The circuit that a learner is given: `build_ground_truth` with null edges and without removed ones.

    The same connectome object for the same circuit.

    **Raises:** `UserError` as `build_ground_truth`.
    """
    view = learner_view(simulation, build_ground_truth(simulation))
    return view["connectome"], view["parameters"]


def learner_view(simulation: Simulation, ground_truth: tuple[Connectome, Parameters]) -> dict[str, Any]:
    """Fields of a recording: the circuit that the learner is given, and the simulated one if that is another."""
    connectome, parameters = ground_truth
    if not (simulation.null_edges or simulation.removed_edges):
        return {"connectome": connectome, "parameters": parameters}
    settings = simulation.null_edges, simulation.null_edges_kind, simulation.removed_edges, simulation.parameters_seed
    known, weight = _edit_edges(settings, connectome, np.asarray(parameters.weight, np.float32).tobytes())
    parameters = parameters._replace(weight=jnp.asarray(weight))
    return {"connectome": known, "parameters": parameters, "simulated": ground_truth}


@lru_cache(maxsize=8)
def _edit_edges(settings: tuple, connectome: Connectome, weight: bytes) -> tuple[Connectome, Float32[np.ndarray, " E"]]:
    """Connectome and weights with the edges of `settings` removed and added."""
    null, kind, removed, seed = settings
    n = connectome.n_neurons
    p = Parameters(np.frombuffer(weight, np.float32), np.ones(n, np.float32), np.zeros(n, np.float32))
    known = connectome
    if removed:
        known, p, _ = without_edges(known, p, removed, seed)
    if null:
        # A removed edge does not come back as a null one.
        forbidden = np.setdiff1d(connectome.node_pairs, known.node_pairs)
        known, p = with_null_edges(known, p, null, seed, kind, forbidden)
    return known, p.weight
