"""Built-in moving scenes with exactly known flow; nothing is downloaded.

A scene is a film of *shots*: cuts every 0.5-2 s, each shot with its own textures, motion, contrast
and brightness. All speeds are in columns/s and all durations in s, so another frame interval
samples the same film. Everything is a pure function of (name, split, seed): shot k has random
numbers of its own, a longer film begins with the shorter one, and other splits share no texture
and no motion.

- `scenes_texture`: dead leaves and 1/f images under translation and rotation, with occluders.
- `scenes_edges`: drifting edges, square and sine gratings, random direction, speed and contrast.
- `scenes_flow`: forward and backward motion, looming objects, rotation, motion parallax.

Positions are the box eye's (flyvis): column (u, v) sits at x = v, y = u + v/2, in columns, rows
growing downwards; a column sees the mean over a box one column wide.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from flyjax.circuit.hexgrid import positions
from flyjax.stimulus.textures import generator, sample, texture

NAMES = ("scenes_texture", "scenes_edges", "scenes_flow")
_N_TEXTURES = 8  # of each kind, per split and seed
_SPEEDS = (2.0, 25.0)  # columns/s, the range of flyvis' moving edges


@dataclass(frozen=True)
class Film:
    """Luminance and flow of a scene.

    Attributes:
        luminance: (n_frames, n_col) float32 in [0, 1].
        flow: (n_frames, n_col, 2) float32, velocity (x to the right, y **up**, as flyvis' flow) in
            columns/s of the surface at the centre of each column.
    """

    luminance: np.ndarray
    flow: np.ndarray


def field_of(x, y) -> float:
    """Radius of the field of view, columns."""
    return max(1.0, float(np.hypot(x, y).max()))


def film(name: str, columns, n_frames: int, dt: float, split: str = "train", seed: int = 0, shots=None) -> Film:
    """Render a built-in scene at the columns of an eye.

    Args:
        name: one of `NAMES`, or the name of other `shots`.
        columns: (n_col, 2) integers (u, v).
        n_frames: number of frames.
        dt: frame interval, s.
        split: 'train' or 'test' (any string: every split is another film).
        seed: non-negative integer.
        shots: function that renders one shot, (rng, x, y, t, duration, field, (split, seed)) ->
            luminance and flow (y down); by default the one of `name`.
    """
    x, y = positions(columns)
    return _render(name, x, y, field_of(x, y), n_frames, dt, split, seed, shots or _SHOTS[name])


def picture(
    name: str, columns, n_frames: int, dt: float, split: str = "train", seed: int = 0, pixels: int = 5
) -> np.ndarray:
    """The film of a built-in scene as a camera takes it: what the eye's columns then average.

    Args:
        pixels: per column; `name`, `columns` and the others as in `film`.

    Returns:
        (n_frames, H, W) float32; pixel centres lie (k - (W - 1) / 2) / pixels columns right of the
        centre (and below it), and the picture holds every column's whole box.
    """
    x, y = positions(columns)
    half_width, half_height = (int(np.ceil((np.abs(a).max() + 0.5) * pixels)) for a in (x, y))
    across, down = (np.arange(2 * half) - half + 0.5 for half in (half_width, half_height))
    px, py = np.meshgrid(across / pixels, down / pixels)
    flat = _render(
        name, px.ravel(), py.ravel(), field_of(x, y), n_frames, dt, split, seed, partial(_SHOTS[name], box=1 / pixels)
    )
    return flat.luminance.reshape(n_frames, *px.shape)


def _render(name, x, y, field, n_frames, dt, split, seed, shots) -> Film:
    luminance = np.empty((n_frames, x.size), np.float32)
    flow = np.empty((n_frames, x.size, 2), np.float32)
    start, k, clock = 0, 0, 0.0
    while start < n_frames:
        rng = generator(name, split, seed, k)
        duration = rng.uniform(0.5, 2.0)
        clock, k = clock + duration, k + 1
        stop = round(clock / dt)
        if stop > start:
            # The last shot too is rendered whole and then cut: a longer film begins with the shorter one.
            image, motion = shots(rng, x, y, np.arange(stop - start) * dt, duration, field, (split, seed))
            end = min(stop, n_frames)
            luminance[start:end], flow[start:end] = np.clip(image[: end - start], 0, 1), motion[: end - start]
        start = stop
    flow[..., 1] *= -1
    return Film(luminance, flow)


# -- motion -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Motion:
    """A rigid screen motion dp/dt = velocity + expansion p + rotation J p, per frame."""

    velocity: np.ndarray  # (frames, 2) columns/s
    expansion: np.ndarray  # (frames,) 1/s
    rotation: np.ndarray  # (frames,) rad/s

    def flow(self, x, y):
        """(frames, n, 2) velocity at screen positions."""
        e, w = self.expansion[:, None], self.rotation[:, None]
        return np.stack(
            [self.velocity[:, :1] + e * x - w * y, self.velocity[:, 1:] + e * y + w * x],
            axis=-1,
        )

    def surface(self, x, y, dt, origin, scale, angle):
        """Where on the moving surface each screen position looks.

        The surface point q is seen at p = s R(a) (q - o); s, a and o follow the motion.
        Returns (frames, n) coordinates qx, qy in columns and the magnification s (frames,).
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


def _direction(rng):
    angle = rng.uniform(0, 2 * np.pi)
    return np.array([np.cos(angle), np.sin(angle)])


def speed_of(rng):
    return np.exp(rng.uniform(*np.log(_SPEEDS)))


def _piecewise(rng, t, draw):
    """A rate held for 0.2-0.8 s at a time: (frames, ...)."""
    ends = np.cumsum(rng.uniform(0.2, 0.8, 12))  # outlasts the longest shot
    values = np.stack([draw() for _ in ends])
    return values[np.minimum(np.searchsorted(ends, t, side="right"), len(ends) - 1)]


# -- surfaces and light --------------------------------------------------------------------------


def _image(rng, world):
    kind = "leaves" if rng.random() < 0.5 else "cloud"
    return texture(kind, *world, int(rng.integers(_N_TEXTURES)))


def _placed(rng):
    """Origin (2,) on the tile, and an angle."""
    return rng.uniform(0, 64, 2), rng.uniform(0, 2 * np.pi)


def light_of(rng, t):
    """Per-shot exposure: darkest and brightest luminance, and a slowly changing illumination."""
    high = rng.uniform(0.55, 1.0)
    span = high * (rng.uniform(0.6, 1.0) if rng.random() < 0.8 else rng.uniform(0.15, 0.6))
    swing = rng.uniform(0, 0.12) * np.sin(2 * np.pi * (rng.uniform(0.2, 2.0) * t + rng.random()))
    return high - span, high, (1 + swing)[:, None]


def expose(image, light):
    low, high, illumination = light
    return np.clip((low + (high - low) * image) * illumination, 0, 1)


def disc(x, y, centre, radius, box=1.0):
    """Share of each box, `box` columns wide, that a disc covers (edge softened over one box)."""
    distance = np.hypot(x - centre[:, :1], y - centre[:, 1:])
    return np.clip((radius[:, None] - distance) / box + 0.5, 0, 1)


def _over(cover, front, back):
    """Composite luminance and flow; the flow is that of what covers the column's centre."""
    (image_f, flow_f), (image_b, flow_b) = front, back
    image = cover * image_f + (1 - cover) * image_b
    return image, np.where((cover > 0.5)[..., None], flow_f, flow_b)


def _see(rng, motion, x, y, t, world, scale=1.0, box=1.0):
    """A textured plane under a motion: (image, flow)."""
    dt = t[1] - t[0] if t.size > 1 else 0.0
    origin, angle = _placed(rng)
    qx, qy, s = motion.surface(x, y, dt, origin, scale, angle)
    return sample(_image(rng, world), qx, qy, box / s), motion.flow(x, y)


# -- the three films -----------------------------------------------------------------------------


def _texture_shot(rng, x, y, t, duration, field, world, box=1.0):
    camera = _Motion(
        velocity=_piecewise(rng, t, lambda: speed_of(rng) * _direction(rng)),
        expansion=np.zeros_like(t),
        rotation=_piecewise(rng, t, lambda: rng.normal(0, 1.0)),
    )
    picture = _see(rng, camera, x, y, t, world, scale=rng.uniform(0.6, 1.8), box=box)
    for _ in range(rng.integers(0, 3)):
        velocity = speed_of(rng) * _direction(rng)
        meets = rng.uniform(-0.7, 0.7, 2) * field
        when = rng.uniform(0, duration)
        own = _Motion(np.tile(velocity, (t.size, 1)), np.zeros_like(t), np.zeros_like(t))
        cover = disc(
            x, y, meets + (t - when)[:, None] * velocity, np.full(t.size, rng.uniform(0.7, 0.6 * field + 1)), box
        )
        picture = _over(cover, _see(rng, own, x, y, t, world, scale=rng.uniform(0.6, 1.8), box=box), picture)
    return expose(picture[0], light_of(rng, t)), picture[1]


def _flow_shot(rng, x, y, t, duration, field, world, box=1.0):
    kind = rng.choice(["forward", "backward", "loom", "turn", "parallax"])
    still = np.zeros_like(t)

    def towards(rate):
        """Motion in depth, heading off-centre: away from the focus the image flows fast."""
        focus = rng.normal(0, 3 + field / 2, 2)
        return _Motion(np.outer(rate, -focus), rate, still)

    if kind in ("forward", "backward"):
        # Over a shot the magnification changes threefold at most: the box means end there.
        rate = rng.uniform(0.4, 1.0) * np.log(3.0) / duration
        sway = 1 + 0.5 * np.sin(2 * np.pi * (rng.uniform(0.3, 1.5) * t + rng.random()))
        sign, scale = (1.0, 0.7) if kind == "forward" else (-1.0, 2.1)
        camera = towards(sign * rate * sway / 1.5)
        camera = _Motion(camera.velocity, camera.expansion, np.full_like(t, rng.normal(0, 0.3)))
        picture = _see(rng, camera, x, y, t, world, scale, box)
    elif kind == "turn":
        camera = _Motion(
            velocity=_piecewise(rng, t, lambda: np.array([1.0, 0.3]) * rng.normal(0, 10, 2)),
            expansion=still,
            rotation=_piecewise(rng, t, lambda: rng.normal(0, 2.0)),
        )
        picture = _see(rng, camera, x, y, t, world, box=box)
    elif kind == "parallax":
        velocity = _piecewise(rng, t, lambda: speed_of(rng) * _direction(rng))
        near, far = _Motion(velocity, still, still), _Motion(velocity * rng.uniform(0.1, 0.5), still, still)
        dt = t[1] - t[0] if t.size > 1 else 0.0
        gaps = near.surface(x, y, dt, *((rng.uniform(0, 64, 2), 1.0, 0.0)))
        cover = sample(texture("foliage", *world, int(rng.integers(4))), gaps[0], gaps[1], box / gaps[2])
        picture = _over(cover, _see(rng, near, x, y, t, world, box=box), _see(rng, far, x, y, t, world, 0.6, box))
    else:
        drift = _Motion(np.tile(rng.uniform(0, 6) * _direction(rng), (t.size, 1)), still, still)
        picture = _see(rng, drift, x, y, t, world, box=box)
        centre = rng.uniform(-0.6, 0.6, 2) * field
        # Approach at constant speed: angular size goes as 1 / (time to contact).
        contact = duration * rng.uniform(1.1, 1.5)
        first = rng.uniform(0.3, 0.5)
        rate = 1 / (contact - t)
        if rng.random() < 0.3:  # receding
            rate, first = -rate[::-1], first * contact / (contact - duration)
        radius = np.minimum(first * np.exp(_integrate(rate, t[1] - t[0] if t.size > 1 else 0.0)), 4 * field)
        own = _Motion(np.outer(rate, -centre), rate, still)
        cover = disc(x, y, np.tile(centre, (t.size, 1)), radius, box)
        front = _see(rng, own, x, y, t, world, scale=0.5 if rate[0] > 0 else 3.0, box=box)
        picture = _over(cover, front, picture)
    return expose(picture[0], light_of(rng, t)), picture[1]


def _edges_shot(rng, x, y, t, duration, field, world, box=1.0):
    kind = rng.choice(["edges", "edges", "square", "sine"])
    direction, speed = _direction(rng), speed_of(rng)
    # Distance travelled along the normal; a box of width 1 has a box's variance in any direction.
    along = (x * direction[0] + y * direction[1]) - speed * t[:, None]
    if kind == "edges":
        reach = 1.5 * field + 2  # holds the corners of a picture too
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
    return expose(image, light_of(rng, t)), np.broadcast_to(speed * direction, (*along.shape, 2))


def _stripes(rng, along, low, high, box):
    """Box means of a row of stripes, 1.5-10 columns wide, of random grey: its integral, differenced."""
    widths = rng.uniform(1.5, 10, int((high - low) / 1.5) + 2)
    greys = np.where(rng.random(widths.size) < 0.5, rng.random(widths.size), rng.integers(0, 2, widths.size))
    ends = high - np.concatenate([[0.0], np.cumsum(widths)])
    area = -np.concatenate([[0.0], np.cumsum(widths * greys)])
    at = lambda q: np.interp(q, ends[::-1], area[::-1])  # noqa: E731
    return (at(along + box / 2) - at(along - box / 2)) / box


def square_wave(phase, per_column):
    """Box means of a square wave: its integral is a triangle wave."""
    triangle = lambda p: -np.abs((p / np.pi) % 2 - 1) * np.pi  # noqa: E731  slope +1, then -1
    half = per_column / 2
    wave = (triangle(phase + half) - triangle(phase - half)) / per_column
    return 0.5 + 0.5 * wave


_SHOTS = {"scenes_texture": _texture_shot, "scenes_edges": _edges_shot, "scenes_flow": _flow_shot}
