"""Stimuli by name, the values of `simulation.visual_input_type`, and mixtures of them.

A mixture such as `scenes_texture:0.7+flashes:0.2+blank:0.1` shows its parts in turn, 1-3 s at a time, in the given
shares of time.
"""

import hashlib
import itertools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from flyjax.stimulus.clips import N_ORIENTATIONS, Blank, DataSet, play
from flyjax.stimulus.davis import PUBLISHED_TURNS, Videos, published_order
from flyjax.stimulus.scenes import Film
from flyjax.stimulus.textures import generator
from flyjax.stimulus.video import FOLDER_RATE
from flyjax.utils import registry
from flyjax.utils.errors import UserError, nearest, reading

NAMES = registry.stimulus.built_in
#: Names that need files.
DATA_SETS: dict[str, Any] = {name: entry for name in NAMES if isinstance(entry := registry.stimulus[name], DataSet)}
SPLITS = ("train", "test")
FRAME_RATES = ("default", "native", "resampled")
PIPELINES = ("flyjax", "flyvis_gnn")
#: Test stimulus by training stimulus; scenes_texture for the others.
_TEST_STIMULUS = {
    "DAVIS": "optical_flow",
    "optical_flow": "DAVIS",
    "scenes_texture": "scenes_flow",
    "video": "video",  # other videos, or the last part of the only one
}


def check_known(what: str, value: object, known: Iterable[str]) -> None:
    """**Raises:** `UserError` that names the nearest known value."""
    if value not in (known := tuple(known)):
        raise UserError(f"unknown {what} {value!r}.{nearest(value, known)} Known: {', '.join(known)}.")


def parts_of(name: str) -> list[tuple[str, float]]:
    """Names and normalised weights of the parts of a mixture, whose weights are 1 where left out, or of one stimulus.

    **Raises:** `UserError` for an unknown name, naming the nearest, a weight that is no positive number, or a part
    named twice.
    """
    weights: dict[str, float] = {}
    for part in str(name).split("+"):
        kind, colon, text = part.strip().partition(":")
        try:
            weight = float(text) if colon else 1.0
        except ValueError:
            weight = 0.0
        if not (np.isfinite(weight) and weight > 0):
            raise UserError(f"stimulus {name!r}: {part!r} needs a positive weight, as in scenes_texture:0.7+blank:0.3")
        if kind in weights:
            raise UserError(f"stimulus {name!r} names a part twice: add its weights")
        check_known("stimulus", kind, registry.stimulus)
        weights[kind] = weight
    total = sum(weights.values())
    return [(kind, weight / total) for kind, weight in weights.items()]


def other_kind(name: str) -> str:
    """The stimulus on which a model trained on `name` (its largest part) is tested by default."""
    largest = max(parts_of(name), key=lambda part: part[1])[0]
    return _TEST_STIMULUS.get(largest, "scenes_texture")


def schedule(parts: list[tuple[str, float]], n_frames: int, dt: float, split: str, seed: int) -> Int[np.ndarray, " T"]:
    """The part of a mixture shown in each frame; the shares of time follow the weights closely."""
    rng, weights = generator("mixture", split, seed), np.array([w for _, w in parts])
    part_of_frame, time_shown, frame = np.empty(n_frames, np.int64), np.zeros(len(parts)), 0
    while frame < n_frames:
        # Random among the parts that lag behind their share.
        lag = np.maximum(weights * (time_shown.sum() + 2.0) - time_shown, 0)
        part = rng.choice(len(parts), p=lag / lag.sum())
        duration = rng.uniform(1.0, 3.0)
        n = max(1, round(duration / dt))
        part_of_frame[frame : frame + n] = part
        time_shown[part] += duration
        frame += n
    return part_of_frame


def _film(quantity: str, name: str, columns, n_frames: int, dt: float, split: str, seed: int, blank) -> np.ndarray:
    """Luminance or flow of a stimulus that is computed. **Raises:** `UserError` for what one's own cannot give."""
    make = registry.stimulus[name]
    if name not in registry.stimulus.own:
        return getattr(make(columns, n_frames, dt, split, seed, blank=blank), quantity)
    if blank.fraction:
        raise UserError(f"{name} knows no blank frames: set simulation.blank_prefix_fraction to 0")
    shown = make(columns, n_frames, dt, split, seed)
    if quantity == "flow" and not isinstance(shown, Film):
        raise UserError(f"the optic flow of {name} is not known: it returns luminance alone")
    values = np.asarray(getattr(shown, quantity) if isinstance(shown, Film) else shown, np.float32)
    if values.shape[:2] != (n_frames, len(columns)):
        raise UserError(f"stimulus {name} has the shape {values.shape}, expected ({n_frames}, {len(columns)})")
    return values


def _render(
    quantity: str, name, columns, n_frames, dt, split, seed, data_path, frame_rate, folder_rate, pipeline, blank
) -> np.ndarray:
    """Luminance or flow of a stimulus, or of the parts of a mixture in turn, each continued where it stopped."""
    parts, columns = parts_of(name), np.asarray(columns)
    check_known("split", split, SPLITS)
    check_known("frame rate", frame_rate, FRAME_RATES)
    check_known("video pipeline", pipeline, PIPELINES)
    if not (0 <= blank.fraction < 1 and 0 <= blank.luminance <= 1):
        raise UserError(f"blank frames need 0 <= blank_prefix_fraction < 1 and a luminance in [0, 1], got {blank}")
    if columns.ndim != 2 or columns.shape[1] != 2 or len(columns) == 0:
        raise UserError(f"columns must be (n_col, 2) integers (u, v), got shape {columns.shape}")
    if n_frames < 1 or not dt > 0:
        raise UserError(f"a stimulus needs n_frames >= 1 and dt > 0, got n_frames={n_frames}, dt={dt}")

    def render(part: str, n: int) -> np.ndarray:
        if part not in DATA_SETS:
            return _film(quantity, part, columns, n, dt, split, seed, blank)
        data = DATA_SETS[part]
        resampled = data.resampled if frame_rate == "default" else frame_rate == "resampled"
        clips = data.clips(quantity, columns, dt, split, data_path, resampled, folder_rate, pipeline)
        if pipeline == "flyvis_gnn" and isinstance(data, Videos):
            passes = itertools.repeat(published_order(len(clips), split, seed))
            return play(clips, n, columns, passes, PUBLISHED_TURNS, blank)
        shuffled = (generator(part, split, seed, k).permutation(N_ORIENTATIONS * len(clips)) for k in itertools.count())
        return play(clips, n, columns, shuffled, blank=blank)

    if len(parts) == 1:
        return render(parts[0][0], n_frames)
    part_of_frame = schedule(parts, n_frames, dt, split, seed)
    films = {k: render(parts[k][0], int(n)) for k, n in enumerate(np.bincount(part_of_frame)) if n}
    some = next(iter(films.values()))
    out = np.empty((n_frames, *some.shape[1:]), some.dtype)
    for k, film in films.items():
        out[part_of_frame == k] = film
    return out


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
    video_pipeline: str = "flyjax",
    blank_prefix_fraction: float = 0.0,
    blank_prefix_luminance: float = 0.0,
) -> Float32[np.ndarray, "T n_col"]:
    """A stimulus at the columns of an eye: luminance in [0, 1], the same for the same arguments.

    **Arguments:**

    - `name`: one of `NAMES`, one of a plugin, or a mixture `a:0.7+b:0.3` of them.
    - `columns`: integers (u, v).
    - `n_frames`: frames wanted; a data set that is shorter is looped.
    - `dt`: frame interval, s. Built-in scenes sample the same film at any dt.
    - `split`: 'train' or 'test': other videos, other scenes.
    - `seed`: non-negative integer; chooses the scenes, or the order of the videos.
    - `data_path`: folder of the data set, where one is needed (or FLYJAX_DATA); for `video` also a film.
    - `frame_rate`: of videos: 'native' shows one frame per step, 'resampled' plays them at their own speed, 'default'
        is native for DAVIS (as flyvis-gnn) and `video`, and resampled for optical_flow (as flyvis).
    - `folder_rate`: frames per second of videos that are folders of frames; films state their own.
    - `video_pipeline`: of DAVIS and `video`: 'flyjax', or 'flyvis_gnn' (`flyjax.stimulus.davis` has the differences).
    - `blank_prefix_fraction`: first part of every clip (video, Sintel window, shot of a scene) that shows nothing.
    - `blank_prefix_luminance`: what is shown instead: 0, or 0.5 for grey.

    **Raises:** `UserError` for an unknown name, split, frame rate or pipeline, an absent or damaged data set, or blank
    frames of a stimulus that has no clips.
    """
    blank = Blank(blank_prefix_fraction, blank_prefix_luminance)
    return _render(
        "luminance", name, columns, n_frames, dt, split, seed, data_path, frame_rate, folder_rate, video_pipeline, blank
    )


def flow(
    name: str,
    columns: Int[np.ndarray, "n_col 2"],
    n_frames: int,
    dt: float,
    split: str = "train",
    seed: int = 0,
    data_path: str | Path | None = None,
    frame_rate: str = "default",
    folder_rate: float = FOLDER_RATE,
    video_pipeline: str = "flyjax",
    blank_prefix_fraction: float = 0.0,
    blank_prefix_luminance: float = 0.0,
) -> Float32[np.ndarray, "T n_col 2"]:
    """The true optic flow of the frames of `luminance`: velocity in columns/s (x right, y up), 0 where only flickering.

    **Raises:** `UserError` as `luminance`, and where no flow is known (DAVIS).
    """
    blank = Blank(blank_prefix_fraction, blank_prefix_luminance)
    return _render(
        "flow", name, columns, n_frames, dt, split, seed, data_path, frame_rate, folder_rate, video_pipeline, blank
    )


def available(data_path: str | Path | None = None) -> tuple[str, ...]:
    """Names that can be shown on this machine: the built-in ones, and the data sets that are there."""
    names = tuple(registry.stimulus)
    return tuple(name for name in names if name not in DATA_SETS or DATA_SETS[name].find(data_path) is not None)


def fingerprint(name: str, data_path: str | Path | None = None) -> str | None:
    """Changes when the files of a data set do (names and sizes), or that of a plugin; None for built-in stimuli.

    **Raises:** `UserError` for an unknown name or an absent data set.
    """
    digest = hashlib.sha256()
    parts = [part for part, _ in parts_of(name)]
    sets, own = sorted({*parts} & {*DATA_SETS}), sorted({*parts} & {*registry.stimulus.own})
    for part in own:
        digest.update(f"{part} {registry.stimulus.source(part)}\n".encode())
    for part in sets:
        folder = DATA_SETS[part].require(data_path)
        for path in DATA_SETS[part].files(data_path):
            with reading(path):
                digest.update(os.fsencode(os.path.relpath(path, folder)) + f"\0{path.stat().st_size}\n".encode())
    return digest.hexdigest()[:16] if sets or own else None
