"""DAVIS 2017 (Pont-Tuset et al. 2017), or any folder of videos, as the fly sees it.

As in flyvis-gnn: luminance 0.299 R + 0.587 G + 0.114 B, 13 x 13 box means, no normalisation, each video in 2 flips x 4
rotations, videos split 80/20, looped to the number of frames asked for. By default one video frame (24/s) is one step;
`frame_rate='resampled'` repeats frames to play the video at its own speed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from flyjax.stimulus.clips import FPS, find_folder, play, require_folder
from flyjax.stimulus.eye import resample
from flyjax.stimulus.video import videos, view_video
from flyjax.utils.errors import UserError

_TEST_SHARE = 0.2
_FOLDERS = tuple(
    f"{base}/JPEGImages/{size}"
    for base in (".", "DAVIS", "DAVIS-2017", "DAVIS2017")
    for size in ("480p", "Full-Resolution")
)


def find(data_path: str | Path | None) -> Path | None:
    """The folder whose entries are the videos, or None."""
    return find_folder(data_path, (*_FOLDERS, "."), lambda folder: folder.is_dir() and bool(videos(folder)))


def require(data_path: str | Path | None) -> Path:
    """As `find`. **Raises:** `UserError` naming the download, and a stimulus that needs none."""
    return require_folder(
        find(data_path),
        data_path,
        "DAVIS videos",
        "download DAVIS-2017-trainval-480p.zip from davischallenge.org and set simulation.data_path or FLYJAX_DATA to "
        "its folder (any folder of videos or frame folders will do), or use the built-in scenes_texture",
    )


def split_videos(folder: Path, split: str) -> list[Path]:
    """Videos of a split, in order of name; the split of a video follows from the names alone.

    **Raises:** `UserError` if there are fewer than two.
    """
    found = videos(folder)
    if len(found) < 2:
        raise UserError(f"{folder} contains {len(found)} video: a train and a test split need at least 2")
    shuffled = sorted(found, key=lambda p: hashlib.sha256(p.stem.encode()).digest())
    n_train = min(int((1 - _TEST_SHARE) * len(found)), len(found) - 1)
    return sorted(shuffled[:n_train] if split == "train" else shuffled[n_train:], key=lambda p: p.name)


def luminance(
    columns, n_frames: int, dt: float, split: str, seed: int, data_path, frame_rate: str = "native"
) -> Float32[np.ndarray, "T n_col"]:
    """Luminance in [0, 1]. **Raises:** `UserError` if the videos are not there."""
    clips = [view_video(path, columns) for path in split_videos(require(data_path), split)]
    if frame_rate == "resampled":
        clips = [resample(clip, FPS, 1 / dt) for clip in clips]
    return play(clips, n_frames, columns, "DAVIS", split, seed)


def flow(*_args, **_kwargs):
    """**Raises:** `UserError`: no flow is known."""
    raise UserError("the flow of DAVIS videos is not known: use optical_flow or a built-in stimulus")
