"""Periodic textures of the built-in scenes, and their box means.

A texture is a square tile of `TILE` columns, `PIXELS` pixels per column, that repeats without a seam. A column of the
eye sees the mean over a box of one column (flyvis: 13 x 13 px); a magnified or receding surface is seen through a
smaller or larger box in the texture's own coordinates. The tile is therefore stored as a stack of exact box means of
graded widths, computed in the Fourier domain, and read by trilinear interpolation: no aliasing, no per-frame rendering.
"""

import zlib
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Float32

TILE = 64  # columns
PIXELS = 4  # per column
SIZE = TILE * PIXELS
N_LEVELS = 9
#: Box width of each level, columns: 1/4 .. 4 in steps of sqrt(2).
WIDTHS = 0.25 * 2.0 ** (np.arange(N_LEVELS) / 2)


def generator(*entropy) -> np.random.Generator:
    """An independent stream of random numbers for every tuple of names and integers."""
    return np.random.default_rng([zlib.crc32(e.encode()) if isinstance(e, str) else int(e) for e in entropy])


def _noise(rng, exponent: float, low_cut: float = 1.0) -> np.ndarray:
    """Gaussian field with amplitude spectrum f^-exponent, zero mean, unit variance."""
    fy, fx = np.fft.fftfreq(SIZE, 1 / SIZE)[:, None], np.fft.rfftfreq(SIZE, 1 / SIZE)[None, :]
    f = np.hypot(fy, fx)
    # Lower frequencies would only shade a field of view.
    amplitude = np.where(f > 0, np.maximum(f, low_cut) ** -exponent, 0.0)
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((SIZE, SIZE))) * amplitude, s=(SIZE, SIZE))
    return field / field.std()


def _cloud(rng) -> np.ndarray:
    """A 1/f image, mapped into (0, 1) with the dark skew of natural luminance."""
    field = _noise(rng, rng.uniform(0.9, 1.3), low_cut=3.0)
    return 1 / (1 + np.exp(-1.8 * field + 0.5))


def _dead_leaves(rng, n_leaves: int = 1200) -> np.ndarray:
    """Opaque elliptic leaves, area ~ r^-3, painted back to front over a 1/f ground."""
    image = _cloud(rng)
    smallest, largest = 0.8 * PIXELS, 9.0 * PIXELS
    q = rng.random(n_leaves)
    # Inverse distribution function of p(r) ~ r^-3: natural images are scale invariant.
    radius = smallest / np.sqrt(1 - q * (1 - (smallest / largest) ** 2))
    centre = rng.integers(0, SIZE, (n_leaves, 2))
    squash, angle, grey = rng.uniform(1, 2.5, n_leaves), rng.uniform(0, np.pi, n_leaves), rng.beta(0.8, 1.1, n_leaves)
    for r, (cy, cx), s, a, g in zip(radius, centre, squash, angle, grey, strict=True):
        reach = np.arange(-int(r) - 1, int(r) + 2)
        along = np.cos(a) * reach[None, :] + np.sin(a) * reach[:, None]
        across = np.cos(a) * reach[:, None] - np.sin(a) * reach[None, :]
        y, x = np.nonzero(along**2 + (s * across) ** 2 <= r * r)
        image[(cy + reach[y]) % SIZE, (cx + reach[x]) % SIZE] = g
    grain = 0.05 * _noise(rng, 1.0, low_cut=8.0)
    return np.clip(image + grain, 0, 1)


def _foliage(rng) -> np.ndarray:
    """A binary cover with gaps, about 40 % opaque."""
    return (_noise(rng, 1.6, low_cut=5.0) > 0.25).astype(np.float64)


_KINDS = {"cloud": _cloud, "leaves": _dead_leaves, "foliage": _foliage}


@lru_cache(maxsize=48)
def texture(kind: str, split: str, seed: int, index: int) -> Float32[np.ndarray, "N_LEVELS SIZE SIZE"]:
    """Box means of one tile, in [0, 1]; `kind` is cloud, leaves or foliage."""
    spectrum = np.fft.rfft2(_KINDS[kind](generator(kind, split, seed, index)))
    cycles_y = np.fft.fftfreq(SIZE, 1 / PIXELS)[:, None]  # per column
    cycles_x = np.fft.rfftfreq(SIZE, 1 / PIXELS)[None, :]
    levels = [np.fft.irfft2(spectrum * (np.sinc(w * cycles_y) * np.sinc(w * cycles_x)), s=(SIZE, SIZE)) for w in WIDTHS]
    stack = np.clip(np.stack(levels), 0, 1).astype(np.float32)
    stack.setflags(write=False)
    return stack


def sample(
    stack: Float32[np.ndarray, "N_LEVELS SIZE SIZE"],
    x: Float[np.ndarray, "frames n"],
    y: Float[np.ndarray, "frames n"],
    width: Float[np.ndarray, " frames"],
) -> Float32[np.ndarray, "frames n"]:
    """Mean of a tile over boxes of one width per frame.

    **Arguments:**

    - `stack`: of `texture`.
    - `x`, `y`: positions in columns; the tile repeats.
    - `width`: box width in columns, clipped to the range of `WIDTHS`.
    """
    level = np.clip(2 * np.log2(np.asarray(width) / WIDTHS[0]), 0, N_LEVELS - 1)
    low = np.minimum(level.astype(np.int64), N_LEVELS - 2)
    blend = (level - low).astype(np.float32)[:, None]
    px, py = x * PIXELS, y * PIXELS
    floor_x, floor_y = np.floor(px), np.floor(py)
    wx, wy = (px - floor_x).astype(np.float32), (py - floor_y).astype(np.float32)
    mask = SIZE - 1  # SIZE is a power of two: & wraps negative numbers as well
    x0, y0 = floor_x.astype(np.int64) & mask, floor_y.astype(np.int64) & mask
    x1, y1 = (x0 + 1) & mask, (y0 + 1) & mask
    flat, base = stack.reshape(-1), low[:, None] * (SIZE * SIZE)

    def plane(start):
        row0, row1 = start + y0 * SIZE, start + y1 * SIZE
        top = flat[row0 + x0] * (1 - wx) + flat[row0 + x1] * wx
        bottom = flat[row1 + x0] * (1 - wx) + flat[row1 + x1] * wx
        return top * (1 - wy) + bottom * wy

    return plane(base) * (1 - blend) + plane(base + SIZE * SIZE) * blend
