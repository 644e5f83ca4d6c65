"""A recording of one's own in an experiment: read once, divided in time, and what the experiment learns of it."""

import dataclasses
from functools import lru_cache
from pathlib import Path

import numpy as np

from flyjax.circuit import Connectome, build_connectome
from flyjax.config import Experiment, Simulation, parse_experiment
from flyjax.config.experiment import GAP
from flyjax.data.recording import Part, Recording, load_recording
from flyjax.ground_truth import known_circuit
from flyjax.utils import environment
from flyjax.utils.errors import UserError

#: Share of the frames that is held out at most.
MAX_HELD_OUT = 1 / 5
#: What an objective compares with, of the true values; `type` are cell types.
NEEDED = {
    "connectivity_R2": "weight", "map": "weight", "tau_R2": "tau", "V_rest_R2": "v_rest", "cluster_accuracy": "type"
}  # fmt: skip


def _part(recording: Recording, frames: slice, split: str) -> Recording:
    """The frames of a recording, with the parts that they are of."""
    spans = [(max(s.start, frames.start), min(s.stop, frames.stop)) for s in recording.spans]
    parts = tuple(Part(stop - start, 0) for start, stop in spans if start < stop)
    last, derivative = frames.stop - 1, recording.derivative
    simulation = recording.simulation.model_copy(update={"n_frames": frames.stop - frames.start})
    return dataclasses.replace(
        recording,
        voltage=recording.voltage[frames],
        luminance=recording.luminance[frames],
        stored_derivative=derivative[frames],
        final=recording.voltage[last] + np.float32(recording.dt) * derivative[last],
        simulation=simulation,
        split=split,
        parts=parts if len(parts) > 1 else (),
    )


def check_level(level: float) -> None:
    """**Raises:** `UserError` for a noise level other than 0: a recording of one's own has the noise that it has."""
    if level:
        raise UserError(f"noise_model_level={level:g} has no meaning with a recording of one's own: set it to 0")


def split_in_time(recording: Recording, n_test_frames: int = 1_000) -> tuple[Recording, Recording]:
    """(training, held-out part) of a recording of one's own.

    The last `n_test_frames`, at most a fifth of all, are held out, and up to 50 frames before them belong to neither:
    neighbouring frames are near copies.
    """
    n_frames = recording.n_frames
    n_test = min(n_test_frames, int(n_frames * MAX_HELD_OUT))
    n_train = n_frames - n_test - min(GAP, n_test // 4)
    return (
        _part(recording, slice(0, n_train), "train"),
        _part(recording, slice(n_frames - n_test, n_frames), "test"),
    )


@lru_cache(maxsize=2)
def _splits(path: Path, n_test_frames: int, edges: Connectome | None, stamp: int) -> tuple[Recording, Recording]:
    recording = load_recording(path, **(_edges_of(edges) if edges else {}))
    if recording.is_simulated:
        raise UserError(
            f"simulation.recording: {path} was simulated by flyjax: train on flyjax.load_recording of it in Python, or "
            "leave the key out and set the simulation that made it"
        )
    return split_in_time(recording, n_test_frames)


def _edges_of(c: Connectome) -> dict[str, np.ndarray]:
    """Edges, types and names of a connectome, whose neurons have the order of the voltages."""
    arrays = {"pre": c.senders, "post": c.receivers, "type": np.array(c.cell_types)[c.cell_type]}
    return arrays | ({"id": np.array(c.ids)} if c.ids else {})


def own_splits(simulation: Simulation) -> tuple[Recording, Recording]:
    """(training, held-out part) of `simulation.recording`; the same objects as long as the file is the same.

    Edges that it lacks are those of `simulation.connectome`.

    **Raises:** `UserError` for a file that is absent or that `flyjax.load_recording` refuses.
    """
    path = environment.expanded(str(simulation.recording))
    if not path.exists():
        raise UserError(f"simulation.recording: no file {path}")
    edges = build_connectome(simulation.extent, simulation.connectome) if simulation.connectome else None
    return _splits(path, simulation.n_test_frames, edges, path.stat().st_mtime_ns)


def known_connectome(simulation: Simulation) -> Connectome:
    """The circuit that a learner is given, of a recording of one's own or of a simulation.

    **Raises:** `UserError` as `own_splits` and `known_circuit`.
    """
    return known_circuit(simulation)[0] if simulation.recording is None else own_splits(simulation)[0].connectome


def with_recording(experiment: Experiment) -> Experiment:
    """The experiment with frames and interval of its own recording; itself where there is none.

    **Raises:** `UserError` where the file cannot be used, the config says otherwise of it, or the objective compares
    with true values that it does not have.
    """
    simulation = experiment.simulation
    if simulation.recording is None:
        return experiment
    train, test = own_splits(simulation)
    needed = NEEDED.get(experiment.search.objective)
    if needed in train.unknown or (needed == "type" and not has_types(train.connectome)):
        raise UserError(
            f"search.objective={experiment.search.objective} needs the true {needed}, which {simulation.recording} "
            "does not have: set search.objective=blind, or add it to the file"
        )
    found = {
        "visual_input_type": train.visual_input_type,
        "n_frames": train.n_frames,
        "n_test_frames": test.n_frames,
        "delta_t": train.dt,
    }
    for name, value in found.items():
        given = getattr(simulation, name)
        if name != "n_test_frames" and given not in (value, Simulation.model_fields[name].default):
            raise UserError(f"simulation.{name}={given}, but {simulation.recording} has {value}: leave the key out")
    data = experiment.model_dump(mode="json")
    return parse_experiment({**data, "simulation": {**data["simulation"], **found}}, simulation.recording)


def has_types(connectome: Connectome) -> bool:
    """Whether cell types say something: they are neither all the same nor all different."""
    return 1 < connectome.n_types < connectome.n_neurons
