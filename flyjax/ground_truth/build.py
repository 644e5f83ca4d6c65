"""The ground truth of a simulation, and the circuit that a learner is given."""

import dataclasses
from functools import lru_cache
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int

from flyjax import circuit
from flyjax.circuit import Connectome, Parameters
from flyjax.circuit.tables import content, is_table
from flyjax.config import Simulation
from flyjax.ground_truth.flyvis_ensemble import checkpoint_file
from flyjax.ground_truth.sampling import sample_parameters
from flyjax.utils.environment import expanded

Weight = Float32[np.ndarray, " E"]
#: The fields of a connectome that have one value per edge, and those of an edge that does not exist.
NULL_EDGE: dict[str, Any] = {
    "senders": None, "receivers": None, "edge_pair": -1, "offset_key": -1, "sign": 0, "n_syn": 0
}  # fmt: skip


@lru_cache(maxsize=4)
def _ground_truth(
    connectome: Connectome, parameters: str, content: str, seed: int, cut_edges: float
) -> tuple[Connectome, Parameters]:
    if parameters == "sampled":
        values = sample_parameters(connectome, seed=seed)
    elif is_table(expanded(parameters)):
        values = circuit.load_parameters(connectome, expanded(parameters))
    else:
        values = circuit.load_flyvis_parameters(connectome, checkpoint_file(parameters))
    if cut_edges:
        connectome, weight = without_edges(connectome, values.weight, cut_edges, seed)
        values = values._replace(weight=jnp.asarray(weight))
    return connectome, values


def build_ground_truth(simulation: Simulation) -> tuple[Connectome, Parameters]:
    """The circuit and its parameters; the same objects for the same settings.

    `simulation.connectome` is the fly's at `extent`, or a circuit of one's own. `simulation.parameters` is 'sampled'
    (by `parameters_seed`), 'flow/0000/000' (looked for in FLYJAX_DATA and in ~/.cache/flyjax/flyvis), the path of a
    checkpoint, or weight, tau and v_rest of one's own (`flyjax.circuit.load_parameters`). A share
    `simulation.cut_edges` of the edges is left out.

    **Raises:** `UserError` if a file is not there or wrong; for a checkpoint it names the command that fetches it.
    """
    s, connectome = simulation, circuit.build_connectome(simulation.extent, simulation.connectome)
    return _ground_truth(connectome, s.parameters, files_of(simulation), s.parameters_seed, s.cut_edges)


def files_of(simulation: Simulation) -> str:
    """Changes when the files of the circuit and of its parameters do, wherever they lie."""
    parts = [content(expanded(simulation.connectome)) if simulation.connectome else ""]
    if simulation.parameters != "sampled":
        own = expanded(simulation.parameters)
        parts.append(content(own if is_table(own) else checkpoint_file(simulation.parameters)))
    return " ".join(parts)


def known_circuit(simulation: Simulation) -> tuple[Connectome, Parameters]:
    """The circuit that a learner is given: `build_ground_truth` with null edges, without removed ones
    and hidden neurons.

    The same connectome object for the same circuit.

    **Raises:** `UserError` as `build_ground_truth`.
    """
    view = learner_view(simulation, build_ground_truth(simulation))
    return view["connectome"], view["parameters"]


def learner_view(simulation: Simulation, ground_truth: tuple[Connectome, Parameters]) -> dict[str, Any]:
    """Fields of a recording: the circuit that the learner is given, and the simulated one if that is another."""
    connectome, parameters = ground_truth
    s = simulation
    if not (s.null_edges or s.removed_edges or s.hidden_neurons):
        return {"connectome": connectome, "parameters": parameters}
    settings = s.null_edges, s.null_edges_kind, s.removed_edges, s.hidden_neurons, s.parameters_seed
    known, weight = _edit(settings, connectome, np.asarray(parameters.weight, np.float32).tobytes())
    seen = seen_neurons(connectome, s.hidden_neurons, s.parameters_seed)
    parameters = Parameters(jnp.asarray(weight), parameters.tau[seen], parameters.v_rest[seen])
    return {"connectome": known, "parameters": parameters, "simulated": ground_truth}


@lru_cache(maxsize=8)
def _edit(settings: tuple, connectome: Connectome, weight_bytes: bytes) -> tuple[Connectome, Weight]:
    null, kind, removed, hidden, seed = settings
    known, weight = connectome, np.frombuffer(weight_bytes, np.float32)
    if removed:
        known, weight = without_edges(known, weight, removed, seed)
    if null:
        # A removed edge does not come back as a null one.
        forbidden = np.setdiff1d(connectome.node_pairs, known.node_pairs)
        known, weight = with_null_edges(known, weight, null, seed, kind, forbidden)
    if hidden:
        known, weight = _with_neurons(known, weight, seen_neurons(connectome, hidden, seed))
    return known, weight


def seen_neurons(c: Connectome, hidden: float, seed: int) -> Int[np.ndarray, " n"]:
    """All neurons but a random share that is hidden; the central ones, which figures show, are never."""
    order = np.setdiff1d(np.arange(c.n_neurons), c.central)
    order = np.random.default_rng([seed, 4]).permutation(order)
    return np.setdiff1d(np.arange(c.n_neurons), order[: round(hidden * c.n_neurons)])


def _with_neurons(c: Connectome, weight: Weight, seen: Int[np.ndarray, " n"]) -> tuple[Connectome, Weight]:
    """The circuit of these neurons and the edges among them."""
    number = np.full(c.n_neurons, -1, np.int32)
    number[seen] = np.arange(len(seen))
    edges = (number[c.senders] >= 0) & (number[c.receivers] >= 0)
    kept = number[c.inputs] >= 0
    fields = {name: getattr(c, name)[seen] for name in ("cell_type", "column", "u", "v")}
    fields |= {name: getattr(c, name)[edges] for name in NULL_EDGE}
    fields |= {name: number[fields[name]] for name in ("senders", "receivers")}
    fields |= {"inputs": number[c.inputs[kept]], "input_column": c.input_column[kept]}
    for values in fields.values():
        values.setflags(write=False)
    return dataclasses.replace(c, **fields), weight[edges]


def _with_edges(c: Connectome, fields: dict[str, Any]) -> tuple[Connectome, Weight]:
    """The circuit with these edges, sorted by (receiver, sender), and their weights."""
    order = np.argsort(fields["receivers"].astype(np.int64) * c.n_neurons + fields["senders"], kind="stable")
    fields = {name: values[order] for name, values in fields.items()}
    for values in fields.values():
        values.setflags(write=False)
    weight = fields.pop("weight")
    return dataclasses.replace(c, **fields), weight


def without_edges(c: Connectome, weight: Weight, share: float, seed: int) -> tuple[Connectome, Weight]:
    """The circuit without a random share of its edges, 0 <= share < 1, and the weights of the others."""
    removed = np.random.default_rng([seed, 1]).permutation(c.n_edges)[: round(share * c.n_edges)]
    remaining = np.setdiff1d(np.arange(c.n_edges), removed)
    fields = {name: getattr(c, name)[remaining] for name in NULL_EDGE}
    return _with_edges(c, fields | {"weight": np.asarray(weight)[remaining]})


def with_null_edges(
    c: Connectome, weight: Weight, share: float, seed: int, kind: str = "per_source", forbidden=()
) -> tuple[Connectome, Weight]:
    """The circuit with `share` times as many null edges, which do not exist, and the weights: theirs are 0.

    **Arguments:**

    - `kind`: 'per_source' adds to every neuron in proportion to its own out-degree, 'random' anywhere. No pair is
        connected twice; where a neuron runs out of targets it has fewer.
    - `forbidden`: pairs, sender * n_neurons + receiver, that must not be added.

    In the result such edges have `edge_pair` and `offset_key` -1, `sign` and `n_syn` 0.
    """
    rng, n = np.random.default_rng([seed, 2]), c.n_neurons
    taken = np.union1d(c.node_pairs, np.asarray(forbidden, np.int64))
    if kind == "per_source":
        wanted = np.rint(np.bincount(c.senders, minlength=n) * share).astype(np.int64)
    else:
        wanted = np.bincount(rng.integers(0, n, round(share * c.n_edges)), minlength=n)
    first = np.searchsorted(taken, np.arange(n + 1, dtype=np.int64) * n)
    sources, chosen = np.flatnonzero(wanted), [np.zeros(0, np.int64)]
    for j in sources:
        free = np.ones(n, bool)
        free[taken[first[j] : first[j + 1]] - j * n] = False
        targets = np.flatnonzero(free)
        chosen.append(rng.choice(targets, min(wanted[j], len(targets)), replace=False))
    senders = np.repeat(sources, np.fromiter(map(len, chosen[1:]), np.int64))
    null = NULL_EDGE | {"senders": senders, "receivers": np.concatenate(chosen), "weight": 0}
    own = {name: getattr(c, name) for name in NULL_EDGE} | {"weight": np.asarray(weight, np.float32)}
    added = {name: np.broadcast_to(null[name], senders.shape).astype(own[name].dtype) for name in own}
    return _with_edges(c, {name: np.concatenate([own[name], added[name]]) for name in own})
