"""What every estimator needs of a recording: moments, spread frames, stimuli per neuron, results computed once."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from threading import RLock
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

#: Frames of a sum over frames, which stay in cache.
CHUNK = 32


def per_recording(function: Callable) -> Callable:
    """Cache `function(recording, *args, **options)` for as long as the recording lives.

    Threads that ask for the same result wait for one computation. Keyword arguments must not change the result; they
    are not part of the key.
    """
    results: weakref.WeakKeyDictionary[Any, dict] = weakref.WeakKeyDictionary()
    lookup = RLock()

    @functools.wraps(function)
    def cached(recording, *args, **options):
        with lookup:
            lock, value = results.setdefault(recording, {}).setdefault(args, (RLock(), []))
        with lock:
            if not value:
                value.append(function(recording, *args, **options))
            return value[0]

    return cached


class Moments(NamedTuple):
    """Of the voltages of each neuron over all frames, in float64."""

    mean: Float[np.ndarray, " N"]
    std: Float[np.ndarray, " N"]
    low: Float[np.ndarray, " N"]
    high: Float[np.ndarray, " N"]


def moments(voltage: Float[np.ndarray, "T N"]) -> Moments:
    """Mean, standard deviation and range over frames, in one pass."""
    n, shift = len(voltage), np.asarray(voltage[0], np.float64)  # which keeps the squares small
    first, second = np.zeros((2, *shift.shape))
    low, high = np.asarray(voltage[0]), np.asarray(voltage[0])
    for begin in range(0, n, CHUNK):
        frames = voltage[begin : begin + CHUNK]
        centred = frames - shift
        first += centred.sum(axis=0)
        second += np.einsum("tn,tn->n", centred, centred)
        low, high = np.minimum(low, frames.min(axis=0)), np.maximum(high, frames.max(axis=0))
    mean = first / n
    std = np.sqrt(np.maximum(second / n - mean**2, 0.0))
    return Moments(shift + mean, std, low.astype(np.float64), high.astype(np.float64))


@per_recording
def voltage_moments(recording) -> Moments:
    """`moments` of all voltages of a recording."""
    return moments(recording.voltage)


def padded(rows: np.ndarray, n: int) -> np.ndarray:
    """The rows, the last one repeated to make n: a short last chunk runs the program of the others."""
    return rows if len(rows) == n else np.pad(rows, ((0, n - len(rows)), (0, 0)), mode="edge")


def spread_frames(n_frames: int, at_most: int) -> Int[np.ndarray, " frames"]:
    """At most so many frames, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, n_frames - 1, at_most).round().astype(int))


def neuron_stimulus(connectome, luminance: Float[np.ndarray, "B n_col"]) -> Float[np.ndarray, "N B"]:
    """Stimulus of each neuron: a photoreceptor receives the luminance of its column, all others 0."""
    luminance = np.asarray(luminance, np.float32)
    stimulus = np.zeros((connectome.n_neurons, len(luminance)), np.float32)
    stimulus[connectome.inputs] = luminance.T[connectome.input_column]
    return stimulus


def summed_messages(learner, params, message: Float[Array, "N B"]) -> Float[Array, "N B"]:
    """Input sum_j W_ij g_j of every neuron, with the trained W."""
    c = learner.connectome
    weighted = params["W"][...][:, None] * message[c.senders]
    return jax.ops.segment_sum(weighted, c.receivers, c.n_neurons, indices_are_sorted=True)
