"""Arrays on disk that are either complete or refused: zarr v3 with a manifest of checksums.

A store is written beside its final place, synced and renamed, so a crash leaves the old one or
none. The manifest lists every file with its SHA-256; zarr alone would read a missing chunk as
zeros.
"""

import contextlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr

from flyjax.utils.atomic_io import sha256, write_atomic
from flyjax.utils.errors import UserError, reading
from flyjax.utils.run_directory import scratch, scratch_bytes, sweep_scratch

MANIFEST = "manifest.json"
FORMAT = 2
_CHUNK_BYTES = 64 * 2**20
#: Bytes that the address of an array is a multiple of, so that JAX on a CPU takes it as it is instead of a copy.
_ALIGNMENT = 64


def empty(shape: tuple[int, ...], dtype: np.dtype | type) -> np.ndarray:
    """As `np.empty`; an array that JAX on a CPU shares."""
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(n_bytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + n_bytes].view(dtype).reshape(shape)


def _files(folder: Path) -> dict[str, str]:
    """Relative path -> checksum of every file but the manifest."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    with ThreadPoolExecutor() as threads:
        return {p.relative_to(folder).as_posix(): digest for p, digest in zip(paths, threads.map(sha256, paths))}


def _read(stored: zarr.Array) -> np.ndarray:
    """An array of a store, chunk by chunk."""
    array = empty(stored.shape, stored.dtype)
    for start in range(0, len(array), stored.chunks[0]):
        array[start : start + stored.chunks[0]] = stored[start : start + stored.chunks[0]]
    return array


def _chunks(shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, ...]:
    """Complete rows, about 64 MiB per chunk."""
    row = max(1, dtype.itemsize * int(np.prod(shape[1:])))
    return (max(1, min(shape[0], _CHUNK_BYTES // row)), *shape[1:])


def write_store(path: str | Path, arrays: dict[str, np.ndarray], meta: dict) -> Path:
    """Write arrays (at least one-dimensional, non-empty) and JSON-able `meta`, completely or not at all.

    An earlier store of the same path is replaced at the end.

    **Raises:** `UserError` if `path` exists and is no store, or the disk refuses.
    """
    path = Path(path)
    if path.exists() and not (path / MANIFEST).is_file():
        raise UserError(f"{path} exists and is no recording: choose another folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_scratch(path.parent)
        with scratch(path.parent) as folder:
            group = zarr.open_group(folder, mode="w", zarr_format=3)
            for name, array in arrays.items():
                chunks = _chunks(array.shape, array.dtype)
                # Noisy float32 hardly compresses: compression would save 10 % of the disk at the cost of time.
                stored = group.create_array(name, shape=array.shape, dtype=array.dtype, chunks=chunks, compressors=None)
                for start in range(0, len(array), chunks[0]):
                    stored[start : start + chunks[0]] = array[start : start + chunks[0]]
            manifest = {"format": FORMAT, "meta": meta, "arrays": sorted(arrays), "files": _files(folder)}
            write_atomic(folder / MANIFEST, json.dumps(manifest, allow_nan=False), sync=True)
            with scratch(path.parent) as old:
                if path.exists():
                    os.replace(path, old / "old")
                os.replace(folder, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
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
    listed, found = manifest["files"], _files(path)
    for name in sorted(listed | found):
        if found.get(name) != listed.get(name):
            what = "does not belong to it" if name not in listed else "has another checksum"
            what = what if name in found else "is missing"
            raise UserError(f"{path} is torn or edited, {name} {what}: delete the folder and record again")
    group = zarr.open_group(path, mode="r")
    return {name: _read(cast(zarr.Array, group[name])) for name in manifest["arrays"]}, manifest["meta"]


def read_arrays(path: str | Path) -> dict[str, Any] | None:
    """Arrays by name of an .npz file, or arrays and attributes of a zarr group; None where it is neither.

    **Raises:** `UserError` for one that cannot be read; nothing in it is executed.
    """
    path = Path(path)
    if path.suffix == ".npz" or path.is_file():
        with reading(path, "give an .npz file or a zarr group of arrays by name"):
            with np.load(path, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
    if not any((path / name).is_file() for name in ("zarr.json", ".zgroup")):
        return None
    with reading(path, "give an .npz file or a zarr group of arrays by name"):
        group = zarr.open_group(path, mode="r")
        return dict(group.attrs) | {name: np.asarray(array[...]) for name, array in group.arrays()}


def store_bytes(path: Path) -> int:
    """Disk use of a store."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def touch(path: Path) -> None:
    """Mark a store as used now."""
    with contextlib.suppress(OSError):
        os.utime(path / MANIFEST)


def evict(folder: Path, max_bytes: float, keep: Path) -> None:
    """Remove the least recently used stores of a cache beyond `max_bytes`, which includes those being written.

    `keep` stays, and what is not called by its own cache key: somebody put it there.
    """
    stores = []
    for manifest in folder.glob(f"*/{MANIFEST}"):
        with contextlib.suppress(OSError, UserError):  # another process may have evicted it
            if read_meta(manifest.parent)["meta"].get("cache_key") == manifest.parent.name:
                stores.append((manifest.stat().st_mtime_ns, manifest.parent, store_bytes(manifest.parent)))
    total = sum(size for *_, size in stores) + scratch_bytes(folder)
    for _, path, size in sorted(stores, key=lambda s: s[0]):
        if total > max_bytes and path.resolve() != keep.resolve():
            shutil.rmtree(path, ignore_errors=True)
            total -= size
