"""Stimuli by name: what `simulation.visual_input_type` may say."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flyjax.errors import UserError, nearest
from flyjax.stimulus import scenes

_OTHER = {
    "DAVIS": "optical_flow",
    "optical_flow": "DAVIS",
    "scenes_texture": "scenes_flow",
    "scenes_flow": "scenes_texture",
    "scenes_edges": "scenes_texture",
}
NAMES = tuple(_OTHER)
SPLITS = ("train", "test")


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

    Returns:
        (n_frames, n_col) float32 in [0, 1], the same for the same arguments.

    Raises:
        UserError: unknown name or split, absent data set.
    """
    check_name(name)
    columns = np.asarray(columns)
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}.{nearest(split, SPLITS)} Known: train, test.")
    if columns.ndim != 2 or columns.shape[1] != 2 or len(columns) == 0:
        raise UserError(f"columns must be (n_col, 2) integers (u, v), got shape {columns.shape}")
    if n_frames < 1 or not dt > 0:
        raise UserError(f"a stimulus needs n_frames >= 1 and dt > 0, got n_frames={n_frames}, dt={dt}")
    return scenes.film(name, columns, n_frames, dt, split, seed).luminance


def available(data_path: str | Path | None = None) -> tuple[str, ...]:
    """Names that can be shown on this machine: the built-in ones, and the data sets that are there."""
    return scenes.NAMES


def fingerprint(name: str, data_path: str | Path | None = None) -> str | None:
    """What a stimulus' files are: changes when they do; None for the built-in ones."""
    check_name(name)
    return None
