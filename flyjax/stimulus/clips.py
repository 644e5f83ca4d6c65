"""Clips of a video data set: found on disk, and played one after the other in every orientation."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int

from flyjax.circuit.hexgrid import flip, flip_matrix, rotation, rotation_matrix
from flyjax.stimulus.textures import generator
from flyjax.utils import environment
from flyjax.utils.errors import UserError, reading

FPS = 24.0  #: frame rate of Sintel, 1/s
#: 2 flips x 4 rotations.
ORIENTATIONS = tuple((axis, turn) for axis in (0, 1) for turn in range(4))


def data_root(data_path: str | Path | None) -> Path | None:
    """The folder given, or the environment's FLYJAX_DATA."""
    return environment.expanded(data_path) if data_path else environment.data_root()


def find_folder(
    data_path: str | Path | None, subfolders: Sequence[str], is_data_set: Callable[[Path], bool]
) -> Path | None:
    """The first of the subfolders of `data_root` that is the data set, or None."""
    root = data_root(data_path)
    if root is None:
        return None
    with reading(root):
        return next((root / name for name in subfolders if is_data_set(root / name)), None)


def require_folder(folder: Path | None, data_path: str | Path | None, name: str, remedy: str) -> Path:
    """The folder. **Raises:** `UserError` with the remedy if there is none."""
    if folder is None:
        root = data_root(data_path)
        raise UserError(f"no {name} {f'in {root}' if root else '(no data_path, no FLYJAX_DATA)'}: {remedy}")
    return folder


def file_stamp(paths: Sequence[Path]) -> tuple:
    """Names, sizes and modification times: changes when the files do."""

    def stamp(path: Path) -> tuple:
        with reading(path):
            return path.name, (s := path.stat()).st_size, s.st_mtime_ns

    return tuple(map(stamp, paths))


def play(
    clips: Sequence[Float32[np.ndarray, "frames n_col ..."]],
    n_frames: int,
    columns: Int[np.ndarray, "n_col 2"],
    *entropy: str | int,
) -> Float32[np.ndarray, "T n_col ..."]:
    """Join clips, each in every orientation, in shuffled order, again and again.

    **Arguments:**

    - `clips`: (frames, n_col) each, or (frames, n_col, 2) vectors, which turn with the picture.
    - `entropy`: names and integers that choose the order.
    """
    permutations = [flip(columns, axis)[rotation(columns, turn)] for axis, turn in ORIENTATIONS]
    matrices = [(rotation_matrix(turn) @ flip_matrix(axis)).astype(np.float32) for axis, turn in ORIENTATIONS]
    out = np.empty((n_frames, *clips[0].shape[1:]), np.float32)
    start, cycle = 0, 0
    while start < n_frames:
        for k in generator(*entropy, cycle).permutation(len(clips) * len(ORIENTATIONS)):
            index, orientation = divmod(k, len(ORIENTATIONS))
            end = min(start + len(clips[index]), n_frames)
            frames = clips[index][: end - start, permutations[orientation]]
            out[start:end] = frames if frames.ndim == 2 else frames @ matrices[orientation].T
            start = end
        cycle += 1
    return out
