r"""The published read-out of W, tau and V_rest from a trained network (Allier et al., flyvis-gnn).

Training determines the learned functions f (update) and g (message) and the weights W only jointly, so the circuit is
read off linear fits around the voltages that each neuron visits. With mu_i and s_i the mean and standard deviation of
v_i over the training recording:

    s_f(i), o_f(i)  least-squares slope and offset of v -> f(v, a_i, 0, 0) at 1,000 points on [mu - 2s, mu + 2s]
    s_g(j)          slope of g(., a_j) on [max(mu - 2s, 0), mu + 2s]; 1 where mu + s <= 0
    d_i             median over 8 training frames of df/dmsg

    W*_ij = -W_ij s_g(j) d_i / s_f(i),   tau_i = clip(-1/s_f(i), 0, 1),   V_rest_i = -o_f(i)/s_f(i)

A learner is any hashable object with `connectome`, `message`, `update` and params["W"]. The read-out is one compiled
program per learner and shapes.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flyjax.data.recording import Recording
from flyjax.recovery.metrics import CircuitEstimate
from flyjax.recovery.samples import neuron_stimulus, per_recording, summed_messages, voltage_moments

#: Points of each linear fit.
N_POINTS = 1000
#: Training frames at which df/dmsg is taken.
N_FRAMES = 8
#: Points of the curves drawn of g and f, from mean - 2 std to mean + 2 std.
N_CURVE_POINTS = 61
#: Lower bound of s: a neuron that does not move is still probed on an interval of 4 MIN_STD.
MIN_STD = 1e-4
#: Rows (neurons x points) of one network call: small enough to stay in cache.
ROWS = 8192


class Probe(NamedTuple):
    """What the read-out needs of the training recording."""

    mean: Float[Array, " N"]  #: mu
    std: Float[Array, " N"]  #: s
    voltage: Float[Array, "N frames"]  #: at the frames where df/dmsg is taken
    stimulus: Float[Array, "N frames"]


class PublishedReadout(NamedTuple):
    """The circuit read off a trained network, and the linear fits behind it."""

    estimate: CircuitEstimate
    slope_f: Float[Array, " N"]  #: s_f, 1/s
    offset_f: Float[Array, " N"]  #: o_f, 1/s
    slope_g: Float[Array, " N"]  #: s_g
    offset_g: Float[Array, " N"]  #: of the same line; the message at the mean voltage where s_g is set to 1
    gain: Float[Array, " N"]  #: d, 1/s
    curves: tuple[Float[Array, "types points"], ...]  #: of a central neuron per type: voltages, g, and f without input


@per_recording
def probe(recording: Recording) -> Probe:
    """Moments of the voltages, and the frames of df/dmsg, evenly spread without the first and the last."""
    mean, std, *_ = voltage_moments(recording)
    frames = np.linspace(0, len(recording.voltage) - 1, N_FRAMES + 2).round().astype(int)[1:-1]
    return Probe(
        mean=jnp.asarray(mean, jnp.float32),
        std=jnp.asarray(std, jnp.float32),
        voltage=jnp.asarray(np.asarray(recording.voltage)[frames].T),
        stimulus=jnp.asarray(neuron_stimulus(recording.connectome, np.asarray(recording.luminance)[frames])),
    )


def fit_lines(function, low, width, n_points: int = N_POINTS) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    """Least-squares slope and offset of `function` per neuron, on n_points evenly spaced in [low, low + width].

    `function` maps voltages (N, B) to values (N, B). Points are walked in chunks, so that memory stays bounded.
    """
    n = low.shape[0]
    per_chunk = max(1, min(n_points, ROWS // n))
    n_chunks = -(-n_points // per_chunk)
    position = np.linspace(-0.5, 0.5, n_points, dtype=np.float64)
    padding = n_chunks * per_chunk - n_points
    # Padded points get weight 0 in both sums.
    at = jnp.asarray(np.append(position, np.zeros(padding)).reshape(n_chunks, -1), jnp.float32)
    counts = jnp.asarray(np.append(np.ones(n_points), np.zeros(padding)).reshape(n_chunks, -1), jnp.float32)
    middle = low + 0.5 * width

    def add_chunk(sums, points):
        u, used = points
        value = function(middle[:, None] + width[:, None] * u[None, :])
        total, tilted = sums
        return (total + jnp.sum(value * used[None, :], axis=1), tilted + jnp.sum(value * u[None, :], axis=1)), None

    (total, tilted), _ = jax.lax.scan(add_chunk, (jnp.zeros(n), jnp.zeros(n)), (at, counts))
    slope = tilted / jnp.float32(np.sum(position**2)) / width
    return slope, total / n_points - slope * middle


@partial(jax.jit, static_argnums=0)
def _extract(learner, params, data: Probe) -> PublishedReadout:
    mean, std = data.mean, jnp.maximum(data.std, MIN_STD)
    zeros = jnp.zeros_like

    slope_f, offset_f = fit_lines(lambda v: learner.update(params, v, zeros(v), zeros(v)), mean - 2.0 * std, 4.0 * std)
    silent = mean + std <= 0
    low = jnp.maximum(mean - 2.0 * std, 0.0)
    width = jnp.where(silent, 1.0, mean + 2.0 * std - low)
    slope_g, offset_g = fit_lines(lambda v: learner.message(params, v), low, width)
    slope_g = jnp.where(silent, 1.0, slope_g)
    curve = mean[:, None] + std[:, None] * jnp.linspace(-2.0, 2.0, N_CURVE_POINTS)[None, :]

    def at(v):  # one voltage per neuron at a time stays in cache
        v = v[:, None]
        return learner.message(params, v)[:, 0], learner.update(params, v, zeros(v), zeros(v))[:, 0]

    message, update = jax.lax.map(at, jnp.concatenate([mean[None], data.voltage.T, curve.T]))
    offset_g = jnp.where(silent, message[0], offset_g)
    msg = summed_messages(learner, params, message[1 : 1 + N_FRAMES].T)
    _, by_message = jax.jvp(
        lambda m: learner.update(params, data.voltage, m, data.stimulus), (msg,), (jnp.ones_like(msg),)
    )
    gain = jnp.median(by_message, axis=1)

    c = learner.connectome
    estimate = CircuitEstimate(
        weight=-params["W"][...] * slope_g[c.senders] * (gain / slope_f)[c.receivers],
        tau=jnp.clip(-1.0 / slope_f, 0.0, 1.0),
        v_rest=-offset_f / slope_f,
    )
    curves = (curve[c.central], *(x[1 + N_FRAMES :].T[c.central] for x in (message, update)))
    return PublishedReadout(estimate, slope_f, offset_f, slope_g, offset_g, gain, curves)


def extract(learner, params, recording: Recording) -> PublishedReadout:
    """Read W*, tau and V_rest off a trained network, as NumPy arrays.

    **Arguments:**

    - `learner`: a `flyjax.models.Learner`, or any hashable object with `connectome`, `message(params, v)` and
      `update(params, v, msg, stimulus)` on (N, B) arrays.
    - `params`: parameters of the learner; params["W"] is (E,).
    - `recording`: the training recording; its moments define where the functions are probed.
    """
    return jax.tree.map(np.asarray, _extract(learner, params, probe(recording)))
