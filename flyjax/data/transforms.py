"""Recordings made of others: several in one, and the fly with a part of its synapses cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flyjax.config import Simulation
from flyjax.data.frames import differenced
from flyjax.data.recording import Part, Recording, known_circuit, record
from flyjax.utils.errors import UserError

#: Stream of random numbers beside those of removed (1) and null (2) edges.
_STREAM = 3


def concatenate(recordings: Sequence[Recording]) -> Recording:
    """Several recordings of one circuit as the parts of one; no pair spans a border.

    They may differ in stimulus, seed and length. `simulation`, `seed` are the first one's, `final` the last one's.

    **Raises:** `UserError` if there are none, or they differ in circuit, step, noise or split.
    """
    if not recordings:
        raise UserError("concatenate needs at least one recording")
    first = recordings[0]

    def alike(r: Recording) -> dict:
        s = r.simulation
        level = s.measurement_noise_level if r.split == "train" else 0.0
        return {
            "delta_t": s.delta_t, "clamp_tau": s.clamp_tau, "split": r.split, "noise_model_level": r.noise_model_level,
            "measurement_noise_level": level, "voltage_dtype": s.voltage_dtype,
            # The noise of a part is drawn again from the configuration's seed and its own.
            "simulation.seed": s.seed if level else None,
        }  # fmt: skip

    if len(recordings) > 1 and differenced(first.simulation, first.split):
        raise UserError(
            "recordings with target: difference cannot be joined: the voltage after the last frame of each is missing"
        )
    for other in recordings[1:]:
        for what, value in alike(other).items():
            if value != alike(first)[what]:
                raise UserError(f"recordings to be joined differ in {what}: {alike(first)[what]} and {value}")
        same = other.connectome is first.connectome and other.truth[0] is first.truth[0]
        same = same and all(np.array_equal(a, b) for a, b in zip(other.truth[1], first.truth[1], strict=True))
        if not (same and np.array_equal(other.parameters.weight, first.parameters.weight)):
            raise UserError("recordings to be joined are of different circuits")
    return dataclasses.replace(
        first,
        voltage=np.concatenate([r.voltage for r in recordings]),
        luminance=np.concatenate([r.luminance for r in recordings]),
        final=recordings[-1].final,
        visual_input_type="+".join(dict.fromkeys(r.visual_input_type for r in recordings)),
        recipe=None,
        parts=tuple(part for r in recordings for part in (r.parts or (Part(r.n_frames, r.seed),))),
    )


class Lesioned(NamedTuple):
    """The test split of a fly that lost synapses, and which of its known edges are left."""

    recording: Recording
    kept: np.ndarray  #: (E,) bool in the order of `recording.connectome`, the learner's


def lesioned(what: Recording | Simulation, fraction: float = 0.5, seed: int = 0) -> Lesioned:
    """Cut a random share of the true synapses and record the test split of what is left.

    The connectome stays as the learner knows it; cut edges weigh 0. Of edges that are told but do
    not exist, all are `kept`.

    **Raises:** `UserError` unless 0 <= fraction < 1.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"a lesion takes a share of the edges in 0 <= fraction < 1, got {fraction}")
    if isinstance(what, Recording):
        simulation, known, told_p, (truth, p) = what.simulation, what.connectome, what.parameters, what.truth
    else:
        from flyjax.ground_truth.build import build_truth

        simulation, (known, told_p), (truth, p) = what, known_circuit(what), build_truth(what)
    cut = np.random.default_rng([seed, _STREAM]).permutation(truth.n_edges)[: round(fraction * truth.n_edges)]
    weight = np.array(p.weight, np.float32)
    weight[cut] = 0
    lesion = truth, p._replace(weight=weight)
    n = truth.n_neurons
    pairs = known.senders.astype(np.int64) * n + known.receivers
    kept = ~np.isin(pairs, truth.senders[cut].astype(np.int64) * n + truth.receivers[cut])
    recording = record(simulation, 0.0, "test", connectome=lesion[0], parameters=lesion[1])
    told_p = told_p._replace(weight=np.asarray(told_p.weight, np.float32) * kept)
    recording = dataclasses.replace(
        recording, connectome=known, parameters=told_p, simulated=None if known is truth else lesion
    )
    return Lesioned(recording, kept)
