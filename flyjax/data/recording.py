"""What was observed: the voltages of a simulated fly, paired with what it saw.

**The pair convention** is defined here. Frame t of a recording is

    voltage[t]      state *before* frame t is shown; voltage[0] is the initial state
    luminance[t]    what the columns see *during* frame t
    derivative[t]   dV/dt at (voltage[t], luminance[t]): the exact right-hand side, 1/s

and one Euler step gives the next state: voltage[t + 1] = voltage[t] + dt * derivative[t] + noise. Process noise moves
the states and never enters the targets. Measurement noise n does not move the states: then voltage[t] is the state
plus n[t], and derivative[t], as it would be differenced from such data, the right-hand side at the state plus
(n[t + 1] - n[t]) / dt. The test split has neither.

With `simulation.target: difference` the training target is what anyone could compute from the recorded voltages
alone, (voltage[t + 1] - voltage[t]) / dt, process and measurement noise included.

A recording may have several **parts**, one after the other, each with a start, a stimulus and noise of its own. No
pair spans a border: where a part ends, voltage[t + 1] does not follow from voltage[t].

A recording of one's own (`Recording.from_arrays`) keeps the convention. Its true parameters may be unknown: NaN.
"""

import dataclasses
import hashlib
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int

from flyjax import circuit
from flyjax.circuit import Connectome, Parameters
from flyjax.config import Simulation
from flyjax.data.arrays import fields_from_arrays
from flyjax.data.splits import measurement_noise_std, storage_dtype, uses_finite_differences
from flyjax.ground_truth import learner_view
from flyjax.simulation import derivative
from flyjax.utils import array_store
from flyjax.utils.errors import reading

CHUNK = 1000  # frames held at once
BLOCK = 256  # frames whose derivative one compiled call computes, so that any number of them shares a program


class Part(NamedTuple):
    """A run of frames that follow from one another."""

    n_frames: int
    seed: int


def process_noise_key(simulation: Simulation, seed: int):
    """Key of the process noise of a part; `simulate` folds the step number in."""
    return jax.random.fold_in(jax.random.key(simulation.seed), seed)


@partial(jax.jit, static_argnames="n")
def _normal(key, frames, n: int):
    return jax.vmap(lambda t: jax.random.normal(jax.random.fold_in(key, t), (n,), jnp.float32))(frames)


def measurement_noise(
    simulation: Simulation, seed: int, frames: Int[np.ndarray, " T"], n_neurons: int
) -> Float32[np.ndarray, "T N"]:
    """Measurement noise in the training voltages of some frames of a part, whatever else is drawn."""
    # Numbers of steps, which the process noise folds in, stay below 2^31.
    key = jax.random.fold_in(process_noise_key(simulation, seed), 2**31 + 1)
    drawn = _normal(key, jnp.asarray(frames, jnp.uint32), n_neurons)
    return np.asarray(drawn) * np.float32(simulation.measurement_noise_level)


@dataclass(frozen=True, eq=False)
class Recording:
    """One split, and everything that made it where it was simulated.

    **Attributes:**

    - `voltage`: (T, N) float32, state before each frame, dimensionless.
    - `luminance`: (T, n_col) float32 in [0, 1].
    - `final`: (N,) float32, voltage after the last frame.
    - `connectome`, `parameters`: the circuit as a learner is given it: null edges are in it with weight 0, removed ones
        and hidden neurons are not. What is unknown of a recording of one's own is NaN.
    - `simulation`: its configuration.
    - `noise_model_level`: standard deviation of the process noise per step that this recording has.
    - `split`: 'train' or 'test'.
    - `seed`: of this recording, beside `simulation.seed`.
    - `visual_input_type`: the stimulus shown.
    - `cache_key`: content hash of what made it, or None for circuits given by hand.
    - `simulated`: the circuit that made the voltages, where it is another one.
    - `parts`: runs of frames, where there are several; `spans` gives their frames.
    - `stored_derivative`: (T, N) float32, 1/s, where it was stored with the voltages.
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
    cache_key: str | None = None
    simulated: tuple[Connectome, Parameters] | None = None
    parts: tuple[Part, ...] = ()
    stored_derivative: np.ndarray | None = None

    @classmethod
    def from_arrays(cls, voltage, dt: float, **arrays: Any) -> "Recording":
        """A recording of one's own, of `voltage` (T, N) at an interval `dt` in s.

        **Arguments:**

        - `arrays`: whatever else is known, by the names of [own recordings](how_to/own_recording.md).

        **Raises:** `UserError`, one line, for arrays that do not fit together or hold what is not finite.
        """
        return cls._from_named({"voltage": voltage, "dt": dt, **arrays}, "recording")

    @classmethod
    def _from_named(cls, arrays: dict[str, Any], where: str) -> "Recording":
        fields = fields_from_arrays(arrays, where)
        parts = tuple(Part(n, 0) for n in fields.pop("lengths"))
        return cls(**fields, parts=parts if len(parts) > 1 else ())

    @property
    def is_simulated(self) -> bool:
        """Whether flyjax made it; else it is one's own."""
        return self.simulation.recording is None

    @property
    def has_equation(self) -> bool:
        """Whether the derivative follows from the voltages and the circuit; else it is stored."""
        hides = self.simulation.hidden_neurons or (self.split == "train" and self.simulation.observe_every > 1)
        return self.is_simulated and not hides

    @cached_property
    def unknown(self) -> tuple[str, ...]:
        """The true parameters that are not known, of weight, tau and v_rest."""
        return tuple(name for name, x in self.parameters._asdict().items() if not np.isfinite(np.asarray(x)).all())

    @property
    def ground_truth(self) -> tuple[Connectome, Parameters]:
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
    def all_parts(self) -> tuple[Part, ...]:
        """The parts, at least one."""
        return self.parts or (Part(self.n_frames, self.seed),)

    @property
    def spans(self) -> tuple[slice, ...]:
        """Frames of each part; within one, each state follows from the one before."""
        ends = np.cumsum([0, *(part.n_frames for part in self.all_parts)]).tolist()
        return tuple(map(slice, ends[:-1], ends[1:]))

    @property
    def initial(self) -> Float32[np.ndarray, " N"]:
        """State before the first frame."""
        return self.voltage[0]

    @cached_property
    def derivative(self) -> Float32[np.ndarray, "T N"]:
        """Targets of all frames, 1/s. Computed at first use and kept: as large as the voltages."""
        if self.stored_derivative is not None:
            return self.stored_derivative
        target = array_store.empty(self.voltage.shape, np.float32)
        for start in range(0, self.n_frames, CHUNK):
            frames = slice(start, start + CHUNK)
            target[frames] = self.pairs(frames)[2]
        return target

    @property
    def derivative_in_memory(self) -> Float32[np.ndarray, "T N"] | None:
        """`derivative` where it was stored or computed before."""
        return vars(self).get("derivative", self.stored_derivative)

    def release_derivative(self) -> None:
        """Free the memory of a computed `derivative`."""
        vars(self).pop("derivative", None)

    def pairs(self, frames) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(voltage, luminance, derivative) of some frames, the derivative computed for them alone.

        **Arguments:**

        - `frames`: a slice or an index array.
        """
        voltage, luminance = self.voltage[frames], self.luminance[frames]
        if (known := self.derivative_in_memory) is not None:
            return voltage, luminance, known[frames]
        if uses_finite_differences(self.simulation, self.split):
            after = np.arange(1, self.n_frames + 1)[frames]
            following = self.voltage[np.minimum(after, self.n_frames - 1)]
            following[after == self.n_frames] = self.final
            return voltage, luminance, (following - voltage) / np.float32(self.dt)
        noise, increment = self.measurement(frames)
        state = voltage if noise is None else voltage - noise
        target = np.empty(state.shape, np.float32)
        for begin in range(0, len(state), BLOCK):
            rows = np.arange(begin, begin + BLOCK).clip(max=len(state) - 1)  # a short last block runs the same program
            settings = self.simulation.delta_t, self.simulation.clamp_tau
            found = derivative(*self.ground_truth, state[rows], luminance[rows], *settings)
            target[begin : begin + BLOCK] = np.asarray(found)[: len(state) - begin]
        return voltage, luminance, target if increment is None else target + increment / np.float32(self.dt)

    def measurement(self, frames) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Measurement noise in the voltages of some frames and its change until the next ones; None without noise."""
        if not measurement_noise_std(self.simulation, self.split):
            return None, None
        numbers = np.arange(self.n_frames)[frames]
        noise, increment = np.empty((2, len(numbers), self.voltage.shape[1]), np.float32)
        for span, part in zip(self.spans, self.all_parts, strict=True):
            inside = (numbers >= span.start) & (numbers < span.stop)
            if inside.any():
                own = numbers[inside] - span.start
                noise[inside], after = (
                    measurement_noise(self.simulation, part.seed, t, self.voltage.shape[1]) for t in (own, own + 1)
                )
                increment[inside] = after - noise[inside]
        return noise, increment

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits: equal for recordings of equal content."""
        if self.cache_key is not None:
            return self.cache_key
        digest = hashlib.sha256()
        for array in (
            self.voltage,
            self.luminance,
            *self.parameters,
            self.connectome.senders,
            self.connectome.receivers,
            *([] if self.is_simulated else [self.stored_derivative]),
        ):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]

    @property
    def origin(self) -> dict[str, Any]:
        """What a metric of this recording is computed on, with checksums of the true circuit and of the content."""
        connectome, parameters = self.ground_truth
        digest = hashlib.sha256(connectome.fingerprint.encode())
        for array in parameters:
            digest.update(np.ascontiguousarray(array, np.float32).data)
        names = ("split", "visual_input_type", "n_frames", "noise_model_level", "seed")
        settings = ("video_pipeline", "blank_prefix_fraction", "blank_prefix_luminance")
        return {
            "circuit": digest.hexdigest()[:16],
            "recording": self.fingerprint,
            **{name: getattr(self, name) for name in names},
            **{name: getattr(self.simulation, name) for name in settings},
        }

    def save(self, path: str | Path) -> Path:
        """Write the recording as a zarr store with checksums, completely or not at all.

        **Raises:** `UserError` if the folder exists and is something else, or cannot be written.
        """
        # In float16 they were rounded when they were recorded.
        arrays = {"voltage": self.voltage.astype(storage_dtype(self.simulation, self.split), copy=False)}
        wanted = self.split == "train" and self.simulation.store_derivative and self.simulation.target == "exact"
        if wanted or not self.has_equation:
            arrays["derivative"] = self.derivative
        connectome, parameters = self.ground_truth
        arrays |= {"luminance": self.luminance, "final": self.final}
        arrays |= {f"parameters.{k}": np.asarray(v) for k, v in parameters._asdict().items()}
        meta: dict[str, Any] = {name: getattr(self, name) for name in _META}
        meta["simulation"] = self.simulation.model_dump(mode="json")
        # The fly is rebuilt from its extent; a circuit made by hand is stored with the recording.
        if connectome is not circuit.build_connectome(connectome.extent):
            fields = {field.name: getattr(connectome, field.name) for field in dataclasses.fields(connectome)}
            tables = {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}
            arrays |= {f"connectome.{name}": value for name, value in tables.items()}
            meta["connectome"] = {name: value for name, value in fields.items() if name not in tables}
        return array_store.write_store(path, arrays, meta)


#: Fields stored as they are in the manifest.
_META = ("noise_model_level", "split", "seed", "visual_input_type", "cache_key", "parts")


def load_recording(path: str | Path, **more: Any) -> Recording:
    """Read a recording that was saved, every file verified against its checksum, or one of one's own.

    The latter is an .npz file or a zarr group of [arrays by name](how_to/own_recording.md); of a zarr group, attributes
    may stand for arrays.

    **Arguments:** `more` are arrays of one's own recording that its file lacks.

    **Raises:** `UserError`, one line, if there is none, it is torn, edited or of another format, or its arrays cannot
    be used.
    """
    has_manifest = (Path(path) / array_store.MANIFEST).is_file()
    arrays = None if has_manifest else array_store.read_arrays(path)
    # With the array of a saved one it is that, and lost its manifest.
    if arrays is not None and "parameters.weight" not in arrays:
        return Recording._from_named(more | arrays, str(path))
    with reading(path, "delete the folder and record again"):
        arrays, meta = array_store.read_store(path)
        simulation = Simulation.model_validate(meta["simulation"])
        if "connectome" in meta:
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in meta["connectome"].items()}
            fields |= {k.partition(".")[2]: v for k, v in arrays.items() if k.startswith("connectome.")}
            connectome = Connectome(**fields)
        else:
            connectome = circuit.build_connectome(simulation.extent)
        parameters = Parameters(*(jnp.asarray(arrays[f"parameters.{k}"]) for k in Parameters._fields))
        fields = {name: meta[name] for name in _META} | {"parts": tuple(Part(*part) for part in meta["parts"])}
        return Recording(
            voltage=arrays["voltage"].astype(np.float32, copy=False),
            luminance=arrays["luminance"],
            final=arrays["final"],
            simulation=simulation,
            stored_derivative=arrays.get("derivative"),
            **learner_view(simulation, (connectome, parameters)),
            **fields,
        )
