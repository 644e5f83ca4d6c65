"""The protocols: show the stimuli to a fly, and measure the neuron of every cell type in the central column."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from flyjax.tuning.fly import Fly, respond
from flyjax.tuning.indices import (
    direction_selectivity,
    flash_response_index,
    orientation_selectivity,
    preferred_direction,
)
from flyjax.tuning.stimuli import Flashes, MovingEdges, WhiteNoise, edge_film, flash_film, noise_values
from flyjax.utils.errors import UserError


@dataclass(frozen=True, eq=False)
class EdgeResponses:
    """Responses of the central neuron of each cell type to moving edges."""

    settings: MovingEdges
    cell_types: tuple[str, ...]
    peaks: Float[np.ndarray, "angles intensities speeds types"]  #: largest rectified voltage during the passage
    traces: tuple[Float[np.ndarray, "angles intensities T types"], ...]  #: voltages after each frame, one per speed

    @property
    def dsi(self) -> Float[np.ndarray, "intensities types"]:
        """Direction selectivity index per intensity."""
        return direction_selectivity(self.peaks, self.settings.angles)

    @property
    def osi(self) -> Float[np.ndarray, "intensities types"]:
        """Orientation selectivity index per intensity."""
        return orientation_selectivity(self.peaks, self.settings.angles)

    @property
    def preferred(self) -> Float[np.ndarray, "intensities types"]:
        """Preferred direction per intensity, degrees counter-clockwise from rightwards."""
        return preferred_direction(self.peaks, self.settings.angles)

    @property
    def tuning(self) -> Float[np.ndarray, "angles intensities types"]:
        """Tuning curves: peaks averaged over speeds."""
        return self.peaks.mean(axis=2)


@dataclass(frozen=True, eq=False)
class FlashResponses:
    """Responses of the central neuron of each cell type to flashes."""

    settings: Flashes
    cell_types: tuple[str, ...]
    traces: Float[np.ndarray, "intensities T types"]  #: from the state before the flash to the frame after it

    @property
    def fri(self) -> Float[np.ndarray, " types"]:
        """Flash response index: 1 for ON, -1 for OFF; of the brightest and the darkest flash."""
        order = np.argsort(self.settings.intensities)
        return flash_response_index(self.traces[order[0]], self.traces[order[-1]])


@dataclass(frozen=True, eq=False)
class ReceptiveFields:
    """Linear receptive fields of the central neuron of each cell type."""

    settings: WhiteNoise
    cell_types: tuple[str, ...]
    kernel: Float[np.ndarray, "types lags n_col"]  #: voltage per unit of luminance that was shown `lag` holds ago


def _central(fly: Fly) -> tuple[np.ndarray, tuple[str, ...]]:
    """The neurons measured, and their cell types."""
    c = fly.connectome
    return c.central, tuple(c.cell_types[t] for t in c.cell_type[c.central])


def moving_edges(fly: Fly, settings: MovingEdges | None = None) -> EdgeResponses:
    """Show an edge in every direction, of every intensity, at every speed, each from the state of grey.

    **Raises:** `UserError` for a speed that is not positive, luminance outside [0, 1], or a rollout that diverges.
    """
    settings = settings or MovingEdges()
    if min(settings.speeds) <= 0:
        raise UserError(f"speeds: every speed must be above 0 columns/s, got {min(settings.speeds):g}")
    neurons, names = _central(fly)
    columns, dt, start = fly.connectome.columns, settings.dt, fly.grey(settings.dt)
    shape = len(settings.angles), len(settings.intensities)
    traces = []
    for speed in settings.speeds:
        films = [edge_film(columns, a, i, speed, dt) for a in settings.angles for i in settings.intensities]
        voltage = respond(fly, np.stack(films), dt, neurons, start)
        traces.append(voltage.reshape(*shape, *voltage.shape[1:]))
    peaks = np.stack([np.maximum(trace, 0).max(axis=2) for trace in traces], axis=2)
    return EdgeResponses(settings, names, peaks, tuple(traces))


def flashes(fly: Fly, settings: Flashes | None = None) -> FlashResponses:
    """Show a flash of every intensity from the state of grey.

    **Raises:** `UserError` for luminance outside [0, 1], or a rollout that diverges.
    """
    settings = settings or Flashes()
    neurons, names = _central(fly)
    start = fly.grey(settings.dt)
    films = np.stack([flash_film(fly.connectome.columns, i, settings) for i in settings.intensities])
    after = respond(fly, films, settings.dt, neurons, start)
    before = np.broadcast_to(np.asarray(start)[neurons], (len(films), 1, len(neurons)))
    return FlashResponses(settings, names, np.concatenate([before, after], axis=1))


def receptive_fields(fly: Fly, settings: WhiteNoise | None = None) -> ReceptiveFields:
    """Reverse correlation of voltage with white noise: cov(voltage, luminance `lag` holds ago) / var(luminance).

    The voltage is taken at the end of each hold, so that the kernel of a linear circuit is its response to one column's
    luminance raised by 1 for one hold.

    **Raises:** `UserError` where the noise has no more values than lags, or a rollout diverges.
    """
    settings = settings or WhiteNoise()
    per_value = max(1, round(settings.hold / settings.dt))
    values = noise_values(fly.connectome.columns, settings)
    if len(values) <= settings.n_lags:
        raise UserError(f"duration: {len(values)} values of noise are too few for {settings.n_lags} lags; show more")
    neurons, names = _central(fly)
    film = np.repeat(values, per_value, axis=0)[None]
    voltage = respond(fly, film, settings.dt, neurons)[0, per_value - 1 :: per_value]
    voltage, shown = voltage - voltage.mean(axis=0), values - values.mean(axis=0)
    n, variance = len(values), shown.var()
    kernel = [voltage[lag:].T @ shown[: n - lag] / ((n - lag) * variance) for lag in range(settings.n_lags)]
    return ReceptiveFields(settings, names, np.stack(kernel, axis=1))
