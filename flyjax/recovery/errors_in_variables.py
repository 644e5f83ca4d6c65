r"""Least squares when voltages are measured with noise: what a clean measurement would have said.

With x = v + n, n ~ N(0, sigma^2) independent of frame and neuron, and targets differenced from the same data,
y = dv/dt + (n' - n)/dt, two things go wrong. Noise in the regressors attenuates every coefficient. And the noise of
the target, sqrt(2) sigma / dt, buries the derivative: with it in the target alone, least squares on the *clean*
voltages reaches W R2 .72 at sigma = 0.08 (extent 1, 8,000 frames), so taking out the attenuation cannot help much.

**The integral form.** What is added to the target in one frame is taken off it in the next. The equation is linear, so
any window over past frames may be laid over all its columns alike,

    u'(t) = decay u'(t - 1) + (1 - decay) u(t),      variance of white noise n':  A = (1 - decay) / (1 + decay),

and the variance of the target's noise falls to 2 sigma^2 A (1 - decay) / dt^2, by 45 at a decay of 0.8 (a weak form of
the equation; nearly the weights of generalised least squares, the noise left being about n(t + 1) - (1 - dt/tau) n(t)).
Targets differenced from recorded voltages alone hold the process noise, which moves later voltages: there a window
would take effect for cause, and none is laid.

**The bias.** For Gaussian n and any function h, E[n h(v + n)] = sigma^2 E[h'(v + n)] (Stein), so all of it is known from
the noisy data and sigma (Fuller, Measurement Error Models; Nakamura's corrected scores); inside the window, times A:

    own leak column      E[n n] = sigma^2,           with the target -sigma^2 (1 - decay) / dt,  with the autapse sigma^2 E[h']
    autapse and target   -sigma^2 E[h'] (1 - decay) / dt
    source with itself   E[h(x)^2] - E[m(v)^2]
    target with itself   2 sigma^2 (1 - decay) / dt^2

h is made from the message m such that E[h(v + n)] = m(v): for relu `unbent` up to the order sigma^4, for learned
messages, which are bent already, `Table.unbent` from g and its own curvature.

**The variance.** The moments without bias, G_c theta = b_c, are less sure where there was more noise: b_c - G_c theta has
the covariance of the noisy G_n. Weighted by it, G_c G_n^-1 G_c theta = G_c G_n^-1 b_c: directions that are noise
alone drop out instead of blowing up, and `equations.solve` weighs the rest against its prior.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.signal import lfilter
from scipy.special import ndtr
from threadpoolctl import threadpool_limits

from flyjax.data.splits import uses_finite_differences
from flyjax.recovery.normal_equations import RIDGE, Normal

#: Of the window over past frames, some 5 long. W R2 of the closed form at noise 0.08 (extent 1, 8,000 frames) with 0, 0.5,
#: 0.7, 0.8, 0.9: .69, .89, .91, .91, .88.
DECAY = 0.8
#: Frames after which a window has forgotten its start.
START = 25
#: Points of a table of messages per std of the noise, and at most.
FINE, MAX_POINTS = 8, 2000
#: Rounds in which the size of a typical weight, for the prior, is found from the weights themselves.
ROUNDS = 3
#: What rounding leaves of the units in which the data have variance 1.
ROUNDING = 1e-12


#: Points and weights of averages over the noise: messages may have a kink, so evenly spaced ones.
NODES = np.linspace(-5.0, 5.0, 41)
WEIGHTS = np.exp(-0.5 * NODES**2) / np.exp(-0.5 * NODES**2).sum()


class SentNoise(NamedTuple):
    """What noise does to a source's column."""

    slope: Float[np.ndarray, " N"]  #: E[h'(x)]
    excess: Float[np.ndarray, " N"]  #: E[h(x)^2] - E[m(v)^2], the mean variance of h(v + n) given v


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


class Table(NamedTuple):
    """Functions of one variable, one per neuron, at the same evenly spaced points."""

    points: Float[np.ndarray, " P"]
    values: Float[np.ndarray, "N P"]

    def __call__(self, x: Float[np.ndarray, "frames N"]) -> Float[np.ndarray, "frames N"]:
        """Linear between points, constant beyond."""
        step = self.points[1] - self.points[0]
        at = np.clip((x - self.points[0]) / step, 0, len(self.points) - 1)
        left = np.minimum(at.astype(np.int64), len(self.points) - 2)
        neuron = np.arange(x.shape[1])
        low, high = self.values[neuron, left], self.values[neuron, left + 1]
        return low + (at - left) * (high - low)

    def shifted(self, by: float) -> np.ndarray:
        """(N, P) values at the points moved by `by`."""
        at = np.clip((self.points + by - self.points[0]) / (self.points[1] - self.points[0]), 0, len(self.points) - 1)
        left = np.minimum(at.astype(np.int64), len(self.points) - 2)
        low = self.values[:, left]
        return low + (at - left) * (self.values[:, left + 1] - low)

    def over_noise(self, sigma: float) -> tuple[np.ndarray, np.ndarray]:
        """(N, P) mean and variance over noise of std sigma."""
        first, second = np.zeros((2, *self.values.shape))
        for z, weight in zip(NODES, WEIGHTS, strict=True):
            moved = self.shifted(sigma * z) - self.values  # keeps the squares small
            first += weight * moved
            second += weight * moved**2
        return self.values + first, second - first**2

    def unbent(self, sigma: float) -> Table:
        """2 h - h averaged over the noise: a function whose mean over the noise is h, up to the order sigma^4."""
        return self._replace(values=2 * self.values - self.over_noise(sigma)[0])

    def slope(self) -> Table:
        return self._replace(values=np.gradient(self.values, self.points, axis=1))


def table_range(x: np.ndarray, sigma: float) -> np.ndarray:
    """Points of a table for voltages x and noise around them, in float64: the small noise is a difference of squares."""
    low, high = float(x.min()) - 5 * sigma, float(x.max()) + 5 * sigma
    return np.linspace(low, high, min(int(FINE * (high - low) / sigma) + 1, MAX_POINTS))


def sent_noise(h: Table, x: Float[np.ndarray, "frames N"], sigma: float) -> SentNoise:
    """Slope and excess of columns h(x) at measured voltages."""
    variance = h._replace(values=h.over_noise(sigma)[1]).unbent(sigma)
    slope, excess, square = (np.mean(f, axis=0, dtype=np.float64) for f in (h.slope()(x), variance(x), h(x) ** 2))
    return SentNoise(slope, np.clip(excess, 0.0, square))


def window_of(simulation, split: str) -> float:
    """Decay of the window for a recording: none where the targets hold the process noise that moves later voltages."""
    return 0.0 if uses_finite_differences(simulation, split) else DECAY


def _windowed(columns: np.ndarray, decay: float, state: np.ndarray | None):
    """The window laid over (N, frames), and its state at the end; it starts as if the first frame had always been."""
    return lfilter([1 - decay], [1, -decay], columns, axis=1, zi=decay * columns[:, :1] if state is None else state)


def laid(pieces: Iterable, decay: float, joined: bool = True) -> Iterator:
    """Pieces for `equations.accumulate` with the window over every column.

    Args:
        joined: whether each piece follows from the one before; otherwise the window starts anew.
    """
    states: list = []
    for sent, own, target in pieces:
        columns = [np.asarray(c, np.float64) for c in (sent, *(sum(views[1:], views[0]) for views in own), target)]
        fresh = not (joined and states)
        done = [_windowed(c, decay, None if fresh else states[k]) for k, c in enumerate(columns)]
        states = [state for _, state in done]
        # A recording too short to spare them keeps its first frames, whose noise is not quite that of the others.
        begin = START if fresh and decay > 0 and columns[0].shape[1] > 2 * START else 0
        sent, *own, target = (c[:, begin:] for c, _ in done)
        yield sent, [(column,) for column in own], target


def _bias(i: int, k: int, sources, sigma: float, dt: float, sent: SentNoise, leak_sign: float, decay: float):
    """What the noise adds to the (k, k) moments of neuron i."""
    variance, leak, target = sigma**2, len(sources), k - 1
    n = np.zeros((k, k))
    n[np.arange(leak), np.arange(leak)] = sent.excess[sources]
    n[leak, leak] = variance
    n[leak, target] = -leak_sign * variance * (1 - decay) / dt
    n[target, target] = 2 * variance * (1 - decay) / dt**2
    for a in np.flatnonzero(sources == i):
        n[a, leak] = leak_sign * variance * sent.slope[i]
        n[a, target] = -variance * sent.slope[i] * (1 - decay) / dt
    return (1 - decay) / (1 + decay) * (np.triu(n) + np.triu(n, 1).T)


def biases(normal: Normal, connectome, sigma: float, dt: float, sent: SentNoise, leak_sign: float, decay: float = 0.0):
    """What measurement noise adds to the moments of each neuron, in turn.

    Args:
        sigma: std of the noise of a voltage.
        dt: s between frames.
        sent: of every neuron's column.
        leak_sign: of v in the first own column, 1 or -1.
        decay: of the window that lay over the columns.
    """
    for i, noisy in enumerate(normal.moments):
        sources = connectome.senders[normal.first[i] : normal.first[i + 1]]
        yield _bias(i, len(noisy), sources, sigma, dt, sent, leak_sign, decay)


def _weighed(noisy: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """(K, K) moments whose solution is that of the moments without bias, each direction weighed by its noise."""
    g = noisy[:-1, :-1]
    scale = np.sqrt(np.maximum(np.diag(g), 1e-300))
    # No column is more than noise: that of a silent source, made of rounding, would seem so.
    bias = bias + np.diag(np.append(np.clip(np.diag(bias)[:-1], 0.0, np.diag(g)) - np.diag(bias)[:-1], 0.0))
    root = np.linalg.cholesky(g / np.outer(scale, scale) + ROUNDING * np.eye(len(g)))
    half = np.linalg.solve(root, bias[:-1, :-1] / scale[:, None]) / scale
    # In directions in which the data have unit variance: how much of it is not noise.
    share, turn = np.linalg.eigh(np.linalg.solve(root, half.T))
    kept = np.clip(1.0 - share, 0.0, 1.0)  # what rounding makes of a direction without data counts neither way
    target = turn.T @ np.linalg.solve(root, (noisy[:-1, -1] - bias[:-1, -1]) / scale)
    back = scale[:, None] * (root @ turn)
    out = np.empty_like(noisy)
    out[:-1, :-1] = (back * kept**2) @ back.T
    out[:-1, -1] = out[-1, :-1] = back @ (kept * target)
    out[-1, -1] = target @ target
    return out


def corrected(
    normal: Normal, connectome, sigma: float, dt: float, sent: SentNoise, leak_sign: float, decay: float = 0.0
) -> tuple[Normal, Float[np.ndarray, " N"]]:
    """Moments without the measurement noise, weighed by what is left of it, and the ridge they are to be solved with.

    The ridge says that weights are small, as in `equations.prior`; what a neuron's equation leaves unexplained, noise
    of its regressors included, counts as independent from frame to frame.

    Args: those of `biases`.
    """
    first, n_frames = normal.first, max(normal.n_frames, 1)
    with threadpool_limits(1):
        noise = biases(normal, connectome, sigma, dt, sent, leak_sign, decay)
        moments = [_weighed(m, b) for m, b in zip(normal.moments, noise, strict=True)]
        # A first guess from the noisy data: too small rather than blown up.
        found = [_fit(m, 1e-9 * np.diag(m)[:-1]) for m in normal.moments]
        ridge = np.zeros(len(moments))
        for _ in range(ROUNDS):
            degrees = np.diff(first)
            rate = np.array([max(abs(f[d]), 1.0) for f, d in zip(found, degrees, strict=True)])
            sources = np.concatenate([f[:d] / r for f, d, r in zip(found, degrees, rate, strict=True)])
            typical = np.sqrt(np.mean(np.minimum(np.abs(sources), 1.0) ** 2)) if len(sources) else 0.0
            left = np.array([_left(m, f) for m, f in zip(normal.moments, found, strict=True)])
            ridge = np.maximum(left / n_frames / np.maximum(rate * typical, 1e-3) ** 2, RIDGE)
            found = [
                _fit(m, np.where(np.arange(len(m) - 1) < d, r, 0.0) + ROUNDING * np.diag(noisy)[:-1])
                for m, noisy, d, r in zip(moments, normal.moments, degrees, ridge, strict=True)
            ]
        for m, noisy, f in zip(moments, normal.moments, found, strict=True):
            m[-1, -1] += _left(noisy, f)  # so that residuals are those of the noisy equation
    return Normal(moments, first, normal.n_own, normal.n_frames), ridge


def _fit(m: np.ndarray, ridge: np.ndarray) -> np.ndarray:
    g = m[:-1, :-1] + np.diag(ridge)
    scale = np.sqrt(np.maximum(np.diag(g), 1e-300))
    return np.linalg.lstsq(g / np.outer(scale, scale), m[:-1, -1] / scale, rcond=1e-14)[0] / scale


def _left(m: np.ndarray, found: np.ndarray) -> float:
    """Mean square of what these coefficients leave of the noisy target."""
    return max(m[-1, -1] - 2 * found @ m[:-1, -1] + found @ m[:-1, :-1] @ found, 0.0)
