"""Arrays on disk that are either complete or refused: zarr v3 with a manifest of checksums.

A store is written beside its final place, synced and renamed, so a crash leaves the old one or
none. The manifest lists every file with its SHA-256; zarr alone would read a missing chunk as
zeros.
"""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import cast

import numpy as np
import zarr

from flyjax.utils.atomic_io import write_atomic
from flyjax.utils.errors import UserError
from flyjax.utils.run_directory import scratch, scratch_bytes, sweep_scratch

MANIFEST = "manifest.json"
FORMAT = 2
_CHUNK_BYTES = 64 * 2**20


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> dict[str, str]:
    """Relative path -> checksum of every file but the manifest."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {p.relative_to(folder).as_posix(): _digest(p) for p in paths}


def _chunks(shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, ...]:
    """Complete rows, about 64 MiB per chunk."""
    row = max(1, dtype.itemsize * int(np.prod(shape[1:])))
    return (max(1, min(shape[0], _CHUNK_BYTES // row)), *shape[1:])


class Writer:
    """A store that is written row by row: complete after `finish`, removed if that is not reached.

    An earlier store of the same path is replaced at the end.

    **Raises:** `UserError` if `path` exists and is no store, or the disk refuses.
    """

    def __init__(self, path: str | Path):
        self.path = path = Path(path)
        if path.exists() and not (path / MANIFEST).is_file():
            raise UserError(f"{path} exists and is no recording: choose another folder")
        self._exit = contextlib.ExitStack()
        self._arrays: dict[str, zarr.Array] = {}
        self._pending: dict[str, list[np.ndarray]] = {}
        self._filled: dict[str, int] = {}
        with self._refusal():
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep_scratch(path.parent)
            self._scratch = self._exit.enter_context(scratch(path.parent))
            self._group = zarr.open_group(self._scratch, mode="w", zarr_format=3)

    @contextlib.contextmanager
    def _refusal(self):
        try:
            yield
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._exit.close()

    def create(self, name: str, shape: tuple[int, ...], dtype) -> None:
        """Declare an array (at least one-dimensional, non-empty) whose rows `append` adds."""
        # Noisy float32 hardly compresses: compression would save 10 % of the disk at the cost of time.
        with self._refusal():
            self._arrays[name] = self._group.create_array(
                name, shape=shape, dtype=dtype, chunks=_chunks(shape, np.dtype(dtype)), compressors=None
            )
        self._pending[name], self._filled[name] = [], 0

    def append(self, name: str, rows: np.ndarray) -> None:
        """Add any number of rows; complete chunks are written to disk."""
        stored, waiting = self._arrays[name], self._pending[name]
        size = stored.chunks[0]
        while len(rows):
            room = size - sum(map(len, waiting))
            waiting.append(np.array(rows[:room], stored.dtype))
            rows = rows[room:]
            begin = self._filled[name]
            n = sum(map(len, waiting))
            if n == size or begin + n == stored.shape[0]:
                with self._refusal():
                    stored[begin : begin + n] = waiting[0] if len(waiting) == 1 else np.concatenate(waiting)
                self._filled[name] += n
                waiting.clear()

    def put(self, name: str, array: np.ndarray) -> None:
        """Write a complete array."""
        self.create(name, array.shape, array.dtype)
        step = self._arrays[name].chunks[0]
        for start in range(0, len(array), step):
            self.append(name, array[start : start + step])

    def finish(self, meta: dict) -> Path:
        """Write the manifest with JSON-able `meta` and move the store to its final path."""
        short = [name for name, n in self._filled.items() if n != self._arrays[name].shape[0]]
        if short:
            raise ValueError(f"{short[0]} lacks rows")
        path, folder = self.path, self._scratch
        with self._refusal():
            manifest = {"format": FORMAT, "meta": meta, "arrays": sorted(self._filled), "files": _files(folder)}
            write_atomic(folder / MANIFEST, json.dumps(manifest, allow_nan=False), sync=True)
            if path.exists():
                with scratch(path.parent) as old:
                    os.replace(path, old / "old")
                    os.replace(folder, path)
            else:
                os.replace(folder, path)
        return path


def read_meta(path: str | Path) -> dict:
    """The manifest of a store; the files it lists are not verified.

    **Raises:** `UserError` if there is none or it is of another format.
    """
    path = Path(path)
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        known = manifest["format"], manifest["meta"], manifest["arrays"], manifest["files"]
    except FileNotFoundError:
        raise UserError(f"no recording in {path}: it has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}/{MANIFEST} is torn or edited: delete the folder and record again") from None
    if known[0] != FORMAT:
        raise UserError(f"{path} is of format {known[0]}, this version reads {FORMAT}: record again")
    return manifest


def read_store(path: str | Path) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays and meta of a store, every file verified.

    **Raises:** `UserError` naming the first file that is missing, changed or foreign.
    """
    path, manifest = Path(path), read_meta(path)
    remedy = "delete the folder and record again"
    for name, digest in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise UserError(f"{path} is torn, {name} is missing: {remedy}")
        if _digest(file) != digest:
            raise UserError(f"{path} was edited or damaged, {name} has another checksum: {remedy}")
    foreign = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file() and p.name != MANIFEST}
    if extra := sorted(foreign - set(manifest["files"])):
        raise UserError(f"{path} was edited, {extra[0]} does not belong to it: {remedy}")
    group = zarr.open_group(path, mode="r")
    return {name: np.asarray(cast(zarr.Array, group[name])[...]) for name in manifest["arrays"]}, manifest["meta"]


def store_bytes(path: Path) -> int:
    """Disk use of a store."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def touch(path: Path) -> None:
    """Mark a store as used now."""
    with contextlib.suppress(OSError):
        os.utime(path / MANIFEST)


def evict(folder: Path, max_bytes: float, keep: Path) -> list[Path]:
    """Remove the least recently used stores of a cache beyond `max_bytes`, which includes those being written.

    `keep` stays, and what is not called by its own cache key: somebody put it there.
    """
    stores = []
    for manifest in folder.glob(f"*/{MANIFEST}"):
        with contextlib.suppress(OSError, UserError):  # another process may have evicted it
            if read_meta(manifest.parent)["meta"].get("cache_key") == manifest.parent.name:
                stores.append((manifest.stat().st_mtime_ns, manifest.parent, store_bytes(manifest.parent)))
    total, gone = sum(size for *_, size in stores) + scratch_bytes(folder), []
    for _, path, size in sorted(stores, key=lambda s: s[0]):
        if total <= max_bytes:
            break
        if path.resolve() == keep.resolve():
            continue
        shutil.rmtree(path, ignore_errors=True)
        total -= size
        gone.append(path)
    return gone
