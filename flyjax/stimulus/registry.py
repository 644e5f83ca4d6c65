"""Stimuli by name: what `simulation.visual_input_type` may say."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from flyjax.stimulus import davis, lab_stimuli, scenes, sintel
from flyjax.utils.errors import UserError, nearest

#: Names that need files.
DATA_SETS = {"DAVIS": davis, "optical_flow": sintel}
NAMES = (*DATA_SETS, *scenes.NAMES, *lab_stimuli.NAMES)
SPLITS = ("train", "test")
FRAME_RATES = ("default", "native", "resampled")
_OTHER = {
    "DAVIS": "optical_flow",
    "optical_flow": "DAVIS",
    "scenes_texture": "scenes_flow",
}


def parts_of(name: str) -> list[tuple[str, float]]:
    """Names and shares of a stimulus: one, or the parts of a mixture such as `flashes:0.3+blank:0.7`.

    **Raises:** `UserError` for an unknown name, naming the nearest.
    """
    parts = lab_stimuli.parse_mixture(name) if isinstance(name, str) and ("+" in name or ":" in name) else [(name, 1.0)]
    for part, _ in parts:
        if part not in NAMES:
            raise UserError(f"unknown stimulus {part!r}.{nearest(part, NAMES)} Known: {', '.join(NAMES)}.")
    return parts


def check_name(name: str) -> str:
    """The name, or a `UserError` that names the nearest known one."""
    parts_of(name)
    return name


def other_kind(name: str) -> str:
    """The stimulus on which a model trained on `name` (its largest part) is tested by default."""
    largest = max(parts_of(name), key=lambda part: part[1])[0]
    return _OTHER.get(largest, "scenes_texture")


def _check(name, columns, n_frames, dt, split, frame_rate) -> np.ndarray:
    check_name(name)
    columns = np.asarray(columns)
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}.{nearest(split, SPLITS)} Known: train, test.")
    if frame_rate not in FRAME_RATES:
        raise UserError(
            f"unknown frame rate {frame_rate!r}.{nearest(frame_rate, FRAME_RATES)} Known: {', '.join(FRAME_RATES)}."
        )
    if columns.ndim != 2 or columns.shape[1] != 2 or len(columns) == 0:
        raise UserError(f"columns must be (n_col, 2) integers (u, v), got shape {columns.shape}")
    if n_frames < 1 or not dt > 0:
        raise UserError(f"a stimulus needs n_frames >= 1 and dt > 0, got n_frames={n_frames}, dt={dt}")
    return columns


def _built_in(name, columns, n_frames, dt, split, seed) -> scenes.Film:
    make = scenes.film if name in scenes.NAMES else lab_stimuli.lab_film
    return make(name, columns, n_frames, dt, split, seed)


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
        name: one of `NAMES`, or a mixture `a:0.7+b:0.3` of them.
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
    columns = _check(name, columns, n_frames, dt, split, frame_rate)

    def play(part, n):
        if part in DATA_SETS:
            rate = {} if frame_rate == "default" else {"frame_rate": frame_rate}
            return DATA_SETS[part].luminance(columns, n, dt, split, seed, data_path, **rate)
        return _built_in(part, columns, n, dt, split, seed).luminance

    parts = parts_of(name)
    return play(name, n_frames) if parts[0][0] == name else lab_stimuli.mix(parts, n_frames, dt, split, seed, play)


def flow(
    name: str,
    columns,
    n_frames: int,
    dt: float,
    split: str = "train",
    seed: int = 0,
    data_path: str | Path | None = None,
    frame_rate: str = "default",
) -> np.ndarray:
    """The true optic flow of the same frames as `luminance`.

    Returns:
        (n_frames, n_col, 2) float32, velocity (x right, y up) in columns/s; what only flickers has 0.

    Raises:
        UserError: as `luminance`, and where no flow is known (DAVIS).
    """
    columns = _check(name, columns, n_frames, dt, split, frame_rate)

    def play(part, n):
        if part == "DAVIS":
            raise UserError("the flow of DAVIS videos is not known: use optical_flow or a built-in stimulus")
        if part == "optical_flow":
            rate = {} if frame_rate == "default" else {"frame_rate": frame_rate}
            return sintel.flow(columns, n, dt, split, seed, data_path, **rate)
        return _built_in(part, columns, n, dt, split, seed).flow

    parts = parts_of(name)
    return play(name, n_frames) if parts[0][0] == name else lab_stimuli.mix(parts, n_frames, dt, split, seed, play)


def available(data_path: str | Path | None = None) -> tuple[str, ...]:
    """Names that can be shown on this machine: the built-in ones, and the data sets that are there."""
    return tuple(name for name in NAMES if name not in DATA_SETS or DATA_SETS[name].find(data_path) is not None)


def fingerprint(name: str, data_path: str | Path | None = None) -> str | None:
    """Changes when the files of a data set do (names and sizes); None for built-in stimuli.

    **Raises:** `UserError` for an unknown name or an absent data set.
    """
    digest = hashlib.sha256()
    sets = sorted(part for part, _ in parts_of(name) if part in DATA_SETS)
    for part in sets:
        folder = DATA_SETS[part].folder_of(data_path)
        folder = folder / "training" if part == "optical_flow" else folder
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\n".encode())
    return digest.hexdigest()[:16] if sets else None
