"""Mixtures of stimuli: parts shown in turn, 1-3 s at a time, in given shares of time.

For example `scenes_texture:0.7+flashes:0.2+blank:0.1`.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int

from flyjax.stimulus.textures import generator
from flyjax.utils.errors import UserError


def parse_mixture(name: str) -> list[tuple[str, float]]:
    """Names and normalised weights of `a:0.7+b:0.3`; a weight left out is 1.

    **Raises:** `UserError` for a weight that is no positive number, or a part named twice.
    """
    parts = []
    for part in name.split("+"):
        kind, colon, weight = part.strip().partition(":")
        try:
            value = float(weight) if colon else 1.0
        except ValueError:
            value = 0.0
        if not (np.isfinite(value) and value > 0):
            raise UserError(f"stimulus {name!r}: {part!r} needs a positive weight, as in scenes_texture:0.7+blank:0.3")
        parts.append((kind, value))
    if len({kind for kind, _ in parts}) < len(parts):
        raise UserError(f"stimulus {name!r} names a part twice: add its weights")
    total = sum(weight for _, weight in parts)
    return [(kind, weight / total) for kind, weight in parts]


def schedule(parts: list[tuple[str, float]], n_frames: int, dt: float, split: str, seed: int) -> Int[np.ndarray, " T"]:
    """The part shown in each frame; the shares of time follow the weights closely."""
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


def mix(
    parts: list[tuple[str, float]],
    n_frames: int,
    dt: float,
    split: str,
    seed: int,
    render: Callable[[str, int], np.ndarray],
) -> np.ndarray:
    """Parts in turn, each continued where it was interrupted; `render(name, n_frames)` gives one."""
    part_of_frame = schedule(parts, n_frames, dt, split, seed)
    films = {k: render(parts[k][0], int(n)) for k, n in enumerate(np.bincount(part_of_frame)) if n}
    some = next(iter(films.values()))
    out = np.empty((n_frames, *some.shape[1:]), some.dtype)
    for k, film in films.items():
        out[part_of_frame == k] = film
    return out
