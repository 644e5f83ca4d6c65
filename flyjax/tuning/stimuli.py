"""The stimuli with which tuning is measured: moving edges, flashes and white noise, with the defaults of flyvis.

Source: Lappalainen et al. 2024 (Nature), Methods, and the analyses of flyvis 1.2.0. Directions are degrees
counter-clockwise from rightwards, as the eye sees them: 90 is upwards.
"""

import numpy as np
from jaxtyping import Float32, Float64, Int
from pydantic import Field

from flyjax.circuit.hexgrid import positions
from flyjax.config.strict import StrictModel
from flyjax.stimulus.lab_stimuli import GREY
from flyjax.stimulus.textures import generator

#: Distance between successive positions of an edge, columns: a light-emitting diode of 2.25 degrees, a column of 5.8.
STEP = 2.25 / 5.8
#: Positions on each side of the centre.
REACH = 10
#: Radius of a flash that covers the whole field.
FULL_FIELD = -1


class MovingEdges(StrictModel):
    """An edge between grey and `intensities` moves across the eye in each direction at each speed."""

    angles: tuple[float, ...] = Field(
        tuple(range(0, 360, 30)), strict=False, min_length=1, description="directions of motion, degrees"
    )
    speeds: tuple[float, ...] = Field(
        (2.4, 4.8, 9.7, 13.0, 19.0, 25.0), strict=False, min_length=1, description="columns/s, each above 0"
    )
    intensities: tuple[float, ...] = Field(
        (0.0, 1.0), strict=False, min_length=1, description="luminance behind the edge: 1 is ON, 0 is OFF"
    )
    dt: float = Field(0.005, ge=0.001, le=0.05, description="frame interval and integration step, s")


class Flashes(StrictModel):
    """A disc of each of `intensities` appears on grey."""

    radius: int = Field(6, ge=FULL_FIELD, description="of the disc, columns; -1 covers the field")
    intensities: tuple[float, ...] = Field((0.0, 1.0), strict=False, min_length=1, description="luminance of the disc")
    duration: float = Field(1.0, gt=0, le=60, description="of the flash, s")
    dt: float = Field(0.005, ge=0.001, le=0.05, description="frame interval and integration step, s")


class WhiteNoise(StrictModel):
    """Every column shows independent values, uniform around grey, each for `hold` seconds."""

    duration: float = Field(60.0, gt=0, le=3600, description="s")
    hold: float = Field(0.02, gt=0, le=1, description="duration of a value, s; a multiple of dt")
    contrast: float = Field(1.0, gt=0, le=1, description="1: luminance in [0, 1]")
    n_lags: int = Field(12, ge=1, le=200, description="delays of the receptive field, `hold` apart")
    dt: float = Field(0.005, ge=0.001, le=0.05, description="frame interval and integration step, s")
    seed: int = Field(0, ge=0, description="of the noise")


def _hexagon(per_column: int = 25) -> Float64[np.ndarray, "n 2"]:
    """Points of a column's hexagon, x right and y down, evenly spaced; columns are one unit apart."""
    span = (np.arange(-per_column, per_column + 1)) / per_column
    x, y = (a.ravel() for a in np.meshgrid(span, span))
    inside = (np.abs(y) <= 0.5) & (np.sqrt(3) / 2 * np.abs(x) + np.abs(y) / 2 <= 0.5)
    return np.stack([x[inside], y[inside]], axis=1)


def edge_pictures(
    columns: Int[np.ndarray, "n_col 2"], angle: float, intensity: float
) -> Float32[np.ndarray, "positions n_col"]:
    """Luminance at each of the 21 positions of an edge that moves towards `angle` degrees, averaged over hexagons."""
    radians = np.deg2rad(angle)
    direction = np.array([np.cos(radians), -np.sin(radians)])  # y of a column grows downwards
    within = np.sort(_hexagon() @ direction)
    centre = np.stack(positions(columns), axis=1) @ direction
    front = STEP * np.arange(-REACH, REACH + 1)[:, None] - centre
    cover = np.searchsorted(within, front + 1e-9, side="right") / len(within)
    return (GREY + (intensity - GREY) * cover).astype(np.float32)


def edge_film(
    columns: Int[np.ndarray, "n_col 2"], angle: float, intensity: float, speed: float, dt: float
) -> Float32[np.ndarray, "T n_col"]:
    """The passage of one edge from its first position to its last, which the last frame shows once more."""
    duration = (2 * REACH + 1) * STEP / speed
    n_frames = max(1, int(duration / dt))
    shown = np.linspace(0, 2 * REACH, n_frames).astype(int)
    return edge_pictures(columns, angle, intensity)[np.append(shown, shown[-1])]


def flash_film(
    columns: Int[np.ndarray, "n_col 2"], intensity: float, settings: Flashes
) -> Float32[np.ndarray, "T n_col"]:
    """A flash, and the first frame of grey after it."""
    u, v = np.asarray(columns).T
    distance = np.maximum(np.maximum(np.abs(u), np.abs(v)), np.abs(u + v))
    covered = (distance <= settings.radius) | (settings.radius == FULL_FIELD)
    picture = np.where(covered, intensity, GREY).astype(np.float32)
    film = np.tile(picture, (max(1, int(settings.duration / settings.dt)) + 1, 1))
    film[-1] = GREY
    return film


def noise_values(columns: Int[np.ndarray, "n_col 2"], settings: WhiteNoise) -> Float32[np.ndarray, "values n_col"]:
    """The luminance of each `hold`."""
    n_values = max(1, round(settings.duration / settings.hold))
    uniform = generator("tuning", "white_noise", settings.seed).random((n_values, len(columns)))
    return (GREY + settings.contrast * (uniform - 0.5)).astype(np.float32)
