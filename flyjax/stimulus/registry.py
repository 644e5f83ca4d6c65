"""Stimuli by name: the values of `simulation.visual_input_type`."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from flyjax.stimulus import lab_stimuli, mixtures, scenes, sintel
from flyjax.stimulus.davis import DAVIS, OWN
from flyjax.stimulus.video import FOLDER_RATE
from flyjax.utils.errors import UserError, nearest, reading

#: Names that need files.
DATA_SETS: dict[str, Any] = {"DAVIS": DAVIS, "optical_flow": sintel, "video": OWN}
NAMES = (*DATA_SETS, *scenes.NAMES, *lab_stimuli.NAMES)
SPLITS = ("train", "test")
FRAME_RATES = ("default", "native", "resampled")
#: Test stimulus by training stimulus; scenes_texture for the others.
_TEST_STIMULUS = {
    "DAVIS": "optical_flow",
    "optical_flow": "DAVIS",
    "scenes_texture": "scenes_flow",
    "video": "video",  # other videos, or the last part of the only one
}


def parts_of(name: str) -> list[tuple[str, float]]:
    """Names and shares of a stimulus: one, or the parts of a mixture such as `flashes:0.3+blank:0.7`.

    **Raises:** `UserError` for an unknown name, naming the nearest.
    """
    parts = mixtures.parse_mixture(name) if isinstance(name, str) and ("+" in name or ":" in name) else [(name, 1.0)]
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
    return _TEST_STIMULUS.get(largest, "scenes_texture")


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


def _render(quantity: str, name, columns, n_frames, dt, split, seed, data_path, frame_rate, **rate) -> np.ndarray:
    """Luminance or flow of a stimulus, or of the parts of a mixture in turn."""
    columns = _check(name, columns, n_frames, dt, split, frame_rate)

    def render_part(part: str, n: int) -> np.ndarray:
        if part in DATA_SETS:
            options = {} if frame_rate == "default" else {"frame_rate": frame_rate}
            options |= {} if part == "optical_flow" else rate
            return getattr(DATA_SETS[part], quantity)(columns, n, dt, split, seed, data_path, **options)
        make = scenes.film if part in scenes.NAMES else lab_stimuli.lab_film
        return getattr(make(part, columns, n, dt, split, seed), quantity)

    parts = parts_of(name)
    if parts[0][0] == name:
        return render_part(name, n_frames)
    return mixtures.mix(parts, n_frames, dt, split, seed, render_part)


def luminance(
    name: str,
    columns: Int[np.ndarray, "n_col 2"],
    n_frames: int,
    dt: float,
    split: str = "train",
    seed: int = 0,
    data_path: str | Path | None = None,
    frame_rate: str = "default",
    folder_rate: float = FOLDER_RATE,
) -> Float32[np.ndarray, "T n_col"]:
    """A stimulus at the columns of an eye: luminance in [0, 1], the same for the same arguments.

    **Arguments:**

    - `name`: one of `NAMES`, or a mixture `a:0.7+b:0.3` of them.
    - `columns`: integers (u, v).
    - `n_frames`: frames wanted; a data set that is shorter is looped.
    - `dt`: frame interval, s. Built-in scenes sample the same film at any dt.
    - `split`: 'train' or 'test': other videos, other scenes.
    - `seed`: non-negative integer; chooses the scenes, or the order of the videos.
    - `data_path`: folder of the data set, where one is needed (or FLYJAX_DATA); for `video` also a film.
    - `frame_rate`: of videos: 'native' shows one frame per step, 'resampled' plays them at their own speed, 'default'
        is native for DAVIS (as flyvis-gnn) and `video`, and resampled for optical_flow (as flyvis).
    - `folder_rate`: frames per second of videos that are folders of frames; films state their own.

    **Raises:** `UserError` for an unknown name, split or frame rate, or an absent or damaged data set.
    """
    rate = {"folder_rate": folder_rate}
    return _render("luminance", name, columns, n_frames, dt, split, seed, data_path, frame_rate, **rate)


def flow(
    name: str,
    columns: Int[np.ndarray, "n_col 2"],
    n_frames: int,
    dt: float,
    split: str = "train",
    seed: int = 0,
    data_path: str | Path | None = None,
    frame_rate: str = "default",
) -> Float32[np.ndarray, "T n_col 2"]:
    """The true optic flow of the frames of `luminance`: velocity in columns/s (x right, y up), 0 where only flickering.

    **Raises:** `UserError` as `luminance`, and where no flow is known (DAVIS).
    """
    return _render("flow", name, columns, n_frames, dt, split, seed, data_path, frame_rate)


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
        folder = DATA_SETS[part].require(data_path)
        for path in DATA_SETS[part].files(data_path):
            with reading(path):
                digest.update(os.fsencode(os.path.relpath(path, folder)) + f"\0{path.stat().st_size}\n".encode())
    return digest.hexdigest()[:16] if sets else None
