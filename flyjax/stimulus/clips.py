"""Clips of a data set: found on disk, and played one after the other in several orientations."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int

from flyjax.circuit.hexgrid import flip, flip_matrix, rotation, rotation_matrix
from flyjax.utils import environment
from flyjax.utils.errors import UserError, reading

#: Turns of 60 degrees in which a clip is shown, each as it is and mirrored.
TURNS = (0, 1, 2, 3)
N_ORIENTATIONS = 2 * len(TURNS)


class Blank(NamedTuple):
    """The first part of every clip, in which nothing is shown."""

    fraction: float = 0.0  #: of the clip, in whole frames
    luminance: float = 0.0  #: shown instead

    def hide(self, frames: np.ndarray, n_frames: int, value: float) -> None:
        """Set that part of a clip of `n_frames`, of which `frames` are the first ones, to a value."""
        frames[: int(self.fraction * n_frames)] = value


NO_BLANK = Blank()


def data_root(data_path: str | Path | None) -> Path | None:
    """The folder given, or the environment's FLYJAX_DATA."""
    return environment.expanded(data_path) if data_path else environment.data_root()


@dataclass(frozen=True)
class DataSet:
    """A stimulus of files: where it is looked for, how it is recognised, and what to do if it is not there."""

    name: str
    subfolders: tuple[str, ...]
    is_here: Callable[[Path], bool]
    what: str
    remedy: str

    def find(self, data_path: str | Path | None) -> Path | None:
        """The first of the subfolders of `data_root` that is the data set, or None."""
        root = data_root(data_path)
        if root is None:
            return None
        with reading(root):
            return next((root / name for name in self.subfolders if self.is_here(root / name)), None)

    def require(self, data_path: str | Path | None) -> Path:
        """As `find`. **Raises:** `UserError` with the remedy if it is not there."""
        if found := self.find(data_path):
            return found
        root = data_root(data_path)
        where = f"in {root}" if root else "(no data_path, no FLYJAX_DATA)"
        raise UserError(f"no {self.what} {where}: {self.remedy}")


def file_stamp(paths: Sequence[Path]) -> tuple:
    """Names, sizes and modification times: changes when the files do."""
    stamps = []
    for path in paths:
        with reading(path):
            stamps.append((path.name, (s := path.stat()).st_size, s.st_mtime_ns))
    return tuple(stamps)


def play(
    clips: Sequence[Float32[np.ndarray, "frames n_col ..."]],
    n_frames: int,
    columns: Int[np.ndarray, "n_col 2"],
    passes: Iterable[Iterable[int]],
    turns: Sequence[int] = TURNS,
    blank: Blank = NO_BLANK,
) -> Float32[np.ndarray, "T n_col ..."]:
    """Join clips in several orientations, again and again.

    **Arguments:**

    - `clips`: (frames, n_col) each, or (frames, n_col, 2) vectors, which turn with the picture.
    - `passes`: the order of each pass: numbers of a clip and an orientation, clip * `N_ORIENTATIONS` + orientation.
    - `turns`: the orientations are these turns of 60 degrees, then the same mirrored.
    - `blank`: frames at the beginning of each clip that show nothing, and have no flow.
    """
    orientations = [(axis, turn) for axis in (0, 1) for turn in turns]
    permutations = [flip(columns, axis)[rotation(columns, turn)] for axis, turn in orientations]
    matrices = [(rotation_matrix(turn) @ flip_matrix(axis)).astype(np.float32) for axis, turn in orientations]
    out = np.empty((n_frames, *clips[0].shape[1:]), np.float32)
    start = 0
    for k in (k for order in passes for k in order):
        clip, orientation = divmod(k, N_ORIENTATIONS)
        end = min(start + len(clips[clip]), n_frames)
        frames = clips[clip][: end - start, permutations[orientation]]
        out[start:end] = frames if frames.ndim == 2 else frames @ matrices[orientation].T
        blank.hide(out[start:end], len(clips[clip]), blank.luminance if frames.ndim == 2 else 0.0)
        start = end
        if start == n_frames:
            break
    return out
