r"""One small least-squares problem per neuron, streamed over frames.

Neuron i is explained by the messages of its sources, columns of its own and a constant:

    y_i(t) = sum_j c_ij s_j(t) + sum_k b_ik x_ik(t) + b_i0

The normal equations are accumulated in float64, so memory does not grow with the recording: on a CPU by BLAS, which
makes use of their symmetry, on an accelerator by batched products of tables of similar size. The unique standard
deviation of a regressor is the root mean square of its residual after regression on all other regressors of the same
neuron, in units of the regressor: zero for a collinear one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.linalg import lapack
from threadpoolctl import threadpool_limits

from flyjax.data.recording import Recording
from flyjax.utils.system import cores

#: Ridge on source coefficients: a prior that an unresolved one is 0, in squared units of the source.
RIDGE = 1e-11
#: Relative size of a direction that float64 moments cannot represent.
ROUNDING = 1e-15
#: Scaled variance inflation up to which a Cholesky factor is as accurate as all eigenvectors.
MAX_INFLATION = 1e9
#: A leak with a smaller unique std, below the rounding of float32 voltages, is set to the median of the others.
MIN_LEAK_STD = 1e-7
#: Frames of a block.
BLOCK = 500
#: The residual of the first fit is mostly the error of the learned messages, the same in every similar frame: the prior
#: counts it as if this many frames were independent.
INDEPENDENT_FRAMES = 20
#: On an accelerator tables are padded to multiples of this size, and so many are multiplied at once.
PADDING, AT_ONCE = 16, 256


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


def spread_blocks(n_frames: int, max_frames: int) -> list[slice]:
    """Evenly spread blocks of frames, the first and the last frame among them; all frames if they are few."""
    length = min(BLOCK, n_frames)
    n_blocks = max(1, min(-(-n_frames // length), max_frames // length))
    starts = np.linspace(0, n_frames - length, n_blocks).round().astype(int)
    return [slice(start, start + length) for start in starts]


def table_rows(connectome, n_own: int) -> list[Int[np.ndarray, " K"]]:
    """Rows of `_stack` that make each neuron's table: its sources, own columns, the constant, the target."""
    n = connectome.n_neurons
    first = np.searchsorted(connectome.receivers, np.arange(1, n))
    sources = np.split(np.asarray(connectome.senders), first)
    own = np.arange(n)[:, None] + n * np.array([*range(1, n_own + 1), n_own + 2, n_own + 1])
    own[:, -2] = n * (n_own + 2)
    return [np.concatenate(pair) for pair in zip(sources, own, strict=True)]


@jax.jit
def _stack(columns: tuple[Float[Array, "N B"], ...]) -> Float[Array, "R B"]:
    """All columns of all neurons in float64, then the constant."""
    wide = [column.astype(jnp.float64) for column in columns]
    return jnp.concatenate([*wide, jnp.ones((1, wide[0].shape[1]))])


def _add_products(tables: list[np.ndarray], rows: list[np.ndarray], x: np.ndarray, share: range) -> None:
    """Add the products of one chunk to a thread's share of the tables."""
    buffer = np.empty((max((len(rows[i]) for i in share), default=0), x.shape[1]))
    for i in share:
        z = np.take(x, rows[i], axis=0, out=buffer[: len(rows[i])], mode="clip")
        tables[i] += z @ z.T


def _add_on_cpu(tables: list[list[np.ndarray]], rows: list[np.ndarray], chunks, n_workers: int) -> None:
    """Add all chunks to the tables of each problem, in threads."""
    shares = [range(k, len(rows), n_workers) for k in range(n_workers)]
    with threadpool_limits(1), ThreadPoolExecutor(n_workers) as pool:
        for chunk in chunks:
            for own, x in zip(tables, chunk, strict=True):
                list(pool.map(partial(_add_products, own, rows, np.asarray(x)), shares))


@partial(jax.jit, donate_argnums=0)
def _add_padded(tables: list[Array], rows: list[Array], x: Float[Array, "R B"]) -> list[Array]:
    """Tables of equal size at once; a row beyond the last is padding."""

    def product(rows):
        z = x.at[rows].get(mode="fill", fill_value=0.0)
        return z @ z.T

    return [table + jax.lax.map(product, row, batch_size=AT_ONCE) for table, row in zip(tables, rows, strict=True)]


def _add_on_accelerator(tables: list[list[np.ndarray]], rows: list[np.ndarray], chunks) -> None:
    """`_add_on_cpu` with all tables on the default device, those of similar size padded to one."""
    size = np.array([len(row) + -len(row) % PADDING for row in rows])
    groups = [np.flatnonzero(size == n) for n in np.unique(size)]
    beyond = np.iinfo(np.int32).max
    padded = [
        np.stack([np.pad(rows[i], (0, size[i] - len(rows[i])), constant_values=beyond) for i in group])
        for group in groups
    ]
    with jax.enable_x64(True):
        padded = jax.device_put([p.astype(np.int32) for p in padded])
        sums = [[jnp.zeros((*p.shape, p.shape[1])) for p in padded] for _ in tables]
    for chunk in chunks:
        with jax.enable_x64(True):
            sums = [_add_padded(own, padded, x) for own, x in zip(sums, chunk, strict=True)]
    for own, found in zip(tables, sums, strict=True):
        for members, group in zip(groups, map(np.asarray, found), strict=True):
            for i, table in zip(members, group, strict=True):
                own[i] += table[: len(rows[i]), : len(rows[i])]


def accumulate(
    connectome, chunks: Iterable[Sequence[np.ndarray | Array]], n_own: int, n_workers: int | None = None
) -> NormalEquations:
    """Accumulate the normal equations of all neurons over chunks of frames.

    **Arguments:**

    - `chunks`: tuples of (N, frames) arrays: the message of each neuron, its n_own own columns, its target.
    - `n_own`: number of own columns per neuron.
    - `n_workers`: threads on a CPU; by default one per core.
    """
    return accumulate_all(connectome, ([chunk] for chunk in chunks), n_own, 1, n_workers)[0]


def accumulate_all(
    connectome,
    chunks: Iterable[Sequence[Sequence[np.ndarray | Array]]],
    n_own: int,
    n: int,
    n_workers: int | None = None,
) -> list[NormalEquations]:
    """`accumulate` of `n` problems in one pass: `chunks` have the columns of each."""
    rows, n_frames = table_rows(connectome, n_own), 0
    tables = [[np.zeros((len(row),) * 2) for row in rows] for _ in range(n)]

    def stacked():
        nonlocal n_frames
        for chunk in chunks:
            n_frames += chunk[0][0].shape[1]
            with jax.enable_x64(True):
                x = [_stack(tuple(columns)) for columns in chunk]
            yield x

    if jax.default_backend() == "cpu":
        _add_on_cpu(tables, rows, stacked(), n_workers or cores())
    else:
        _add_on_accelerator(tables, rows, stacked())
    first = np.searchsorted(connectome.receivers, np.arange(connectome.n_neurons + 1))
    return [NormalEquations([t / max(n_frames, 1) for t in own], first, n_own, n_frames) for own in tables]


def _solve_neuron(m: np.ndarray, n_own: int, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and unique standard deviations from one (K, K) of moments."""
    n, degree = len(m) - 1, len(m) - n_own - 2
    g, b = m[:n, :n].copy(), m[:n, n]
    g[np.arange(degree), np.arange(degree)] += ridge
    scale = np.sqrt(np.maximum(np.diag(g), 1e-300))
    g /= np.outer(scale, scale)
    factor, failed = lapack.dpotrf(g, lower=True)
    if not failed:
        inverse = lapack.dpotri(factor, lower=True)[0]
        inflation = np.diag(inverse)
        if inflation.max() < MAX_INFLATION:
            coefficients = lapack.dpotrs(factor, b / scale, lower=True)[0] / scale
            return coefficients, scale / np.sqrt(inflation)
    spectrum, vectors = np.linalg.eigh(g)
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


def solve(normal: NormalEquations, ridge: float | np.ndarray = RIDGE) -> Solution:
    """Least squares per neuron, with priors for coefficients that the data leave undetermined.

    Where the unique standard deviation of the first own column, the leak, is below MIN_LEAK_STD (a neuron that hardly
    moves), the leak takes the median coefficient of the other neurons.

    **Arguments:**

    - `ridge`: one number, or one per neuron. It applies to source coefficients only, so that a leak collinear with an
      autapse is attributed to the leak, and a source that never sends gets 0.
    """
    n_own, first, n = normal.n_own, normal.first, len(normal.moments)
    ridge = np.broadcast_to(ridge, n)
    with threadpool_limits(1):
        coefficients, unique_std = zip(
            *(_solve_neuron(m, n_own, r) for m, r in zip(normal.moments, ridge, strict=True))
        )
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
    flat, ends = np.concatenate(values), np.cumsum([len(v) for v in values])
    rest = ends[:, None] + np.arange(-n_own - 1, 0)
    return np.delete(flat, rest), flat[rest]


def prior(normal: NormalEquations, receivers, independent: float, noise: float = 0.0) -> Float[np.ndarray, " N"]:
    """Ridge per neuron that keeps weights small: (residual / coefficient of a typical weight)^2 / frames.

    Without it the unidentifiable weights diverge.

    **Arguments:**

    - `independent`: the residual counts as if so many frames were independent.
    - `noise`: std of known noise in the targets, 1/s, independent from frame to frame.
    """

    def fit(m: np.ndarray) -> tuple[np.ndarray, float, float]:  # without eigenvectors: enough for a residual's size
        g, b, degree = m[:-1, :-1], m[:-1, -1], len(m) - normal.n_own - 2
        scale = np.sqrt(np.diag(g) + 1e-9)
        regular = g / np.outer(scale, scale) + np.diag(1e-9 / scale**2 + 1e-12)
        found = lapack.dposv(regular, b / scale, lower=True)[1] / scale
        return found[:degree], abs(found[degree]), np.sqrt(residual_variance(m, found))

    with threadpool_limits(1):
        sources, rates, residuals = zip(*map(fit, normal.moments), strict=True)
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
        if simulation.target == "difference" or simulation.observe_every > 1:
            square += recording.noise_model_level**2 / simulation.observe_every
    return float(np.sqrt(square)) / simulation.delta_t
