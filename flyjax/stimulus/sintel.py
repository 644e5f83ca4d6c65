"""MPI Sintel (Butler et al. 2012), the optic-flow data set of flyvis, as the fly sees it.

As in flyvis: "final" pass, 24 frames/s, centre crop to 70 % of the width, three vertical splits that overlap where the
eye is wide; frame n + 1 is paired with the flow from n to n + 1. Luminance is repeated to 1/dt, flow interpolated
linearly. Scenes are split by flyvis' own validation list.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int

from flyjax.stimulus.clips import FPS, file_stamp, find_folder, play, require_folder
from flyjax.stimulus.eye import BoxEye, resample
from flyjax.stimulus.video import frames, images
from flyjax.utils.errors import UserError, reading

CROP = 0.7
KERNEL = 13  # px per column
SPLITS = 3
#: Scenes flyvis validates on; in a folder with none of them, every fifth scene is held out.
VALIDATION = ("ambush_2", "bamboo_1", "bandage_1", "cave_4", "market_2", "mountain_1")
_FLO_TAG = 202021.25


@dataclass(frozen=True)
class Clip:
    """One vertical split of a scene, at the movie's own frame rate.

    **Attributes:**

    - `height`: of the movie, px.
    - `luminance`: in [0, 1].
    - `flow`: x right, y up: box sums of pixel displacements per frame over the image height (flyvis' unit), or None
        where the data set has no flow.
    """

    height: int
    luminance: Float32[np.ndarray, "frames n_col"]
    flow: Float32[np.ndarray, "frames n_col 2"] | None


def find(data_path: str | Path | None) -> Path | None:
    """The folder that contains training/final, or None."""
    subfolders = (".", "Sintel", "MPI-Sintel-complete", "MPI-Sintel", "sintel")
    return find_folder(data_path, subfolders, lambda f: (f / "training" / "final").is_dir() and bool(scenes(f)))


def require(data_path: str | Path | None) -> Path:
    """As `find`. **Raises:** `UserError` naming the download, and a stimulus that needs none."""
    return require_folder(
        find(data_path),
        data_path,
        "MPI Sintel",
        "download MPI-Sintel-complete.zip from sintel.is.tue.mpg.de and set simulation.data_path or FLYJAX_DATA to its "
        "folder (with training/final and training/flow), or use the built-in scenes_flow",
    )


def scenes(folder: Path) -> list[str]:
    """Names of the training scenes, sorted."""
    final = folder / "training" / "final"
    return sorted(p.name for p in final.iterdir() if p.is_dir() and images(p))


def split_scenes(folder: Path, split: str) -> list[str]:
    """Scenes of a split. **Raises:** `UserError` if there are fewer than two scenes."""
    names = scenes(folder)
    if len(names) < 2:
        raise UserError(f"{folder} contains {len(names)} scene: a train and a test split need at least 2")
    held_out = [name for name in names if name in VALIDATION]
    if not held_out or len(held_out) == len(names):
        held_out = names[::5]
    return [name for name in names if (name in held_out) == (split == "test")]


def read_flo(path: Path) -> np.ndarray:
    """(H, W, 2) float32 of a Middlebury .flo file: pixels per frame, x right, y **down**.

    **Raises:** `UserError` if the file is torn or of another format.
    """
    remedy = "unpack the data set again"
    with reading(path, remedy), path.open("rb") as file:
        head = file.read(12)
        if len(head) < 12 or np.frombuffer(head[:4], "<f4")[0] != np.float32(_FLO_TAG):
            raise UserError(f"{path} is no .flo file: {remedy}")
        width, height = map(int, np.frombuffer(head[4:], "<i4"))
        # The size of the file bounds what is read.
        if width < 1 or height < 1 or path.stat().st_size != 12 + 8 * width * height:
            raise UserError(f"{path} is torn: {remedy}")
        field = np.frombuffer(file.read(), "<f4").reshape(height, width, 2)
    if not np.isfinite(field).all():
        raise UserError(f"{path} contains NaN or infinite values: {remedy}")
    return field


def windows(width: int, eye_width: int) -> list[slice]:
    """The three vertical splits of the centre crop, each at least as wide as the eye needs (px)."""
    crop = int(CROP * width)
    first, end = (width - crop) // 2, (width + crop) // 2
    crop = end - first
    size = min(max(eye_width, crop // SPLITS), crop)
    step = size - int(np.ceil((size * SPLITS - crop) / (SPLITS - 1)))
    return [slice(first + k * step, first + k * step + size) for k in range(SPLITS)]


def files(data_path: str | Path | None) -> list[Path]:
    """Every file that is shown, or is flow."""
    folder = require(data_path)
    return [
        file
        for scene in scenes(folder)
        for file in [*images(folder / "training" / "final" / scene), *_flow_files(folder, scene)]
    ]


def _flow_files(folder: Path, scene: str) -> list[Path]:
    return sorted((folder / "training" / "flow" / scene).glob("*.flo"))


@lru_cache(maxsize=128)
def _clips(folder: Path, scene: str, stamp: tuple, columns: bytes, with_flow: bool) -> tuple[Clip, ...]:
    eye = BoxEye(np.frombuffer(columns, np.int64).reshape(-1, 2), KERNEL)
    margin = eye.min_frame_size[1] + 2 * eye.kernel

    def render(pictures, how):  # (splits, frames, n_col)
        views = [[eye(p[..., w], how) for w in windows(p.shape[-1], margin)] for p in pictures]
        return np.stack([np.stack(v) for v in views], axis=1)

    pictures = list(frames(folder / "training" / "final" / scene))[1:]
    if not pictures:
        raise UserError(f"{folder}/training/final/{scene} has a single frame: unpack the data set again")
    height, flow = len(pictures[0]), None
    if with_flow and (paths := _flow_files(folder, scene)):
        if len(paths) != len(pictures):
            raise UserError(
                f"{scene}: {len(paths)} .flo files for {len(pictures) + 1} frames: unpack the data set again"
            )
        fields = [read_flo(p) for p in paths]
        if fields[0].shape[:2] != pictures[0].shape:
            raise UserError(f"{scene}: flow and frames differ in size: unpack the data set again")
        x, y = (render([sign * f[..., k] / len(f) for f in fields], "sum") for k, sign in ((0, 1), (1, -1)))
        flow = np.stack([x, y], axis=-1)
    luminance = np.clip(render(pictures, "mean"), 0, 1)
    return tuple(Clip(height, luminance[k], None if flow is None else flow[k]) for k in range(SPLITS))


def clips(folder: Path, split: str, columns: Int[np.ndarray, "n_col 2"], with_flow: bool = False) -> list[Clip]:
    """Every scene of a split in its three windows.

    **Raises:** `UserError` naming a file that is missing, torn or does not fit the others.
    """
    key = np.ascontiguousarray(columns, np.int64).tobytes()
    found: list[Clip] = []
    for scene in split_scenes(folder, split):
        stamp = file_stamp(images(folder / "training" / "final" / scene) + _flow_files(folder, scene))
        found += _clips(folder, scene, stamp, key, with_flow)
    return found


def luminance(
    columns, n_frames: int, dt: float, split: str, seed: int, data_path, frame_rate: str = "resampled"
) -> Float32[np.ndarray, "T n_col"]:
    """Luminance in [0, 1], in 2 flips x 4 rotations, looped.

    **Raises:** `UserError` if the data set is not there or damaged.
    """
    films = [clip.luminance for clip in clips(require(data_path), split, columns)]
    if frame_rate == "resampled":
        films = [resample(film, FPS, 1 / dt) for film in films]
    return play(films, n_frames, columns, "optical_flow", split, seed)


def flow(
    columns, n_frames: int, dt: float, split: str, seed: int, data_path, frame_rate: str = "resampled"
) -> Float32[np.ndarray, "T n_col 2"]:
    """Flow (columns/s, x right, y up) of the frames that `luminance` shows.

    **Raises:** `UserError` if the data set is not there, damaged or has no flow.
    """
    folder, films = require(data_path), []
    for clip in clips(folder, split, columns, with_flow=True):
        if clip.flow is None:
            raise UserError(f"{folder} has no training/flow: unpack the data set again")
        # Box sum over the image height -> pixels per movie frame -> columns.
        shift = clip.flow * np.float32(clip.height / KERNEL**3)
        # Played one frame per step, the movie runs 1 / (24 dt) times as fast.
        film = resample(shift, FPS, 1 / dt, "linear") * FPS if frame_rate == "resampled" else shift / dt
        films.append(film.astype(np.float32))
    return play(films, n_frames, columns, "optical_flow", split, seed)
