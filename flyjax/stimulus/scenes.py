"""Built-in moving scenes with exactly known flow; nothing is downloaded.

A scene is a film of *shots*: cuts every 0.5-2 s, each shot with its own textures, motion, contrast and brightness. All
speeds are in columns/s and all durations in s, so that another frame interval samples the same film. Everything is a
pure function of (name, split, seed): shot k has random numbers of its own, a longer film begins with the shorter one,
and other splits share no texture and no motion.

- `scenes_texture`: dead leaves and 1/f images under translation and rotation, with occluders.
- `scenes_edges`: drifting edges, square and sine gratings, random direction, speed and contrast.
- `scenes_flow`: forward and backward motion, looming objects, rotation, motion parallax.

Positions are those of `flyjax.circuit.hexgrid`; a column sees the mean over a box one column wide.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from flyjax.circuit.hexgrid import positions
from flyjax.stimulus.clips import NO_BLANK
from flyjax.stimulus.textures import TILE, generator, sample, texture

NAMES = ("scenes_texture", "scenes_edges", "scenes_flow")
_N_TEXTURES = 8  # of each kind, per split and seed
_SPEEDS = (2.0, 25.0)  # columns/s, the range of flyvis' moving edges


class Film(NamedTuple):
    """Luminance and flow of a scene."""

    luminance: Float32[np.ndarray, "T n_col"]  #: in [0, 1]
    #: Velocity (x to the right, y **up**, as flyvis' flow) in columns/s of the surface at the centre of each column.
    flow: Float32[np.ndarray, "T n_col 2"]


def film(
    name: str,
    columns,
    n_frames: int,
    dt: float,
    split: str = "train",
    seed: int = 0,
    shots=None,
    at=None,
    blank=NO_BLANK,
) -> Film:
    """Render a built-in scene at the columns of an eye.

    **Arguments:**

    - `name`: one of `NAMES`, or the name of other `shots`.
    - `columns`: (n_col, 2) integers (u, v).
    - `dt`: frame interval, s.
    - `split`: 'train' or 'test' (any string: every split is another film).
    - `seed`: non-negative integer.
    - `shots`: function that renders one shot, (rng, x, y, t, duration, field, (split, seed)) -> luminance and flow
        (y down), where `field` is the radius of the field of view in columns; by default the one of `name`.
    - `at`: other positions x, y that see the film of these columns.
    - `blank`: frames at the beginning of each shot that show nothing, and have no flow.
    """
    x, y = positions(columns)
    field = max(1.0, float(np.hypot(x, y).max()))
    x, y = at or (x, y)
    luminance = np.empty((n_frames, x.size), np.float32)
    flow = np.empty((n_frames, x.size, 2), np.float32)
    start, k, clock = 0, 0, 0.0
    while start < n_frames:
        rng = generator(name, split, seed, k)
        duration = rng.uniform(0.5, 2.0)
        clock, k = clock + duration, k + 1
        stop = round(clock / dt)
        if stop > start:
            # The last shot is rendered completely and then cut: a longer film begins with the shorter one.
            frames = np.arange(stop - start) * dt
            image, motion = (shots or _SHOTS[name])(rng, x, y, frames, duration, field, (split, seed))
            end = min(stop, n_frames)
            luminance[start:end], flow[start:end] = np.clip(image[: end - start], 0, 1), motion[: end - start]
            blank.hide(luminance[start:end], stop - start, blank.luminance)
            blank.hide(flow[start:end], stop - start, 0.0)
        start = stop
    flow[..., 1] *= -1
    return Film(luminance, flow)


def picture(
    name: str, columns, n_frames: int, dt: float, split: str = "train", seed: int = 0, pixels: int = 5
) -> Float32[np.ndarray, "T H W"]:
    """The film of a built-in scene as a camera takes it: the pixels that the eye's columns average.

    **Arguments:**

    - `pixels`: per column; `name`, `columns` and the others as in `film`.

    **Returns:** luminance in [0, 1]; pixel centres lie (k - (W - 1) / 2) / pixels columns right of the centre
    (and below it), and the picture includes the box of every column.
    """
    half = [int(np.ceil((np.abs(a).max() + 0.5) * pixels)) for a in positions(columns)]
    px, py = np.meshgrid(*((np.arange(2 * n) - n + 0.5) / pixels for n in half))
    shots = partial(_SHOTS[name], box=1 / pixels)
    seen = film(name, columns, n_frames, dt, split, seed, shots, (px.ravel(), py.ravel()))
    return seen.luminance.reshape(n_frames, *px.shape)


# -- motion -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Motion:
    """A rigid screen motion dp/dt = velocity + expansion p + rotation J p, per frame."""

    velocity: np.ndarray  # (frames, 2) columns/s
    expansion: np.ndarray  # (frames,) 1/s
    rotation: np.ndarray  # (frames,) rad/s

    def flow(self, x, y):
        """(frames, n, 2) velocity at screen positions, columns/s."""
        e, w = self.expansion[:, None], self.rotation[:, None]
        return np.stack(
            [self.velocity[:, :1] + e * x - w * y, self.velocity[:, 1:] + e * y + w * x],
            axis=-1,
        )

    def surface(self, x, y, dt, origin, scale, angle):
        """Points of the moving surface seen at screen positions: (frames, n) qx, qy in columns, and magnification.

        The surface point q is seen at p = s R(a) (q - o); s, a and o follow the motion.
        """
        log_scale = np.log(scale) + _integrate(self.expansion, dt)
        angle = angle + _integrate(self.rotation, dt)
        s, cos, sin = np.exp(log_scale), np.cos(angle), np.sin(angle)
        vx, vy = self.velocity.T
        ox = origin[0] - _integrate((cos * vx + sin * vy) / s, dt)
        oy = origin[1] - _integrate((cos * vy - sin * vx) / s, dt)
        c, d = (cos / s)[:, None], (sin / s)[:, None]
        return ox[:, None] + c * x + d * y, oy[:, None] + c * y - d * x, s


def _integrate(rate, dt):
    """Integral of a rate from frame 0 up to each frame (trapezium)."""
    return np.concatenate([[0.0], np.cumsum((rate[1:] + rate[:-1]) * (dt / 2))])


def _draw_direction(rng):
    angle = rng.uniform(0, 2 * np.pi)
    return np.array([np.cos(angle), np.sin(angle)])


def _draw_speed(rng):
    return np.exp(rng.uniform(*np.log(_SPEEDS)))


def _piecewise(rng, t, draw):
    """A rate that is constant for 0.2-0.8 s at a time: (frames, ...)."""
    ends = np.cumsum(rng.uniform(0.2, 0.8, 12))  # longer than the longest shot
    values = np.stack([draw() for _ in ends])
    return values[np.minimum(np.searchsorted(ends, t, side="right"), len(ends) - 1)]


# -- surfaces and luminance ----------------------------------------------------------------------


def _expose(rng, t, image):
    """The image in the range of luminance of a shot, under a slowly changing illumination."""
    high = rng.uniform(0.55, 1.0)
    span = high * (rng.uniform(0.6, 1.0) if rng.random() < 0.8 else rng.uniform(0.15, 0.6))
    swing = rng.uniform(0, 0.12) * np.sin(2 * np.pi * (rng.uniform(0.2, 2.0) * t + rng.random()))
    low = high - span
    return np.clip((low + (high - low) * image) * (1 + swing)[:, None], 0, 1)


def disc(x, y, centre, radius, box=1.0):
    """Share of each box, `box` columns wide, that a disc covers (edge softened over one box)."""
    distance = np.hypot(x - centre[:, :1], y - centre[:, 1:])
    return np.clip((radius[:, None] - distance) / box + 0.5, 0, 1)


def _composite(cover, front, back):
    """Luminance and flow of a partly covered scene; the flow is that of the surface at the column's centre."""
    (image_f, flow_f), (image_b, flow_b) = front, back
    image = cover * image_f + (1 - cover) * image_b
    return image, np.where((cover > 0.5)[..., None], flow_f, flow_b)


def _frame_interval(t):
    return t[1] - t[0] if t.size > 1 else 0.0


def _render_plane(rng, motion, x, y, t, textures, scale=1.0, box=1.0):
    """A textured plane under a motion: (image, flow)."""
    origin, angle = rng.uniform(0, TILE, 2), rng.uniform(0, 2 * np.pi)
    qx, qy, s = motion.surface(x, y, _frame_interval(t), origin, scale, angle)
    kind = "leaves" if rng.random() < 0.5 else "cloud"
    tile = texture(kind, *textures, int(rng.integers(_N_TEXTURES)))
    return sample(tile, qx, qy, box / s), motion.flow(x, y)


# -- the three scenes ----------------------------------------------------------------------------


def _texture_shot(rng, x, y, t, duration, field, textures, box=1.0):
    camera = _Motion(
        velocity=_piecewise(rng, t, lambda: _draw_speed(rng) * _draw_direction(rng)),
        expansion=np.zeros_like(t),
        rotation=_piecewise(rng, t, lambda: rng.normal(0, 1.0)),
    )
    picture = _render_plane(rng, camera, x, y, t, textures, scale=rng.uniform(0.6, 1.8), box=box)
    for _ in range(rng.integers(0, 3)):
        velocity = _draw_speed(rng) * _draw_direction(rng)
        passage = rng.uniform(-0.7, 0.7, 2) * field
        when = rng.uniform(0, duration)
        own = _Motion(np.tile(velocity, (t.size, 1)), np.zeros_like(t), np.zeros_like(t))
        cover = disc(
            x, y, passage + (t - when)[:, None] * velocity, np.full(t.size, rng.uniform(0.7, 0.6 * field + 1)), box
        )
        picture = _composite(
            cover, _render_plane(rng, own, x, y, t, textures, scale=rng.uniform(0.6, 1.8), box=box), picture
        )
    return _expose(rng, t, picture[0]), picture[1]


def _flow_shot(rng, x, y, t, duration, field, textures, box=1.0):
    kind = rng.choice(["forward", "backward", "loom", "turn", "parallax"])
    still = np.zeros_like(t)
    if kind in ("forward", "backward"):
        # Over a shot the magnification changes threefold at most: the box means end there.
        rate = rng.uniform(0.4, 1.0) * np.log(3.0) / duration
        sway = 1 + 0.5 * np.sin(2 * np.pi * (rng.uniform(0.3, 1.5) * t + rng.random()))
        sign, scale = (1.0, 0.7) if kind == "forward" else (-1.0, 2.1)
        expansion = sign * rate * sway / 1.5
        # Heading off-centre: far from the focus the image moves fast.
        focus = rng.normal(0, 3 + field / 2, 2)
        camera = _Motion(np.outer(expansion, -focus), expansion, np.full_like(t, rng.normal(0, 0.3)))
        picture = _render_plane(rng, camera, x, y, t, textures, scale, box)
    elif kind == "turn":
        camera = _Motion(
            velocity=_piecewise(rng, t, lambda: np.array([1.0, 0.3]) * rng.normal(0, 10, 2)),
            expansion=still,
            rotation=_piecewise(rng, t, lambda: rng.normal(0, 2.0)),
        )
        picture = _render_plane(rng, camera, x, y, t, textures, box=box)
    elif kind == "parallax":
        velocity = _piecewise(rng, t, lambda: _draw_speed(rng) * _draw_direction(rng))
        near, far = _Motion(velocity, still, still), _Motion(velocity * rng.uniform(0.1, 0.5), still, still)
        qx, qy, s = near.surface(x, y, _frame_interval(t), rng.uniform(0, TILE, 2), 1.0, 0.0)
        cover = sample(texture("foliage", *textures, int(rng.integers(4))), qx, qy, box / s)
        picture = _composite(
            cover,
            _render_plane(rng, near, x, y, t, textures, box=box),
            _render_plane(rng, far, x, y, t, textures, 0.6, box),
        )
    else:
        drift = _Motion(np.tile(rng.uniform(0, 6) * _draw_direction(rng), (t.size, 1)), still, still)
        picture = _render_plane(rng, drift, x, y, t, textures, box=box)
        centre = rng.uniform(-0.6, 0.6, 2) * field
        # Approach at constant speed: angular size goes as 1 / (time to contact).
        contact = duration * rng.uniform(1.1, 1.5)
        first = rng.uniform(0.3, 0.5)
        rate = 1 / (contact - t)
        if rng.random() < 0.3:  # receding
            rate, first = -rate[::-1], first * contact / (contact - duration)
        radius = np.minimum(first * np.exp(_integrate(rate, _frame_interval(t))), 4 * field)
        own = _Motion(np.outer(rate, -centre), rate, still)
        cover = disc(x, y, np.tile(centre, (t.size, 1)), radius, box)
        front = _render_plane(rng, own, x, y, t, textures, scale=0.5 if rate[0] > 0 else 3.0, box=box)
        picture = _composite(cover, front, picture)
    return _expose(rng, t, picture[0]), picture[1]


def _edges_shot(rng, x, y, t, duration, field, textures, box=1.0):
    kind = rng.choice(["edges", "edges", "square", "sine"])
    direction, speed = _draw_direction(rng), _draw_speed(rng)
    # Distance travelled along the normal; a box of width 1 has a box's variance in any direction.
    along = (x * direction[0] + y * direction[1]) - speed * t[:, None]
    if kind == "edges":
        reach = 1.5 * field + 2  # includes the corners of a picture
        image = _stripes(rng, along, -reach - speed * duration, reach, box)
    else:
        # At least 3 columns: at 25 columns/s a frame of 50 ms still moves less than half a period.
        period = rng.uniform(3, 14)
        phase = (along / period + rng.random()) * 2 * np.pi
        image = (
            square_wave(phase, 2 * np.pi * box / period)
            if kind == "square"
            else 0.5 + 0.5 * np.sinc(box / period) * np.sin(phase)
        )
    return _expose(rng, t, image), np.broadcast_to(speed * direction, (*along.shape, 2))


def _stripes(rng, along, low, high, box):
    """Box means of a row of stripes, 1.5-10 columns wide, of random grey: its integral, differenced."""
    widths = rng.uniform(1.5, 10, int((high - low) / 1.5) + 2)
    greys = np.where(rng.random(widths.size) < 0.5, rng.random(widths.size), rng.integers(0, 2, widths.size))
    ends = high - np.concatenate([[0.0], np.cumsum(widths)])
    area = -np.concatenate([[0.0], np.cumsum(widths * greys)])
    right, left = (np.interp(along + sign * box / 2, ends[::-1], area[::-1]) for sign in (1, -1))
    return (right - left) / box


def square_wave(phase, per_column):
    """Box means of a square wave: its integral is a triangle wave."""
    half = per_column / 2
    # Slope +1, then -1.
    right, left = (-np.abs(((phase + shift) / np.pi) % 2 - 1) * np.pi for shift in (half, -half))
    return 0.5 + 0.5 * (right - left) / per_column


_SHOTS = {"scenes_texture": _texture_shot, "scenes_edges": _edges_shot, "scenes_flow": _flow_shot}
scenes_texture, scenes_edges, scenes_flow = (partial(film, name) for name in NAMES)
