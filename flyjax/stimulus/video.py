"""Videos from disk to columns: frame folders (jpg, png), gif, and mp4/avi through ffmpeg."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int
from PIL import Image, ImageSequence, UnidentifiedImageError

from flyjax.stimulus.clips import file_stamp
from flyjax.stimulus.eye import BoxEye
from flyjax.utils.errors import UserError

IMAGES = (".jpg", ".jpeg", ".png")
FILMS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")
#: ITU-R BT.601 luma of 8-bit RGB, to [0, 1].
LUMA = np.array([0.299, 0.587, 0.114], np.float32) / 255


def natural_order(name: str) -> list:
    """Sorting key: frame 10 comes after frame 9, with or without leading zeros."""
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", name)]


def images(folder: Path) -> list[Path]:
    """The frames of a folder, in order."""
    found = (p for p in folder.iterdir() if p.suffix.lower() in IMAGES and not p.name.startswith("."))
    return sorted(found, key=lambda p: natural_order(p.name))


def videos(folder: Path) -> list[Path]:
    """The videos of a folder by name: subfolders with images in them, and film files."""

    def is_video(path: Path) -> bool:
        if path.is_dir():
            return any(p.suffix.lower() in IMAGES for p in path.iterdir())
        return path.is_file() and path.suffix.lower() in FILMS

    found = (path for path in folder.iterdir() if not path.name.startswith(".") and is_video(path))
    return sorted(found, key=lambda p: p.name)


def _luminance(image: Image.Image) -> np.ndarray:
    if image.mode not in ("RGB", "L"):
        image = image.convert("RGB")
    pixels = np.asarray(image, np.float32)
    return pixels / 255 if pixels.ndim == 2 else pixels @ LUMA


def _decode(path: Path) -> Iterator[np.ndarray]:
    """Luminance frames (H, W) of a film file."""
    if path.suffix.lower() == ".gif":
        with Image.open(path) as film:
            for frame in ImageSequence.Iterator(film):
                yield _luminance(frame.convert("RGB"))
        return
    try:
        import imageio_ffmpeg
    except ImportError:
        raise UserError(
            f"{path.name} needs a video decoder: pip install imageio-ffmpeg, or give a folder of jpg or png frames"
        ) from None
    reader = imageio_ffmpeg.read_frames(path, pix_fmt="rgb24")
    try:
        width, height = next(reader)["size"]
        for raw in reader:
            yield np.frombuffer(raw, np.uint8).reshape(height, width, 3).astype(np.float32) @ LUMA
    finally:
        reader.close()


def frames(path: Path) -> Iterator[np.ndarray]:
    """Luminance frames (H, W) float32 in [0, 1] of a video: a folder of images or a film file.

    **Raises:** `UserError` naming the file that cannot be read.
    """
    try:
        if path.is_dir():
            for image in images(path):
                path = image
                with Image.open(image) as opened:
                    yield _luminance(opened)
        else:
            yield from _decode(path)
    except (OSError, UnidentifiedImageError, RuntimeError, StopIteration, SyntaxError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"cannot read {path} ({reason}): remove or replace it") from None


@lru_cache(maxsize=512)
def _view(path: Path, stamp: tuple, columns: bytes) -> np.ndarray:
    eye = BoxEye(np.frombuffer(columns, np.int64).reshape(-1, 2))
    views = [eye(frame) for frame in frames(path)]
    if not views:
        raise UserError(f"{path} has no frames: remove or replace it")
    film = np.clip(np.stack(views), 0, 1)
    film.setflags(write=False)
    return film


def view_video(path: Path, columns: Int[np.ndarray, "n_col 2"]) -> Float32[np.ndarray, "frames n_col"]:
    """A video through the 13-px box eye, in [0, 1]; small enough to stay in memory.

    Frames smaller than the eye are enlarged until it fits, as flyvis does.

    **Raises:** `UserError` naming a file that cannot be read.
    """
    stamp = file_stamp(images(path) if path.is_dir() else [path])
    return _view(path, stamp, np.ascontiguousarray(columns, np.int64).tobytes())
