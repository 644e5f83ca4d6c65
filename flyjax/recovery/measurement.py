r"""Least squares when voltages are measured with noise: the moments that a clean measurement would have had.

With x = v + n, n ~ N(0, sigma^2) independent of frame and neuron, and targets differenced from the same data,
y = dv/dt + (n' - n)/dt, the noise is in every regressor and, with the opposite sign, in the target: coefficients
are attenuated, the leak is not even of the right size. For Gaussian n and any function h, E[n h(v + n)] =
sigma^2 E[h'(v + n)] (Stein), so all the bias is known from the noisy data and sigma (Fuller, Measurement Error
Models; Nakamura's corrected scores):

    own leak column      E[n n] = sigma^2,           with the target -sigma^2 / dt,  with the autapse sigma^2 E[h']
    autapse and target   -sigma^2 E[h'] / dt
    source with itself   E[h(x)^2] - E[relu(v)^2]
    target with itself   2 sigma^2 / dt^2

What a source says near zero is bent as well, E[relu(v + n)] > relu(v): `unbent` sends a function whose mean
over the noise is relu up to the order sigma^4.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr
from threadpoolctl import threadpool_limits

from flyjax.recovery.equations import Normal

#: Noise is taken out of directions of a neuron's regressors in which less than all but this share is noise; of
#: those beyond, linearly less. What is left of them after subtraction would be chance, and is better left attenuated.
MOSTLY_NOISE = 0.2


class SentNoise(NamedTuple):
    """What noise does to a source's column."""

    slope: Float[np.ndarray, " N"]  #: E[h'(x)]
    excess: Float[np.ndarray, " N"]  #: E[h(x)^2] - E[relu(v)^2]


def _smoothed(x, sigma: float):
    """relu averaged over noise of std sigma, and its derivative."""
    z = x / sigma
    return x * ndtr(z) + sigma * np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi), ndtr(z)


def unbent(x: np.ndarray, sigma: float) -> np.ndarray:
    """2 relu - relu averaged over the noise: bent down near zero as much as the noise bends up."""
    if not sigma > 0:
        return np.maximum(x, 0)
    return 2 * np.maximum(x, 0) - _smoothed(x, sigma)[0]


def unbent_noise(x: Float[np.ndarray, "frames N"], sigma: float) -> SentNoise:
    """Slope and excess of `unbent` at measured voltages."""
    h = unbent(x, sigma)
    positive = x > 0
    slope = (2.0 * positive - _smoothed(x, sigma)[1]).mean(axis=0, dtype=np.float64)
    # x^2 - sigma^2 above zero has the mean relu(v)^2.
    square = (np.where(positive, x * x - sigma**2, 0.0)).mean(axis=0, dtype=np.float64)
    return SentNoise(slope, np.mean(h * h, axis=0, dtype=np.float64) - square)


def _bias(i: int, k: int, sources, sigma: float, dt: float, sent: SentNoise, leak_sign: float) -> Float[np.ndarray, "K K"]:
    """What the noise adds to the (k, k) moments of neuron i."""
    variance, leak, target = sigma**2, len(sources), k - 1
    n = np.zeros((k, k))
    n[np.arange(leak), np.arange(leak)] = sent.excess[sources]
    n[leak, leak] = variance
    n[leak, target] = -leak_sign * variance / dt
    n[target, target] = 2 * variance / dt**2
    for a in np.flatnonzero(sources == i):
        n[a, leak] = leak_sign * variance * sent.slope[i]
        n[a, target] = -variance * sent.slope[i] / dt
    return np.triu(n) + np.triu(n, 1).T


def corrected(normal: Normal, connectome, sigma: float, dt: float, sent: SentNoise, leak_sign: float) -> Normal:
    """The same problem without the measurement noise.

    In directions that are noise almost alone (a source that the noise lifts above zero now and then) the difference
    of both is chance, and may not even be a matrix of moments: there less is taken out, in the spirit of Fuller's
    modification.

    Args:
        sigma: std of the noise of a voltage.
        dt: s between frames.
        sent: of every neuron's column.
        leak_sign: of v in the first own column, 1 or -1.
    """
    first, moments = normal.first, []
    with threadpool_limits(1):
        for i, noisy in enumerate(normal.moments):
            sources = connectome.senders[first[i] : first[i + 1]]
            bias = _bias(i, len(noisy), sources, sigma, dt, sent, leak_sign)
            g = noisy[:-1, :-1]
            scale = np.sqrt(np.maximum(np.diag(g), 1e-300))
            root = np.linalg.cholesky(g / np.outer(scale, scale) + 1e-12 * np.eye(len(g)))
            half = np.linalg.solve(root, bias[:-1, :] / scale[:, None])
            # In directions in which the data have unit variance: how much of it is noise.
            share, turn = np.linalg.eigh(np.linalg.solve(root, (half[:, :-1] / scale).T))
            taken = np.clip((1.0 - share) / MOSTLY_NOISE, 0.0, 1.0)
            back = scale[:, None] * (root @ turn)
            clean = noisy - bias
            clean[:-1, :-1] = g - (back * (share * taken)) @ back.T
            clean[:-1, -1] = noisy[:-1, -1] - back @ (taken * (turn.T @ half[:, -1]))
            clean[-1, :-1] = clean[:-1, -1]
            moments.append(clean)
    return Normal(moments, first, normal.n_own, normal.n_frames)
