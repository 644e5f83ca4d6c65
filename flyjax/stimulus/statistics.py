"""How bright, how contrasty, how fast: statistics of a stimulus, beside those of photographs."""

from __future__ import annotations

import numpy as np

from flyjax.stimulus.eye import BoxEye

#: Temporal frequencies of the slope, Hz.
BAND = (0.5, 15.0)
#: Length of a piece of the periodogram, s.
PIECE = 10.0


def temporal_slope(luminance: np.ndarray, dt: float) -> float | None:
    """Exponent of the temporal power spectrum over 0.5-15 Hz; natural video falls about as f^-2.

    From (T, n_col) luminance in pieces of 10 s (or whole, if shorter). None where nothing moves or
    the film is too short for ten frequencies in the band.
    """
    n = min(round(PIECE / dt), len(luminance))
    pieces = luminance[: len(luminance) // n * n].reshape(-1, n, luminance.shape[1])
    power = (np.abs(np.fft.rfft(pieces - pieces.mean(axis=1, keepdims=True), axis=1)) ** 2).mean(axis=(0, 2))
    f = np.fft.rfftfreq(n, dt)
    inside = (f >= BAND[0]) & (f <= BAND[1])
    if inside.sum() < 10 or not (power[inside] > 1e-12).all():
        return None
    return float(np.polyfit(np.log(f[inside]), np.log(power[inside]), 1)[0])


def statistics(luminance: np.ndarray, dt: float | None = None) -> dict[str, float | None]:
    """Mean, contrast (std over frames and columns), contrast within a frame, and temporal slope.

    Args:
        luminance: (T, n_col) in [0, 1].
        dt: frame interval, s; None for stills.
    """
    return {
        "mean": float(luminance.mean()),
        "contrast": float(luminance.std()),
        "frame_contrast": float(luminance.std(axis=1).mean()),
        "temporal_slope": None if dt is None else temporal_slope(luminance, dt),
    }


def photographs(columns: np.ndarray) -> np.ndarray:
    """(n, n_col): two photographs (they come with scikit-learn) through the eye, a window at a time."""
    from sklearn.datasets import load_sample_images

    eye = BoxEye(np.asarray(columns))
    height, width = eye.min_frame_size
    seen = []
    for image in load_sample_images().images:
        light = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) / 255
        rows = range(0, max(light.shape[0] - height, 0) + 1, max(height // 2, 60))
        cols = range(0, max(light.shape[1] - width, 0) + 1, max(width // 2, 60))
        seen += [eye(light[r : r + height, c : c + width]) for r in rows for c in cols]
    return np.clip(np.stack(seen), 0, 1)
