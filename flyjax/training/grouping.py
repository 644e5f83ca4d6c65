"""Which trainings share a program.

Lanes of one static signature share a program while their state, activations and recordings fit the
device: every distinct noise_model_level is a recording of its own, 3.5 GB at full scale (twice that where
targets are stored on the device). Beyond that they are packed into several programs, one after the other.

The packing changes a lane's numbers by rounding alone: every lane draws the same frames from the same start,
but kernels of another width sum in another order. Trainings amplify that, short ones by little, thousands of steps to
about what another seed of rounding would give: R2 of .583 against .588 was observed. So a resumed training keeps
its plan (`planned_for`), also on another number of devices.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Self

import jax

from flyjax.circuit import build_connectome
from flyjax.config import Model, Simulation, Training
from flyjax.data.on_device import kept_bytes
from flyjax.data.own_recording import known_connectome
from flyjax.models import Learner, make_learner
from flyjax.models.chunked_map import ACCELERATOR_ROWS, CPU_ROWS, n_segments
from flyjax.training.data import TARGET_BYTES, TARGET_FRAMES
from flyjax.training.hparams import CHUNK, Static, n_steps, projection_chunks, static_of
from flyjax.utils import distributed
from flyjax.utils.atomic_io import write_json
from flyjax.utils.errors import UserError
from flyjax.utils.format import duration, format_bytes
from flyjax.utils.run_directory import own
from flyjax.utils.system import available_ram

#: Operations that take as long as an edge's message sum, forward and backward, and its share of Adam in a model without
#: networks: a known_ode step at extent 6, batch 1, took 0.24 of the CPU time of variant A's (width 32); this says 0.26.
OPERATIONS_PER_EDGE = 300


class Memory(NamedTuple):
    """Bytes that may be used, where the figure comes from, and whether the devices share them."""

    free: int  #: of one device, or of the machine where they are shared
    source: str
    shared: bool  #: CPU devices share one memory and each has a copy of the recordings


class Sizes(NamedTuple):
    """What a training's memory depends on."""

    n_frames: int
    n_neurons: int
    n_columns: int
    n_edges: int
    n_params: int
    stores_target: bool = True  #: derivatives are on the device; else they are computed in the step


def device_memory() -> Memory:
    """What is free now on the devices that train."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    shared = device.platform == "cpu"
    if not shared and "bytes_limit" in stats:
        used = stats.get("bytes_in_use", 0) - kept_bytes()
        return Memory(stats["bytes_limit"] - used, f"free on each {device.device_kind}", False)
    source = "available RAM" if shared else "available RAM, as the accelerator does not report its own"
    return Memory(available_ram() * distributed.n_hosts(), source, shared)


def sizes_of(learner: Learner, n_frames: int, stores_target: bool = True) -> Sizes:
    """Sizes of a learner's training on a recording of so many frames."""
    c = learner.connectome
    n_params = sum(leaf.size for leaf in jax.tree.leaves(learner.shapes))
    return Sizes(n_frames, c.n_neurons, c.n_columns, c.n_edges, n_params, stores_target)


def is_large(sizes: Sizes) -> bool:
    """Whether targets of a recording are computed chunk by chunk where they can be (`computes_target`)."""
    return 4 * sizes.n_frames * sizes.n_neurons > TARGET_BYTES


def sizes_without_data(simulation: Simulation, model: Model) -> Sizes:
    """The same from a configuration alone: neither checkpoint nor videos are needed."""
    own = simulation.recording is not None
    connectome = known_connectome(simulation) if own else build_connectome(simulation.extent, simulation.connectome)
    # Without a known stimulus, or a circuit, targets cannot be computed.
    exact = not simulation.measurement_noise_level and simulation.target == "exact" and model.stimulus == "given"
    sizes = sizes_of(make_learner(connectome, model), simulation.n_observed)
    sizes = sizes._replace(stores_target=not (exact and not own and is_large(sizes)))
    true = sizes.n_edges * (1 - simulation.cut_edges)
    edges = round(true * (1 - simulation.removed_edges + simulation.null_edges))
    return sizes._replace(n_edges=edges, n_params=sizes.n_params + edges - sizes.n_edges)


def recording_bytes(sizes: Sizes) -> int:
    """Device memory of one recording: voltages, targets where they are stored, and luminance."""
    return 4 * sizes.n_frames * ((1 + sizes.stores_target) * sizes.n_neurons + sizes.n_columns)


def has_networks(model: Model) -> bool:
    """Whether a variant learns functions, not only the constants of a known equation."""
    return not model.variant.startswith("known_ode")


def runs_alone(sizes: Sizes, batch_size: int, shared: bool = False) -> bool:
    """Whether the lanes of a device run one after the other, as `train_lanes` has it for large circuits."""
    return _segments(sizes, batch_size, shared) > 1


def _segments(sizes: Sizes, batch_size: int, shared: bool) -> int:
    return n_segments(batch_size * sizes.n_neurons, CPU_ROWS if shared else ACCELERATOR_ROWS)


def lane_bytes(sizes: Sizes, model: Model, batch_size: int, shared: bool = False) -> dict[str, int]:
    """Device memory of one lane by its use.

    `params` the parameters, `adam` both moments, `step` the gradient and the new values of all three while a step is
    taken, `activations` what is stored until the gradient is there: messages, and arrays per hidden layer and row of
    the batch, or of a segment of it where there are several (smaller ones on a CPU, whose memory is `shared`). Lanes
    that run one after the other (`runs_alone`) share the activations. The factors are fitted to XLA's memory analysis
    of variant A on a CPU (docs/scaling.md). They are an upper estimate for variant B, which evaluates the message
    network on edges and stores the inputs of each. A known equation has messages alone. Targets that the recording
    does not store are those of a chunk.
    """
    rows, n = batch_size * sizes.n_neurons, _segments(sizes, batch_size, shared)
    layer = model.width * (model.n_layers - 1)
    hidden = 2.0 * -(-rows // n) * layer if n > 1 else (2.9 * rows + 4.2 * sizes.n_neurons) * layer
    messages = (3.2 if n > 1 else 2.0) * batch_size * sizes.n_edges
    if model.variant == "B":
        hidden += 2 * min(batch_size * sizes.n_edges, 2 * (CPU_ROWS if shared else ACCELERATOR_ROWS)) * layer
        # Of every edge: two voltages, the message and their gradients, both embeddings and theirs.
        messages += sizes.n_edges * (6 * batch_size + 6 * model.embedding_size)
    if not has_networks(model):
        hidden = 8.0 * rows
    stored, targets = hidden + messages, 0
    if not sizes.stores_target:
        stored, targets = max(stored, TARGET_FRAMES * sizes.n_edges), CHUNK * rows
    return {
        "params": 4 * sizes.n_params,
        "adam": 8 * sizes.n_params,
        "step": 20 * sizes.n_params,
        "activations": 4 * (round(stored) + targets),
    }


def gflop_per_frame(model: Model, batch_size: int, n_neurons: int, n_edges: int, with_curvature: bool = False) -> float:
    """Multiply-adds of both networks, forward and backward, 2 operations each, per training frame in 1e9.

    In variant B the message network is evaluated on each of `n_edges`, not of the neurons. The message sum is
    left out: 3 x 2 x 434,112 operations at extent 8, a quarter of a percent of A's. A known equation consists of
    it; it is bound by memory, so an edge counts as `OPERATIONS_PER_EDGE`.
    """

    def multiply_adds(n_signals: int, n_embedded: int = 1) -> int:
        hidden = (model.n_layers - 2) * model.width**2
        return (n_signals + n_embedded * model.embedding_size) * model.width + hidden + model.width

    if not has_networks(model):
        return OPERATIONS_PER_EDGE * n_edges / 1e9
    update, message, senders = multiply_adds(3), multiply_adds(1), n_neurons
    if model.variant == "B":
        message, senders = multiply_adds(2, 2), n_edges
    regularisers = 3.0 * n_neurons * message  # three voltages of one frame of the batch
    if with_curvature:  # two more of g, three of f, and the message sum, forward alone
        regularisers += 2 * n_neurons * message + 3 * n_neurons * update + senders * message / 3
    return 6e-9 * (n_neurons * update + senders * message + regularisers / batch_size)


#: Share of the memory that is planned for; allocators and evaluation need the rest.
SHARE = 0.8


@dataclass(frozen=True)
class Lane:
    """One training: its candidate, seed number and seed, optimiser steps, the noise level of its recording, and the
    chunks after which W is projected."""

    candidate: int
    replicate: int
    seed: int
    n_steps: int
    level: float
    projections: tuple[int, ...] = ()


@dataclass(frozen=True)
class Group:
    """The lanes of one compiled program."""

    static: Static
    lanes: tuple[Lane, ...]
    n_devices: int = 1

    @property
    def levels(self) -> tuple[float, ...]:
        """The noise levels whose recordings it reads."""
        return tuple(sorted({lane.level for lane in self.lanes}))

    @property
    def n_chunks(self) -> int:
        return -(-max(lane.n_steps for lane in self.lanes) // CHUNK)

    @property
    def width(self) -> int:
        """Lanes that are computed: padded to a multiple of the devices."""
        return -(-len(self.lanes) // self.n_devices) * self.n_devices

    def only(self, running: Callable[[Lane], bool]) -> Self | None:
        """The group of the lanes that are running; None where none is."""
        lanes = tuple(filter(running, self.lanes))
        return replace(self, lanes=lanes, n_devices=min(self.n_devices, len(lanes))) if lanes else None


class Limits(NamedTuple):
    """The most lanes and levels of one program, and the devices it is spread over."""

    lanes: int
    levels: int
    n_devices: int


@dataclass(frozen=True)
class Budget:
    """What trainings need, and the memory and the number of devices that they are planned for."""

    sizes: Sizes
    model: Model
    memory: Memory
    n_devices: int

    def lane_bytes(self, static: Static) -> tuple[int, int]:
        """Memory of each lane, and of a device besides, for the activations of lanes that run one after the other."""
        by_use = lane_bytes(self.sizes, self.model, static.batch_size, self.memory.shared)
        once = by_use["activations"] if runs_alone(self.sizes, static.batch_size, self.memory.shared) else 0
        return sum(by_use.values()) - once, once

    def gflop(self, static: Static) -> float:
        """Work of one step of a lane."""
        per_frame = gflop_per_frame(
            self.model, static.batch_size, self.sizes.n_neurons, self.sizes.n_edges, static.with_curvature
        )
        return static.batch_size * per_frame

    def group_bytes(self, group: Group) -> int:
        """What a program takes of `memory.free`."""
        (lane, once), recordings = self.lane_bytes(group.static), len(group.levels) * recording_bytes(self.sizes)
        if self.memory.shared:  # a copy on every device, and the recording as it was read
            return group.width * lane + group.n_devices * once + recordings * (group.n_devices + 1)
        return group.width // group.n_devices * lane + once + recordings

    def limits(self, static: Static, n_lanes: int, n_levels: int) -> Limits:
        """The fewest programs that fit; where a recording is too large for all devices at once, fewer devices.

        **Raises:** `UserError` if not even one training on one recording fits.
        """
        memory, (lane, once), recording = self.memory, self.lane_bytes(static), recording_bytes(self.sizes)
        for devices in range(min(self.n_devices, n_lanes), 0, -1):
            options = []
            copies = devices + 1 if memory.shared else 1
            for levels in range(1, n_levels + 1):
                others = levels * recording * copies + once * (devices if memory.shared else 1)
                lanes_per_memory = int((SHARE * memory.free - others) // lane)
                fit = lanes_per_memory if memory.shared else devices * lanes_per_memory
                fit -= fit % devices
                if fit >= devices:
                    n_programs = max(math.ceil(n_levels / levels), math.ceil(n_lanes / fit))
                    options.append((n_programs, levels, Limits(fit, levels, devices)))
            if options:
                return min(options)[-1]
        total = recording * (2 if memory.shared else 1)
        raise UserError(
            f"one training takes about {format_bytes(lane + once + total)} ({format_bytes(total)} of it for its "
            f"recording), but {format_bytes(memory.free)} are {memory.source}: reduce simulation.n_frames, "
            "training.batch_size or model.width"
        )

    def on_devices(self, group: Group, n_devices: int) -> Group:
        """A planned program on the devices of now, perhaps more or fewer than it was planned for.

        More only where their copies of the recordings fit into the memory.
        """
        most = replace(group, n_devices=min(n_devices, len(group.lanes)))
        if self.group_bytes(most) <= SHARE * self.memory.free:
            return most
        return replace(group, n_devices=min(n_devices, group.n_devices))

    def table(self, groups: Sequence[Group], seconds: Sequence[float] | None) -> list[dict[str, str]]:
        """A row per kind of program: how many, lanes, devices x lanes of each, memory, recordings, time if known."""
        rows = []
        for k, group in enumerate(groups):
            padding, steps = group.width - len(group.lanes), [lane.n_steps for lane in group.lanes]
            row = {
                "batch": str(group.static.batch_size),
                "lanes": str(len(group.lanes)) + (f" (+{padding})" if padding else ""),
                "devices": f"{group.n_devices} x {group.width // group.n_devices}",
                "steps": "-".join(map(str, sorted({min(steps), max(steps)}))),
                "per lane": format_bytes(sum(self.lane_bytes(group.static))),
                "noise levels": str(len(group.levels)),
                "recordings": format_bytes(len(group.levels) * recording_bytes(self.sizes)),
                "memory": format_bytes(self.group_bytes(group)),
            }
            rows.append(tuple((row if seconds is None else row | {"time each": duration(seconds[k])}).items()))
        return [{"programs": str(n), **dict(row)} for row, n in Counter(rows).items()]


def planned_for(folder: Path | None, key: str, now: Memory, n_devices: int) -> tuple[Memory, int]:
    """The memory and number of devices that trainings whose checkpoints are in `folder` were planned for.

    Another plan has other programs with other checkpoints: finished steps would be trained again. Without a plan
    those of now are returned and recorded.

    **Arguments:** `key`: identifies the trainings.
    """
    if folder is None:
        return now, n_devices
    path = own(Path(folder) / f"planned_{key}") / "plan.json"
    try:
        planned = json.loads(path.read_text(encoding="utf-8"))
        devices, memory = int(planned.pop("n_devices")), Memory(**planned)
        # Another plan costs nothing while no checkpoint is complete, or on another kind of device.
        if memory.shared == now.shared and any(Path(folder).glob("*/[0-9]*")):
            return memory, devices
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # none, or torn
        pass
    write_json(path, {**now._asdict(), "n_devices": n_devices})
    return now, n_devices


def plan(
    candidates: Sequence[Training],
    seeds: Sequence[Sequence[int]],
    n_frames: int,
    limits_of: Callable[[Static, int, int], Limits],
) -> list[Group]:
    """Pack candidates x seeds into programs of equal static signature, in a fixed order.

    **Arguments:** `limits_of(static, n_lanes, n_levels)`: the `Limits` of a program. Where one is not enough, lanes
    of a level stay together and programs are of equal width, so that they compile once.
    """
    lanes: dict[Static, list[Lane]] = {}
    for k, (candidate, own_seeds) in enumerate(zip(candidates, seeds, strict=True)):
        for s, seed in enumerate(own_seeds):
            projections = projection_chunks(candidate, n_frames)
            lane = Lane(k, s, seed, n_steps(candidate, n_frames), candidate.noise_model_level, projections)
            lanes.setdefault(static_of(candidate), []).append(lane)
    groups = []
    for static in sorted(lanes):
        most = limits_of(static, len(lanes[static]), len({lane.level for lane in lanes[static]}))
        for packed in pack_lanes(lanes[static], most):
            groups.append(Group(static, tuple(packed), min(most.n_devices, len(packed))))
    return groups


def pack_lanes(lanes: list[Lane], most: Limits) -> list[list[Lane]]:
    """Lanes in as many lists as `most` requires, those of a level together."""
    if len(lanes) <= most.lanes and len({lane.level for lane in lanes}) <= most.levels:
        return [lanes]
    size = math.ceil(len(lanes) / math.ceil(len(lanes) / most.lanes))
    programs: list[list[Lane]] = [[]]
    for lane in sorted(lanes, key=lambda lane: lane.level):
        if len(programs[-1]) == size or len({other.level for other in (*programs[-1], lane)}) > most.levels:
            programs.append([])
        programs[-1].append(lane)
    return programs


def split_at_finished(
    group: Group, begin: int, end: int, gflop_per_step: float, min_saving: float
) -> list[tuple[Group, int, int]]:
    """A program from chunk `begin` to `end` as segments (group, first, last) without the finished lanes.

    A finished lane is masked but computed all the same; a narrower program is compiled where that saves at
    least `min_saving` GFLOP. `gflop_per_step` is a lane's.
    """

    def from_chunk(chunk: int) -> Group | None:
        return group.only(lambda lane: lane.n_steps > chunk * CHUNK)

    running = from_chunk(begin)
    if running is None:
        return []
    segments, first, end = [], begin, min(end, running.n_chunks)
    for chunk in sorted({-(-lane.n_steps // CHUNK) for lane in running.lanes}):
        if first < chunk < end and (rest := from_chunk(chunk)) is not None:
            if (running.width - rest.width) * (end - chunk) * CHUNK * gflop_per_step >= min_saving:
                segments.append((running, first, chunk))
                first, running = chunk, rest
    return [*segments, (running, first, end)]
