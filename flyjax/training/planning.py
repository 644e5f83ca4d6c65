"""Which trainings share a program, what each program holds in memory, and how long all of it may take.

Lanes of one static signature share a program while their state, activations and recordings fit the
device: every distinct noise_model_level is a recording of its own, 3.5 GB at full scale (twice that where
targets are kept on the device). Beyond that they are dealt into several programs, one after the other.

How they are dealt changes a lane's numbers by rounding alone: every lane draws the same frames from the same start,
but kernels of another width sum in another order. Trainings amplify that, short ones by little, thousands of steps to
about what another seed of rounding would give: R2 of .583 against .588 was seen. So a training that goes on keeps
its plan (`kept_memory`).
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import jax

from flyjax.config import Model, Simulation, Training
from flyjax.models.chunked_map import ACCELERATOR_ROWS, CPU_ROWS
from flyjax.training.train import TARGET_BYTES, Static, n_steps, static_of
from flyjax.utils.atomic_io import write_json
from flyjax.utils.errors import UserError
from flyjax.utils.format import duration, format_bytes
from flyjax.utils.system import available_ram

log = logging.getLogger(__name__)

#: Steps of one scan: the host is asked in between, often enough for a progress bar.
CHUNK = 250
#: Share of the memory that is planned for; allocators and evaluation need the rest.
SHARE = 0.8


@dataclass(frozen=True)
class Lane:
    """One training: candidate number, seed number and the seed itself."""

    candidate: int
    replicate: int
    seed: int


@dataclass(frozen=True)
class Group:
    """The lanes of one compiled program, and the noise levels whose recordings it reads."""

    static: Static
    lanes: tuple[Lane, ...]
    n_steps: tuple[int, ...]  # per lane
    levels: tuple[float, ...]
    n_devices: int = 1

    @property
    def n_chunks(self) -> int:
        return -(-max(self.n_steps) // CHUNK)

    @property
    def width(self) -> int:
        """Lanes that are computed: filled up to a multiple of the devices."""
        return -(-len(self.lanes) // self.n_devices) * self.n_devices


class Memory(NamedTuple):
    """Bytes that may be used, where the figure comes from, and whether the devices share them."""

    free: int  #: of one device, or of the machine where they are shared
    source: str
    shared: bool  #: CPU devices live in one memory and each holds a copy of the recordings


class Sizes(NamedTuple):
    """What a training's memory depends on."""

    n_frames: int
    n_neurons: int
    n_columns: int
    n_edges: int
    n_params: int
    keeps_target: bool = True  #: derivatives are on the device; else they are computed in the step


def device_memory() -> Memory:
    """What is free now on the devices that train."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if device.platform != "cpu" and "bytes_limit" in stats:
        return Memory(stats["bytes_limit"] - stats.get("bytes_in_use", 0), f"free on each {device.device_kind}", False)
    shared = device.platform == "cpu"
    return Memory(
        available_ram(), "available RAM" + ("" if shared else ", as the accelerator does not tell its own"), shared
    )


def sizes_of(learner, n_frames: int, keeps_target: bool = True) -> Sizes:
    """Sizes of a learner's training on a recording of so many frames."""
    c = learner.connectome
    params = jax.eval_shape(learner.init, jax.random.key(0))
    return Sizes(
        n_frames, c.n_neurons, c.n_columns, c.n_edges, sum(leaf.size for leaf in jax.tree.leaves(params)), keeps_target
    )


def sizes_without_data(simulation: Simulation, model: Model) -> Sizes:
    """The same from a configuration alone: neither checkpoint nor videos need be there."""
    from flyjax.circuit import build_connectome
    from flyjax.models import make_learner

    connectome = build_connectome(simulation.extent)
    exact = not simulation.measurement_noise_level and simulation.target == "exact"
    # An unknown stimulus leaves nothing to compute targets from.
    exact = exact and model.stimulus == "given"
    large = exact and 4 * simulation.n_frames * connectome.n_neurons > TARGET_BYTES
    told = sizes_of(make_learner(connectome, model), simulation.n_frames, not large)
    edges = round(told.n_edges * (1 - simulation.removed_edges) + told.n_edges * simulation.null_edges)
    return told._replace(n_edges=edges, n_params=told.n_params + edges - told.n_edges)


def level_bytes(sizes: Sizes) -> int:
    """Device memory of one recording: voltage, and target where it is kept, of every neuron, luminance of every column."""
    return 4 * sizes.n_frames * ((1 + sizes.keeps_target) * sizes.n_neurons + sizes.n_columns)


def has_networks(model: Model) -> bool:
    """Whether a variant learns functions, not only numbers of a known equation."""
    return not model.variant.startswith("known_ode")


def lane_bytes(sizes: Sizes, model: Model, batch_size: int, shared: bool = False) -> dict[str, int]:
    """Device memory of one lane by what it is for; activations are an upper estimate.

    `params` the parameters, `adam` both moments, `step` the gradient and the new values of all three
    while a step is taken, `activations` what the backward pass keeps: two arrays per hidden layer of
    the rows of the batch in both networks and of the regularisers' three voltages, and messages. Variant B
    evaluates the message network on edges, a piece at a time (smaller pieces on a CPU, whose memory is
    `shared`), and keeps what its edges see; a known equation has messages alone.
    """
    rows = (2 * batch_size + 3) * sizes.n_neurons
    messages = 2 * batch_size * sizes.n_edges
    if model.variant == "B":
        rows += min(batch_size * sizes.n_edges, 2 * (CPU_ROWS if shared else ACCELERATOR_ROWS))
        # Of every edge: two voltages, the message and their gradients, both embeddings and theirs.
        messages += sizes.n_edges * (6 * batch_size + 6 * model.embedding_size)
    hidden = 2 * rows * model.width * (model.n_layers - 1) if has_networks(model) else 8 * batch_size * sizes.n_neurons
    return {
        "params": 4 * sizes.n_params,
        "adam": 8 * sizes.n_params,
        "step": 20 * sizes.n_params,
        "activations": 4 * (hidden + messages),
    }


def group_bytes(sizes: Sizes, model: Model, group: Group, memory: Memory) -> int:
    """What a program takes of `memory.free`."""
    lane, level = sum(lane_bytes(sizes, model, group.static.batch_size, memory.shared).values()), level_bytes(sizes)
    if memory.shared:  # a copy on every device, and the recording as it was read
        return group.width * lane + len(group.levels) * level * (group.n_devices + 1)
    return group.width // group.n_devices * lane + len(group.levels) * level


#: Operations that take as long as an edge's message sum, forward and backward, and its share of Adam where nothing else
#: is left: a known_ode step at extent 6, batch 1, took 0.24 of the CPU time of variant A's (width 32) where this says 0.26.
EDGE_WORK = 300


def gflop_per_frame(
    n_neurons: int, model: Model, batch_size: int, regularisers: bool = True, n_edges: int = 0, bends: bool = False
) -> float:
    """Multiply-adds of both networks, forward and backward, 2 operations each, per training frame in 1e9.

    In variant B the message network is evaluated on each of `n_edges`, not of the neurons. The message sum is
    left out: 3 x 2 x 434,112 operations at extent 8, a quarter of a percent of A's. A known equation consists of
    it; it waits for memory, so `EDGE_WORK` counts for an edge.
    """

    def multiply_adds(n_signals: int, n_embedded: int = 1) -> int:
        return (
            (n_signals + n_embedded * model.embedding_size) * model.width
            + (model.n_layers - 2) * model.width**2
            + model.width
        )

    if not has_networks(model):
        return EDGE_WORK * n_edges / 1e9
    message = multiply_adds(2, 2) if model.variant == "B" else multiply_adds(1)
    total = n_neurons * multiply_adds(3) + (n_edges if model.variant == "B" else n_neurons) * message
    if regularisers:  # three voltages of one frame of the batch
        total += 3 * n_neurons * message / batch_size
    if bends:  # two more of g, three of f, and what arrives, forward alone
        senders = n_edges if model.variant == "B" else n_neurons
        total += (2 * n_neurons * message + 3 * n_neurons * multiply_adds(3) + senders * message / 3) / batch_size
    return 6 * total / 1e9


class Limits(NamedTuple):
    """The most lanes and levels of one program, and the devices it is spread over."""

    lanes: int | None = None
    levels: int | None = None
    n_devices: int = 1


def limits(
    sizes: Sizes, model: Model, batch_size: int, n_lanes: int, n_levels: int, memory: Memory, n_devices: int
) -> Limits:
    """The fewest programs that fit; where a recording is too large for all devices at once, fewer devices.

    **Raises:** `UserError` if not even one training on one recording fits.
    """
    lane, level = sum(lane_bytes(sizes, model, batch_size, memory.shared).values()), level_bytes(sizes)
    for devices in range(min(n_devices, n_lanes), 0, -1):
        best = None
        copies = devices + 1 if memory.shared else 1
        for held in range(1, n_levels + 1):
            room = SHARE * memory.free - held * level * copies
            fit = int(room // lane) if memory.shared else devices * max(0, int(room // lane))
            fit -= fit % devices
            if fit < devices:
                break
            programs = max(math.ceil(n_levels / held), math.ceil(n_lanes / fit))
            if best is None or programs < best[0]:
                best = programs, Limits(fit, held, devices)
        if best is not None:
            return best[1]
    copies = 2 if memory.shared else 1
    raise UserError(
        f"one training takes about {format_bytes(lane + copies * level)} ({format_bytes(copies * level)} of it its recording), and "
        f"{format_bytes(memory.free)} are {memory.source}: reduce simulation.n_frames, training.batch_size or model.width"
    )


def kept_memory(folder: Path | None, key: str, now: Memory) -> Memory:
    """The memory that trainings whose checkpoints are in `folder` were planned for, or `now`, which is then kept there.

    Another plan has other programs, and theirs are other checkpoints: what was trained would be lost.

    **Arguments:** `key`: a name of the trainings, as they are asked for.
    """
    if folder is None:
        return now
    path = Path(folder) / f"planned_{key}.json"
    try:
        kept = Memory(**json.loads(path.read_text()))
        # Nothing is lost where no checkpoint is whole yet, or on another kind of device.
        if kept.shared == now.shared and any(Path(folder).glob("*/[0-9]*")):
            return kept
    except (OSError, ValueError, TypeError):  # none, or torn
        pass
    write_json(path, now._asdict())
    return now


def warn_if_too_large(
    groups: Sequence[Group], sizes: Sizes, model: Model, kept: Memory, now: Memory, folder: Path
) -> None:
    """One line where a kept plan takes more than there is now."""
    needed = max(group_bytes(sizes, model, group, kept) for group in groups)
    if needed > now.free:
        log.warning(
            "going on with the programs of %s takes about %s, and %s are %s: free memory, or remove that folder to begin anew with smaller ones",
            folder, format_bytes(needed), format_bytes(now.free), now.source,
        )  # fmt: skip


def plan(
    candidates: Sequence[Training],
    seeds: Sequence[Sequence[int]],
    n_frames: int,
    limits_of=lambda static, n_lanes, n_levels: Limits(),
) -> list[Group]:
    """Deal candidates x seeds into programs of equal static signature, in a fixed order.

    `limits_of(static, n_lanes, n_levels)` says how much a program may hold. Where one is not enough, lanes
    of a level stay together and programs are of equal width, so that they compile once.
    """
    lanes: dict[Static, list[tuple[Lane, int, float]]] = {}
    for k, (candidate, own_seeds) in enumerate(zip(candidates, seeds, strict=True)):
        for s, seed in enumerate(own_seeds):
            entry = Lane(k, s, seed), n_steps(candidate, n_frames), candidate.noise_model_level
            lanes.setdefault(static_of(candidate), []).append(entry)
    groups = []
    for static in sorted(lanes):
        entries = lanes[static]
        most = limits_of(static, len(entries), len({level for *_, level in entries}))
        for part in _dealt(entries, most):
            own, steps, levels = zip(*part)
            groups.append(Group(static, own, steps, tuple(sorted(set(levels))), max(1, min(most.n_devices, len(own)))))
    return groups


def _dealt(entries, most: Limits):
    n_levels = len({level for *_, level in entries})
    if len(entries) <= (most.lanes or len(entries)) and n_levels <= (most.levels or n_levels):
        return [entries]
    entries = sorted(entries, key=lambda e: e[2])
    widest = most.lanes or len(entries)
    size = -(-len(entries) // -(-len(entries) // widest))
    parts: list[list] = []
    for entry in entries:
        held = {level for *_, level in parts[-1]} if parts else set()
        full = not parts or len(parts[-1]) == size or len(held | {entry[2]}) > (most.levels or n_levels)
        parts.append([entry]) if full else parts[-1].append(entry)
    return parts


def narrowed(group: Group, begin: int, end: int, gflop_per_step: float, worth: float) -> list[tuple[Group, int, int]]:
    """Pieces of a program from chunk `begin` to `end` as (group, from, to), leaving finished lanes behind.

    A finished lane is masked but computed all the same; a narrower program is compiled where that saves at
    least `worth` GFLOP. `gflop_per_step` is a lane's.
    """

    def from_chunk(chunk: int) -> Group:
        kept = [(lane, n) for lane, n in zip(group.lanes, group.n_steps, strict=True) if n > chunk * CHUNK]
        lanes, steps = zip(*kept) if kept else ((), ())
        return replace(group, lanes=lanes, n_steps=steps, n_devices=max(1, min(group.n_devices, len(lanes))))

    pieces, at, running = [], begin, from_chunk(begin)
    if not running.lanes:
        return []
    end = min(end, running.n_chunks)
    for chunk in sorted({-(-n // CHUNK) for n in running.n_steps}):
        rest = from_chunk(chunk)
        if at < chunk < end and (running.width - rest.width) * (end - chunk) * CHUNK * gflop_per_step >= worth:
            pieces.append((running, at, chunk))
            at, running = chunk, rest
    return [*pieces, (running, at, end)]


# -- for people ------------------------------------------------------------------------------------


def rows(
    groups: Sequence[Group], sizes: Sizes, model: Model, memory: Memory, seconds: Sequence[float]
) -> list[dict[str, str]]:
    """A line of text per kind of program: how many, lanes, memory, recordings, time of each."""
    kinds: dict[tuple, int] = {}
    for group, time in zip(groups, seconds, strict=True):
        filling = group.width - len(group.lanes)
        line = {
            "batch": str(group.static.batch_size),
            "lanes": str(len(group.lanes)) + (f" (+{filling})" if filling else ""),
            "steps": str(max(group.n_steps))
            if len(set(group.n_steps)) == 1
            else f"{min(group.n_steps)}-{max(group.n_steps)}",
            "per lane": format_bytes(sum(lane_bytes(sizes, model, group.static.batch_size, memory.shared).values())),
            "noise levels": str(len(group.levels)),
            "recordings": format_bytes(len(group.levels) * level_bytes(sizes)),
            "memory": format_bytes(group_bytes(sizes, model, group, memory)),
            "time each": duration(time),
        }
        key = tuple(line.items())
        kinds[key] = kinds.get(key, 0) + 1
    return [{"programs": str(n), **dict(key)} for key, n in kinds.items()]
