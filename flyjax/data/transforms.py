"""Recordings made of others: several in one, and the fly with a part of its synapses cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from flyjax.config import Simulation
from flyjax.data.recorder import record
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
        same = other.connectome is first.connectome and other.ground_truth[0] is first.ground_truth[0]
        arrays = zip(
            (*other.ground_truth[1], other.parameters.weight), (*first.ground_truth[1], first.parameters.weight)
        )
        if not same or not all(np.array_equal(a, b) for a, b in arrays):
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
