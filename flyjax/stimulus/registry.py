"""Stimuli by name: what `simulation.visual_input_type` may say."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from flyjax.errors import UserError, nearest
from flyjax.stimulus import davis, scenes, sintel

_OTHER = {
    "DAVIS": "optical_flow",
    "optical_flow": "DAVIS",
    "scenes_texture": "scenes_flow",
    "scenes_flow": "scenes_texture",
    "scenes_edges": "scenes_texture",
}
NAMES = tuple(_OTHER)
SPLITS = ("train", "test")
FRAME_RATES = ("default", "native", "resampled")
#: Names that need files.
DATA_SETS = {"DAVIS": davis, "optical_flow": sintel}


def check_name(name: str) -> str:
    """The name, or a `UserError` that names the nearest known one."""
    if name not in NAMES:
        raise UserError(f"unknown stimulus {name!r}.{nearest(name, NAMES)} Known: {', '.join(NAMES)}.")
    return name


def other_kind(name: str) -> str:
    """The stimulus on which a model trained on `name` is tested by default."""
    return _OTHER[check_name(name)]


def luminance(
    name: str,
    columns,
    n_frames: int,
    dt: float,
    split: str = "train",
    seed: int = 0,
    data_path: str | Path | None = None,
    frame_rate: str = "default",
) -> np.ndarray:
    """A stimulus at the columns of an eye.

    Args:
        name: one of `NAMES`.
        columns: (n_col, 2) integers (u, v).
        n_frames: frames wanted; a data set that is shorter is looped, as the predecessor did.
        dt: frame interval, s. Built-in scenes sample the same film at any dt.
        split: 'train' or 'test': other videos, other scenes.
        seed: non-negative integer; chooses the scenes, or the order of the videos.
        data_path: folder of the data set, where one is needed (or FLYJAX_DATA).
        frame_rate: of videos: 'native' shows one frame per step, 'resampled' plays 24 frames/s at
            1/dt, 'default' is native for DAVIS (as the predecessor) and resampled for optical_flow
            (as flyvis).

    Returns:
        (n_frames, n_col) float32 in [0, 1], the same for the same arguments.

    Raises:
        UserError: unknown name, split or frame rate, absent or damaged data set.
    """
    check_name(name)
    columns = np.asarray(columns)
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}.{nearest(split, SPLITS)} Known: train, test.")
    if frame_rate not in FRAME_RATES:
        raise UserError(f"unknown frame rate {frame_rate!r}.{nearest(frame_rate, FRAME_RATES)} Known: {', '.join(FRAME_RATES)}.")
    if columns.ndim != 2 or columns.shape[1] != 2 or len(columns) == 0:
        raise UserError(f"columns must be (n_col, 2) integers (u, v), got shape {columns.shape}")
    if n_frames < 1 or not dt > 0:
        raise UserError(f"a stimulus needs n_frames >= 1 and dt > 0, got n_frames={n_frames}, dt={dt}")
    if name in DATA_SETS:
        rate = {} if frame_rate == "default" else {"frame_rate": frame_rate}
        return DATA_SETS[name].luminance(columns, n_frames, dt, split, seed, data_path, **rate)
    return scenes.film(name, columns, n_frames, dt, split, seed).luminance


def available(data_path: str | Path | None = None) -> tuple[str, ...]:
    """Names that can be shown on this machine: the built-in ones, and the data sets that are there."""
    return tuple(name for name in NAMES if name not in DATA_SETS or DATA_SETS[name].find(data_path) is not None)


def fingerprint(name: str, data_path: str | Path | None = None) -> str | None:
    """Changes when the files of a data set do (names and sizes); None for built-in stimuli.

    **Raises:** `UserError` for an unknown name or an absent data set.
    """
    if check_name(name) not in DATA_SETS:
        return None
    folder = DATA_SETS[name].folder_of(data_path)
    folder = folder / "training" / "final" if name == "optical_flow" else folder
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\n".encode())
    return digest.hexdigest()[:16]
