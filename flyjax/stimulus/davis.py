"""DAVIS 2017 (Pont-Tuset et al. 2017), or any folder of videos, as the fly sees it.

As the predecessor used it: luminance 0.299 R + 0.587 G + 0.114 B, 13 x 13 box means, no
normalisation, each video in 2 flips x 4 rotations, videos split 80/20, looped to the number of
frames asked for. By default one video frame (24/s) is one step; `frame_rate='resampled'` repeats
frames to play the video at its own speed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from flyjax.circuit.hexgrid import flip, flip_matrix, rotation, rotation_matrix
from flyjax.stimulus.eye import resample
from flyjax.stimulus.textures import generator
from flyjax.stimulus.video import videos, watch
from flyjax.utils import environment
from flyjax.utils.errors import UserError

FPS = 24.0
VARIANTS = tuple((axis, turn) for axis in (0, 1) for turn in range(4))
_TEST_SHARE = 0.2


def roots(data_path: str | Path | None) -> list[Path]:
    """Where a data set may lie: the path given, or the environment's FLYJAX_DATA."""
    given = Path(data_path).expanduser() if data_path else environment.data_root()
    return [given] if given else []


def find(data_path: str | Path | None) -> Path | None:
    """The folder whose entries are the videos, or None."""
    for root in roots(data_path):
        for base in (root, root / "DAVIS", root / "DAVIS-2017", root / "DAVIS2017"):
            for folder in (base / "JPEGImages" / "480p", base / "JPEGImages" / "Full-Resolution"):
                if folder.is_dir() and videos(folder):
                    return folder
        if root.is_dir() and videos(root):
            return root
    return None


def folder_of(data_path: str | Path | None) -> Path:
    """As `find`. **Raises:** `UserError` that says what to download, and what needs no download."""
    folder = find(data_path)
    if folder is None:
        where = f"in {roots(data_path)[0]}" if roots(data_path) else "(no data_path, no FLYJAX_DATA)"
        raise UserError(
            f"no DAVIS videos {where}: download DAVIS-2017-trainval-480p.zip from davischallenge.org and set "
            "simulation.data_path or FLYJAX_DATA to its folder (any folder of videos or frame folders will do), "
            "or use the built-in scenes_texture"
        )
    return folder


def split_videos(folder: Path, split: str) -> list[Path]:
    """Videos of a split, in order of name; which split a video is in follows from the names alone.

    **Raises:** `UserError` if there are fewer than two.
    """
    found = videos(folder)
    if len(found) < 2:
        raise UserError(f"{folder} holds {len(found)} video: a train and a test split need at least 2")
    shuffled = sorted(found, key=lambda p: hashlib.sha256(p.stem.encode()).digest())
    n_train = min(int((1 - _TEST_SHARE) * len(found)), len(found) - 1)
    chosen = shuffled[:n_train] if split == "train" else shuffled[n_train:]
    return sorted(chosen, key=lambda p: p.name)


def play(clips: list[np.ndarray], n_frames: int, columns: np.ndarray, *entropy) -> np.ndarray:
    """String clips together, each in every variant, in shuffled order, again and again.

    Args:
        clips: (frames, n_col) each, or (frames, n_col, 2) vectors, which turn with the picture.
        entropy: names and integers that choose the order.
    """
    turned = [flip(columns, axis)[rotation(columns, turn)] for axis, turn in VARIANTS]
    matrices = [(rotation_matrix(turn) @ flip_matrix(axis)).astype(np.float32) for axis, turn in VARIANTS]
    out = np.empty((n_frames, *clips[0].shape[1:]), np.float32)
    start, cycle = 0, 0
    while start < n_frames:
        order = generator(*entropy, cycle).permutation(len(clips) * len(VARIANTS))
        for k in order:
            clip, variant = clips[k // len(VARIANTS)], turned[k % len(VARIANTS)]
            end = min(start + len(clip), n_frames)
            shown = clip[: end - start, variant]
            out[start:end] = shown if clip.ndim == 2 else shown @ matrices[k % len(VARIANTS)].T
            start = end
        cycle += 1
    return out


def luminance(
    columns, n_frames: int, dt: float, split: str, seed: int, data_path, frame_rate: str = "native"
) -> np.ndarray:
    """(n_frames, n_col) float32 in [0, 1]. **Raises:** `UserError` if the videos are not there."""
    clips = [watch(path, columns) for path in split_videos(folder_of(data_path), split)]
    if frame_rate == "resampled":
        clips = [resample(clip, FPS, 1 / dt) for clip in clips]
    return play(clips, n_frames, columns, "DAVIS", split, seed)
