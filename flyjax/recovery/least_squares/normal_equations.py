r"""One small least-squares problem per neuron, streamed over frames.

Neuron i is explained by the messages of its sources, columns of its own and a constant:

    y_i(t) = sum_j c_ij s_j(t) + sum_k b_ik x_ik(t) + b_i0

The normal equations are accumulated in float64, so memory does not grow with the recording. The unique standard
deviation of a regressor is the root mean square of its residual after regression on all other regressors of the same
neuron, in units of the regressor: zero for a collinear one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits

from flyjax.data.recording import Recording
from flyjax.recovery.samples import per_recording
from flyjax.utils.system import cores

#: Ridge on source coefficients: a prior that an unresolved one is 0, in squared units of the source.
RIDGE = 1e-11
#: Relative size of a direction that float64 moments cannot represent.
ROUNDING = 1e-15
#: A leak with a smaller unique std, below the rounding of float32 voltages, is set to the median of the others.
MIN_LEAK_STD = 1e-7
#: Cost of a row, in products: gathering it, and the lower speed on small tables (measured in float64: 0.02 us a
#: product and 1,000 frames, 1.6 us a row).
ROW = 80.0
#: Cost of a table beside its size, in the same unit.
TABLE = 750.0
#: Merging ends when a round saves less than this share of the cost.
MIN_SAVING = 0.01
MAX_ROWS = 400
#: Rows that a thread converts at once.
ROWS = 256


class Group(NamedTuple):
    """Receivers that share one table: all their sources, own columns and target of each member, the constant.

    Neighbouring neurons have mostly the same sources, so the products of their regressors overlap, and matrix products
    run two to three times as fast on tables of 100 rows as on the 35 of a typical neuron. Grouping is exact: every
    neuron's own table is a part of its group's.
    """

    members: Int[np.ndarray, " M"]
    sources: Int[np.ndarray, " S"]
    source_rows: list[np.ndarray]  #: per member: positions of its sources, in the order of its edges, in `sources`

    def size(self, n_own: int) -> int:
        """Rows of the table."""
        return len(self.sources) + (n_own + 1) * len(self.members) + 1

    def member_rows(self, n_own: int) -> list[np.ndarray]:
        """Rows of each member's own table: sources, own columns, the constant, the target."""
        starts = len(self.sources) + (n_own + 1) * np.arange(len(self.members))
        own, constant = np.arange(n_own), self.size(n_own) - 1
        return [
            np.concatenate([rows, start + own, [constant, start + n_own]])
            for rows, start in zip(self.source_rows, starts, strict=True)
        ]


def _merge(label: np.ndarray, connectome, n_own: int) -> tuple[np.ndarray, float, float]:
    """One round in which pairs of groups merge that save most with each other: labels, cost before, saving."""
    n_groups = int(label.max()) + 1
    shape = (n_groups, connectome.n_neurons)
    ones = np.ones(len(connectome.senders), np.float32)
    has_source = sp.csr_matrix((ones, (label[connectome.receivers], connectome.senders)), shape=shape)
    has_source.sum_duplicates()
    has_source.data[:] = 1.0
    rows = np.diff(has_source.indptr) + (n_own + 1) * np.bincount(label, minlength=n_groups) + 1.0
    cost = rows**2 + ROW * rows + TABLE
    shared = sp.triu(has_source @ has_source.T, k=1, format="coo")
    a, b = shared.row, shared.col
    joint = rows[a] + rows[b] - 1.0 - shared.data
    saved = cost[a] + cost[b] - (joint**2 + ROW * joint + TABLE)
    order = np.flatnonzero((saved > 0) & (joint <= MAX_ROWS))
    order = order[np.argsort(-saved[order], kind="stable")]
    a, b, saved = a[order], b[order], saved[order]
    # A pair merges where it is the best of both: at the first place where either occurs.
    place = np.arange(len(a))
    first = np.full(n_groups, len(a))
    np.minimum.at(first, a, place)
    np.minimum.at(first, b, place)
    mutual = (first[a] == place) & (first[b] == place)
    joined = np.arange(n_groups)
    joined[b[mutual]] = a[mutual]
    return np.unique(joined[label], return_inverse=True)[1], float(cost.sum()), float(saved[mutual].sum())


@per_recording
def receiver_groups(connectome, n_own: int) -> list[Group]:
    """Groups of receivers, the largest tables first; computed once per connectome.

    `n_own` is the number of columns that every neuron has for itself beside its target and the shared constant.
    """
    label = np.arange(connectome.n_neurons)
    cost, saved = 1.0, 1.0
    while saved > MIN_SAVING * cost:
        label, cost, saved = _merge(label, connectome, n_own)
    first = np.searchsorted(connectome.receivers, np.arange(connectome.n_neurons + 1))
    order = np.argsort(label, kind="stable")
    groups = []
    for members in np.split(order, np.flatnonzero(np.diff(label[order])) + 1):
        senders = [connectome.senders[first[i] : first[i + 1]] for i in members]
        sources, position = np.unique(np.concatenate(senders), return_inverse=True)
        groups.append(Group(members, sources, np.split(position, np.cumsum([len(s) for s in senders])[:-1])))
    return sorted(groups, key=lambda group: -group.size(n_own))


@dataclass(frozen=True, eq=False)
class NormalEquations:
    """Moments of every neuron's regressors and target, divided by the number of frames.

    moments[i] is (K, K) with K = degree + n_own + 2: sources in the order of i's edges, own columns, the constant, the
    target.
    """

    moments: list[Float[np.ndarray, "K K"]]
    first: Int[np.ndarray, " N+1"]  #: first edge of each neuron; edges are sorted by receiver
    n_own: int
    n_frames: int


@dataclass(frozen=True, eq=False)
class Solution:
    """Coefficients and unique standard deviations of all regressors."""

    source: Float[np.ndarray, " E"]
    own: Float[np.ndarray, "N n_own"]
    constant: Float[np.ndarray, " N"]
    source_unique_std: Float[np.ndarray, " E"]
    own_unique_std: Float[np.ndarray, "N n_own"]
    constant_unique_std: Float[np.ndarray, " N"]


def map_neurons(function: Callable[[int], Any], n: int, n_workers: int | None = None) -> list:
    """[function(i) for i in range(n)] in threads, each with one thread of BLAS."""
    n_workers = n_workers or cores()

    def share(k: int) -> list:
        return [function(i) for i in range(k, n, n_workers)]

    with threadpool_limits(1), ThreadPoolExecutor(n_workers) as pool:
        shares = list(pool.map(share, range(n_workers)))
    return [shares[i % n_workers][i // n_workers] for i in range(n)]


def _to_float64(pool: Executor, values: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Values in float64 and row-major order, converted in blocks of rows; in `out` where the shapes agree."""
    if out.shape != values.shape:
        out = np.empty(values.shape)
    blocks = [slice(start, start + ROWS) for start in range(0, len(out), ROWS)]
    list(pool.map(lambda rows: np.copyto(out[rows], values[rows]), blocks))
    return out


def _add_products(groups: list[Group], tables: list[np.ndarray], columns: list[np.ndarray], share: range) -> None:
    """Add the products of one chunk to the tables of a thread's share of the groups."""
    sent, *own = columns
    buffer = np.empty((max((len(tables[k]) for k in share), default=0), sent.shape[1]))
    for k in share:
        group, n_sources = groups[k], len(groups[k].sources)
        z = buffer[: len(tables[k])]
        np.take(sent, group.sources, axis=0, out=z[:n_sources], mode="clip")
        for column, values in enumerate(own):
            np.take(values, group.members, axis=0, out=z[n_sources + column : -1 : len(own)], mode="clip")
        z[-1] = 1.0
        tables[k] += z @ z.T


def accumulate(
    connectome, chunks: Iterable[Sequence[np.ndarray]], n_own: int, n_workers: int | None = None
) -> NormalEquations:
    """Accumulate the normal equations of all neurons over chunks of frames.

    **Arguments:**

    - `chunks`: tuples of (N, frames) arrays: the message of each neuron, its n_own own columns, its target. Views and
      float32 are converted here, once; the next chunk is computed in a thread while one is added.
    - `n_own`: number of own columns per neuron.
    - `n_workers`: threads; by default one per core.
    """
    groups = receiver_groups(connectome, n_own)
    tables = [np.zeros((group.size(n_own),) * 2) for group in groups]
    n_workers = n_workers or cores()
    # Every thread gets large and small groups alike, as they are sorted by size.
    shares = [range(k, len(groups), n_workers) for k in range(n_workers)]
    columns, n_frames, chunks = [np.empty((0, 0))] * (n_own + 2), 0, iter(chunks)
    with threadpool_limits(1), ThreadPoolExecutor(n_workers) as pool, ThreadPoolExecutor(1) as reader:
        following = reader.submit(next, chunks, None)
        while (chunk := following.result()) is not None:
            following = reader.submit(next, chunks, None)
            # Buffers are reused: new memory for every chunk took a tenth of the time.
            columns = [_to_float64(pool, values, out) for values, out in zip(chunk, columns, strict=True)]
            del chunk  # frees its memory for the chunk being computed
            n_frames += columns[0].shape[1]
            list(pool.map(partial(_add_products, groups, tables, columns), shares))
    moments = [np.empty(0)] * connectome.n_neurons
    for k, group in enumerate(groups):
        table, tables[k] = tables[k] / max(n_frames, 1), np.empty(0)
        for i, rows in zip(group.members, group.member_rows(n_own), strict=True):
            moments[i] = table[np.ix_(rows, rows)]
    first = np.searchsorted(connectome.receivers, np.arange(connectome.n_neurons + 1))
    return NormalEquations(moments, first, n_own, n_frames)


def _solve_neuron(m: np.ndarray, n_own: int, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and unique standard deviations from one (K, K) of moments."""
    n, degree = len(m) - 1, len(m) - n_own - 2
    g, b = m[:n, :n].copy(), m[:n, n]
    g[np.arange(degree), np.arange(degree)] += ridge
    scale = np.sqrt(np.maximum(np.diag(g), 1e-300))
    spectrum, vectors = np.linalg.eigh(g / np.outer(scale, scale))
    # A direction below the rounding of the moments is left out, not divided by.
    resolved = spectrum > ROUNDING * n
    inverse = np.where(resolved, 1.0 / np.where(resolved, spectrum, 1.0), 0.0)
    coefficients = vectors @ (inverse * (vectors.T @ (b / scale))) / scale
    variance = np.einsum("pk,k->p", vectors**2, np.where(resolved, inverse, 1.0 / ROUNDING))
    return coefficients, scale / np.sqrt(variance)


def _solve_with_leak(m: np.ndarray, n_own: int, ridge: float, leak: float) -> np.ndarray:
    """Coefficients where that of the first own column is given."""
    at = len(m) - n_own - 2
    without = np.delete(np.delete(m, at, 0), at, 1)
    explained = np.delete(m[at], at) * leak
    without[:-1, -1] -= explained[:-1]
    return np.insert(_solve_neuron(without, n_own - 1, ridge)[0], at, leak)


def solve(normal: NormalEquations, ridge: float | np.ndarray = RIDGE, n_workers: int | None = None) -> Solution:
    """Least squares per neuron, with priors for coefficients that the data leave undetermined.

    Where the unique standard deviation of the first own column, the leak, is below MIN_LEAK_STD (a neuron that hardly
    moves), the leak takes the median coefficient of the other neurons.

    **Arguments:**

    - `ridge`: one number, or one per neuron. It applies to source coefficients only, so that a leak collinear with an
      autapse is attributed to the leak, and a source that never sends gets 0.
    - `n_workers`: threads; by default one per core.
    """
    n_own, first, n = normal.n_own, normal.first, len(normal.moments)
    ridge = np.broadcast_to(ridge, n)
    fits = map_neurons(lambda i: _solve_neuron(normal.moments[i], n_own, ridge[i]), n, n_workers)
    coefficients, unique_std = zip(*fits, strict=True)
    source, rest = _split(coefficients, n_own)
    source_std, rest_std = _split(unique_std, n_own)
    fixed = rest_std[:, 0] < MIN_LEAK_STD
    typical = np.median(rest[~fixed, 0]) if not fixed.all() else 0.0
    for i in np.flatnonzero(fixed):
        found = _solve_with_leak(normal.moments[i], n_own, ridge[i], typical)
        source[first[i] : first[i + 1]], rest[i] = np.split(found, [-n_own - 1])
    # The ridge alone gives a collinear column a root mean square of its own size.
    source_std = np.sqrt(np.maximum(source_std**2 - np.repeat(ridge, np.diff(first)), 0.0))
    return Solution(source, rest[:, :-1], rest[:, -1], source_std, rest_std[:, :-1], rest_std[:, -1])


def _split(values: tuple[np.ndarray, ...], n_own: int) -> tuple[np.ndarray, np.ndarray]:
    """Values per regressor: of sources (E,), of own columns and the constant (N, n_own + 1)."""
    source, rest = zip(*(np.split(v, [-n_own - 1]) for v in values), strict=True)
    return np.concatenate(source), np.stack(rest)


def prior(
    normal: NormalEquations, receivers, independent: float, noise: float = 0.0, n_workers: int | None = None
) -> Float[np.ndarray, " N"]:
    """Ridge per neuron that keeps weights small: (residual / coefficient of a typical weight)^2 / frames.

    Without it the unidentifiable weights diverge.

    **Arguments:**

    - `independent`: the residual counts as if so many frames were independent.
    - `noise`: std of known noise in the targets, 1/s, independent from frame to frame.
    - `n_workers`: threads; by default one per core.
    """

    def fit(i: int) -> tuple[np.ndarray, float, float]:  # by plain elimination: enough for the size of the residual
        m = normal.moments[i]
        g, b, degree = m[:-1, :-1], m[:-1, -1], len(m) - normal.n_own - 2
        scale = np.sqrt(np.diag(g) + 1e-9)
        found = np.linalg.solve(g / np.outer(scale, scale) + np.diag(1e-9 / scale**2 + 1e-12), b / scale) / scale
        return found[:degree], abs(found[degree]), np.sqrt(residual_variance(m, found))

    sources, rates, residuals = zip(*map_neurons(fit, len(normal.moments), n_workers), strict=True)
    rate, residual = np.array(rates), np.array(residuals)
    weight = np.abs(np.concatenate(sources)) / np.maximum(rate[receivers], 1e-6)
    typical = np.sqrt(np.mean(np.minimum(weight, 1.0) ** 2))  # a diverged weight must not set the scale
    systematic = np.maximum(residual**2 - noise**2, 0.0) / independent
    return np.maximum((systematic + noise**2 / max(normal.n_frames, 1)) / np.maximum(rate * typical, 1e-3) ** 2, RIDGE)


def residual_variance(m: np.ndarray, coefficients: np.ndarray) -> float:
    """Mean square of the target that these coefficients leave unexplained, from one (K, K) of moments."""
    square = m[-1, -1] - 2 * coefficients @ m[:-1, -1] + coefficients @ m[:-1, :-1] @ coefficients
    return max(square, 0.0)


def target_noise(recording: Recording) -> float:
    """Std of the noise in the training targets, 1/s: of finite differences, or of measured voltages."""
    simulation, square = recording.simulation, 0.0
    if recording.split == "train":
        square += 2 * simulation.measurement_noise_level**2
        if simulation.target == "difference":
            square += recording.noise_model_level**2
    return float(np.sqrt(square)) / simulation.delta_t
