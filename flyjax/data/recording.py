"""What was observed: the voltages of a simulated fly, paired with what it saw.

**The pair convention** lives here. Frame t of a recording is

    voltage[t]      state *before* frame t is shown; voltage[0] is the initial state
    luminance[t]    what the columns see *during* frame t
    derivative[t]   dV/dt at (voltage[t], luminance[t]): the exact right-hand side, 1/s

and one Euler step leads on: voltage[t + 1] = voltage[t] + dt * derivative[t] + noise. Process
noise moves the states and never enters the targets. Measurement noise n does not move the states:
then voltage[t] is the state plus n[t], and derivative[t], as it would be differenced from such data,
the right-hand side at the state plus (n[t + 1] - n[t]) / dt. The test split has neither.

With `simulation.target: difference` the training target is what anyone could compute from the recorded
voltages alone, (voltage[t + 1] - voltage[t]) / dt, process and measurement noise included.

A recording may have several **parts**, one after the other, each with a start, a stimulus and noise of
its own. No pair spans a border: where a part ends, voltage[t + 1] does not follow from voltage[t].
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from flyjax import circuit, stimulus
from flyjax.circuit import Connectome, Parameters
from flyjax.config import Simulation, content_hash
from flyjax.data.frames import (
    Part,
    differenced,
    light_of,
    measured,
    measurement_noise,
    noise_and_step,
    states_of,
    stored_as,
    target_of,
)
from flyjax.ground_truth.build import build_truth, checkpoint_file, known_circuit, told
from flyjax.utils import array_store
from flyjax.utils.errors import UserError, nearest

__all__ = [
    "Part",
    "Recording",
    "build_truth",
    "known_circuit",
    "load_recording",
    "recipe",
    "record",
    "shown",
]
SPLITS = ("train", "test")
CHUNK = 1000  # frames per compiled call


@dataclass(frozen=True, eq=False)
class Recording:
    """One simulated split and everything that made it.

    Attributes:
        voltage: (T, N) float32, state before each frame, dimensionless.
        luminance: (T, n_col) float32 in [0, 1].
        final: (N,) float32, voltage after the last frame.
        connectome, parameters: the truth as far as a learner is told its edges: null edges are in it
            with weight 0, removed ones are not.
        simulation: its configuration.
        noise_model_level: std of the process noise per step that this recording has.
        split: 'train' or 'test'.
        seed: of this recording, beside `simulation.seed`.
        visual_input_type: the stimulus shown.
        recipe: content hash of what made it, or None for circuits given by hand.
        simulated: the circuit that made the voltages, where it is another one.
        parts: runs of frames, where there are several; `spans` says where they lie.
    """

    voltage: np.ndarray
    luminance: np.ndarray
    final: np.ndarray
    connectome: Connectome
    parameters: Parameters
    simulation: Simulation
    noise_model_level: float
    split: str
    seed: int
    visual_input_type: str
    recipe: str | None = None
    simulated: tuple[Connectome, Parameters] | None = None
    parts: tuple[Part, ...] = ()

    @property
    def truth(self) -> tuple[Connectome, Parameters]:
        """The circuit and parameters that made the voltages."""
        return self.simulated or (self.connectome, self.parameters)

    @property
    def n_frames(self) -> int:
        return len(self.voltage)

    @property
    def dt(self) -> float:
        """Integration step and frame interval, s."""
        return self.simulation.delta_t

    @property
    def spans(self) -> tuple[slice, ...]:
        """Frames of each part; within one, each state follows from the one before."""
        ends = np.cumsum([0, *(part.n_frames for part in self.parts or (Part(self.n_frames, self.seed),))])
        return tuple(slice(int(a), int(b)) for a, b in zip(ends[:-1], ends[1:], strict=True))

    @property
    def initial(self) -> np.ndarray:
        """(N,) state before the first frame."""
        return self.voltage[0]

    @cached_property
    def derivative(self) -> np.ndarray:
        """(T, N) float32, 1/s. Computed at first use and kept: as large as the voltages."""
        out = np.empty_like(self.voltage)
        for start in range(0, self.n_frames, CHUNK):
            frames = slice(start, start + CHUNK)
            out[frames] = self.pairs(frames)[2]
        return out

    def pairs(self, frames) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(voltage, luminance, derivative) of some frames, the derivative computed for them alone.

        Args:
            frames: a slice or an index array.
        """
        voltage, luminance = self.voltage[frames], self.luminance[frames]
        if (held := vars(self).get("derivative")) is not None:
            return voltage, luminance, held[frames]
        if differenced(self.simulation, self.split):
            after = np.arange(1, self.n_frames + 1)[frames]
            following = self.voltage[np.minimum(after, self.n_frames - 1)]
            following[after == self.n_frames] = self.final
            return voltage, luminance, (following - voltage) / np.float32(self.dt)
        return voltage, luminance, target_of(self.truth, self.simulation, voltage, luminance, *self.measurement(frames))

    def measurement(self, frames) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Measurement noise in the voltages of some frames, and what it changes by until the next ones; None without."""
        if not measured(self.simulation, self.split):
            return None, None
        at = np.arange(self.n_frames)[frames]
        noise, step = np.empty((2, len(at), self.voltage.shape[1]), np.float32)
        for span, part in zip(self.spans, self.parts or (Part(self.n_frames, self.seed),), strict=True):
            mine = (at >= span.start) & (at < span.stop)
            if mine.any():
                noise[mine], step[mine] = noise_and_step(
                    self.simulation, part.seed, at[mine] - span.start, self.voltage.shape[1]
                )
        return noise, step

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits: equal for recordings of equal content."""
        if self.recipe is not None:
            return self.recipe
        digest = hashlib.sha256()
        for array in (
            self.voltage,
            self.luminance,
            *self.parameters,
            self.connectome.senders,
            self.connectome.receivers,
        ):
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()[:16]

    def save(self, path: str | Path) -> Path:
        """Write the recording as a zarr store with checksums; whole or not at all.

        **Raises:** `UserError` if the folder exists and is something else, or cannot be written.
        """
        with array_store.Writer(path) as writer:
            # Rounded already where it is float16: nothing is lost here.
            writer.create("voltage", self.voltage.shape, stored_as(self.simulation, self.split))
            writer.append("voltage", self.voltage)
            if (
                self.simulation.store_derivative
                and self.split == "train"
                and not differenced(self.simulation, self.split)
            ):
                writer.put("derivative", self.derivative)
            return self._finish(writer)

    def _finish(self, writer: array_store.Writer) -> Path:
        """Everything but voltage and derivative, and the manifest."""
        connectome, parameters = self.truth
        arrays = {"luminance": self.luminance, "final": self.final}
        arrays |= {f"parameters.{k}": np.asarray(v) for k, v in zip(Parameters._fields, parameters, strict=True)}
        meta = {
            "simulation": self.simulation.model_dump(mode="json"),
            "noise_model_level": self.noise_model_level,
            "split": self.split,
            "seed": self.seed,
            "visual_input_type": self.visual_input_type,
            "recipe": self.recipe,
            "parts": self.parts,
        }
        # The fly is rebuilt from its extent; a circuit made by hand is stored with the recording.
        if connectome is not circuit.build_connectome(connectome.extent):
            meta["connectome"] = {}
            for field in dataclasses.fields(connectome):
                value = getattr(connectome, field.name)
                if isinstance(value, np.ndarray) and value.size:
                    arrays[f"connectome.{field.name}"] = value
                elif isinstance(value, np.ndarray):
                    meta["connectome"][field.name] = {"shape": value.shape, "dtype": str(value.dtype)}
                else:
                    meta["connectome"][field.name] = value
        for name, array in arrays.items():
            writer.put(name, array)
        return writer.finish(meta)


def load_recording(path: str | Path) -> Recording:
    """Read a recording; every file is verified against its checksum.

    **Raises:** `UserError`, one line, if there is none, or it is torn, edited or of another format.
    """
    arrays, meta = array_store.read_store(path)
    simulation = Simulation.model_validate(meta["simulation"])
    if "connectome" in meta:
        fields = {}
        for name, value in meta["connectome"].items():
            if isinstance(value, dict):
                value = np.zeros(value["shape"], value["dtype"])
            fields[name] = tuple(value) if isinstance(value, list) else value
        fields |= {k.partition(".")[2]: v for k, v in arrays.items() if k.startswith("connectome.")}
        connectome = Connectome(**fields)
    else:
        connectome = circuit.build_connectome(simulation.extent)
    truth = connectome, Parameters(*(jnp.asarray(arrays[f"parameters.{k}"]) for k in Parameters._fields))
    recording = Recording(
        voltage=arrays["voltage"].astype(np.float32, copy=False),
        luminance=arrays["luminance"],
        final=arrays["final"],
        simulation=simulation,
        **told(simulation, truth),
        **{k: meta[k] for k in ("noise_model_level", "split", "seed", "visual_input_type", "recipe")},
        parts=tuple(Part(*part) for part in meta["parts"]),
    )
    if "derivative" in arrays:
        vars(recording)["derivative"] = arrays["derivative"]
    return recording


# -- making one ------------------------------------------------------------------------------------


def shown(simulation: Simulation, split: str) -> str:
    """The stimulus of a split: tests show another kind unless the configuration names one."""
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}.{nearest(split, SPLITS)} Known: train, test.")
    if split == "train":
        return stimulus.check_name(simulation.visual_input_type)
    return stimulus.check_name(simulation.test_visual_input_type or stimulus.other_kind(simulation.visual_input_type))


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

    The test split is always noise-free, starts from the grey steady state and shows
    `test_visual_input_type` for `n_test_frames`. Noise levels of one seed share stimulus and noise
    draws; the noise of a step depends on its number alone, so any `chunk` gives the same recording.
    With `simulation.n_recordings` the training frames are divided among as many parts.

    Args:
        simulation: what to simulate.
        noise_model_level: std added to every voltage at each training step (not scaled by dt).
        split: 'train' or 'test'.
        seed: another draw of stimulus and noise of the same simulation.
        connectome, parameters: another truth; by default `build_truth(simulation)`.
        chunk: frames per compiled call: memory beside the recording itself.
        store: folder to write to, chunk by chunk while it is simulated; the recording is then read
            from there.

    **Raises:** `UserError` for an unknown or absent stimulus, a truth of another extent, or
    voltages that diverge (with the first such frame).
    """
    name = shown(simulation, split)
    by_hand = parameters is not None
    if not by_hand:
        truth, parameters = build_truth(simulation)
        if connectome is not None and connectome is not truth:
            raise UserError("a circuit made by hand needs its own parameters")
        connectome = truth
    elif connectome is None:
        connectome = circuit.build_connectome(simulation.extent)
    if connectome.extent != simulation.extent:
        raise UserError(
            f"the circuit has extent {connectome.extent}, the simulation {simulation.extent}: make them equal"
        )
    test = split == "test"
    noise = 0.0 if test else float(noise_model_level)
    n_parts = 1 if test else simulation.n_recordings
    if n_parts > 1 and differenced(simulation, split):
        raise UserError(
            "target: difference needs the voltage after every frame, which parts lack at their ends: set n_recordings to 1"
        )
    ends = np.linspace(0, simulation.n_test_frames if test else simulation.n_frames, n_parts + 1).round().astype(int)
    # Seeds of parts keep clear of those that people type; the first part has the recording's own.
    parts = [Part(int(n), seed + (k << 20)) for k, n in enumerate(np.diff(ends))]
    truth = connectome, parameters
    luminance = np.concatenate([light_of(simulation, name, connectome, part, split) for part in parts])
    with array_store.Writer(store) if store is not None else contextlib.nullcontext() as writer:
        shape = len(luminance), connectome.n_neurons
        rounded = np.dtype(stored_as(simulation, split))
        # Differences lie in the voltages already.
        keeps_target = (
            writer is not None and not test and simulation.store_derivative and not differenced(simulation, split)
        )
        if writer is None:
            voltage = np.empty(shape, np.float32)
        else:
            writer.create("voltage", shape, rounded)
            if keeps_target:
                writer.create("derivative", shape, np.float32)
        at = 0
        for part in parts:
            begin = at
            states = states_of(simulation, truth, luminance[begin : begin + part.n_frames], noise, part, test, chunk)
            for rows in states:
                if len(rows) == 1 and at == begin + part.n_frames:
                    final = rows[0]  # after the last frame
                    break
                change = None, None
                if measured(simulation, split):
                    change = noise_and_step(
                        simulation, part.seed, np.arange(at - begin, at - begin + len(rows)), shape[1]
                    )
                    rows = rows + change[0]
                rows = rows.astype(rounded)
                if writer is None:
                    voltage[at : at + len(rows)] = rows
                else:
                    writer.append("voltage", rows)
                if keeps_target:
                    seen = luminance[at : at + len(rows)]
                    writer.append("derivative", target_of(truth, simulation, rows.astype(np.float32), seen, *change))
                at += len(rows)
        if measured(simulation, split):
            final = final + measurement_noise(simulation, parts[-1].seed, [parts[-1].n_frames], shape[1])[0]
        recording = Recording(
            voltage=voltage if writer is None else np.empty((0, shape[1]), np.float32),
            luminance=luminance,
            final=np.array(final),
            simulation=simulation,
            **told(simulation, truth),
            noise_model_level=noise,
            split=split,
            seed=seed,
            visual_input_type=name,
            recipe=None if by_hand else recipe(simulation, noise_model_level, split, seed),
            parts=tuple(parts) if n_parts > 1 else (),
        )
        if writer is not None:
            recording._finish(writer)
    return recording if store is None else load_recording(store)


# -- what identifies one -------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _code() -> str:
    """Hash of the rooms that make a recording: edited code never serves an old recording."""
    package = Path(__file__).parents[1]
    rooms = ("circuit", "simulation", "ground_truth", "stimulus", "data")
    sources = sorted(path for room in rooms for path in (package / room).rglob("*.*"))
    digest = hashlib.sha256()
    for source in sources:
        if source.suffix in (".py", ".json"):
            digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def recipe(simulation: Simulation, noise_model_level: float, split: str, seed: int) -> str:
    """Content hash of everything a recording depends on: configuration, code, checkpoint, videos."""
    name = shown(simulation, split)
    content = simulation.model_dump(mode="json")
    for key in ("visual_input_type", "test_visual_input_type", "data_path"):
        del content[key]  # the stimulus shown and its files count, wherever they lie
    for key in (
        ("n_frames", "n_recordings", "voltage_dtype", "store_derivative", "target")
        if split == "test"
        else ("n_test_frames",)
    ):
        del content[key]
    if simulation.parameters != "sampled":
        content["parameters"] = hashlib.sha256(checkpoint_file(simulation.parameters).read_bytes()).hexdigest()
    level = 0.0 if split == "test" else float(noise_model_level)
    return content_hash(content, name, stimulus.fingerprint(name, simulation.data_path), level, split, seed, _code())
