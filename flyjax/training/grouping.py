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
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Self

from flyjax.config import Model, Training
from flyjax.training.hparams import Static, n_steps, static_of
from flyjax.training.resources import Memory, Sizes, lane_bytes, recording_bytes
from flyjax.utils.atomic_io import write_json
from flyjax.utils.errors import UserError
from flyjax.utils.format import duration, format_bytes
from flyjax.utils.run_directory import own

log = logging.getLogger(__name__)

#: Steps of one scan; between scans the host reports progress.
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
        """Lanes that are computed: padded to a multiple of the devices."""
        return -(-len(self.lanes) // self.n_devices) * self.n_devices

    def only(self, running: Callable[[Lane, int], bool]) -> Self | None:
        """The group of the lanes for which `running(lane, n_steps)`; None where there is none."""
        chosen = [each for each in zip(self.lanes, self.n_steps, strict=True) if running(*each)]
        if not chosen:
            return None
        lanes, steps = zip(*chosen)
        return replace(self, lanes=lanes, n_steps=steps, n_devices=min(self.n_devices, len(lanes)))


def group_bytes(sizes: Sizes, model: Model, group: Group, memory: Memory) -> int:
    """What a program takes of `memory.free`."""
    lane = sum(lane_bytes(sizes, model, group.static.batch_size, memory.shared).values())
    recordings = len(group.levels) * recording_bytes(sizes)
    if memory.shared:  # a copy on every device, and the recording as it was read
        return group.width * lane + recordings * (group.n_devices + 1)
    return group.width // group.n_devices * lane + recordings


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
    lane = sum(lane_bytes(sizes, model, batch_size, memory.shared).values())
    recording = recording_bytes(sizes)
    for devices in range(min(n_devices, n_lanes), 0, -1):
        best = None
        copies = devices + 1 if memory.shared else 1
        for levels in range(1, n_levels + 1):
            lanes_per_memory = int((SHARE * memory.free - levels * recording * copies) // lane)
            fit = lanes_per_memory if memory.shared else devices * lanes_per_memory
            fit -= fit % devices
            if fit < devices:
                break
            programs = max(math.ceil(n_levels / levels), math.ceil(n_lanes / fit))
            if best is None or programs < best[0]:
                best = programs, Limits(fit, levels, devices)
        if best is not None:
            return best[1]
    copies = 2 if memory.shared else 1
    raise UserError(
        f"one training takes about {format_bytes(lane + copies * recording)} "
        f"({format_bytes(copies * recording)} of it for its recording), but {format_bytes(memory.free)} are "
        f"{memory.source}: reduce simulation.n_frames, training.batch_size or model.width"
    )


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


def on_devices(group: Group, n_devices: int, sizes: Sizes, model: Model, memory: Memory) -> Group:
    """A planned program on the devices of now, perhaps more or fewer than it was planned for.

    More only where their copies of the recordings fit into `memory`.
    """
    most = replace(group, n_devices=min(n_devices, len(group.lanes)))
    if group_bytes(sizes, model, most, memory) <= SHARE * memory.free:
        return most
    return replace(group, n_devices=min(n_devices, group.n_devices))


def warn_if_too_large(
    groups: Sequence[Group], sizes: Sizes, model: Model, planned: Memory, now: Memory, folder: Path | None
) -> None:
    """One line where a recorded plan takes more than there is now."""
    needed = max(group_bytes(sizes, model, group, planned) for group in groups)
    if needed > now.free:
        log.warning(
            "resuming the programs of %s takes about %s, but %s are %s: "
            "free memory, or remove that folder to start again with smaller programs",
            folder, format_bytes(needed), format_bytes(now.free), now.source,
        )  # fmt: skip


def plan(
    candidates: Sequence[Training],
    seeds: Sequence[Sequence[int]],
    n_frames: int,
    limits_of=lambda static, n_lanes, n_levels: Limits(),
) -> list[Group]:
    """Pack candidates x seeds into programs of equal static signature, in a fixed order.

    **Arguments:** `limits_of(static, n_lanes, n_levels)`: the `Limits` of a program. Where one is not enough, lanes
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
        for packed in pack_lanes(entries, most):
            own, steps, levels = zip(*packed)
            groups.append(Group(static, own, steps, tuple(sorted(set(levels))), max(1, min(most.n_devices, len(own)))))
    return groups


def pack_lanes(entries: list[tuple[Lane, int, float]], most: Limits) -> list[list[tuple[Lane, int, float]]]:
    """(lane, steps, level) entries in as many lists as `most` requires, those of a level together."""
    n_levels = len({level for *_, level in entries})
    if len(entries) <= (most.lanes or len(entries)) and n_levels <= (most.levels or n_levels):
        return [entries]
    n_programs = -(-len(entries) // (most.lanes or len(entries)))
    size = -(-len(entries) // n_programs)
    programs: list[list] = []
    for entry in sorted(entries, key=lambda e: e[2]):
        levels = {level for *_, level in programs[-1]} if programs else set()
        full = not programs or len(programs[-1]) == size or len(levels | {entry[2]}) > (most.levels or n_levels)
        programs.append([entry]) if full else programs[-1].append(entry)
    return programs


def split_at_finished(
    group: Group, begin: int, end: int, gflop_per_step: float, min_saving: float
) -> list[tuple[Group, int, int]]:
    """A program from chunk `begin` to `end` as segments (group, first, last) without the finished lanes.

    A finished lane is masked but computed all the same; a narrower program is compiled where that saves at
    least `min_saving` GFLOP. `gflop_per_step` is a lane's.
    """

    def from_chunk(chunk: int) -> Group | None:
        return group.only(lambda lane, n_steps: n_steps > chunk * CHUNK)

    running = from_chunk(begin)
    if running is None:
        return []
    segments, first, end = [], begin, min(end, running.n_chunks)
    for chunk in sorted({-(-n // CHUNK) for n in running.n_steps}):
        if first < chunk < end and (rest := from_chunk(chunk)) is not None:
            if (running.width - rest.width) * (end - chunk) * CHUNK * gflop_per_step >= min_saving:
                segments.append((running, first, chunk))
                first, running = chunk, rest
    return [*segments, (running, first, end)]


def program_table(
    groups: Sequence[Group], sizes: Sizes, model: Model, memory: Memory, seconds: Sequence[float] | None
) -> list[dict[str, str]]:
    """A row per kind of program: how many, lanes, memory, recordings, and time of each where it is known."""
    kinds: dict[tuple, int] = {}
    for k, group in enumerate(groups):
        padding, fewest, most = group.width - len(group.lanes), min(group.n_steps), max(group.n_steps)
        row = {
            "batch": str(group.static.batch_size),
            "lanes": str(len(group.lanes)) + (f" (+{padding})" if padding else ""),
            "steps": str(most) if fewest == most else f"{fewest}-{most}",
            "per lane": format_bytes(sum(lane_bytes(sizes, model, group.static.batch_size, memory.shared).values())),
            "noise levels": str(len(group.levels)),
            "recordings": format_bytes(len(group.levels) * recording_bytes(sizes)),
            "memory": format_bytes(group_bytes(sizes, model, group, memory)),
        } | ({} if seconds is None else {"time each": duration(seconds[k])})
        key = tuple(row.items())
        kinds[key] = kinds.get(key, 0) + 1
    return [{"programs": str(n), **dict(key)} for key, n in kinds.items()]
