"""Videos from disk to columns: frame folders (jpg, png, tif, bmp, webp), gif, and mp4/avi through ffmpeg."""

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int
from PIL import Image, ImageOps, ImageSequence

from flyjax.stimulus.clips import file_stamp
from flyjax.stimulus.eye import BoxEye, resample
from flyjax.utils.errors import UserError, reading
from flyjax.utils.system import cores

IMAGES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
FILMS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")
#: ITU-R BT.601 luma of 8-bit RGB, to [0, 1].
LUMA = np.array([0.299, 0.587, 0.114], np.float32) / 255
#: Frame rate of folders of frames by default, 1/s: that of DAVIS and Sintel.
FOLDER_RATE = 24.0


class Film(NamedTuple):
    """A video through the eye."""

    luminance: Float32[np.ndarray, "frames n_col"]  #: in [0, 1]
    durations: Float64[np.ndarray, " frames"] | None  #: s; None where the file does not state them

    def at_rate(self, rate: float, folder_rate: float = FOLDER_RATE) -> Float32[np.ndarray, "T n_col"]:
        """Luminance sampled at `rate` (1/s), frames repeated or left out; `folder_rate` where none is stated."""
        if self.durations is None or np.ptp(self.durations) == 0:
            return resample(self.luminance, folder_rate if self.durations is None else 1 / self.durations[0], rate)
        ends = np.cumsum(self.durations)
        n = max(1, int(np.ceil(ends[-1] * rate - 1e-9)))
        return self.luminance[np.searchsorted(ends, (np.arange(n) + 0.5) * ends[-1] / n, side="right")]


def natural_order(name: str) -> list:
    """Sorting key: frame 10 comes after frame 9, with or without leading zeros."""
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in re.split(r"(\d+)", name)]


def images(folder: Path) -> list[Path]:
    """The frames of a folder, in order."""
    with reading(folder):
        found = (p for p in folder.iterdir() if p.suffix.lower() in IMAGES and not p.name.startswith("."))
        return sorted(found, key=lambda p: natural_order(p.name))


def is_video(path: Path) -> bool:
    """Whether it is a film file or a folder with images in it."""
    with reading(path):
        return bool(images(path)) if path.is_dir() else path.is_file() and path.suffix.lower() in FILMS


def videos(folder: Path) -> list[Path]:
    """The videos of a folder by name: subfolders with images in them, and film files."""
    if not folder.is_dir():
        return []
    with reading(folder):
        return sorted((p for p in folder.iterdir() if not p.name.startswith(".") and is_video(p)), key=lambda p: p.name)


def files_of(video: Path) -> list[Path]:
    """The film, or the frames of the folder.

    **Raises:** `UserError` for a film that nothing installed can read.
    """
    if video.is_dir():
        return images(video)
    try:
        if video.suffix.lower() != ".gif":
            ffmpeg()
    except ImportError:
        raise UserError(
            f"{video.name} needs a video decoder: pip install imageio-ffmpeg, or give a folder of jpg or png frames"
        ) from None
    return [video]


def luminance_of(image: Image.Image) -> Float32[np.ndarray, "H W"]:
    """Luminance in [0, 1] of a picture of any mode, turned as its EXIF orientation asks; transparent is black.

    **Raises:** `ValueError` for numbers whose white is not known.
    """
    is_png = image.format == "PNG"  # older versions of Pillow read its 16 bits as 32
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and is_png):
        return np.asarray(image).astype(np.float32) / 65535
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"its mode {image.mode} does not state which value is white; store it with 8 or 16 bits")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
    if image.mode != "L":
        return np.asarray(image.convert("RGB"), np.float32) @ LUMA
    return np.asarray(image, np.float32) / 255


#: Filters of warnings are those of all threads.
_filtering = Lock()


def _opened(path: Path) -> Image.Image:
    with _filtering, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(path)


def _gif(path: Path) -> Iterator[tuple[np.ndarray, float]]:
    with _opened(path) as film:
        for frame in ImageSequence.Iterator(film):
            # Players show a frame without a duration for 0.1 s.
            yield luminance_of(frame), (frame.info.get("duration") or 100) / 1000


def ffmpeg() -> ModuleType:
    """imageio-ffmpeg, without Python's warning of forks beside JAX' threads: exec follows each of its forks at once.

    **Raises:** `ImportError` where it, or the program that it runs, is not installed.
    """
    import imageio_ffmpeg

    try:
        imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise ImportError(str(error)) from None
    warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called", category=RuntimeWarning)
    return imageio_ffmpeg


def _ffmpeg(path: Path) -> Iterator[tuple[np.ndarray, float | None]]:
    reader = ffmpeg().read_frames(path, pix_fmt="rgb24")
    try:
        meta = next(reader)
        (width, height), rate = meta["size"], meta["fps"]
        for raw in reader:
            picture = np.frombuffer(raw, np.uint8).reshape(height, width, 3).astype(np.float32)
            yield picture @ LUMA, 1 / rate if rate else None
    finally:
        reader.close()


def frames(path: Path) -> Iterator[tuple[Float32[np.ndarray, "H W"], float | None]]:
    """Luminance in [0, 1] and duration (s), where it is stated, of each frame of a folder of images or a film file.

    **Raises:** `UserError` naming the file that cannot be read.
    """
    if path.is_dir():
        for image in images(path):
            with reading(image), _opened(image) as opened:
                picture = luminance_of(opened)
            yield picture, None
        return
    with reading(path):
        yield from (_gif if path.suffix.lower() == ".gif" else _ffmpeg)(path)


@lru_cache(maxsize=512)
def _view(path: Path, stamp: tuple, columns: bytes, prepare: Callable[[np.ndarray], np.ndarray] | None) -> Film:
    eye = BoxEye(np.frombuffer(columns, np.int64).reshape(-1, 2))
    views = [(eye(frame if prepare is None else prepare(frame)), duration) for frame, duration in frames(path)]
    if not views:
        raise UserError(f"{path} has no frames: remove or replace it")
    luminance = np.clip(np.stack([view for view, _ in views]), 0, 1)
    luminance.setflags(write=False)
    durations = [duration for _, duration in views if duration is not None]
    return Film(luminance, np.array(durations) if len(durations) == len(views) else None)


def view_film(
    path: Path, columns: Int[np.ndarray, "n_col 2"], prepare: Callable[[np.ndarray], np.ndarray] | None = None
) -> Film:
    """A video through the 13-px box eye, each picture `prepare`d before; small enough to stay in memory.

    Frames smaller than the eye are enlarged until it fits, as flyvis does.

    **Raises:** `UserError` naming a file that cannot be read.
    """
    return _view(path, file_stamp(files_of(path)), np.ascontiguousarray(columns, np.int64).tobytes(), prepare)


def view_films(
    paths: Sequence[Path],
    columns: Int[np.ndarray, "n_col 2"],
    prepare: Callable[[np.ndarray], np.ndarray] | None = None,
) -> list[Film]:
    """`view_film` of each, several at once."""
    with ThreadPoolExecutor(cores()) as threads:
        return list(threads.map(partial(view_film, columns=columns, prepare=prepare), paths))
