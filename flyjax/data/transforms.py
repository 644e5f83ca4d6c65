"""Recordings made of others: several in one, the held-out one, and the fly with a part of its synapses cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from flyjax.config import Simulation
from flyjax.data.noise import measurement_noise
from flyjax.data.recorder import record, simulate_states
from flyjax.data.recording import Recording
from flyjax.data.splits import measurement_noise_std, uses_finite_differences
from flyjax.ground_truth import build_ground_truth, known_circuit
from flyjax.utils.errors import UserError

#: Stream of random numbers beside those of removed (1) and null (2) edges.
_STREAM = 3


def _must_agree(recording: Recording) -> dict:
    """Settings that recordings to be joined have in common, by the name to report."""
    simulation, split = recording.simulation, recording.split
    noise = measurement_noise_std(simulation, split)
    return {
        "delta_t": simulation.delta_t,
        "clamp_tau": simulation.clamp_tau,
        "split": split,
        "noise_model_level": recording.noise_model_level,
        "measurement_noise_level": noise,
        "voltage_dtype": simulation.voltage_dtype,
        # The noise of a part is drawn again from the configuration's seed and its own.
        "simulation.seed": simulation.seed if noise else None,
    }


def concatenate(recordings: Sequence[Recording]) -> Recording:
    """Several recordings of one circuit as the parts of one; no pair spans a border.

    They may differ in stimulus, seed and length. `simulation` and `seed` are the first one's, `final` the last one's.

    **Raises:** `UserError` if there are none, or they differ in circuit, step, noise or split.
    """
    if not recordings:
        raise UserError("concatenate needs at least one recording")
    first = recordings[0]
    if len(recordings) > 1 and uses_finite_differences(first.simulation, first.split):
        raise UserError(
            "recordings with target: difference cannot be joined: the voltage after the last frame of each is missing"
        )
    for other in recordings[1:]:
        for (name, expected), found in zip(_must_agree(first).items(), _must_agree(other).values(), strict=True):
            if found != expected:
                raise UserError(f"recordings to be joined differ in {name}: {expected} and {found}")
        weights = np.asarray(first.parameters.weight), np.asarray(other.parameters.weight)
        same = other.origin["circuit"] == first.origin["circuit"] and other.connectome == first.connectome
        if not same or not np.array_equal(weights[0], weights[1]):
            raise UserError("recordings to be joined are of different circuits")
    return dataclasses.replace(
        first,
        voltage=np.concatenate([r.voltage for r in recordings]),
        luminance=np.concatenate([r.luminance for r in recordings]),
        final=recordings[-1].final,
        visual_input_type="+".join(dict.fromkeys(r.visual_input_type for r in recordings)),
        cache_key=None,
        parts=tuple(part for r in recordings for part in r.all_parts),
        stored_derivative=None,
    )


#: Frames that `held_out` simulates again.
_N_CHECKED = 16


def _made_by_its_circuit(recording: Recording) -> bool:
    """Whether the first voltages are those that the circuit has under the recording's stimulus."""
    simulation, part = recording.simulation, recording.all_parts[0]
    n = min(_N_CHECKED, part.n_frames)
    level, seed, luminance = recording.noise_model_level, part.seed, recording.luminance[:n]
    try:
        states, _ = next(
            simulate_states(simulation, recording.ground_truth, luminance, level, seed, simulation.initial, n)
        )
    except UserError:  # it diverges, or the arrays do not fit the circuit
        return False
    if measurement_noise_std(simulation, recording.split):
        states = states + measurement_noise(simulation, seed, np.arange(n), states.shape[1])
    found = recording.voltage[:n]
    # float16 rounds to 5e-4 of a value.
    return found.shape == states.shape and np.allclose(found, states, rtol=2e-3, atol=0.01 * float(found.std()))


def held_out(recording: Recording) -> Recording:
    """The test split of the circuit that made a training recording, however that circuit was made.

    **Raises:** `UserError` for a recording that is a test split itself, whose voltages are not those of its circuit
    under its stimulus, or whose held-out stimulus is not there.
    """
    if recording.split != "train":
        raise UserError(
            "the recording is a test split, on which networks are evaluated: train on record(simulation, split='train')"
        )
    if not _made_by_its_circuit(recording):
        raise UserError(
            "the recording's voltages are not those of its circuit under its luminance (were they replaced?), so that "
            "no held-out recording of the same circuit can be made: record them with flyjax.record, or train with "
            "flyjax.training.train_sweep, which evaluates nothing"
        )
    connectome, parameters = recording.ground_truth
    test = record(recording.simulation, 0.0, "test", connectome=connectome, parameters=parameters)
    known = {name: getattr(recording, name) for name in ("connectome", "parameters", "simulated")}
    return dataclasses.replace(test, **known)


class Lesioned(NamedTuple):
    """The test split of a fly with synapses cut, and which of the learner's edges remain."""

    recording: Recording
    intact: Bool[np.ndarray, " E"]  #: in the order of `recording.connectome`, the learner's


def lesioned(source: Recording | Simulation, fraction: float = 0.5, seed: int = 0) -> Lesioned:
    """Cut a random share of the true synapses and record the test split of the remaining circuit.

    The connectome stays as the learner knows it; cut edges have weight 0. Null edges, which a learner is given but
    do not exist, are all `intact`.

    **Raises:** `UserError` unless 0 <= fraction < 1.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"a lesion takes a share of the edges in 0 <= fraction < 1, got {fraction}")
    if isinstance(source, Recording):
        simulation, (true, p) = source.simulation, source.ground_truth
        known, known_p = source.connectome, source.parameters
    else:
        simulation, (true, p), (known, known_p) = source, build_ground_truth(source), known_circuit(source)
    cut = np.random.default_rng([seed, _STREAM]).permutation(true.n_edges)[: round(fraction * true.n_edges)]
    weight = np.array(p.weight, np.float32)
    weight[cut] = 0
    lesion = true, p._replace(weight=weight)
    intact = ~np.isin(known.node_pairs, true.node_pairs[cut])
    recording = record(simulation, 0.0, "test", connectome=lesion[0], parameters=lesion[1])
    recording = dataclasses.replace(
        recording,
        connectome=known,
        parameters=known_p._replace(weight=np.asarray(known_p.weight, np.float32) * intact),
        simulated=None if known is true else lesion,
    )
    return Lesioned(recording, intact)
