"""MPI Sintel (Butler et al. 2012), the optic-flow data set of flyvis, as the fly sees it.

As flyvis: "final" pass, 24 frames/s, centre crop to 70 % of the width, three vertical splits that
overlap where the eye is wide; frame n + 1 goes with the flow from n to n + 1. Luminance is
repeated to 1/dt, flow interpolated linearly. Scenes are split by flyvis' own validation list.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from flyjax.stimulus.davis import play, roots
from flyjax.stimulus.eye import BoxEye, resample
from flyjax.stimulus.video import frames, images
from flyjax.utils.errors import UserError

FPS = 24.0
CROP = 0.7
KERNEL = 13  # px per column
SPLITS = 3
#: Scenes flyvis validates on; in a folder with none of them, every fifth scene is held out.
VALIDATION = ("ambush_2", "bamboo_1", "bandage_1", "cave_4", "market_2", "mountain_1")
_FLO_TAG = 202021.25


@dataclass(frozen=True)
class Clip:
    """One vertical split of a scene, at the movie's own frame rate.

    Attributes:
        height: of the movie, px.
        luminance: (frames, n_col) in [0, 1].
        flow: (frames, n_col, 2) x right, y up: box sums of pixel displacements per frame over the
            image height (flyvis' unit), or None where the data set has no flow.
    """

    height: int
    luminance: np.ndarray
    flow: np.ndarray | None


def find(data_path: str | Path | None) -> Path | None:
    """The folder that holds training/final, or None."""
    for root in roots(data_path):
        for base in (root, root / "Sintel", root / "MPI-Sintel-complete", root / "MPI-Sintel", root / "sintel"):
            if (base / "training" / "final").is_dir() and scenes(base):
                return base
    return None


def folder_of(data_path: str | Path | None) -> Path:
    """As `find`. **Raises:** `UserError` that says what to download, and what needs no download."""
    folder = find(data_path)
    if folder is None:
        where = f"in {roots(data_path)[0]}" if roots(data_path) else "(no data_path, no FLYJAX_DATA)"
        raise UserError(
            f"no MPI Sintel {where}: download MPI-Sintel-complete.zip from sintel.is.tue.mpg.de and set "
            "simulation.data_path or FLYJAX_DATA to its folder (with training/final and training/flow), "
            "or use the built-in scenes_flow"
        )
    return folder


def scenes(folder: Path) -> list[str]:
    """Names of the training scenes, sorted."""
    final = folder / "training" / "final"
    return sorted(p.name for p in final.iterdir() if p.is_dir() and images(p))


def split_scenes(folder: Path, split: str) -> list[str]:
    """Scenes of a split. **Raises:** `UserError` if there are fewer than two scenes."""
    names = scenes(folder)
    if len(names) < 2:
        raise UserError(f"{folder} holds {len(names)} scene: a train and a test split need at least 2")
    held = [name for name in names if name in VALIDATION]
    if not held or len(held) == len(names):
        held = names[::5]
    return [name for name in names if (name in held) == (split == "test")]


def read_flo(path: Path) -> np.ndarray:
    """(H, W, 2) float32 of a Middlebury .flo file: pixels per frame, x right, y **down**.

    **Raises:** `UserError` if the file is torn or of another format.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if len(data) < 12 or np.frombuffer(data[:4], "<f4")[0] != np.float32(_FLO_TAG):
        raise UserError(f"{path} is no .flo file: unpack the data set again")
    width, height = np.frombuffer(data[4:12], "<i4")
    if width < 1 or height < 1 or len(data) != 12 + 8 * int(width) * int(height):
        raise UserError(f"{path} is torn: unpack the data set again")
    return np.frombuffer(data[12:], "<f4").reshape(height, width, 2)


def windows(width: int, eye_width: int) -> list[slice]:
    """The three vertical splits of the centre crop, each at least as wide as the eye asks for."""
    kept = int(CROP * width)
    left, kept = (width - kept) // 2, (width + kept) // 2 - (width - kept) // 2
    size = min(max(eye_width, kept // SPLITS), kept)
    overlap = int(np.ceil((size * SPLITS - kept) / (SPLITS - 1)))
    return [slice(left + k * (size - overlap), left + k * (size - overlap) + size) for k in range(SPLITS)]


def _stamp(folder: Path, scene: str) -> tuple:
    paths = images(folder / "training" / "final" / scene) + _flows(folder, scene)
    return tuple((p.name, (s := p.stat()).st_size, s.st_mtime_ns) for p in paths)


def _flows(folder: Path, scene: str) -> list[Path]:
    return sorted((folder / "training" / "flow" / scene).glob("*.flo"))


@lru_cache(maxsize=128)
def _clips(folder: Path, scene: str, stamp: tuple, columns: bytes, with_flow: bool) -> tuple[Clip, ...]:
    eye = BoxEye(np.frombuffer(columns, np.int64).reshape(-1, 2), KERNEL)
    margin = eye.min_frame_size[1] + 2 * eye.kernel

    def render(pictures, how):
        return np.stack(
            [np.stack([eye(p[..., w], how) for w in windows(p.shape[-1], margin)]) for p in pictures], axis=1
        )

    shots = list(frames(folder / "training" / "final" / scene))[1:]
    if not shots:
        raise UserError(f"{folder}/training/final/{scene} holds a single frame: unpack the data set again")
    light, flow = np.clip(render(shots, "mean"), 0, 1), None
    if with_flow and (paths := _flows(folder, scene)):
        if len(paths) != len(shots):
            raise UserError(f"{scene}: {len(paths)} .flo files for {len(shots) + 1} frames: unpack the data set again")
        fields = [read_flo(p) for p in paths]
        if fields[0].shape[:2] != shots[0].shape:
            raise UserError(f"{scene}: flow and frames differ in size: unpack the data set again")
        # Over the image height, y up.
        flow = np.stack(
            [render([s * f[..., k] / len(f) for f in fields], "sum") for k, s in ((0, 1), (1, -1))], axis=-1
        )
    return tuple(Clip(len(shots[0]), light[k], None if flow is None else flow[k]) for k in range(SPLITS))


def clips(folder: Path, split: str, columns, with_flow: bool = False) -> list[Clip]:
    """Every scene of a split in its three windows.

    **Raises:** `UserError` naming a file that is missing, torn or does not fit the others.
    """
    key = np.ascontiguousarray(columns, np.int64).tobytes()
    return [
        clip
        for scene in split_scenes(folder, split)
        for clip in _clips(folder, scene, _stamp(folder, scene), key, with_flow)
    ]


def luminance(
    columns, n_frames: int, dt: float, split: str, seed: int, data_path, frame_rate: str = "resampled"
) -> np.ndarray:
    """(n_frames, n_col) float32 in [0, 1], in 2 flips x 4 rotations, looped.

    **Raises:** `UserError` if the data set is not there or damaged.
    """
    shown = [clip.luminance for clip in clips(folder_of(data_path), split, columns)]
    if frame_rate == "resampled":
        shown = [resample(clip, FPS, 1 / dt) for clip in shown]
    return play(shown, n_frames, columns, "optical_flow", split, seed)


def flow(
    columns, n_frames: int, dt: float, split: str, seed: int, data_path, frame_rate: str = "resampled"
) -> np.ndarray:
    """(n_frames, n_col, 2) columns/s of the frames that `luminance` shows.

    **Raises:** `UserError` if the data set is not there, damaged or has no flow.
    """
    folder, shown = folder_of(data_path), []
    for clip in clips(folder, split, columns, with_flow=True):
        if clip.flow is None:
            raise UserError(f"{folder} has no training/flow: unpack the data set again")
        # Box sum over the image height -> pixels per movie frame -> columns.
        shift = clip.flow * np.float32(clip.height / KERNEL**3)
        # Played one frame per step, the movie runs 1 / (24 dt) times as fast.
        shown.append(resample(shift, FPS, 1 / dt, "linear") * FPS if frame_rate == "resampled" else shift / dt)
    return play([s.astype(np.float32) for s in shown], n_frames, columns, "optical_flow", split, seed)
