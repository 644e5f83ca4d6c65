"""MPI Sintel (Butler et al. 2012), the optic-flow data set of flyvis, as the fly sees it.

As in flyvis: "final" pass, 24 frames/s, centre crop to 70 % of the width, three vertical splits that overlap where the
eye is wide; frame n + 1 is paired with the flow from n to n + 1. Luminance is repeated to 1/dt, flow interpolated
linearly. Scenes are split by flyvis' own validation list.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int

from flyjax.stimulus.clips import DataSet, file_stamp
from flyjax.stimulus.eye import BoxEye, resample
from flyjax.stimulus.video import frames, images
from flyjax.utils.errors import UserError, reading

FPS = 24.0  #: frame rate, 1/s
CROP = 0.7
KERNEL = 13  # px per column
SPLITS = 3
#: Scenes flyvis validates on; in a folder with none of them, every fifth scene is held out.
VALIDATION = ("ambush_2", "bamboo_1", "bandage_1", "cave_4", "market_2", "mountain_1")
_FLO_TAG = 202021.25


class Clip(NamedTuple):
    """One vertical split of a scene, at the movie's own frame rate."""

    luminance: Float32[np.ndarray, "frames n_col"]  #: in [0, 1]
    #: Mean displacement under the box in columns per frame, x right, y up; None where the data set has no flow.
    flow: Float32[np.ndarray, "frames n_col 2"] | None


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


def _flow_files(folder: Path, scene: str) -> list[Path]:
    return sorted((folder / "training" / "flow" / scene).glob("*.flo"))


@lru_cache(maxsize=128)
def _clips(folder: Path, scene: str, stamp: tuple, columns: bytes, with_flow: bool) -> tuple[Clip, ...]:
    eye = BoxEye(np.frombuffer(columns, np.int64).reshape(-1, 2), KERNEL)
    margin = eye.min_frame_size[1] + 2 * eye.kernel

    def render(pictures, how):  # (splits, frames, n_col)
        views = [[eye(p[..., w], how) for w in windows(p.shape[-1], margin)] for p in pictures]
        return np.stack([np.stack(v) for v in views], axis=1)

    pictures = [picture for picture, _ in frames(folder / "training" / "final" / scene)][1:]
    if not pictures:
        raise UserError(f"{folder}/training/final/{scene} has a single frame: unpack the data set again")
    flow = None
    if with_flow and (paths := _flow_files(folder, scene)):
        if len(paths) != len(pictures):
            raise UserError(
                f"{scene}: {len(paths)} .flo files for {len(pictures) + 1} frames: unpack the data set again"
            )
        fields = [read_flo(p) for p in paths]
        if fields[0].shape[:2] != pictures[0].shape:
            raise UserError(f"{scene}: flow and frames differ in size: unpack the data set again")
        x, y = (render([sign * f[..., k] / KERNEL for f in fields], "mean") for k, sign in ((0, 1), (1, -1)))
        flow = np.stack([x, y], axis=-1)
    luminance = np.clip(render(pictures, "mean"), 0, 1)
    return tuple(Clip(luminance[k], None if flow is None else flow[k]) for k in range(SPLITS))


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


@dataclass(frozen=True)
class Sintel(DataSet):
    """The folder with training/final and, for flow, training/flow."""

    resampled: bool = True

    def files(self, data_path: str | Path | None) -> list[Path]:
        """Every file that is shown, or is flow."""
        folder = self.require(data_path)
        pictures = [images(folder / "training" / "final" / scene) for scene in scenes(folder)]
        return [*sum(pictures, []), *(file for scene in scenes(folder) for file in _flow_files(folder, scene))]

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
    ) -> list[Float32[np.ndarray, "frames n_col ..."]]:
        """Luminance in [0, 1], or flow in columns/s (x right, y up), of each window of each scene.

        **Raises:** `UserError` if the data set is not there, is damaged or has no flow.
        """
        folder = self.require(data_path)
        found = clips(folder, split, columns, with_flow=quantity == "flow")
        if quantity == "luminance":
            return [resample(c.luminance, FPS, 1 / dt) if resampled else c.luminance for c in found]
        flows = [c.flow for c in found if c.flow is not None]
        if len(flows) < len(found):
            raise UserError(f"{folder} has no training/flow: unpack the data set again")
        # Played one frame per step, the movie runs 1 / (24 dt) times as fast.
        return [
            resample(f, FPS, 1 / dt, "linear") * np.float32(FPS) if resampled else f / np.float32(dt) for f in flows
        ]


SINTEL = Sintel(
    "optical_flow",
    (".", "Sintel", "MPI-Sintel-complete", "MPI-Sintel", "sintel"),
    lambda folder: (folder / "training" / "final").is_dir() and bool(scenes(folder)),
    "MPI Sintel",
    "download MPI-Sintel-complete.zip from sintel.is.tue.mpg.de and set simulation.data_path or FLYJAX_DATA to its "
    "folder (with training/final and training/flow), or use the built-in scenes_flow",
)
