"""What every estimator needs of a recording: moments, spread frames, stimuli per neuron, results computed once."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from threading import RLock
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int


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


def moments(
    voltage: Float[np.ndarray, "T N"], chunk: int = 1024
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Mean and standard deviation over frames, accumulated in float64 chunk by chunk."""
    n = len(voltage)
    shift = np.asarray(voltage[0], np.float64)  # keeps the squares small
    first, second = np.zeros_like(shift), np.zeros_like(shift)
    for begin in range(0, n, chunk):
        centred = np.asarray(voltage[begin : begin + chunk]) - shift
        first += centred.sum(axis=0)
        second += np.einsum("tn,tn->n", centred, centred)
    mean = first / n
    return shift + mean, np.sqrt(np.maximum(second / n - mean**2, 0.0))


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
