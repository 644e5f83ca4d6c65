"""The true circuit of a simulation, and what of it a learner is told."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from flyjax import circuit, ground_truth
from flyjax.circuit import Connectome, Parameters
from flyjax.config import Simulation
from flyjax.ground_truth.edge_edits import with_null_edges, without_edges
from flyjax.ground_truth.flyvis_ensemble import check_sum
from flyjax.utils import environment
from flyjax.utils.errors import UserError, nearest


def checkpoint_file(name: str) -> Path:
    """The file of a ground truth: a path, or a model of the flyvis ensemble in the user's folders."""
    given = Path(name).expanduser()
    if given.exists():
        return given
    data = environment.data_root()
    roots = [*([data, data / "flyvis"] if data else []), environment.cache_dir() / "flyvis"]
    for root in roots:
        folder = root / name
        for candidate in (folder / "best_chkpt", folder / "chkpts" / "chkpt_00000", folder.with_suffix(".npz"), folder):
            if candidate.is_file():
                check_sum(root, name, candidate)
                return candidate
    if name.startswith("flow/"):
        raise UserError(
            f"no flyvis model {name!r} in {roots[-1]} (or FLYJAX_DATA): run python scripts/fetch_flyvis.py, "
            "or use simulation.parameters=sampled, which needs no download"
        )
    raise UserError(
        f"simulation.parameters: no file {name!r}.{nearest(name, ['sampled', 'flow/0000/000'])} "
        "Give 'sampled', 'flow/0000/000' or the path of a flyvis checkpoint."
    )


@lru_cache(maxsize=4)
def _truth(extent: int, parameters: str, seed: int) -> tuple[Connectome, Parameters]:
    connectome = circuit.build_connectome(extent)
    if parameters == "sampled":
        return connectome, ground_truth.sample_parameters(connectome, seed=seed)
    checkpoint = checkpoint_file(parameters)
    return connectome, circuit.load_flyvis_parameters(connectome, checkpoint)


def build_truth(simulation: Simulation) -> tuple[Connectome, Parameters]:
    """The circuit and its parameters.

    `simulation.parameters` is 'sampled' (by `parameters_seed`), 'flow/0000/000' (looked for in
    FLYJAX_DATA and in ~/.cache/flyjax/flyvis) or the path of a checkpoint.

    **Raises:** `UserError` if the checkpoint is not there, naming the command that fetches it.
    """
    return _truth(simulation.extent, simulation.parameters, simulation.parameters_seed)


def known_circuit(simulation: Simulation) -> tuple[Connectome, Parameters]:
    """The circuit a learner is told: `build_truth` with null edges and without removed ones.

    The same objects for the same circuit.

    **Raises:** `UserError` as `build_truth`.
    """
    known = told(simulation, build_truth(simulation))
    return known["connectome"], known["parameters"]


@lru_cache(maxsize=8)
def _known(key: tuple, connectome: Connectome, weight: bytes) -> tuple[Connectome, np.ndarray]:
    null, kind, removed, seed = key
    n = connectome.n_neurons
    p = Parameters(np.frombuffer(weight, np.float32), np.ones(n, np.float32), np.zeros(n, np.float32))
    known = connectome
    if removed:
        known, p, _ = without_edges(known, p, removed, seed)
    if null:
        # Drawn against the truth: a removed edge does not come back as a null one.
        lost = np.setdiff1d(_pairs(connectome), _pairs(known))
        known, p = with_null_edges(known, p, null, seed, kind, forbidden=lost)
    return known, p.weight


def _pairs(c: Connectome) -> np.ndarray:
    return c.senders.astype(np.int64) * c.n_neurons + c.receivers


def told(simulation: Simulation, truth: tuple[Connectome, Parameters]) -> dict:
    """Fields of a recording: what the learner is told, and what was simulated if that is another."""
    key = (simulation.null_edges, simulation.null_edges_kind, simulation.removed_edges, simulation.parameters_seed)
    if not (simulation.null_edges or simulation.removed_edges):
        return dict(connectome=truth[0], parameters=truth[1])
    connectome, weight = _known(key, truth[0], np.asarray(truth[1].weight, np.float32).tobytes())
    return dict(connectome=connectome, parameters=truth[1]._replace(weight=jnp.asarray(weight)), simulated=truth)
