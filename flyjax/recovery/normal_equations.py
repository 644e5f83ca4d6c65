r"""One small least-squares problem per neuron, streamed over frames.

Neuron i is explained by what its sources send, columns of its own and a constant:

    y_i(t) = sum_j c_ij s_j(t) + sum_k b_ik x_ik(t) + b_i0

The normal equations are accumulated in float64, so memory does not grow with the recording. A
regressor is judged by what it says alone: the root mean square of what is left of it after all
others of the same neuron are regressed out, in the units of the regressor.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from threadpoolctl import threadpool_limits

from flyjax.recovery.gram_groups import groups
from flyjax.utils.system import cores

#: Weight of the prior that an unresolved source coefficient is 0, in squared units of the source.
RIDGE = 1e-11
#: Relative size of a direction that float64 moments cannot hold.
ROUNDING = 1e-15
#: A leak that says less than this alone is given the typical value: it is below the rounding of float32 voltages.
LOST = 1e-7


@dataclass(frozen=True, eq=False)
class Normal:
    """Moments of every neuron's regressors, divided by the number of frames.

    moments[i] is (K, K) with K = degree + n_own + 2: sources in the order of i's edges, own
    columns, the constant, the target.
    """

    moments: list[Float[np.ndarray, "K K"]]
    first: np.ndarray  #: (N + 1,) first edge of each neuron; edges are sorted by receiver
    n_own: int
    n_frames: int


@dataclass(frozen=True, eq=False)
class Solution:
    """Coefficients and how much each regressor says alone (root mean square, 0 for a lost one)."""

    source: Float[np.ndarray, " E"]
    own: Float[np.ndarray, "N n_own"]
    constant: Float[np.ndarray, " N"]
    source_alone: Float[np.ndarray, " E"]
    own_alone: Float[np.ndarray, "N n_own"]
    constant_alone: Float[np.ndarray, " N"]
    residual: Float[np.ndarray, " N"]  #: root mean square of what is not explained


_SHARED = threading.local()


@contextmanager
def sharing(n: int):
    """This thread is one of n that compute at once: each takes its share of the cores, or they would only wait for each other."""
    _SHARED.n = n
    try:
        yield
    finally:
        _SHARED.n = 1


def _workers() -> int:
    return max(1, cores() // getattr(_SHARED, "n", 1))


def _rows(pool, out, *terms) -> np.ndarray:
    """The sum of (N, frames) views in float64 and row-major, block by block; into `out` where it fits."""
    if out is None or out.shape != terms[0].shape:
        out = np.empty(terms[0].shape)

    def block(start):
        rows = slice(start, start + 256)
        out[rows] = terms[0][rows]
        for term in terms[1:]:
            out[rows] += term[rows]

    list(pool.map(block, range(0, len(out), 256)))
    return out


def accumulate(connectome, pieces: Iterable, n_own: int) -> Normal:
    """Normal equations from pieces (sent, own, target) of a few frames each.

    Args:
        pieces: sent (N, frames) what each neuron sends; own, n_own tuples of (N, frames) arrays, each
            summed in float64; target (N, frames). Views and float32 are welcome: they are
            converted once, here.
    """
    c = connectome
    first = np.searchsorted(c.receivers, np.arange(c.n_neurons + 1))
    # Rows of a group's table: its sources, own columns and target of each member, the constant.
    together = groups(c, n_own)
    sizes = [len(g.sources) + (n_own + 1) * len(g.members) + 1 for g in together]
    tables = [np.zeros((k, k)) for k in sizes]
    # The largest first, dealt in turn: all threads end together.
    n_workers, n_frames = _workers(), 0
    shares = [range(k, len(together), n_workers) for k in range(n_workers)]

    def work(share, sent, columns):
        buffer = np.empty((max(sizes), sent.shape[1]))
        for k in share:
            group, z, n_sources = together[k], buffer[: sizes[k]], len(together[k].sources)
            np.take(sent, group.sources, axis=0, out=z[:n_sources], mode="clip")
            for column, values in enumerate(columns):
                np.take(values, group.members, axis=0, out=z[n_sources + column : -1 : n_own + 1], mode="clip")
            z[-1] = 1.0
            tables[k] += z @ z.T

    pieces = iter(pieces)
    held: list = [None] * (n_own + 2)  # fresh pages for every piece took a tenth of the time
    # Many small products: one thread of BLAS each, the threads are ours; the next piece is made meanwhile.
    with threadpool_limits(1), ThreadPoolExecutor(n_workers) as pool, ThreadPoolExecutor(1) as maker:
        coming = maker.submit(next, pieces, None)
        while (piece := coming.result()) is not None:
            coming = maker.submit(next, pieces, None)
            terms = [(piece[0],), *piece[1], (piece[2],)]
            held = [_rows(pool, out, *views) for out, views in zip(held, terms, strict=True)]
            del piece, terms
            n_frames += held[0].shape[1]
            list(pool.map(lambda share: work(share, held[0], held[1:]), shares))
    del held
    moments: list = [None] * c.n_neurons
    for k, group in enumerate(together):
        table, n_sources, tables[k] = tables[k] / max(n_frames, 1), len(group.sources), None
        for m, (i, rows) in enumerate(zip(group.members, group.rows, strict=True)):
            own = n_sources + m * (n_own + 1) + np.arange(n_own + 1)
            mine = np.concatenate([rows, own[:-1], [len(table) - 1], own[-1:]])
            moments[i] = table[np.ix_(mine, mine)]
    return Normal(moments, first, n_own, n_frames)


def _solve_one(m: np.ndarray, n_own: int, ridge: float):
    """Coefficients, what each regressor says alone, squared residual, from one (K, K) of moments."""
    n, degree = len(m) - 1, len(m) - n_own - 2
    g, b = m[:n, :n].copy(), m[:n, n]
    g[np.arange(degree), np.arange(degree)] += ridge
    scale = np.sqrt(np.maximum(np.diag(g), 1e-300))
    spectrum, vectors = np.linalg.eigh(g / np.outer(scale, scale))
    # Below the rounding of the moments a direction is lost: it is left out, not divided by.
    kept = spectrum > ROUNDING * n
    inverse = np.where(kept, 1.0 / np.where(kept, spectrum, 1.0), 0.0)
    coefficients = vectors @ (inverse * (vectors.T @ (b / scale))) / scale
    variance = np.einsum("pk,k->p", vectors**2, np.where(kept, inverse, 1.0 / ROUNDING))
    alone = scale / np.sqrt(variance)
    square = m[n, n] - 2 * coefficients @ b + coefficients @ m[:n, :n] @ coefficients
    return coefficients, alone, max(square, 0.0)


def _solve_given(m: np.ndarray, n_own: int, ridge: float, value: float) -> np.ndarray:
    """Coefficients where the first own column has a given one."""
    at = len(m) - n_own - 2
    without = np.delete(np.delete(m, at, 0), at, 1)
    explained = np.delete(m[at], at) * value
    without[:-1, -1] -= explained[:-1]
    without[-1] = without[:, -1]
    without[-1, -1] = 0.0  # the squared target is not needed
    return np.insert(_solve_one(without, n_own - 1, ridge)[0], at, value)


def first_fit(normal: Normal, ridge: float = 1e-9) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Source coefficients (E,), coefficient of the first own column (N,) and residual (N,), quickly.

    By plain elimination, without judging the regressors: enough to see how large residuals are.
    """
    n, first = len(normal.moments), normal.first
    source, own, residual = np.zeros(first[-1]), np.zeros(n), np.zeros(n)

    def work(share):
        for i in share:
            m, degree = normal.moments[i], first[i + 1] - first[i]
            g, b = m[:-1, :-1], m[:-1, -1]
            scale = np.sqrt(np.diag(g) + ridge)
            scaled = g / np.outer(scale, scale) + np.diag(ridge / scale**2 + 1e-12)
            found = np.linalg.solve(scaled, b / scale) / scale
            source[first[i] : first[i + 1]], own[i] = found[:degree], found[degree]
            residual[i] = np.sqrt(max(m[-1, -1] - 2 * found @ b + found @ g @ found, 0.0))

    n_workers = _workers()
    with threadpool_limits(1), ThreadPoolExecutor(n_workers) as pool:
        list(pool.map(work, [range(k, n, n_workers) for k in range(n_workers)]))
    return source, own, residual


def prior(
    normal: Normal, receivers, independent: float, noise: float = 0.0, already_out: bool = False
) -> Float[np.ndarray, " N"]:
    """Ridge per neuron that says its weights are small: (unexplained / coefficient of a typical weight)^2 / frames.

    Without it the unidentifiable weights blow up.

    Args:
        independent: what is unexplained counts as if so many frames were independent.
        noise: std of known noise in the targets, 1/s, independent from frame to frame.
        already_out: whether the squared targets were corrected for it.
    """
    source, own, residual = first_fit(normal)
    rate = np.abs(own)
    weight = np.abs(source) / np.maximum(rate[receivers], 1e-6)
    typical = np.sqrt(np.mean(np.minimum(weight, 1.0) ** 2))  # one that has blown up may not set the scale
    expected = np.maximum(rate * typical, 1e-3)
    systematic = residual**2 if already_out else np.maximum(residual**2 - noise**2, 0.0)
    return np.maximum((systematic / independent + noise**2 / max(normal.n_frames, 1)) / expected**2, RIDGE)


def target_noise(recording) -> float:
    """Std of the noise in the training targets, 1/s: of differences, or of measured voltages."""
    simulation, square = recording.simulation, 0.0
    if recording.split == "train":
        square += 2 * simulation.measurement_noise_level**2
        if simulation.target == "difference":
            square += recording.noise_model_level**2
    return float(np.sqrt(square)) / simulation.delta_t


def solve(normal: Normal, ridge: float | np.ndarray = RIDGE, lost: float = LOST) -> Solution:
    """Least squares per neuron, with priors for what the data leave open.

    What cannot be told from the rest is not a synapse: `ridge` weighs the source coefficients
    alone (one number, or one per neuron), so that a leak confounded with an autapse goes to the leak, and a source that never sends
    gets 0. Where the first own column, the leak, says less than `lost` on its own (a neuron that
    hardly moves), it takes the median coefficient of the others.
    """
    n, n_own, first = len(normal.moments), normal.n_own, normal.first
    ridge = np.broadcast_to(ridge, n)
    source, source_alone = np.zeros(first[-1]), np.zeros(first[-1])
    rest, rest_alone, residual = np.zeros((n, n_own + 1)), np.zeros((n, n_own + 1)), np.zeros(n)

    def work(share):
        for i in share:
            found, alone, square = _solve_one(normal.moments[i], n_own, ridge[i])
            edges, degree = slice(first[i], first[i + 1]), first[i + 1] - first[i]
            source[edges], source_alone[edges] = found[:degree], alone[:degree]
            rest[i], rest_alone[i], residual[i] = found[degree:], alone[degree:], np.sqrt(square)

    n_workers = _workers()
    with threadpool_limits(1), ThreadPoolExecutor(n_workers) as pool:
        list(pool.map(work, [range(k, n, n_workers) for k in range(n_workers)]))
    stuck = rest_alone[:, 0] < lost
    typical = np.median(rest[~stuck, 0]) if n_own and not stuck.all() else 0.0
    for i in np.flatnonzero(stuck) if n_own else ():
        edges = slice(first[i], first[i + 1])
        found = _solve_given(normal.moments[i], n_own, ridge[i], typical)
        source[edges], rest[i] = found[: first[i + 1] - first[i]], found[first[i + 1] - first[i] :]
    # The ridge alone gives a lost column a root mean square of its own size.
    source_alone = np.sqrt(np.maximum(source_alone**2 - np.repeat(ridge, np.diff(first)), 0.0))
    return Solution(source, rest[:, :-1], rest[:, -1], source_alone, rest_alone[:, :-1], rest_alone[:, -1], residual)
