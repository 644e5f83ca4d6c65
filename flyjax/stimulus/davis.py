"""DAVIS 2017 (Pont-Tuset et al. 2017) and own videos, as the fly sees them.

Luminance 0.299 R + 0.587 G + 0.114 B, 13 x 13 box means, no normalisation, each video in 2 flips x 4 rotations, videos
split 80/20, looped to the number of frames asked for. By default one video frame is one step; `frame_rate='resampled'`
repeats frames to play the video at its own speed. A single own video is split in time.

That much is shared with flyvis-gnn. Its own way of showing videos, `video_pipeline='flyvis_gnn'`, differs: pictures are
turned by 90 degrees clockwise and cropped to the central 60 % of their width; videos of fewer than 50 frames are left
out; rotations are 0, 1, 3 and 4 times 60 degrees; the first 80 % of the videos by name are for training; one order of
all clips is repeated in every pass.
"""

import hashlib
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from flyjax.stimulus.clips import N_ORIENTATIONS, DataSet
from flyjax.stimulus.video import Film, files_of, is_video, videos, view_film, view_films
from flyjax.utils.errors import UserError

_TEST_SHARE = 0.2


def split_videos(found: Sequence[Path], split: str) -> list[Path]:
    """Videos of a split, in order of name; the split of a video follows from the names alone."""
    shuffled = sorted(found, key=lambda p: hashlib.sha256(os.fsencode(p.stem)).digest())
    n_train = min(int((1 - _TEST_SHARE) * len(found)), len(found) - 1)
    return sorted(shuffled[:n_train] if split == "train" else shuffled[n_train:], key=lambda p: p.name)


def _split_in_time(path: Path, film: Film, split: str) -> Film:
    """The first part of a film to train, the last to test."""
    n = len(film.luminance)
    if n < 2:
        raise UserError(f"{path} has a single frame: a train and a test split need at least 2")
    n_train = min(int((1 - _TEST_SHARE) * n), n - 1) or 1
    part = slice(n_train) if split == "train" else slice(n_train, None)
    return Film(film.luminance[part], None if film.durations is None else film.durations[part])


#: As flyvis-gnn (2f8613e) shows videos: turns of 60 degrees, frames of the shortest video, width that is kept.
PUBLISHED_TURNS = (0, 1, 3, 4)
_MIN_FRAMES = 50
_CENTRE = 0.6


def quarter_turn(picture: Float32[np.ndarray, "H W"]) -> Float32[np.ndarray, "W C"]:
    """The picture turned by 90 degrees clockwise, and the central 60 % of its new width."""
    turned = np.rot90(picture, -1)
    width = turned.shape[1]
    kept = int(_CENTRE * width)
    return turned[:, (width - kept) // 2 : (width + kept) // 2]


def published_order(n_videos: int, split: str, seed: int) -> list[int]:
    """The order of each pass over the clips of a split, numbered as in `play`, where all videos are its clips."""
    order = list(range(N_ORIENTATIONS * n_videos))
    random.Random(seed).shuffle(order)
    n_train = int((1 - _TEST_SHARE) * n_videos)
    return [k for k in order if (k // N_ORIENTATIONS < n_train) == (split == "train")]


@dataclass(frozen=True)
class Videos(DataSet):
    """A folder whose entries are the videos or, where one is enough, a video."""

    resampled: bool = False  #: by default one frame is one step
    single: bool = False  #: whether one video is enough

    def videos(self, data_path: str | Path | None) -> list[Path]:
        """All videos. **Raises:** `UserError` if there are none, or one where two are needed."""
        source = self.require(data_path)
        found = videos(source) or [source]
        if len(found) < 2 and not self.single:
            raise UserError(
                f"{source} contains {len(found)} video: a train and a test split of {self.name} need at least 2; for "
                "own videos set simulation.visual_input_type=video, which splits a single one in time"
            )
        return found

    def files(self, data_path: str | Path | None) -> list[Path]:
        """Every file that is shown."""
        return [file for video in self.videos(data_path) for file in files_of(video)]

    def clips(
        self,
        quantity: str,
        columns,
        dt: float,
        split: str,
        data_path,
        resampled: bool,
        folder_rate: float,
        pipeline: str,
    ) -> list[Float32[np.ndarray, "frames n_col"]]:
        """Luminance in [0, 1] of each video of the split; of all that are shown in the pipeline flyvis_gnn.

        **Raises:** `UserError` where they cannot be read, and for their flow.
        """
        if quantity == "flow":
            raise UserError(f"the flow of {self.what} is not known: use optical_flow or a built-in stimulus")
        found = self.videos(data_path)
        if pipeline == "flyvis_gnn":
            long = [path for path in found if path.is_file() or len(files_of(path)) >= _MIN_FRAMES]
            films = view_films(long, columns, quarter_turn)
            films = [film for film in films if len(film.luminance) >= _MIN_FRAMES]
            if len(films) < 2:
                raise UserError(
                    f"{self.require(data_path)}: flyvis-gnn shows videos of at least {_MIN_FRAMES} frames, and fewer "
                    "than 2 are as long: set simulation.video_pipeline=flyjax"
                )
        elif len(found) == 1:
            films = [_split_in_time(found[0], view_film(found[0], columns), split)]
        else:
            films = view_films(split_videos(found, split), columns)
        return [film.at_rate(1 / dt, folder_rate) if resampled else film.luminance for film in films]


DAVIS = Videos(
    "DAVIS",
    (
        *(
            f"{base}/JPEGImages/{size}"
            for base in (".", "DAVIS", "DAVIS-2017", "DAVIS2017")
            for size in ("480p", "Full-Resolution")
        ),
        ".",
    ),
    lambda folder: bool(videos(folder)),
    "DAVIS videos",
    "download DAVIS-2017-trainval-480p.zip from davischallenge.org and set simulation.data_path or FLYJAX_DATA to its "
    "folder, set simulation.visual_input_type=video for own videos, or use the built-in scenes_texture",
)
OWN = Videos(
    "video",
    (".",),
    lambda path: bool(videos(path)) or is_video(path),
    "video",
    "set simulation.data_path (--data-path) or FLYJAX_DATA to a film, a folder of frames, or a folder of several of "
    "these, or use a built-in stimulus such as scenes_texture",
    single=True,
)
