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

from flyjax.config import Model, Training
from flyjax.training.hparams import Static, n_steps, static_of
from flyjax.training.resources import Memory, Sizes, gflop_per_frame, lane_bytes, recording_bytes
from flyjax.utils.atomic_io import write_json
from flyjax.utils.errors import UserError
from flyjax.utils.format import duration, format_bytes
from flyjax.utils.run_directory import own

#: Steps of one scan; between scans the host reports progress.
CHUNK = 250
#: Share of the memory that is planned for; allocators and evaluation need the rest.
SHARE = 0.8


@dataclass(frozen=True)
class Lane:
    """One training: its candidate, seed number and seed, optimiser steps, and the noise level of its recording."""

    candidate: int
    replicate: int
    seed: int
    n_steps: int
    level: float


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

    def lane_bytes(self, static: Static) -> int:
        """Memory of one lane."""
        return sum(lane_bytes(self.sizes, self.model, static.batch_size, self.memory.shared).values())

    def gflop(self, static: Static) -> float:
        """Work of one step of a lane."""
        per_frame = gflop_per_frame(
            self.model, static.batch_size, self.sizes.n_neurons, self.sizes.n_edges, static.with_curvature
        )
        return static.batch_size * per_frame

    def group_bytes(self, group: Group) -> int:
        """What a program takes of `memory.free`."""
        lane, recordings = self.lane_bytes(group.static), len(group.levels) * recording_bytes(self.sizes)
        if self.memory.shared:  # a copy on every device, and the recording as it was read
            return group.width * lane + recordings * (group.n_devices + 1)
        return group.width // group.n_devices * lane + recordings

    def limits(self, static: Static, n_lanes: int, n_levels: int) -> Limits:
        """The fewest programs that fit; where a recording is too large for all devices at once, fewer devices.

        **Raises:** `UserError` if not even one training on one recording fits.
        """
        memory, lane, recording = self.memory, self.lane_bytes(static), recording_bytes(self.sizes)
        for devices in range(min(self.n_devices, n_lanes), 0, -1):
            options = []
            copies = devices + 1 if memory.shared else 1
            for levels in range(1, n_levels + 1):
                lanes_per_memory = int((SHARE * memory.free - levels * recording * copies) // lane)
                fit = lanes_per_memory if memory.shared else devices * lanes_per_memory
                fit -= fit % devices
                if fit >= devices:
                    n_programs = max(math.ceil(n_levels / levels), math.ceil(n_lanes / fit))
                    options.append((n_programs, levels, Limits(fit, levels, devices)))
            if options:
                return min(options)[-1]
        total = recording * (2 if memory.shared else 1)
        raise UserError(
            f"one training takes about {format_bytes(lane + total)} ({format_bytes(total)} of it for its recording), "
            f"but {format_bytes(memory.free)} are {memory.source}: reduce simulation.n_frames, training.batch_size or "
            "model.width"
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
        """A row per kind of program: how many, lanes, memory, recordings, and time of each where it is known."""
        rows = []
        for k, group in enumerate(groups):
            padding, steps = group.width - len(group.lanes), [lane.n_steps for lane in group.lanes]
            row = {
                "batch": str(group.static.batch_size),
                "lanes": str(len(group.lanes)) + (f" (+{padding})" if padding else ""),
                "steps": "-".join(map(str, sorted({min(steps), max(steps)}))),
                "per lane": format_bytes(self.lane_bytes(group.static)),
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
            lane = Lane(k, s, seed, n_steps(candidate, n_frames), candidate.noise_model_level)
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
