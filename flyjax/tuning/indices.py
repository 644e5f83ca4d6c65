"""Indices of tuning from peak responses, as flyvis defines them (Lappalainen et al. 2024, Nature, Methods).

Peaks are those of the rectified voltage, without subtraction of a baseline. Both selectivities are divided by the
larger of the sums over directions of the ON and the OFF edge, so that a type is not selective for a contrast that
hardly drives it.
"""

import numpy as np
from jaxtyping import Float

#: Added to denominators, so that a silent type has the index 0.
TINY = 1e-15


def _vector(peaks: np.ndarray, angles, turns: int) -> np.ndarray:
    """Sum over directions of peak * exp(i turns angle)."""
    phase = np.exp(1j * turns * np.deg2rad(np.asarray(angles, np.float64)))
    return np.einsum("aist,a->ist", np.asarray(peaks, np.float64), phase)


def _selectivity(peaks, angles, turns: int) -> np.ndarray:
    length = np.abs(_vector(peaks, angles, turns))
    total = np.abs(peaks).sum(axis=0, dtype=np.float64).max(axis=0, keepdims=True)
    return (length / (total + TINY)).mean(axis=1)


def direction_selectivity(
    peaks: Float[np.ndarray, "angles intensities speeds types"], angles
) -> Float[np.ndarray, "intensities types"]:
    """DSI in [0, 1]: |sum of peak exp(i angle)| over the sum of peaks, averaged over speeds.

    **Arguments:** `angles` are the directions in degrees, evenly spread over the circle.
    """
    return _selectivity(peaks, angles, 1)


def orientation_selectivity(
    peaks: Float[np.ndarray, "angles intensities speeds types"], angles
) -> Float[np.ndarray, "intensities types"]:
    """OSI in [0, 1]: as `direction_selectivity` with exp(2 i angle), for which opposite directions are equal."""
    return _selectivity(peaks, angles, 2)


def preferred_direction(
    peaks: Float[np.ndarray, "angles intensities speeds types"], angles
) -> Float[np.ndarray, "intensities types"]:
    """Direction in [0, 360) degrees of the sum of peak exp(i angle) over directions and speeds; NaN if silent."""
    vector = _vector(peaks, angles, 1).sum(axis=1)
    return np.where(np.abs(vector) > TINY, np.rad2deg(np.angle(vector)) % 360, np.nan)


def angular_distance(a, b) -> np.ndarray:
    """The smaller angle between two directions in degrees, in [0, 180]."""
    return np.abs((np.asarray(a, np.float64) - b + 180) % 360 - 180)


def flash_response_index(
    off: Float[np.ndarray, "T types"], on: Float[np.ndarray, "T types"]
) -> Float[np.ndarray, " types"]:
    """FRI in [-1, 1]: (ON peak - OFF peak) / (ON peak + OFF peak), of voltages raised by |their minimum|.

    **Arguments:** `off`, `on` are the voltages from the frame before a flash to the one after it.
    """
    off, on = np.asarray(off, np.float64), np.asarray(on, np.float64)
    lift = np.abs(np.minimum(off.min(axis=0), on.min(axis=0)))
    peak_off, peak_on = off.max(axis=0) + lift, on.max(axis=0) + lift
    return (peak_on - peak_off) / (peak_on + peak_off + TINY)
