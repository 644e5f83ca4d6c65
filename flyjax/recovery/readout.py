r"""From a trained network to the circuit it has found: W*, tau and V_rest by the published read-out.

The trained functions fix the circuit only up to what they share with each other, so W, tau and
V_rest are read off linear fits around the voltages each neuron visits (Allier et al., flyvis-gnn).
With mu_i, s_i the mean and std of v_i over the training recording:

    s_f(i), o_f(i)  least-squares slope and offset of v -> f(v, a_i, 0, 0) on [mu - 2s, mu + 2s]
    s_g(j)          slope of g(., a_j) on [max(mu - 2s, 0), mu + 2s]; 1 where mu + s <= 0
    d_i             median over 8 training frames of df/dmsg

    W*_ij = -W_ij s_g(j) d_i / s_f(i),   tau_i = clip(-1/s_f(i), 0, 1),   V_rest_i = -o_f(i)/s_f(i)

A learner is anything with `connectome`, `message`, `update` and params["W"]. All of it is one
compiled program per learner and shapes; grids are walked in pieces, so memory stays bounded.
"""

from __future__ import annotations

import weakref
from functools import partial
from threading import RLock
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flyjax.data.recording import Recording

N_POINTS = 1000  #: of each linear fit
N_FRAMES = 8  #: training frames at which df/dmsg is taken
#: A neuron that does not move is probed this far to each side all the same (2 x MIN_STD).
MIN_STD = 1e-4
#: Rows (neurons x points) of one network call: small enough to stay in cache.
ROWS = 8192


class Probe(NamedTuple):
    """What the read-out needs of the training recording."""

    mean: Float[Array, " N"]  #: mu
    std: Float[Array, " N"]  #: s
    voltage: Float[Array, "N frames"]  #: at the frames where df/dmsg is taken
    stimulus: Float[Array, "N frames"]


class Recovered(NamedTuple):
    """The circuit read off a trained network, with the fits it rests on."""

    weight: Float[Array, " E"]  #: W*, in the connectome's order of edges
    tau: Float[Array, " N"]  #: s
    v_rest: Float[Array, " N"]
    slope_f: Float[Array, " N"]  #: s_f, 1/s
    offset_f: Float[Array, " N"]  #: o_f, 1/s
    slope_g: Float[Array, " N"]  #: s_g
    offset_g: Float[Array, " N"]  #: of the same line; what is sent at the mean voltage where s_g is set to 1
    gain: Float[Array, " N"]  #: d, 1/s


class _Once:
    """A value computed by the first who asks; others wait for it."""

    def __init__(self):
        self.lock, self.known, self.value = RLock(), False, None


def per_recording(function):
    """Cache a function of (recording, *args) for as long as the recording lives; threads that ask for the same wait for one."""
    results: dict[int, dict] = {}
    looking_up = RLock()

    def cached(recording, *args):
        with looking_up:
            if id(recording) not in results:
                results[id(recording)] = {}
                weakref.finalize(recording, results.pop, id(recording), None)
            once = results[id(recording)].setdefault(args, _Once())
        with once.lock:
            if not once.known:
                once.value, once.known = function(recording, *args), True
            return once.value

    cached.__doc__, cached.__name__, cached.__wrapped__ = function.__doc__, function.__name__, function
    return cached


_FIRST: dict = {}


def canonical(learner):
    """The first learner seen with the same class, connectome and config: programs compile once for all."""
    config = getattr(learner, "config", None)
    if config is None:
        return learner
    return _FIRST.setdefault((type(learner), learner.connectome, config), learner)


def moments(voltage: np.ndarray, piece: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std over frames of (T, N), accumulated in float64 piece by piece."""
    n = len(voltage)
    shift = np.asarray(voltage[0], np.float64)  # keeps the squares small
    first, second = np.zeros_like(shift), np.zeros_like(shift)
    for begin in range(0, n, piece):
        centred = np.asarray(voltage[begin : begin + piece]) - shift
        first += centred.sum(axis=0)
        second += np.einsum("tn,tn->n", centred, centred)
    mean = first / n
    return shift + mean, np.sqrt(np.maximum(second / n - mean**2, 0.0))


def stimulus_rows(connectome, luminance) -> np.ndarray:
    """(B, n_col) luminance -> (N, B): a photoreceptor sees its column, other neurons 0."""
    luminance = np.asarray(luminance, np.float32)
    seen = np.zeros((connectome.n_neurons, len(luminance)), np.float32)
    seen[connectome.inputs] = luminance.T[connectome.input_column]
    return seen


@per_recording
def probe(recording: Recording) -> Probe:
    """Moments of the voltages and the frames of df/dmsg, evenly spread over the recording."""
    mean, std = moments(recording.voltage)
    frames = np.linspace(0, len(recording.voltage) - 1, N_FRAMES + 2).round().astype(int)[1:-1]
    return Probe(
        mean=jnp.asarray(mean, jnp.float32),
        std=jnp.asarray(std, jnp.float32),
        voltage=jnp.asarray(np.asarray(recording.voltage)[frames].T),
        stimulus=jnp.asarray(stimulus_rows(recording.connectome, np.asarray(recording.luminance)[frames])),
    )


def incoming(learner, params, message: Float[Array, "N B"]) -> Float[Array, "N B"]:
    """sum_j W_ij g_j with the network's own W."""
    c = learner.connectome
    weighted = params["W"][...][:, None] * message[c.senders]
    return jax.ops.segment_sum(weighted, c.receivers, c.n_neurons, indices_are_sorted=True)


def fit_lines(function, low, width, n_points: int = N_POINTS):
    """Least-squares slope and offset per neuron of `function` on n_points in [low, low + width].

    `function` maps voltages (N, B) to (N, B). **Returns:** slope, offset, each (N,).
    """
    n = low.shape[0]
    per_piece = max(1, min(n_points, ROWS // n))
    n_pieces = -(-n_points // per_piece)
    position = np.linspace(-0.5, 0.5, n_points, dtype=np.float64)
    padding = n_pieces * per_piece - n_points
    # Padded points get weight 0 in both sums.
    at = jnp.asarray(np.append(position, np.zeros(padding)).reshape(n_pieces, -1), jnp.float32)
    counts = jnp.asarray(np.append(np.ones(n_points), np.zeros(padding)).reshape(n_pieces, -1), jnp.float32)
    middle = low + 0.5 * width

    def piece(sums, points):
        u, used = points
        value = function(middle[:, None] + width[:, None] * u[None, :])
        total, tilted = sums
        return (total + jnp.sum(value * used[None, :], axis=1), tilted + jnp.sum(value * u[None, :], axis=1)), None

    (total, tilted), _ = jax.lax.scan(piece, (jnp.zeros(n), jnp.zeros(n)), (at, counts))
    slope = tilted / jnp.float32(np.sum(position**2)) / width
    return slope, total / n_points - slope * middle


@partial(jax.jit, static_argnums=0)
def _extract(learner, params, data: Probe) -> Recovered:
    mean, std = data.mean, jnp.maximum(data.std, MIN_STD)
    zeros = jnp.zeros_like

    slope_f, offset_f = fit_lines(lambda v: learner.update(params, v, zeros(v), zeros(v)), mean - 2.0 * std, 4.0 * std)
    silent = mean + std <= 0
    low = jnp.maximum(mean - 2.0 * std, 0.0)
    width = jnp.where(silent, 1.0, mean + 2.0 * std - low)
    slope_g, offset_g = fit_lines(lambda v: learner.message(params, v), low, width)
    slope_g = jnp.where(silent, 1.0, slope_g)
    offset_g = jnp.where(silent, learner.message(params, mean[:, None])[:, 0], offset_g)

    msg = incoming(learner, params, learner.message(params, data.voltage))
    _, by_message = jax.jvp(
        lambda m: learner.update(params, data.voltage, m, data.stimulus), (msg,), (jnp.ones_like(msg),)
    )
    gain = jnp.median(by_message, axis=1)

    c = learner.connectome
    weight = -params["W"][...] * slope_g[c.senders] * (gain / slope_f)[c.receivers]
    return Recovered(
        weight=weight,
        tau=jnp.clip(-1.0 / slope_f, 0.0, 1.0),
        v_rest=-offset_f / slope_f,
        slope_f=slope_f,
        offset_f=offset_f,
        slope_g=slope_g,
        offset_g=offset_g,
        gain=gain,
    )


def extract(learner, params, recording: Recording) -> Recovered:
    """W*, tau and V_rest of a trained network, as NumPy arrays.

    Args:
        learner: `flyjax.models.Learner`, or anything with `connectome`, `message(params, v)` and
            `update(params, v, msg, stimulus)` on (N, B) arrays.
        params: of the learner; params["W"] (E,).
        recording: the training recording (its moments set where the functions are probed).
    """
    return jax.tree.map(np.asarray, _extract(canonical(learner), params, probe(recording)))
