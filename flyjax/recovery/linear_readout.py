r"""W, tau and V_rest read off where the data are.

The published read-out asks f at msg = 0 and I = 0, where a network was rarely trained: photoreceptors never see the
dark, most neurons never lack input. Here the learned functions are asked at real training frames alone, and a line
(a plane, for f) is laid through their outputs by least squares, neuron by neuron:

    g(v_j, a_j)              ~ s_j v_j + o_j                          at frames with v_j > 0
    f(v_i, a_i, msg_i, I_i)  ~ b_v v_i + b_m msg_i + b_I I_i + b_0    at all frames

    tau_i = clip(-1/b_v, 0, 1),   W*_ij = -W_ij s_j b_m / b_v,   V_rest_i = -(b_0 + b_m sum_j W_ij o_j) / b_v

so that what g sends at v = 0, which W passes on as a constant, counts to V_rest. It is a read-out like the published
one: it sees no derivative of the recording, only what the network says. A source that never rises above zero
gets weight 0, as in the closed form. Means of the local derivatives in place of planes gave the same circuit (R2
within .005). Estimates of this kind are named `_data`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from jaxtyping import Float

from flyjax.data.recording import Recording
from flyjax.recovery.readout import canonical, incoming, per_recording, stimulus_rows

#: Training frames, evenly spread: the planes have four unknowns.
N_FRAMES = 400
#: A neuron that is above zero at fewer of them is asked at N_GRID voltages from 0 to the highest it ever reached.
MIN_POSITIVE = 16
N_GRID = 32
#: Directions of the regressors below this share of the largest (after scaling) are left out.
ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class OnData:
    """The circuit read off at training frames, and the planes through f."""

    weight: Float[np.ndarray, " E"]
    tau: Float[np.ndarray, " N"]  #: s
    v_rest: Float[np.ndarray, " N"]
    slope_g: Float[np.ndarray, " N"]
    offset_g: Float[np.ndarray, " N"]
    plane: Float[np.ndarray, "N 4"]  #: b_v, b_m, b_I (0 where there is no input), b_0, in 1/s
    bend: Float[np.ndarray, " N"]  #: share of the variance of f that the plane leaves out


@per_recording
def _frames(recording: Recording, n_frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(voltage, stimulus), each (frames, N), and (N_GRID, N) voltages from 0 to each neuron's highest."""
    at = np.unique(np.linspace(0, len(recording.voltage) - 1, n_frames).round().astype(int))
    seen = stimulus_rows(recording.connectome, np.asarray(recording.luminance)[at])
    highest = np.maximum(np.asarray(recording.voltage).max(axis=0), 0.0)
    grid = np.linspace(0.0, 1.0, N_GRID, dtype=np.float32)[:, None] * highest
    return np.asarray(recording.voltage)[at], np.ascontiguousarray(seen.T), grid


@partial(jax.jit, static_argnums=0)
def _answers(learner, params, voltage, stimulus, grid):
    """g, its weighted sum and f at (frames, N) states, and g on the grid; one frame at a time stays in cache."""

    def frame(pair):
        v, seen = pair[0][:, None], pair[1][:, None]
        g = learner.message(params, v)
        msg = incoming(learner, params, g)
        return g[:, 0], msg[:, 0], learner.update(params, v, msg, seen)[:, 0]

    return *jax.lax.map(frame, (voltage, stimulus)), learner.message(params, grid.T).T


def _planes(columns: list[np.ndarray], target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares per neuron of (frames, N) arrays with a constant: coefficients (N, k + 1), unexplained share."""
    x = np.stack(columns, axis=-1).astype(np.float64)
    y = target.astype(np.float64)
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    x, y = x - mean_x, y - mean_y
    scale = np.sqrt(np.mean(x**2, axis=0))
    flat = scale <= 1e-7 * np.maximum(np.abs(mean_x), 1.0)  # does not move: nothing is asked of it
    scale = np.where(flat, 1.0, scale)
    x = np.where(flat, 0.0, x / scale)
    slopes = np.einsum(
        "nkl,tnl,tn->nk",
        np.linalg.pinv(np.einsum("tnk,tnl->nkl", x, x), rcond=ROUNDING, hermitian=True),
        x,
        y,
        optimize=True,
    )
    left = np.mean((y - np.einsum("tnk,nk->tn", x, slopes)) ** 2, axis=0)
    slopes = slopes / scale
    total = np.mean(y**2, axis=0)
    share = np.divide(left, total, out=np.zeros_like(total), where=total > 0)
    return np.concatenate([slopes, (mean_y - np.sum(slopes * mean_x, axis=1))[:, None]], axis=1), share


def _lines(v: np.ndarray, g: np.ndarray, grid: np.ndarray, g_grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope and offset of g where v > 0, on the grid where that is rare; 0 and the mean of g for a silent neuron."""
    rare = np.sum(v > 0, axis=0) < MIN_POSITIVE
    slope, offset = _line(v, g)
    slope[rare], offset[rare] = _line(grid[:, rare], g_grid[:, rare])
    silent = ~(grid[-1] > 0)
    return np.where(silent, 0.0, slope), np.where(silent, g.mean(axis=0, dtype=np.float64), offset)


def _line(v: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares of g on v over the rows with v > 0, column by column."""
    v, g, up = v.astype(np.float64), g.astype(np.float64), v > 0
    n = np.maximum(up.sum(axis=0), 1)
    mean_v, mean_g = np.sum(v * up, axis=0) / n, np.sum(g * up, axis=0) / n
    centred = (v - mean_v) * up
    variance = np.sum(centred**2, axis=0)
    slope = np.divide(np.sum(centred * (g - mean_g), axis=0), variance, out=np.zeros_like(variance), where=variance > 0)
    return slope, mean_g - slope * mean_v


@partial(jax.jit, static_argnums=0)
def _sent(learner, params, voltage, grid):
    return jax.lax.map(lambda v: learner.message(params, v[:, None])[:, 0], voltage), learner.message(params, grid.T).T


def message_lines(learner, params, recording: Recording, n_frames: int = N_FRAMES) -> tuple[np.ndarray, np.ndarray]:
    """Slope and offset (N,) of the learned messages where v > 0, as `on_data` lays them; slope 0 where that never is."""
    voltage, _, grid = _frames(recording, n_frames)
    g, g_grid = (np.asarray(a) for a in _sent(canonical(learner), params, voltage, grid))
    return _lines(voltage, g, grid, g_grid)


def on_data(learner, params, recording: Recording, n_frames: int = N_FRAMES) -> OnData:
    """W, tau and V_rest from planes through the learned functions at training frames.

    Args:
        learner, params: as `extract` takes them.
        recording: the training recording; its voltages and luminance are used, its derivative is not.
        n_frames: at most so many frames, evenly spread.
    """
    c = recording.connectome
    voltage, seen, grid = _frames(recording, n_frames)
    g, msg, f, g_grid = (np.asarray(a) for a in _answers(canonical(learner), params, voltage, seen, grid))
    weight = np.asarray(params["W"][...], np.float64)
    if not (np.isfinite(g).all() and np.isfinite(msg).all() and np.isfinite(f).all()):
        nothing = np.full(c.n_neurons, np.nan, np.float32)
        lost = np.full((c.n_neurons, 4), np.nan)
        return OnData(np.full(c.n_edges, np.nan, np.float32), nothing, nothing, nothing, nothing, lost, nothing)
    slope_g, offset_g = _lines(voltage, g, grid, g_grid)
    plane, bend = _planes([voltage, msg, seen], f)
    by_v, by_msg, _, constant = plane.T
    pedestal = np.bincount(c.receivers, weight * offset_g[c.senders], c.n_neurons)
    with np.errstate(divide="ignore", invalid="ignore"):
        tau = np.clip(-1.0 / by_v, 0.0, 1.0)
        v_rest = -(constant + by_msg * pedestal) / by_v
        found = -weight * slope_g[c.senders] * (by_msg / by_v)[c.receivers]
    return OnData(
        found.astype(np.float32), tau.astype(np.float32), v_rest.astype(np.float32), slope_g, offset_g, plane, bend
    )
