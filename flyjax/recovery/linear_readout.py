r"""Read-out of W, tau and V_rest at training frames.

The published read-out evaluates f at msg = 0 and I = 0, where a network was rarely trained: most neurons always
receive input. Here the learned functions are evaluated at real training frames only, and lines (for g) and planes
(for f) are fitted to their outputs by least squares, neuron by neuron:

    g(v_j, a_j)              ~ s_j v_j + o_j                          at frames with v_j > 0
    f(v_i, a_i, msg_i, I_i)  ~ b_v v_i + b_m msg_i + b_I I_i + b_0    at all frames

    tau_i = clip(-1/b_v, 0, 1),   W*_ij = -W_ij s_j b_m / b_v,   V_rest_i = -(b_0 + b_m sum_j W_ij o_j) / b_v

so that the constant part of a message, which W passes on, counts towards V_rest. Like the published read-out, it uses
no derivative of the recording. A source that never rises above zero gets weight 0, as in the closed form. Means of the
local derivatives in place of planes gave the same circuit (R2 within .005). Metrics of these estimates end in `_data`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from flyjax.data.recording import Recording
from flyjax.recovery.metrics import CircuitEstimate
from flyjax.recovery.network_outputs import NetworkOutputs, Networks, network_outputs, together
from flyjax.recovery.samples import neuron_stimulus, per_recording, spread_frames, voltage_moments

#: Training frames, evenly spread: the planes have four unknowns.
N_FRAMES = 400
#: With fewer frames above zero, a neuron's line is fitted at N_GRID voltages from 0 to its maximum.
MIN_POSITIVE = 16
N_GRID = 32
#: Directions of the regressors below this share of the largest (after scaling) are left out.
ROUNDING = 1e-9


class LinearReadout(NamedTuple):
    """The circuit read off at training frames, with the lines through g."""

    estimate: CircuitEstimate
    slope_g: Float[np.ndarray, " N"]  #: s, 0 for silent neurons
    offset_g: Float[np.ndarray, " N"]  #: o, the mean message for silent neurons
    nonlinear_share: Float[np.ndarray, " N"]  #: share of the variance of f that the plane does not explain


@per_recording
def _samples(recording: Recording, n_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """(voltage, luminance) of training frames, and N_GRID voltages from 0 to each neuron's maximum in the dark."""
    frames = spread_frames(len(recording.voltage), n_frames)
    luminance = np.asarray(recording.luminance, np.float32)[frames]
    highest = np.maximum(voltage_moments(recording).high, 0.0).astype(np.float32)
    grid = np.linspace(0.0, 1.0, N_GRID, dtype=np.float32)[:, None] * highest
    dark = np.zeros((N_GRID, luminance.shape[1]), np.float32)
    return np.concatenate([recording.voltage[frames], grid]), np.concatenate([luminance, dark])


def _fit_planes(columns: list[np.ndarray], target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares per neuron of (frames, N) arrays with a constant: coefficients (N, k + 1), unexplained share."""
    x = np.stack(columns, axis=-1).astype(np.float64)
    y = target.astype(np.float64)
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    x, y = x - mean_x, y - mean_y
    scale = np.sqrt(np.mean(x**2, axis=0))
    constant = scale <= 1e-7 * np.maximum(np.abs(mean_x), 1.0)  # its coefficient is 0
    scale = np.where(constant, 1.0, scale)
    x = np.where(constant, 0.0, x / scale)
    inverse = np.linalg.pinv(np.einsum("tnk,tnl->nkl", x, x), rcond=ROUNDING, hermitian=True)
    slopes = np.einsum("nkl,tnl,tn->nk", inverse, x, y, optimize=True)
    residual = np.mean((y - np.einsum("tnk,nk->tn", x, slopes)) ** 2, axis=0)
    total = np.mean(y**2, axis=0)
    slopes = slopes / scale
    share = np.divide(residual, total, out=np.zeros_like(total), where=total > 0)
    return np.concatenate([slopes, (mean_y - np.sum(slopes * mean_x, axis=1))[:, None]], axis=1), share


def _fit_message_lines(v, g, grid, g_grid) -> tuple[np.ndarray, np.ndarray]:
    """Slope and offset of g where v > 0, on the grid where that is rare; 0 and the mean of g for a silent neuron."""
    rare = np.sum(v > 0, axis=0) < MIN_POSITIVE
    slope, offset = _fit_positive(v, g)
    slope[rare], offset[rare] = _fit_positive(grid[:, rare], g_grid[:, rare])
    silent = ~(grid[-1] > 0)
    return np.where(silent, 0.0, slope), np.where(silent, g.mean(axis=0, dtype=np.float64), offset)


def _fit_positive(v: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares of g on v over the rows with v > 0, column by column."""
    v, g, positive = v.astype(np.float64), g.astype(np.float64), v > 0
    n = np.maximum(positive.sum(axis=0), 1)
    mean_v, mean_g = np.sum(v * positive, axis=0) / n, np.sum(g * positive, axis=0) / n
    centred = (v - mean_v) * positive
    variance = np.sum(centred**2, axis=0)
    slope = np.divide(np.sum(centred * (g - mean_g), axis=0), variance, out=np.zeros_like(variance), where=variance > 0)
    return slope, mean_g - slope * mean_v


def linear_readout(learner, params, recording: Recording, n_frames: int = N_FRAMES) -> LinearReadout:
    """Read W, tau and V_rest off lines and planes through the learned functions at training frames.

    **Arguments:**

    - `learner`, `params`: as in `extract`.
    - `recording`: the training recording; its voltages and luminance are used, its derivative is not.
    - `n_frames`: at most so many frames, evenly spread.
    """
    return linear_readouts(learner, together([params]), recording, n_frames)[0]


def linear_readouts(learner, networks: Networks, recording: Recording, n_frames: int = N_FRAMES) -> list[LinearReadout]:
    """`linear_readout` of several networks."""
    voltage, luminance = _samples(recording, n_frames)
    found = network_outputs(learner, networks, voltage, luminance)
    return [_fit(recording.connectome, *one, voltage, luminance) for one in zip(found, networks.weight, strict=True)]


def _fit(c, found: NetworkOutputs, weight: np.ndarray, voltage: np.ndarray, luminance: np.ndarray) -> LinearReadout:
    (voltage, grid), (g, g_grid) = (np.split(x, [-N_GRID]) for x in (voltage, found.message))
    msg, f, stimulus = found.summed[:-N_GRID], found.update[:-N_GRID], neuron_stimulus(c, luminance[:-N_GRID]).T
    slope_g, offset_g = _fit_message_lines(voltage, g, grid, g_grid)
    if not (np.isfinite(g).all() and np.isfinite(msg).all() and np.isfinite(f).all()):
        return LinearReadout(CircuitEstimate.missing(c), slope_g, offset_g, np.full(c.n_neurons, np.nan))
    plane, nonlinear_share = _fit_planes([voltage, msg, stimulus], f)
    by_v, by_msg, _, constant = plane.T
    weight = weight.astype(np.float64)
    constant_message = np.bincount(c.receivers, weight * offset_g[c.senders], c.n_neurons)
    estimate = CircuitEstimate.from_coefficients(
        rate=-by_v,
        source=weight * slope_g[c.senders] * by_msg[c.receivers],
        constant=constant + by_msg * constant_message,
        receivers=c.receivers,
    )
    return LinearReadout(estimate, slope_g, offset_g, nonlinear_share)
