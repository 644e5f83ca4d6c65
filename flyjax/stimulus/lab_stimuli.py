"""Laboratory stimuli, and mixtures: what experimenters show beside movies.

- `flashes`: discs and full fields, ON and OFF, from grey (flyvis' flash responses).
- `moving_edges`: a single ON or OFF edge from grey, 12 directions, 2.4-25 columns/s (flyvis).
- `gratings`: drifting square and sine gratings, 12 directions, full contrast.
- `m_sequence`: tiles of 2 x 2 columns, each a binary maximum-length sequence at a phase of its own.
- `white_noise`: every column on its own, uniform, 40 ms a value.
- `blank`: grey.

A mixture such as `scenes_texture:0.7+flashes:0.2+blank:0.1` shows its parts in turn, 1-3 s at a
time, in these shares of time.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from flyjax.stimulus.scenes import Film, disc, film, square_wave
from flyjax.stimulus.textures import generator
from flyjax.utils.errors import UserError

GREY = 0.5
HOLD = 0.04  # s, of a value of white noise or an m-sequence
_SPEEDS = (2.4, 25.0)  # columns/s
#: Feedback taps of primitive polynomials: other splits play other sequences, not other phases.
_TAPS = {"train": (13, 4, 3, 1), "test": (12, 6, 4, 1)}


def _still(image):
    return image, np.zeros((*image.shape, 2))


def _flash(rng, x, y, t, duration, field, world):
    onset = rng.uniform(0.1, 0.4) * duration
    level = GREY + rng.choice([-1, 1]) * rng.uniform(0.2, 0.5)
    radius = 2 * field + 2 if rng.random() < 1 / 3 else rng.uniform(0.5, field)
    cover = disc(x, y, np.zeros((1, 2)), np.array([radius]))
    return _still(GREY + (level - GREY) * cover * (t >= onset)[:, None])


def _moving(rng):
    angle = rng.integers(12) * np.pi / 6
    return np.array([np.cos(angle), np.sin(angle)]), np.exp(rng.uniform(*np.log(_SPEEDS)))


def _edge(rng, x, y, t, duration, field, world):
    direction, speed = _moving(rng)
    level = float(rng.integers(2))
    meets = rng.uniform(0.2, 0.8) * duration  # when it passes the centre
    front = speed * (t - meets)[:, None] - (x * direction[0] + y * direction[1])
    cover = np.clip(front + 0.5, 0, 1)
    return GREY + (level - GREY) * cover, np.broadcast_to(speed * direction, (*cover.shape, 2))


def _grating(rng, x, y, t, duration, field, world):
    direction, speed = _moving(rng)
    per_column = 2 * np.pi / rng.uniform(3, 14)
    phase = (x * direction[0] + y * direction[1] - speed * t[:, None]) * per_column + rng.uniform(0, 2 * np.pi)
    if rng.random() < 0.5:
        image = square_wave(phase, per_column)
    else:
        image = 0.5 + 0.5 * np.sinc(per_column / (2 * np.pi)) * np.sin(phase)
    return image, np.broadcast_to(speed * direction, (*image.shape, 2))


_SHOTS = {"flashes": _flash, "moving_edges": _edge, "gratings": _grating}


@lru_cache(maxsize=4)
def m_sequence(taps: tuple[int, ...]) -> np.ndarray:
    """One period, 2^n - 1 bits, of the linear feedback shift register with these taps (n first)."""
    n = taps[0]
    state, bits = [1] * n, np.empty(2**n - 1, np.int8)
    for k in range(len(bits)):
        bits[k] = state[-1]
        fed = 0
        for tap in taps:
            fed ^= state[tap - 1]
        state = [fed, *state[:-1]]
    return bits


def _held(n_frames: int, dt: float) -> np.ndarray:
    """Number of the value that each frame shows."""
    return np.floor(np.arange(n_frames) * dt / HOLD + 1e-6).astype(np.int64)


def _tiles(columns, n_frames, dt, split, seed):
    bits = m_sequence(_TAPS.get(split, _TAPS["train"]))
    tile = np.unique(np.asarray(columns) // 2, axis=0, return_inverse=True)[1].reshape(-1)
    n_tiles = int(tile.max()) + 1
    rng = generator("m_sequence", split, seed)
    # Evenly spread phases: tiles are uncorrelated for as long as a spacing lasts.
    phase = rng.permutation(n_tiles) * (len(bits) // n_tiles) + rng.integers(len(bits))
    return 0.1 + 0.8 * bits[(_held(n_frames, dt)[:, None] + phase[tile]) % len(bits)]


def _white(columns, n_frames, dt, split, seed):
    held = _held(n_frames, dt)
    return generator("white_noise", split, seed).random((held[-1] + 1, len(columns)))[held]


def _blank(columns, n_frames, dt, split, seed):
    return np.full((n_frames, len(columns)), GREY)


_DIRECT = {"m_sequence": _tiles, "white_noise": _white, "blank": _blank}
NAMES = (*_SHOTS, *_DIRECT)


def lab_film(name: str, columns, n_frames: int, dt: float, split: str = "train", seed: int = 0) -> Film:
    """A laboratory stimulus of `NAMES`, like `scenes.film`; what does not move has no flow."""
    if name in _SHOTS:
        return film(name, columns, n_frames, dt, split, seed, _SHOTS[name])
    image, flow = _still(_DIRECT[name](columns, n_frames, dt, split, seed))
    return Film(image.astype(np.float32), flow.astype(np.float32))


# -- mixtures --------------------------------------------------------------------------------------


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


def schedule(parts: list[tuple[str, float]], n_frames: int, dt: float, split: str, seed: int) -> np.ndarray:
    """(n_frames,) which part is shown; the shares of time follow the weights closely."""
    rng, weights = generator("mixture", split, seed), np.array([w for _, w in parts])
    shown, spent, at = np.empty(n_frames, np.int64), np.zeros(len(parts)), 0
    while at < n_frames:
        # Random among the parts that lag behind their share.
        lag = np.maximum(weights * (spent.sum() + 2.0) - spent, 0)
        part = rng.choice(len(parts), p=lag / lag.sum())
        duration = rng.uniform(1.0, 3.0)
        n = max(1, round(duration / dt))
        shown[at : at + n] = part
        spent[part] += duration
        at += n
    return shown


def mix(parts, n_frames: int, dt: float, split: str, seed: int, play) -> np.ndarray:
    """Parts in turn, each going on where it was left; `play(name, frames)` renders one."""
    shown = schedule(parts, n_frames, dt, split, seed)
    out = None
    for k, (name, _) in enumerate(parts):
        frames = np.flatnonzero(shown == k)
        if frames.size:
            piece = play(name, frames.size)
            if out is None:
                out = np.empty((n_frames, *piece.shape[1:]), piece.dtype)
            out[frames] = piece
    return out
