"""Mean, contrast and temporal spectrum of a stimulus, and photographs to compare with."""

import numpy as np
from jaxtyping import Float, Float32, Int

from flyjax.stimulus.eye import BoxEye

#: Temporal frequencies of the slope, Hz.
BAND = (0.5, 15.0)
#: Length of a segment of the periodogram, s.
SEGMENT = 10.0


def temporal_slope(luminance: Float[np.ndarray, "T n_col"], dt: float) -> float | None:
    """Exponent of the temporal power spectrum over 0.5-15 Hz; that of natural video is about -2.

    From segments of 10 s, or all frames if there are fewer. None where nothing moves or the film is too short for ten
    frequencies in the band. `dt` in s.
    """
    n = min(round(SEGMENT / dt), len(luminance))
    segments = luminance[: len(luminance) // n * n].reshape(-1, n, luminance.shape[1])
    power = (np.abs(np.fft.rfft(segments - segments.mean(axis=1, keepdims=True), axis=1)) ** 2).mean(axis=(0, 2))
    f = np.fft.rfftfreq(n, dt)
    inside = (f >= BAND[0]) & (f <= BAND[1])
    if inside.sum() < 10 or not (power[inside] > 1e-12).all():
        return None
    return float(np.polyfit(np.log(f[inside]), np.log(power[inside]), 1)[0])


def statistics(luminance: Float[np.ndarray, "T n_col"], dt: float | None = None) -> dict[str, float | None]:
    """Mean, contrast (std over frames and columns), contrast within a frame, and temporal slope.

    **Arguments:**

    - `luminance`: in [0, 1].
    - `dt`: frame interval, s; None for stills.
    """
    return {
        "mean": float(luminance.mean()),
        "contrast": float(luminance.std()),
        "frame_contrast": float(luminance.std(axis=1).mean()),
        "temporal_slope": None if dt is None else temporal_slope(luminance, dt),
    }


def photographs(columns: Int[np.ndarray, "n_col 2"]) -> Float32[np.ndarray, "n n_col"]:
    """Two photographs (they come with scikit-learn) through the eye, one window per row."""
    from sklearn.datasets import load_sample_images

    eye = BoxEye(np.asarray(columns))
    height, width = eye.min_frame_size
    views = []
    for image in load_sample_images().images:
        grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) / 255
        rows = range(0, max(grey.shape[0] - height, 0) + 1, max(height // 2, 60))
        cols = range(0, max(grey.shape[1] - width, 0) + 1, max(width // 2, 60))
        views += [eye(grey[r : r + height, c : c + width]) for r in rows for c in cols]
    return np.clip(np.stack(views), 0, 1)
