"""The hexagonal box eye of flyvis: pixels to columns, and frame rates.

Convention (Lappalainen et al. 2024, Nature): column (u, v) looks at the k x k box centred at row k (u + v/2), column
k v from the image centre (H//2, W//2), both truncated towards zero; rows grow downwards. An image that does not include
every box centre is first resized (bilinear) to the smallest one that does; where boxes overlap its border, means and
sums continue it by zeros and medians by reflection.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int, Int32, Real
from PIL import Image


@dataclass(frozen=True, eq=False)
class BoxEye:
    """Columns (u, v) that see through boxes `kernel` pixels wide (odd)."""

    columns: Int[np.ndarray, "n_col 2"]
    kernel: int = 13

    @cached_property
    def receptor_centres(self) -> Int32[np.ndarray, "n_col 2"]:
        """Row and column of each box centre, px from the image centre."""
        u, v = np.asarray(self.columns, np.float64).T
        # The cast truncates towards zero, as flyvis does.
        return np.stack([self.kernel * (u + v / 2), self.kernel * v], axis=1).astype(np.int32)

    @cached_property
    def min_frame_size(self) -> tuple[int, int]:
        """Height and width (px) of the smallest image that includes every box centre."""
        span = self.receptor_centres.max(0) - self.receptor_centres.min(0) + 1
        return int(span[0]), int(span[1])

    def fit(self, frames: np.ndarray) -> np.ndarray:
        """The frames (..., H, W), resized to `min_frame_size` if they are too small for the eye."""
        height, width = self.min_frame_size
        if frames.shape[-2] >= height and frames.shape[-1] >= width:
            return frames
        flat = frames.reshape(-1, *frames.shape[-2:]).astype(np.float32)
        # Pillow's bilinear filter widens when it shrinks (antialiasing), as torchvision's does.
        resized = [np.asarray(Image.fromarray(f).resize((width, height), Image.Resampling.BILINEAR)) for f in flat]
        return np.stack(resized).reshape(*frames.shape[:-2], height, width)

    def _boxes(self, frames: np.ndarray, reflect: bool) -> np.ndarray:
        """(..., n_col, kernel**2) pixels under each box."""
        height, width = frames.shape[-2:]
        half = self.kernel // 2
        reach = np.arange(-half, half + 1)
        rows = height // 2 + self.receptor_centres[:, 0, None, None] + reach[:, None]
        cols = width // 2 + self.receptor_centres[:, 1, None, None] + reach[None, :]
        inside = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
        mirror = lambda index, last: np.clip(last - np.abs(last - np.abs(index)), 0, last)  # noqa: E731
        pixels = frames[..., mirror(rows, height - 1), mirror(cols, width - 1)]
        if not reflect:
            pixels = np.where(inside, pixels, np.zeros((), frames.dtype))
        return pixels.reshape(*frames.shape[:-2], len(self.columns), -1)

    def __call__(
        self, frames: Real[np.ndarray, "... H W"], how: Literal["mean", "sum", "median"] = "mean"
    ) -> Float32[np.ndarray, "... n_col"]:
        """Render images at the columns.

        **Arguments:**

        - `how`: 'mean' (luminance), 'sum' (flow) or 'median' (depth).
        """
        boxes = self._boxes(self.fit(np.asarray(frames)), reflect=how == "median")
        if how == "median":
            return np.median(boxes, axis=-1).astype(np.float32)
        return getattr(boxes, how)(-1, dtype=np.float64).astype(np.float32)


def resample(
    frames: np.ndarray, source_rate: float, target_rate: float, how: Literal["nearest", "linear"] = "nearest"
) -> np.ndarray:
    """Resample (T, ...) frames from one frame rate (1/s) to another.

    'nearest' repeats frames (luminance, as a screen does), sampled at the centres of the new frames; 'linear'
    interpolates between the first and the last frame (flow). Both give ceil(T target / source) frames, as flyvis does:
    19 frames at 24/s are 40 at 50/s.
    """
    n = len(frames)
    # Slightly less, so that the rounding error of an exact product adds no frame.
    n_out = max(1, int(np.ceil(n * target_rate / source_rate - 1e-9)))
    if how == "nearest":
        index = np.floor((np.arange(n_out) + 0.5) * n / n_out).astype(np.int64)
        return frames[np.minimum(index, n - 1)]
    position = np.linspace(0, n - 1, n_out)
    low = np.minimum(position.astype(np.int64), max(n - 2, 0))
    weight = (position - low).reshape(-1, *[1] * (np.ndim(frames) - 1)).astype(np.float32)
    return frames[low] * (1 - weight) + frames[np.minimum(low + 1, n - 1)] * weight
