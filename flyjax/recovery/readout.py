r"""The published read-out of W, tau and V_rest from a trained network (Allier et al., flyvis-gnn).

Training determines the learned functions f (update) and g (message) and the weights W only jointly, so the circuit is
read off linear fits around the voltages that each neuron visits. With mu_i and s_i the mean and standard deviation of
v_i over the training recording:

    s_f(i), o_f(i)  least-squares slope and offset of v -> f(v, a_i, 0, 0) at 1,000 points on [mu - 2s, mu + 2s]
    s_g(j)          slope of g(., a_j) on [max(mu - 2s, 0), mu + 2s]; 1 where mu + s <= 0
    d_i             median over 8 training frames of df/dmsg

    W*_ij = -W_ij s_g(j) d_i / s_f(i),   tau_i = clip(-1/s_f(i), 0, 1),   V_rest_i = -o_f(i)/s_f(i)

A learner is any hashable object with `connectome`, `message`, `update` and params["W"].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from flyjax.data.recording import Recording
from flyjax.recovery.metrics import CircuitEstimate
from flyjax.recovery.network_outputs import Networks, message_gain, together, unconnected
from flyjax.recovery.samples import per_recording, voltage_moments

#: Points of each linear fit, and of one that only watches a training: R2 differs by less than .002, in a quarter of
#: the time.
N_POINTS, N_WATCHED_POINTS = 1000, 128
#: Training frames at which df/dmsg is taken.
N_FRAMES = 8
#: Points of the curves drawn of g and f, from mean - 2 std to mean + 2 std.
N_CURVE_POINTS = 61
#: Lower bound of s: a neuron that does not move is still probed on an interval of 4 MIN_STD.
MIN_STD = 1e-4


class Probe(NamedTuple):
    """What the read-out needs of the training recording."""

    mean: Float[np.ndarray, " N"]  #: mu
    std: Float[np.ndarray, " N"]  #: s
    voltage: Float[np.ndarray, "frames N"]  #: at the frames where df/dmsg is taken
    luminance: Float[np.ndarray, "frames n_col"]


class PublishedReadout(NamedTuple):
    """The circuit read off a trained network, and the linear fits behind it."""

    estimate: CircuitEstimate
    slope_f: Float[np.ndarray, " N"]  #: s_f, 1/s
    offset_f: Float[np.ndarray, " N"]  #: o_f, 1/s
    slope_g: Float[np.ndarray, " N"]  #: s_g
    offset_g: Float[np.ndarray, " N"]  #: of the same line; the message at the mean voltage where s_g is set to 1
    gain: Float[np.ndarray, " N"]  #: d, 1/s
    curves: tuple[
        Float[np.ndarray, "types points"], ...
    ]  #: of a central neuron per type: voltages, g, and f without input


@per_recording
def probe(recording: Recording) -> Probe:
    """Moments of the voltages, and the frames of df/dmsg, evenly spread without the first and the last."""
    mean, std, *_ = voltage_moments(recording)
    frames = np.linspace(0, len(recording.voltage) - 1, N_FRAMES + 2).round().astype(int)[1:-1]
    return Probe(mean, std, np.asarray(recording.voltage)[frames], np.asarray(recording.luminance)[frames])


def fit_line(
    position: Float[np.ndarray, " points"], value: Float[np.ndarray, "points N"], middle, width
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Least-squares slope and offset of values at middle + position * width, per neuron; positions have the mean 0."""
    slope = (position @ value.astype(np.float64)) / np.sum(position**2) / width
    return slope, value.mean(axis=0, dtype=np.float64) - slope * middle


def extract(learner, params, recording: Recording, n_points: int = N_POINTS) -> PublishedReadout:
    """Read W*, tau and V_rest off a trained network, as NumPy arrays.

    **Arguments:**

    - `learner`: a `flyjax.models.Learner`, or any hashable object with `connectome`, `message(params, v)` and
      `update(params, v, msg, stimulus)` on (N, B) arrays.
    - `params`: parameters of the learner; params["W"] is (E,).
    - `recording`: the training recording; its moments define where the functions are probed.
    - `n_points`: of each linear fit.
    """
    return extract_all(learner, together([params]), recording, n_points)[0]


def extract_all(learner, networks: Networks, recording: Recording, n_points: int = N_POINTS) -> list[PublishedReadout]:
    """`extract` of several networks."""
    c, data = learner.connectome, probe(recording)
    mean, std = data.mean, np.maximum(data.std, MIN_STD)
    silent = mean + std <= 0
    low = np.maximum(mean - 2.0 * std, 0.0)
    width = np.where(silent, 1.0, mean + 2.0 * std - low)
    middle = low + 0.5 * width
    line = np.linspace(-0.5, 0.5, n_points)
    curve = mean + 4.0 * std * np.append(np.linspace(-0.5, 0.5, N_CURVE_POINTS), 0.0)[:, None]  # then the mean
    sending, receiving = middle + width * line[:, None], mean + 4.0 * std * line[:, None]
    probed = unconnected(learner, networks, np.concatenate([sending, curve]), np.concatenate([receiving, curve]))
    gains = message_gain(learner, networks, data.voltage, data.luminance)

    def read_off(found, at_frames, trained) -> PublishedReadout:
        g, f = found.message, found.update
        with np.errstate(all="ignore"):  # of networks that are not finite
            slope_f, offset_f = fit_line(line, f[:n_points], mean, 4.0 * std)
            slope_g, offset_g = fit_line(line, g[:n_points], middle, width)
            slope_g, offset_g = np.where(silent, 1.0, slope_g), np.where(silent, g[-1], offset_g)
            gain = np.median(at_frames.derivative, axis=0)
            weight = -trained * slope_g[c.senders] * (gain / slope_f)[c.receivers]
            tau, v_rest = np.clip(-1.0 / slope_f, 0.0, 1.0), -offset_f / slope_f
        estimate = CircuitEstimate(*(x.astype(np.float32) for x in (weight, tau, v_rest)))
        curves = [x[:-1, c.central].T.astype(np.float32) for x in (curve, g[n_points:], f[n_points:])]
        return PublishedReadout(estimate, slope_f, offset_f, slope_g, offset_g, gain, tuple(curves))

    return [read_off(*one) for one in zip(probed, gains, networks.weight, strict=True)]
