"""What was observed: the voltages of a simulated fly, paired with what it saw.

**The pair convention** lives here. Frame t of a recording is

    voltage[t]      state *before* frame t is shown; voltage[0] is the initial state
    luminance[t]    what the columns see *during* frame t
    derivative[t]   dV/dt at (voltage[t], luminance[t]): the exact right-hand side, 1/s

and one Euler step leads on: voltage[t + 1] = voltage[t] + dt * derivative[t] + noise. Process
noise moves the states and never enters the targets. Measurement noise n does not move the states:
then voltage[t] is the state plus n[t], and derivative[t], as it would be differenced from such data,
the right-hand side at the state plus (n[t + 1] - n[t]) / dt. The test split has neither.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import shutil
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from flyjax import circuit, stimulus, storage
from flyjax.circuit import Connectome, Parameters
from flyjax.config import Simulation, content_hash
from flyjax.errors import UserError, nearest
from flyjax.truth import build_truth, checkpoint_file, known_circuit, told

__all__ = ["Recording", "build_truth", "cached_recording", "known_circuit", "load_recording", "recipe", "record", "shown"]
log = logging.getLogger(__name__)
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
        state, level = voltage, _measured(self.simulation, self.split)
        if level:
            at = np.arange(self.n_frames)[frames]
            n = measurement_noise(self.simulation, self.seed, at, voltage.shape[1])
            step = measurement_noise(self.simulation, self.seed, at + 1, voltage.shape[1]) - n
            state = voltage - n
        target = np.asarray(
            circuit.derivative(*self.truth, state, luminance, self.dt, self.simulation.clamp_tau)
        )
        return voltage, luminance, target + step / np.float32(self.dt) if level else target

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits: equal for recordings of equal content."""
        if self.recipe is not None:
            return self.recipe
        digest = hashlib.sha256()
        for array in (self.voltage, self.luminance, *self.parameters, self.connectome.senders, self.connectome.receivers):
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()[:16]

    def save(self, path: str | Path) -> Path:
        """Write the recording as a zarr store with checksums; whole or not at all.

        **Raises:** `UserError` if the folder exists and is something else, or cannot be written.
        """
        connectome, parameters = self.truth
        arrays = {"voltage": self.voltage, "luminance": self.luminance, "final": self.final}
        arrays |= {f"parameters.{k}": np.asarray(v) for k, v in zip(Parameters._fields, parameters, strict=True)}
        meta = {
            "simulation": self.simulation.model_dump(mode="json"),
            "noise_model_level": self.noise_model_level,
            "split": self.split,
            "seed": self.seed,
            "visual_input_type": self.visual_input_type,
            "recipe": self.recipe,
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
        return storage.write_store(path, arrays, meta)


def load_recording(path: str | Path) -> Recording:
    """Read a recording; every file is verified against its checksum.

    **Raises:** `UserError`, one line, if there is none, or it is torn, edited or of another format.
    """
    arrays, meta = storage.read_store(path)
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
    return Recording(
        voltage=arrays["voltage"],
        luminance=arrays["luminance"],
        final=arrays["final"],
        simulation=simulation,
        **told(simulation, truth),
        **{k: meta[k] for k in ("noise_model_level", "split", "seed", "visual_input_type", "recipe")},
    )


# -- making one ------------------------------------------------------------------------------------


def shown(simulation: Simulation, split: str) -> str:
    """The stimulus of a split: tests show another kind unless the configuration names one."""
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}.{nearest(split, SPLITS)} Known: train, test.")
    if split == "train":
        return stimulus.check_name(simulation.visual_input_type)
    return stimulus.check_name(simulation.test_visual_input_type or stimulus.other_kind(simulation.visual_input_type))


def _measured(simulation: Simulation, split: str) -> float:
    """Std of the measurement noise of a split."""
    return 0.0 if split == "test" else simulation.measurement_noise_level


def _key(simulation: Simulation, seed: int):
    return jax.random.fold_in(jax.random.key(simulation.seed), seed)


@partial(jax.jit, static_argnames="n")
def _normal(key, frames, n: int):
    return jax.vmap(lambda t: jax.random.normal(jax.random.fold_in(key, t), (n,)))(frames)


def measurement_noise(simulation: Simulation, seed: int, frames, n_neurons: int) -> np.ndarray:
    """(len(frames), N) float32 that the training voltages of these frames carry; by frame number alone."""
    # A stream of its own beside the process noise, whose step numbers stay below 2^31.
    key = jax.random.fold_in(_key(simulation, seed), 2**31 + 1)
    drawn = _normal(key, jnp.asarray(frames, jnp.uint32), n_neurons)
    return np.asarray(drawn) * np.float32(simulation.measurement_noise_level)


def record(
    simulation: Simulation,
    noise_model_level: float = 0.05,
    split: str = "train",
    seed: int = 0,
    connectome: Connectome | None = None,
    parameters: Parameters | None = None,
    chunk: int = CHUNK,
) -> Recording:
    """Show a stimulus to the circuit and record it.

    The test split is always noise-free, starts from the grey steady state and shows
    `test_visual_input_type` for `n_test_frames`. Noise levels of one seed share stimulus and noise
    draws; the noise of a step depends on its number alone, so any `chunk` gives the same recording.

    Args:
        simulation: what to simulate.
        noise_model_level: std added to every voltage at each training step (not scaled by dt).
        split: 'train' or 'test'.
        seed: another draw of stimulus and noise of the same simulation.
        connectome, parameters: another truth; by default `build_truth(simulation)`.
        chunk: frames per compiled call: memory beside the recording itself.

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
        raise UserError(f"the circuit has extent {connectome.extent}, the simulation {simulation.extent}: make them equal")
    test = split == "test"
    noise = 0.0 if test else float(noise_model_level)
    luminance = stimulus.luminance(
        name,
        connectome.columns,
        simulation.n_test_frames if test else simulation.n_frames,
        simulation.delta_t,
        split,
        # Injective for any seed a person would type; seed 0 is the configuration's own film.
        simulation.seed + 1_000_003 * seed,
        simulation.data_path,
        simulation.frame_rate,
    )
    common = dict(dt=simulation.delta_t, clamp_tau=simulation.clamp_tau)
    initial = "grey" if test else simulation.initial
    state = circuit.steady_state(connectome, parameters, **common) if initial == "grey" else parameters.v_rest
    pieces = circuit.simulate_chunks(
        connectome,
        parameters,
        luminance,
        noise=noise,
        key=_key(simulation, seed),
        initial=state,
        solver=simulation.solver,
        chunk=chunk,
        **common,
    )
    n_frames = len(luminance)
    voltage = np.empty((n_frames, connectome.n_neurons), np.float32)
    voltage[0], after = np.asarray(state), 0
    for piece in pieces:
        piece = np.asarray(piece)
        if not np.isfinite(piece).all():
            frame = after + int(np.argmax(~np.isfinite(piece).all(axis=1)))
            raise UserError(
                f"the simulation diverged at frame {frame} (delta_t={simulation.delta_t} s, "
                f"clamp_tau={simulation.clamp_tau}): use clamp_tau=true, a smaller delta_t or weaker noise"
            )
        # States after frames are states before the next ones; the last is `final`.
        before = slice(after + 1, min(after + 1 + len(piece), n_frames))
        voltage[before] = piece[: before.stop - before.start]
        after += len(piece)
        final = piece[-1]
    final = final.copy()
    if _measured(simulation, split):
        for start in range(0, n_frames, CHUNK):
            frames = np.arange(start, min(start + CHUNK, n_frames))
            voltage[frames[0] : frames[-1] + 1] += measurement_noise(simulation, seed, frames, connectome.n_neurons)
        final += measurement_noise(simulation, seed, [n_frames], connectome.n_neurons)[0]
    return Recording(
        voltage=voltage,
        luminance=luminance,
        final=final,
        simulation=simulation,
        **told(simulation, (connectome, parameters)),
        noise_model_level=noise,
        split=split,
        seed=seed,
        visual_input_type=name,
        recipe=None if by_hand else recipe(simulation, noise_model_level, split, seed),
    )


# -- the cache -------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _code() -> str:
    """Hash of the rooms that make a recording: edited code never serves an old recording."""
    here = Path(__file__).parent
    sources = [*sorted((here / "circuit").rglob("*.*")), *sorted((here / "stimulus").glob("*.py")), here / "truth.py", here / "recording.py"]
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
    del content["n_frames" if split == "test" else "n_test_frames"]
    if simulation.parameters != "sampled":
        content["parameters"] = hashlib.sha256(checkpoint_file(simulation.parameters).read_bytes()).hexdigest()
    level = 0.0 if split == "test" else float(noise_model_level)
    return content_hash(content, name, stimulus.fingerprint(name, simulation.data_path), level, split, seed, _code())


def cached_recording(
    simulation: Simulation,
    noise_model_level: float = 0.05,
    split: str = "train",
    seed: int = 0,
    cache_dir: str | Path = "recordings",
    max_disk_gb: float = 20.0,
) -> Recording:
    """The recording from the cache, or made and put there.

    Stores are named by `recipe`. A torn or edited one is rebuilt with a warning. The least
    recently used go first beyond `max_disk_gb`; the one asked for always stays.

    **Raises:** `UserError` as `record`, or if the folder cannot be written.
    """
    cache_dir = Path(cache_dir)
    path = cache_dir / recipe(simulation, noise_model_level, split, seed)
    if path.exists():
        try:
            recording = load_recording(path)
            storage.touch(path)
            return dataclasses.replace(recording, simulation=simulation)
        except UserError as error:
            log.warning("%s; it is recorded again", error)
            shutil.rmtree(path, ignore_errors=True)
    recording = record(simulation, noise_model_level, split, seed)
    recording.save(path)
    storage.evict(cache_dir, max_disk_gb * 1e9, keep=path)
    return recording
