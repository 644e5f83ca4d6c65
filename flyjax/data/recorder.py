"""Make a recording: show a stimulus to the circuit and keep its voltages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from flyjax import circuit, stimulus
from flyjax.circuit import Connectome, Parameters
from flyjax.config import Simulation
from flyjax.data.noise import measurement_noise, noise_and_increment, process_noise_key
from flyjax.data.recording import CHUNK, Part, Recording, load_recording, noisy_derivative
from flyjax.data.splits import (
    cache_key,
    measurement_noise_std,
    stimulus_for_split,
    storage_dtype,
    stores_derivative,
    uses_finite_differences,
)
from flyjax.ground_truth import build_ground_truth, learner_view
from flyjax.simulation import initial_state, simulate_chunks
from flyjax.utils import array_store
from flyjax.utils.errors import UserError


def render_stimulus(
    simulation: Simulation, name: str, connectome: Connectome, part: Part, split: str
) -> Float32[np.ndarray, "T n_col"]:
    """Luminance of a part, in [0, 1]."""
    # Injective for any seed a person would type; seed 0 is the configuration's own film.
    seed = simulation.seed + 1_000_003 * part.seed
    rates = simulation.frame_rate, simulation.folder_frame_rate
    return stimulus.luminance(
        name, connectome.columns, part.n_frames, simulation.delta_t, split, seed, simulation.data_path, *rates
    )


def simulate_states(
    simulation: Simulation,
    ground_truth: tuple[Connectome, Parameters],
    luminance: Float32[np.ndarray, "T n_col"],
    noise: float,
    seed: int,
    initial: str,
    chunk: int,
) -> Iterator[tuple[Float32[np.ndarray, "chunk N"], Float32[np.ndarray, " N"]]]:
    """Chunk by chunk, the states before each frame and the state after the chunk's last one.

    **Raises:** `UserError` with the first frame after which a voltage is not finite.
    """
    dt, clamp_tau = simulation.delta_t, simulation.clamp_tau
    before = initial_state(*ground_truth, initial, luminance, dt, clamp_tau)
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
    for after in map(np.asarray, chunks):
        if not np.isfinite(after).all():
            frame = begin + int(np.argmax(~np.isfinite(after).all(axis=1)))
            raise UserError(
                f"the simulation diverged at frame {frame} (delta_t={dt} s, clamp_tau={clamp_tau}): "
                "use clamp_tau=true, a smaller delta_t or weaker noise"
            )
        # The state after a frame is the state before the next one.
        yield np.concatenate([np.asarray(before)[None], after[:-1]]), after[-1]
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
        ground_truth = connectome or circuit.build_connectome(simulation.extent), parameters
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
    chunk: int = CHUNK,
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
    - `chunk`: frames per compiled call: memory beside the recording itself.
    - `store`: folder to write to, chunk by chunk during the simulation; the recording is then read from there.

    **Raises:** `UserError` for an unknown or absent stimulus, a circuit of another extent, or voltages that diverge
    (with the first such frame).
    """
    name = stimulus_for_split(simulation, split)
    ground_truth = _circuit(simulation, connectome, parameters)
    parts = _parts(simulation, split, seed)
    level = 0.0 if split == "test" else float(noise_model_level)
    initial = "grey" if split == "test" else simulation.initial
    noisy = measurement_noise_std(simulation, split) > 0
    luminance = np.concatenate([render_stimulus(simulation, name, ground_truth[0], part, split) for part in parts])
    shape = len(luminance), ground_truth[0].n_neurons
    dtype = np.dtype(storage_dtype(simulation, split))
    with array_store.Writer(store) if store is not None else contextlib.nullcontext() as writer:
        voltage = np.empty((len(luminance) if writer is None else 0, shape[1]), np.float32)
        with_target = stores_derivative(simulation, split)
        if writer is not None:
            writer.create("voltage", shape, dtype)
            if with_target:
                writer.create("derivative", shape, np.float32)
        begin = 0
        for part in parts:
            frames = luminance[begin : begin + part.n_frames]
            frame = 0
            for rows, after in simulate_states(simulation, ground_truth, frames, level, part.seed, initial, chunk):
                stop, noise, increment = frame + len(rows), None, None
                if noisy:
                    noise, increment = noise_and_increment(simulation, part.seed, np.arange(frame, stop), shape[1])
                    rows = rows + noise
                rows = rows.astype(dtype)
                if writer is None:
                    voltage[begin + frame : begin + stop] = rows
                else:
                    writer.append("voltage", rows)
                if writer is not None and with_target:
                    rows, seen = rows.astype(np.float32), frames[frame:stop]
                    target = noisy_derivative(ground_truth, simulation, rows, seen, noise, increment)
                    writer.append("derivative", target)
                frame, final = stop, after
            begin += part.n_frames
        if noisy:
            final = final + measurement_noise(simulation, parts[-1].seed, np.array([parts[-1].n_frames]), shape[1])[0]
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
        if writer is not None:
            recording.finish_store(writer)
    return recording if store is None else load_recording(store)
