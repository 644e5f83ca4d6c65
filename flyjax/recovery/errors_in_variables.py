r"""Least squares for voltages measured with noise: what clean measurements would have given.

With x = v + n, n ~ N(0, sigma^2) independent across frames and neurons, and targets differenced from the same data,
y = dv/dt + (n' - n)/dt, two things go wrong. Noise in the regressors attenuates every coefficient. And the noise of
the target, sqrt(2) sigma / dt, dominates the derivative: with it in the target alone, least squares on the *clean*
voltages reaches W R2 .72 at sigma = 0.08 (extent 1, 8,000 frames), so removing the attenuation cannot help much.

**The integral form.** Noise that is added to the target in one frame is subtracted in the next. The equation is
linear, so a window over past frames can be applied to all its columns alike,

    u'(t) = decay u'(t - 1) + (1 - decay) u(t),      variance of white noise n':  A = (1 - decay) / (1 + decay),

and the variance of the target's noise falls to 2 sigma^2 A (1 - decay) / dt^2, by 45 at a decay of 0.8 (a weak form of
the equation; nearly the weights of generalised least squares, as the remaining noise is about
n(t + 1) - (1 - dt/tau) n(t)). Targets differenced from recorded voltages contain the process noise, which moves later
voltages: there a window would confuse cause and effect, and none is applied.

**The bias.** For Gaussian n and any function h, E[n h(v + n)] = sigma^2 E[h'(v + n)] (Stein), so all of it is known
from the noisy data and sigma (Fuller, Measurement Error Models; Nakamura's corrected scores); inside the window, times
A:

    own leak column      E[n n] = sigma^2
      with the target    -sigma^2 (1 - decay) / dt
      with the autapse   sigma^2 E[h']
    autapse and target   -sigma^2 E[h'] (1 - decay) / dt
    source with itself   E[h(x)^2] - E[m(v)^2]
    target with itself   2 sigma^2 (1 - decay) / dt^2

h is made from the message m such that E[h(v + n)] = m(v) up to the order sigma^4: `debiased_relu` for relu, and
`FunctionTable.debiased` for learned messages, from g and its own curvature.

**The variance.** The moments without bias, G_c theta = b_c, are the less certain the more noise there was: b_c - G_c
theta has the covariance of the noisy G_n. Weighted by it, G_c G_n^-1 G_c theta = G_c G_n^-1 b_c: directions of noise
alone drop out instead of diverging, and `normal_equations.solve` weighs the rest against its prior.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import scipy
from jaxtyping import Array, Float
from scipy.special import ndtr
from threadpoolctl import threadpool_limits

from flyjax.data.recording import Recording
from flyjax.data.splits import measurement_noise_std, uses_finite_differences
from flyjax.models.normal_equations import RIDGE, NormalEquations, accumulate, residual_variance, solve
from flyjax.recovery.metrics import CircuitEstimate

#: Of the window over past frames, some 5 long. W R2 of the closed form at noise 0.08 (extent 1, 8,000 frames) with
#: 0, 0.5, 0.7, 0.8, 0.9: .69, .89, .91, .91, .88.
DECAY = 0.8
#: Frames after which a window is independent of its start.
WARM_UP = 25
#: Points of a function table per std of the noise, and at most.
POINTS_PER_STD, MAX_POINTS = 8, 2000
#: Iterations in which the size of a typical weight, for the prior, is found from the weights themselves.
N_ITERATIONS = 3
#: Rounding error where data are scaled to variance 1.
ROUNDING = 1e-12
#: Points and weights of averages over the noise: evenly spaced, because messages may have a kink.
NODES = np.linspace(-5.0, 5.0, 41)
WEIGHTS = np.exp(-0.5 * NODES**2) / np.exp(-0.5 * NODES**2).sum()


class MessageNoise(NamedTuple):
    """Effect of measurement noise on a source's column h(x)."""

    slope: Float[np.ndarray, " N"]  #: E[h'(x)]
    variance: Float[np.ndarray, " N"]  #: E[h(x)^2] - E[m(v)^2], the mean variance of h(v + n) given v


def _smoothed_relu(x: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """relu averaged over noise of std sigma, and its derivative."""
    z = x / sigma
    return x * ndtr(z) + sigma * np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi), ndtr(z)


def debiased_relu(x: np.ndarray, sigma: float) -> np.ndarray:
    """2 relu - relu averaged over the noise: its mean over noise of std sigma is about relu."""
    if not sigma > 0:
        return np.maximum(x, 0)
    return 2 * np.maximum(x, 0) - _smoothed_relu(x, sigma)[0]


def relu_noise(x: Float[np.ndarray, "T N"], sigma: float) -> MessageNoise:
    """Effect of the noise on `debiased_relu` at measured voltages."""
    positive = x > 0
    slope = _mean(2.0 * positive - _smoothed_relu(x, sigma)[1])
    # x^2 - sigma^2 above zero has the mean relu(v)^2.
    return MessageNoise(slope, _mean(debiased_relu(x, sigma) ** 2) - _mean(np.where(positive, x * x - sigma**2, 0.0)))


def _mean(x: Float[np.ndarray, "T N"]) -> Float[np.ndarray, " N"]:
    return np.asarray(x.mean(axis=0, dtype=np.float64))


class FunctionTable(NamedTuple):
    """Functions of one variable, one per neuron, at common points; linear between them and constant beyond."""

    points: Float[np.ndarray, " P"]
    values: Float[np.ndarray, "N P"]

    def __call__(self, x: Float[np.ndarray, "T N"]) -> Float[np.ndarray, "T N"]:
        columns = zip(x.T, self.values, strict=True)
        return np.stack([np.interp(column, self.points, values) for column, values in columns], axis=1)

    def noise_moments(self, sigma: float) -> tuple[Float[np.ndarray, "N P"], Float[np.ndarray, "N P"]]:
        """Mean and variance over noise of std sigma, at the points."""
        shifted = self.points + sigma * NODES[:, None]
        mean, variance = np.empty((2, *self.values.shape))
        for i, values in enumerate(self.values):
            change = np.interp(shifted, self.points, values) - values  # keeps the squares small
            first = WEIGHTS @ change
            mean[i], variance[i] = values + first, WEIGHTS @ change**2 - first**2
        return mean, variance

    def debiased(self, sigma: float) -> FunctionTable:
        """2 h - h averaged over the noise: a function whose mean over the noise is h, up to the order sigma^4."""
        return self._replace(values=2 * self.values - self.noise_moments(sigma)[0])


def table_points(x: np.ndarray, sigma: float) -> Float[np.ndarray, " P"]:
    """Points of a table for voltages x and noise around them, in float64: its variance is a difference of squares."""
    low, high = float(x.min()) - 5 * sigma, float(x.max()) + 5 * sigma
    return np.linspace(low, high, min(int(POINTS_PER_STD * (high - low) / sigma) + 1, MAX_POINTS))


def message_noise(h: FunctionTable, x: Float[np.ndarray, "T N"], sigma: float) -> MessageNoise:
    """Effect of the noise on columns h(x) at measured voltages."""
    slope = h._replace(values=np.gradient(h.values, h.points, axis=1))
    variance = h._replace(values=h.noise_moments(sigma)[1]).debiased(sigma)
    return MessageNoise(_mean(slope(x)), np.clip(_mean(variance(x)), 0.0, _mean(h(x) ** 2)))


def window_decay(simulation, split: str) -> float:
    """Decay of the window for a recording; 0 where the targets contain the process noise that moves later voltages."""
    return 0.0 if uses_finite_differences(simulation, split) else DECAY


def apply_window(
    chunks: Iterable[Sequence[np.ndarray | Array]], decay: float, continuous: bool = True
) -> Iterator[list[np.ndarray]]:
    """Chunks for `normal_equations.accumulate` with the window applied to every column.

    With `continuous`, each chunk follows from the one before; otherwise the window starts anew. It starts as if the
    first frame had always been, and drops the frames of its warm-up unless the chunk is too short to spare them.
    """
    states: list[np.ndarray] = []
    for chunk in chunks:
        columns = [np.asarray(column, np.float64) for column in chunk]
        starts = not (continuous and states)
        if starts:
            states = [decay * column[:, :1] for column in columns]
        filtered = [
            scipy.signal.lfilter([1 - decay], [1, -decay], column, axis=1, zi=state)
            for column, state in zip(columns, states, strict=True)
        ]
        states = [state for _, state in filtered]
        begin = WARM_UP if starts and decay > 0 and columns[0].shape[1] > 2 * WARM_UP else 0
        yield [column[:, begin:] for column, _ in filtered]


def noise_bias(
    normal: NormalEquations,
    connectome,
    sigma: float,
    dt: float,
    noise: MessageNoise,
    leak_sign: float,
    decay: float = 0.0,
) -> Iterator[Float[np.ndarray, "K K"]]:
    """What measurement noise adds to the moments of each neuron, in turn.

    **Arguments:**

    - `sigma`: std of the noise of a voltage.
    - `dt`: s between frames.
    - `noise`: its effect on the column of every neuron.
    - `leak_sign`: sign of v in the first own column, 1 or -1.
    - `decay`: of the window that was applied to the columns.
    """
    variance, correlated = sigma**2, (1 - decay) / dt
    for i, moments in enumerate(normal.moments):
        sources = connectome.senders[normal.first[i] : normal.first[i + 1]]
        leak, target = len(sources), len(moments) - 1
        bias = np.zeros_like(moments)
        bias[np.arange(leak), np.arange(leak)] = noise.variance[sources]
        bias[leak, leak] = variance
        bias[leak, target] = -leak_sign * variance * correlated
        bias[target, target] = 2 * variance * correlated / dt
        for autapse in np.flatnonzero(sources == i):
            bias[autapse, leak] = leak_sign * variance * noise.slope[i]
            bias[autapse, target] = -variance * noise.slope[i] * correlated
        yield (1 - decay) / (1 + decay) * (np.triu(bias) + np.triu(bias, 1).T)


def reweight_moments(noisy: Float[np.ndarray, "K K"], bias: Float[np.ndarray, "K K"]) -> Float[np.ndarray, "K K"]:
    """Moments with the solution of those without bias, each direction weighted by its noise."""
    g, diagonal = noisy[:-1, :-1], np.diag(bias)[:-1]
    scale = np.sqrt(np.maximum(np.diag(g), 1e-300))
    # No column is more than noise, although that of a silent source, made of rounding, would seem so.
    bias = bias + np.diag(np.append(np.clip(diagonal, 0.0, np.diag(g)) - diagonal, 0.0))
    root = np.linalg.cholesky(g / np.outer(scale, scale) + ROUNDING * np.eye(len(g)))
    half = np.linalg.solve(root, bias[:-1, :-1] / scale[:, None]) / scale
    # In directions in which the data have unit variance: the share of noise. Rounding may put it outside [0, 1].
    noise_share, rotation = np.linalg.eigh(np.linalg.solve(root, half.T))
    signal_share = np.clip(1.0 - noise_share, 0.0, 1.0)
    target = rotation.T @ np.linalg.solve(root, (noisy[:-1, -1] - bias[:-1, -1]) / scale)
    back = scale[:, None] * (root @ rotation)
    out = np.empty_like(noisy)
    out[:-1, :-1] = (back * signal_share**2) @ back.T
    out[:-1, -1] = out[-1, :-1] = back @ (signal_share * target)
    out[-1, -1] = target @ target
    return out


def correct_moments(
    normal: NormalEquations,
    connectome,
    sigma: float,
    dt: float,
    noise: MessageNoise,
    leak_sign: float,
    decay: float = 0.0,
) -> tuple[NormalEquations, Float[np.ndarray, " N"]]:
    """Moments without measurement noise, weighted by their certainty, and the ridge to solve them with.

    The ridge keeps weights small, as in `normal_equations.prior`; the residual of a neuron's equation, noise of its
    regressors included, counts as independent from frame to frame. Arguments as in `noise_bias`.
    """
    degrees, n_frames = np.diff(normal.first), max(normal.n_frames, 1)
    with threadpool_limits(1):
        bias = noise_bias(normal, connectome, sigma, dt, noise, leak_sign, decay)
        moments = [reweight_moments(m, b) for m, b in zip(normal.moments, bias, strict=True)]
        # A first guess from the noisy data: too small rather than diverged.
        found = [_fit(m, 1e-9 * np.diag(m)[:-1]) for m in normal.moments]
        for _ in range(N_ITERATIONS):
            rate = np.array([max(abs(f[d]), 1.0) for f, d in zip(found, degrees, strict=True)])
            weights = np.concatenate([f[:d] / r for f, d, r in zip(found, degrees, rate, strict=True)])
            typical = np.sqrt(np.mean(np.minimum(np.abs(weights), 1.0) ** 2)) if len(weights) else 0.0
            residual = np.array([residual_variance(m, f) for m, f in zip(normal.moments, found, strict=True)])
            ridge = np.maximum(residual / n_frames / np.maximum(rate * typical, 1e-3) ** 2, RIDGE)
            found = [
                _fit(m, np.where(np.arange(len(m) - 1) < d, r, 0.0) + ROUNDING * np.diag(noisy)[:-1])
                for m, noisy, d, r in zip(moments, normal.moments, degrees, ridge, strict=True)
            ]
    return NormalEquations(moments, normal.first, normal.n_own, normal.n_frames), ridge


def corrected_estimate(
    recording: Recording,
    chunks: Iterable[Sequence[np.ndarray | Array]],
    n_own: int,
    noise: MessageNoise,
    leak_sign: float,
    continuous: bool = True,
    n_workers: int | None = None,
) -> CircuitEstimate:
    """The circuit by least squares in the integral form, without the bias of measurement noise; tau is at most 1 s.

    **Arguments:**

    - `chunks`: as in `accumulate`, with debiased messages and `n_own` own columns; `continuous` as in `apply_window`.
    - `noise`, `leak_sign`: as in `noise_bias`.
    """
    c, simulation = recording.connectome, recording.simulation
    sigma, decay = measurement_noise_std(simulation, recording.split), window_decay(simulation, recording.split)
    normal = accumulate(c, apply_window(chunks, decay, continuous), n_own, n_workers)
    normal, ridge = correct_moments(normal, c, sigma, recording.dt, noise, leak_sign, decay)
    solution = solve(normal, ridge)
    rate = np.maximum(-leak_sign * solution.own[:, 0], 1.0)
    return CircuitEstimate.from_coefficients(rate, solution.source, solution.constant, c.receivers)


def _fit(m: np.ndarray, ridge: np.ndarray) -> np.ndarray:
    """Coefficients from one (K, K) of moments, with a ridge per regressor."""
    g = m[:-1, :-1] + np.diag(ridge)
    scale = np.sqrt(np.maximum(np.diag(g), 1e-300))
    return np.linalg.lstsq(g / np.outer(scale, scale), m[:-1, -1] / scale, rcond=1e-14)[0] / scale
