"""Make recordings: of a stimulus shown to the circuit, the held-out one, and with a part of the synapses cut."""

import dataclasses
import logging
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float32

from flyjax import circuit, stimulus
from flyjax.circuit import Connectome, Parameters
from flyjax.config import Simulation
from flyjax.data import on_device
from flyjax.data.recording import Part, Recording, measurement_noise, process_noise_key
from flyjax.data.splits import (
    cache_key,
    measurement_noise_std,
    stimulus_for_split,
    storage_dtype,
    uses_finite_differences,
    videos_line,
)
from flyjax.ground_truth import build_ground_truth, learner_view, seen_neurons
from flyjax.simulation import initial_state, simulate_chunks
from flyjax.utils import array_store
from flyjax.utils.errors import UserError

log = logging.getLogger(__name__)
#: Stream of random numbers of lesions, beside those of removed (1) and null (2) edges.
_STREAM = 3
#: Frames that `held_out` simulates again.
_N_CHECKED = 16


@lru_cache
def _say(line: str) -> None:
    """Log a line once."""
    log.warning(line)


def render_stimulus(
    simulation: Simulation, name: str, connectome: Connectome, part: Part, split: str, quantity: str = "luminance"
) -> Float32[np.ndarray, "T n_col ..."]:
    """Luminance of a part, in [0, 1], or its `flow`."""
    s = simulation
    return getattr(stimulus, quantity)(
        name,
        connectome.columns,
        part.n_frames,
        s.delta_t,
        split,
        # Injective for any seed a person would type; seed 0 is the configuration's own film.
        s.seed + 1_000_003 * part.seed,
        s.data_path,
        s.frame_rate,
        s.folder_frame_rate,
        s.video_pipeline,
        s.blank_prefix_fraction,
        s.blank_prefix_luminance,
    )


def simulate_states(
    simulation: Simulation,
    ground_truth: tuple[Connectome, Parameters],
    luminance: Float32[np.ndarray, "T n_col"],
    noise: float,
    seed: int,
    initial: str,
    chunk: int | None,
) -> Iterator[tuple[Float32[np.ndarray, " N"], Float32[Array, "chunk N"]]]:
    """Chunk by chunk, the state before its first frame and the states after each of them, on the device.

    **Raises:** `UserError` with the first frame after which a voltage is not finite.
    """
    dt, clamp_tau = simulation.delta_t, simulation.clamp_tau
    before = initial_state(*ground_truth, initial, luminance, dt, clamp_tau, simulation.warm_up)
    chunks = simulate_chunks(
        *ground_truth,
        luminance,
        dt=dt,
        noise=noise,
        key=process_noise_key(simulation, seed),
        initial=before,
        clamp_tau=clamp_tau,
        solver=simulation.solver,
        chunk=chunk,
    )
    begin = 0
    for states in chunks:
        after = np.asarray(states)
        if not np.isfinite(after[-1]).all():  # a voltage that is not finite stays so
            frame = begin + int(np.argmax(~np.isfinite(after).all(axis=1)))
            raise UserError(
                f"the simulation diverged at frame {frame} (delta_t={dt} s, clamp_tau={clamp_tau}): "
                "use clamp_tau=true, a smaller delta_t or weaker noise"
            )
        yield np.asarray(before), states
        before, begin = after[-1], begin + len(after)


def _circuit(
    simulation: Simulation, connectome: Connectome | None, parameters: Parameters | None
) -> tuple[Connectome, Parameters]:
    """The circuit given by hand, or that of the configuration."""
    if parameters is None:
        ground_truth = build_ground_truth(simulation)
        if connectome is not None and connectome != ground_truth[0]:
            raise UserError("a circuit made by hand needs its own parameters")
    else:
        ground_truth = connectome or circuit.build_connectome(simulation.extent, simulation.connectome), parameters
    if (extent := ground_truth[0].extent) != simulation.extent:
        raise UserError(f"the circuit has extent {extent}, the simulation {simulation.extent}: make them equal")
    return ground_truth


def _parts(simulation: Simulation, split: str, seed: int) -> list[Part]:
    """The split's frames divided into parts."""
    test = split == "test"
    n_parts = 1 if test else simulation.n_recordings
    if n_parts > 1 and uses_finite_differences(simulation, split):
        raise UserError(
            "target: difference needs the voltage after every frame, which parts lack at their ends: "
            "set n_recordings to 1"
        )
    ends = np.linspace(0, simulation.n_test_frames if test else simulation.n_frames, n_parts + 1).round().astype(int)
    # Seeds of parts are far from those that people type; the first part has the recording's own.
    return [Part(int(n), seed + (k << 20)) for k, n in enumerate(np.diff(ends))]


def record(
    simulation: Simulation,
    noise_model_level: float = 0.05,
    split: str = "train",
    seed: int = 0,
    connectome: Connectome | None = None,
    parameters: Parameters | None = None,
    chunk: int | None = None,
    store: str | Path | None = None,
) -> Recording:
    """Show a stimulus to the circuit and record it.

    The test split is always noise-free, starts from the grey steady state and shows `test_visual_input_type` for
    `n_test_frames`. Noise levels of one seed share stimulus and noise draws; the noise of a step depends on its number
    alone, so that any `chunk` gives the same recording. With `simulation.n_recordings` the training frames are divided
    among as many parts.

    **Arguments:**

    - `simulation`: what to simulate.
    - `noise_model_level`: standard deviation added to every voltage at each training step (not scaled by dt).
    - `split`: 'train' or 'test'.
    - `seed`: another draw of stimulus and noise of the same simulation.
    - `connectome`, `parameters`: another ground truth; by default `build_ground_truth(simulation)`.
    - `chunk`: frames per compiled call, which need memory beside the recording; by default as `flyjax.simulate`, for
      the test split as many as `simulation.warm_up` has.
    - `store`: folder to write it to.

    **Raises:** `UserError` for an unknown or absent stimulus, a circuit of another extent, or voltages that diverge
    (with the first such frame).
    """
    name = stimulus_for_split(simulation, split)
    if line := videos_line(simulation, split):
        _say(line)
    ground_truth = _circuit(simulation, connectome, parameters)
    parts = _parts(simulation, split, seed)
    level, initial = (0.0, "grey") if split == "test" else (float(noise_model_level), simulation.initial)
    if split == "test" and chunk is None:  # as long as the steady state before it: one program less to compile
        chunk = max(1, round(simulation.warm_up / simulation.delta_t))
    noisy = measurement_noise_std(simulation, split) > 0
    luminance = np.concatenate([render_stimulus(simulation, name, ground_truth[0], part, split) for part in parts])
    voltage = array_store.empty((len(luminance), ground_truth[0].n_neurons), np.float32)
    dtype, start = storage_dtype(simulation, split), 0
    # Of training recordings that are the states themselves.
    exact = split == "train" and not noisy and dtype == voltage.dtype
    collector = on_device.Collector(voltage.shape) if exact else None
    for part in parts:
        shown, frame = luminance[start : start + part.n_frames], 0
        for before, states in simulate_states(simulation, ground_truth, shown, level, part.seed, initial, chunk):
            if collector is not None:
                collector.add(before, states, start + frame)
            rows, after = voltage[start + frame : start + frame + len(states)], np.asarray(states)
            # The state after a frame is the state before the next one.
            rows[0], rows[1:] = before, after[:-1]
            if noisy:
                rows += measurement_noise(simulation, part.seed, frame + np.arange(len(rows)), rows.shape[1])
            if dtype != rows.dtype:
                rows[:] = rows.astype(dtype)
            frame, final = frame + len(rows), after[-1]
        start += part.n_frames
    if noisy:
        final = final + measurement_noise(simulation, part.seed, np.array([part.n_frames]), len(final))[0]
    recording = Recording(
        voltage=voltage,
        luminance=luminance,
        final=np.array(final),
        simulation=simulation,
        **learner_view(simulation, ground_truth),
        noise_model_level=level,
        split=split,
        seed=seed,
        visual_input_type=name,
        cache_key=cache_key(simulation, noise_model_level, split, seed) if parameters is None else None,
        parts=tuple(parts) if len(parts) > 1 else (),
    )
    if not recording.has_equation:
        recording = _observed(recording)
    elif collector is not None:
        collector.keep(recording)
    if store is not None:
        recording.save(store)
    return recording


def _observed(recording: Recording) -> Recording:
    """A simulation as it is observed: without hidden neurons, a training every `observe_every` frames."""
    s, states = recording.simulation, np.concatenate([recording.voltage, recording.final[None]])
    seen = seen_neurons(recording.ground_truth[0], s.hidden_neurons, s.parameters_seed)
    gap = s.observe_every if recording.split == "train" else 1
    frames = gap * np.arange(recording.n_frames // gap)
    if gap == 1:
        derivative = recording.derivative
    else:
        derivative = (states[frames + gap] - states[frames]) / np.float32(gap * recording.dt)
    return dataclasses.replace(
        recording,
        voltage=states[frames][:, seen],
        luminance=recording.luminance[frames],
        final=states[frames[-1] + gap][seen],
        stored_derivative=derivative[:, seen],
    )


def _made_by_its_circuit(recording: Recording) -> bool:
    """Whether the first voltages are those that the circuit has under the recording's stimulus."""
    simulation, part = recording.simulation, recording.all_parts[0]
    n = min(_N_CHECKED, part.n_frames)
    level, seed, luminance = recording.noise_model_level, part.seed, recording.luminance[:n]
    try:
        before, after = next(
            simulate_states(simulation, recording.ground_truth, luminance, level, seed, simulation.initial, n)
        )
        states = np.concatenate([before[None], np.asarray(after)[:-1]])
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
    if not recording.has_equation:
        raise UserError(
            "a recording with hidden_neurons or observe_every tells too little to simulate its circuit: pass the "
            "simulation instead, which makes both recordings"
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


def lesioned(recording: Recording, fraction: float = 0.5, seed: int = 0) -> Lesioned:
    """Cut a random share of the true synapses and record the test split of the remaining circuit.

    The connectome stays as the learner knows it; cut edges have weight 0. Null edges, which a learner is given but
    do not exist, are all `intact`.

    **Raises:** `UserError` unless 0 <= fraction < 1.
    """
    if recording.simulation.hidden_neurons:
        raise UserError("a lesion needs all neurons: set simulation.hidden_neurons to 0")
    if not 0 <= fraction < 1:
        raise UserError(f"a lesion takes a share of the edges in 0 <= fraction < 1, got {fraction}")
    (true, p), known = recording.ground_truth, recording.connectome
    cut = np.random.default_rng([seed, _STREAM]).permutation(true.n_edges)[: round(fraction * true.n_edges)]
    weight = np.array(p.weight, np.float32)
    weight[cut] = 0
    lesion = p._replace(weight=weight)
    intact = ~np.isin(known.node_pairs, true.node_pairs[cut])
    test = record(recording.simulation, 0.0, "test", connectome=true, parameters=lesion)
    remaining = np.asarray(recording.parameters.weight, np.float32) * intact
    parameters = recording.parameters._replace(weight=remaining)
    simulated = None if known is true else (true, lesion)
    return Lesioned(dataclasses.replace(test, connectome=known, parameters=parameters, simulated=simulated), intact)
