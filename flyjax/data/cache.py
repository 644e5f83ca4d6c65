"""A cache of recordings: on disk by content hash, in memory up to a limit."""

import dataclasses
import functools
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from flyjax.config import Simulation
from flyjax.data.own_recording import check_level, own_splits
from flyjax.data.recorder import record
from flyjax.data.recording import Recording, load_recording
from flyjax.data.splits import cache_key
from flyjax.utils import array_store
from flyjax.utils.errors import UserError
from flyjax.utils.system import available_ram

log = logging.getLogger(__name__)
#: Share of the memory that is free at first which `Recordings` may use.
MEMORY_SHARE = 0.25


def cached_recording(
    simulation: Simulation,
    noise_model_level: float = 0.05,
    split: str = "train",
    seed: int = 0,
    cache_dir: str | Path = "recordings",
    max_disk_gb: float = 20.0,
    reads_only: bool = False,
    write: Callable[[Callable[[], None]], Any] = lambda store: store(),
) -> Recording:
    """Read a recording from a cache folder, or simulate it and store it there.

    Folders are named by the content hash of what makes a recording. A damaged one is replaced with a warning.
    Beyond `max_disk_gb` the least recently used are removed, but never the one asked for. With `reads_only` the folder
    stays as it is. `write` is called with the function that stores a new recording.

    **Raises:** `UserError` as `record` does, or if the folder cannot be written.
    """
    cache_dir = Path(cache_dir)
    path = cache_dir / cache_key(simulation, noise_model_level, split, seed)
    if path.exists():
        try:
            recording = load_recording(path)
            if recording.cache_key != path.name:  # somebody renamed or copied it
                raise UserError(f"{path} holds another recording, {recording.cache_key}")
            if not reads_only:
                array_store.touch(path)
            return dataclasses.replace(recording, simulation=simulation)
        except UserError as error:
            log.warning("%s; it is recorded again", error)
            if not reads_only:
                shutil.rmtree(path, ignore_errors=True)
    recording = record(simulation, noise_model_level, split, seed)

    def store() -> None:
        recording.save(path)
        array_store.evict(cache_dir, max_disk_gb * 1e9, keep=path)

    if not reads_only:
        write(store)
    return recording


#: Writes recordings while something else is computed.
_writer = ThreadPoolExecutor(1)


def _n_bytes(recording: Recording) -> int:
    return recording.voltage.nbytes * (1 if recording.derivative_in_memory is None else 2)


#: Recordings that have a folder on disk, by folder, split and noise level; the most recently used last. The next
#: iteration of a search neither reads them nor solves their closed form again.
_in_memory: dict[tuple[Path | None, str, float], Recording] = {}


class Recordings:
    """Training recordings by noise level and the test recording of one simulation.

    The most recently used stay in memory, with those of other simulations up to `max_bytes`; the others are read from
    `cache_dir` when needed.

    **Arguments:**

    - `simulation`: what is recorded.
    - `cache_dir`: the cache folder; without one every recording stays in memory.
    - `max_disk_gb`: the size of the cache folder.
    - `max_bytes`: memory for recordings, by default a quarter of what is free.
    - `reads_only`: the cache folder is another process's.
    - `beside`: write stores in a thread, one at a time, while a recording is used; call `written` at the end.
    """

    def __init__(
        self,
        simulation: Simulation,
        cache_dir: Path | None = None,
        max_disk_gb: float = 20.0,
        max_bytes: float | None = None,
        reads_only: bool = False,
        beside: bool = False,
    ):
        self.simulation, self._cache_dir, self._max_disk_gb = simulation, cache_dir, max_disk_gb
        self._reads_only, self._beside = reads_only, beside
        self._writing: Future | None = None
        self._is_cached = cache_dir is not None and simulation.recording is None
        self._in_memory = _in_memory if self._is_cached else {}
        free = available_ram() + sum(map(_n_bytes, self._in_memory.values()))
        self._max_bytes = MEMORY_SHARE * free if max_bytes is None else max_bytes
        self._path = functools.cache(self._used_path)

    def _used_path(self, split: str, level: float) -> Path | None:
        """The folder of a recording, which counts as used."""
        if self._cache_dir is None or not self._is_cached:
            return None
        path = (self._cache_dir / cache_key(self.simulation, level, split, 0)).resolve()
        if not self._reads_only:
            array_store.touch(path)
        return path

    def _get(self, split: str, level: float) -> Recording:
        key = self._path(split, level), split, level
        recording = self._in_memory.pop(key, None)
        if recording is not None and recording.simulation != self.simulation:  # in what makes no other recording
            recording = dataclasses.replace(recording, simulation=self.simulation)
        if self.simulation.recording is not None:
            check_level(level)
            recording = own_splits(self.simulation)[split == "test"]
        if recording is None:
            if self._cache_dir is None:
                recording = record(self.simulation, level, split)
            else:
                self._release_memory()
                recording = cached_recording(
                    self.simulation, level, split, 0, self._cache_dir, self._max_disk_gb, self._reads_only, self._write
                )
        self._in_memory[key] = recording
        return recording

    def _write(self, store: Callable[[], None]) -> None:
        self.written()  # at most one recording more than fits is in memory
        if self._beside:
            self._writing = _writer.submit(store)
        else:
            store()

    def written(self) -> None:
        """Wait until every store is complete. **Raises:** `UserError` where one could not be written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _release_memory(self) -> None:
        """Drop the least recently used recordings until one more of the size of the largest fits."""
        keys = list(self._in_memory)
        sizes = [_n_bytes(self._in_memory[key]) for key in keys]
        while keys and sum(sizes) + max(sizes) > self._max_bytes:
            del self._in_memory[keys.pop(0)], sizes[0]

    @property
    def capacity(self) -> int:
        """Number of training recordings of the present size that fit into `max_bytes`, at least one."""
        largest = max((_n_bytes(r) for (_, split, _), r in self._in_memory.items() if split == "train"), default=1)
        return max(1, int(self._max_bytes // largest))

    def train(self, level: float) -> Recording:
        """Return the training recording at a process-noise level (std per step)."""
        return self._get("train", level)

    @property
    def test(self) -> Recording:
        """The held-out, noise-free recording."""
        return self._get("test", 0.0)
