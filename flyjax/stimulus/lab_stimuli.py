"""Laboratory stimuli: what experimenters show beside movies.

- `flashes`: discs and full fields, ON and OFF, from grey (flyvis' flash responses).
- `moving_edges`: a single ON or OFF edge from grey, 12 directions, 2.4-25 columns/s (flyvis).
- `gratings`: drifting square and sine gratings, 12 directions, full contrast.
- `m_sequence`: tiles of 2 x 2 columns, each a binary maximum-length sequence at a phase of its own.
- `white_noise`: every column independent, uniform, 40 ms a value.
- `blank`: grey.
"""

from functools import lru_cache, partial

import numpy as np
import scipy
from jaxtyping import Int8

from flyjax.stimulus.clips import NO_BLANK
from flyjax.stimulus.scenes import Film, disc, film, square_wave
from flyjax.stimulus.textures import generator
from flyjax.utils.errors import UserError

GREY = 0.5
HOLD = 0.04  #: duration of a value of white noise or an m-sequence, s
_SPEEDS = (2.4, 25.0)  # columns/s
#: Feedback taps of primitive polynomials: other splits play other sequences, not other phases.
_TAPS = {"train": (13, 4, 3, 1), "test": (12, 6, 4, 1)}


def _without_flow(image):
    return image, np.zeros((*image.shape, 2))


def _flash(rng, x, y, t, duration, field, textures):
    onset = rng.uniform(0.1, 0.4) * duration
    level = GREY + rng.choice([-1, 1]) * rng.uniform(0.2, 0.5)
    radius = 2 * field + 2 if rng.random() < 1 / 3 else rng.uniform(0.5, field)
    cover = disc(x, y, np.zeros((1, 2)), np.array([radius]))
    return _without_flow(GREY + (level - GREY) * cover * (t >= onset)[:, None])


def _draw_motion(rng):
    """Direction (2,) and speed in columns/s."""
    angle = rng.integers(12) * np.pi / 6
    return np.array([np.cos(angle), np.sin(angle)]), np.exp(rng.uniform(*np.log(_SPEEDS)))


def _edge(rng, x, y, t, duration, field, textures):
    direction, speed = _draw_motion(rng)
    level = float(rng.integers(2))
    passage = rng.uniform(0.2, 0.8) * duration  # when it passes the centre
    front = speed * (t - passage)[:, None] - (x * direction[0] + y * direction[1])
    cover = np.clip(front + 0.5, 0, 1)
    return GREY + (level - GREY) * cover, np.broadcast_to(speed * direction, (*cover.shape, 2))


def _grating(rng, x, y, t, duration, field, textures):
    direction, speed = _draw_motion(rng)
    per_column = 2 * np.pi / rng.uniform(3, 14)
    phase = (x * direction[0] + y * direction[1] - speed * t[:, None]) * per_column + rng.uniform(0, 2 * np.pi)
    if rng.random() < 0.5:
        image = square_wave(phase, per_column)
    else:
        image = 0.5 + 0.5 * np.sinc(per_column / (2 * np.pi)) * np.sin(phase)
    return image, np.broadcast_to(speed * direction, (*image.shape, 2))


_SHOTS = {"flashes": _flash, "moving_edges": _edge, "gratings": _grating}


@lru_cache(maxsize=4)
def m_sequence(taps: tuple[int, ...]) -> Int8[np.ndarray, " period"]:
    """One period, 2^n - 1 bits, of the linear feedback shift register with these taps (n first)."""
    n, *others = taps
    return scipy.signal.max_len_seq(n, state=np.ones(n, np.int8), taps=[n - tap for tap in others])[0]


def _value_index(n_frames: int, dt: float) -> np.ndarray:
    """Number of the value shown in each frame."""
    return np.floor(np.arange(n_frames) * dt / HOLD + 1e-6).astype(np.int64)


def _tiles(columns, n_frames, dt, split, seed):
    bits = m_sequence(_TAPS.get(split, _TAPS["train"]))
    tile = np.unique(np.asarray(columns) // 2, axis=0, return_inverse=True)[1].reshape(-1)
    n_tiles = int(tile.max()) + 1
    rng = generator("m_sequence", split, seed)
    # Evenly spread phases: tiles are uncorrelated within a spacing.
    phase = rng.permutation(n_tiles) * (len(bits) // n_tiles) + rng.integers(len(bits))
    return 0.1 + 0.8 * bits[(_value_index(n_frames, dt)[:, None] + phase[tile]) % len(bits)]


def _white(columns, n_frames, dt, split, seed):
    index = _value_index(n_frames, dt)
    return generator("white_noise", split, seed).random((index[-1] + 1, len(columns)))[index]


def _blank(columns, n_frames, dt, split, seed):
    return np.full((n_frames, len(columns)), GREY)


_DIRECT = {"m_sequence": _tiles, "white_noise": _white, "blank": _blank}
NAMES = (*_SHOTS, *_DIRECT)


def lab_film(name: str, columns, n_frames: int, dt: float, split: str = "train", seed: int = 0, blank=NO_BLANK) -> Film:
    """A laboratory stimulus of `NAMES`, with the arguments of `scenes.film`; flow is 0 where nothing moves.

    **Raises:** `UserError` for blank frames where there are no shots.
    """
    if name in _SHOTS:
        return film(name, columns, n_frames, dt, split, seed, _SHOTS[name], blank=blank)
    if blank.fraction:
        raise UserError(
            f"{name} is one long clip: set simulation.blank_prefix_fraction to 0, or mix it, as in {name}:0.5+blank:0.5"
        )
    image, flow = _without_flow(_DIRECT[name](columns, n_frames, dt, split, seed))
    return Film(image.astype(np.float32), flow.astype(np.float32))


flashes, moving_edges, gratings, tiles, white_noise, blank = (partial(lab_film, name) for name in NAMES)
