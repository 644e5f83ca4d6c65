"""A surrogate of one quantity over the settings, with its cross-validated skill and calibrated uncertainty.

It is an ensemble: every member is fitted on configurations drawn with replacement, so that the spread of whatever is
computed from the members (a prediction, an index, a curve) has the uncertainty of the surrogate in it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize, nnls
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.model_selection import KFold
from threadpoolctl import ThreadpoolController

N_FOLDS = 5
N_DRAWS = 500  # of the bootstrap of a score
LEVEL = 0.9  # of all intervals
EDGES = (1 - LEVEL) / 2, (1 + LEVEL) / 2
#: Configurations at most that the length scales of a Gaussian process are fitted on: first, and of each member.
N_KERNEL, N_KERNEL_AGAIN = 256, 96
N_SHARING = 4  # members with the same kernel: fitting one costs more than fitting a process
KINDS = ("forest", "Gaussian process")

one_thread = ThreadpoolController().wrap(limits=1)  # many small matrices: threads cost more than they save
Predictor = Callable[[Float[np.ndarray, "n d"]], Float[np.ndarray, " n"]]


@dataclass(frozen=True)
class Sizes:
    """What a map costs.

    **Attributes:**

    - `members`, `trees`: of an ensemble, and of a member that is a forest.
    - `fold_members`: members during cross-validation.
    - `points`: Sobol' points of an index, a power of 2.
    - `metrics`: that are mapped beside the map's own.
    """

    members: int = 24
    trees: int = 12
    fold_members: int = 6
    points: int = 512
    metrics: tuple[str, ...] = ("connectivity_R2", "tau_R2", "V_rest_R2", "test_R2")


FULL = Sizes()
#: For a map that is drawn again and again while a run goes on.
FAST = Sizes(members=12, trees=10, fold_members=4, points=256, metrics=("connectivity_R2", "V_rest_R2"))


@dataclass(frozen=True)
class Estimate:
    """A number with its 90 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, draws: Float[np.ndarray, " n"]) -> Estimate:
        """`value` with the central 90 % of `draws`."""
        low, high = np.nanquantile(draws, EDGES) if np.isfinite(draws).any() else (np.nan, np.nan)
        return cls(float(value), float(min(low, value)), float(max(high, value)))


@dataclass(frozen=True)
class Targets:
    """What a surrogate is fitted on: one row per configuration.

    **Attributes:**

    - `x`: settings in the unit cube.
    - `y`: mean over the seeds.
    - `n`: number of seeds.
    - `noise`: variance of `y` due to the seeds; 0 where no configuration has two.
    - `bounds`: between which the quantity lies.
    - `prior`: mean and spread that are expected where there are no data; None: those of the data.
    """

    x: Float[np.ndarray, "n d"]
    y: Float[np.ndarray, " n"]
    n: Int[np.ndarray, " n"]
    noise: Float[np.ndarray, " n"]
    bounds: tuple[float, float] = (-np.inf, np.inf)
    prior: tuple[float, float] | None = None

    def part(self, rows: Int[np.ndarray, " m"]) -> Targets:
        return Targets(self.x[rows], self.y[rows], self.n[rows], self.noise[rows], self.bounds, self.prior)

    def scale(self) -> tuple[float, float]:
        """Mean and spread by which values are standardised."""
        return self.prior or (float(self.y.mean()), float(self.y.std()) or 1.0)


#: Log-normal priors of a process of standardised values: median, and standard deviation of the logarithm. Without them
#: a few dozen configurations fit nine length scales by chance.
_AMPLITUDE, _LENGTH, _NOISE = (1.0, 0.5), (1.5, 0.6), (0.2, 1.0)


def _fit_kernel(data: Targets, start: Any, rng: np.random.Generator) -> Any:
    """The most probable kernel of a process of standardised values; without a start from all its data."""
    d, n_rows = data.x.shape[1], N_KERNEL if start is None else N_KERNEL_AGAIN
    median, spread = np.array([_AMPLITUDE, *[_LENGTH] * d, _NOISE]).T
    if start is None:
        scales = Matern(median[1:-1], (0.05, 50), nu=2.5)
        start = ConstantKernel(median[0], (0.05, 20)) * scales + WhiteKernel(median[-1], (1e-3, 3))

    def most_probable(negative_log_likelihood: Callable, theta, bounds):
        def loss(theta):
            value, gradient = negative_log_likelihood(theta)
            z = (theta - np.log(median)) / spread
            return value + z @ z / 2, gradient + z / spread

        found = minimize(loss, theta, jac=True, bounds=bounds, method="L-BFGS-B")
        return found.x, found.fun

    some = data.part(rng.permutation(len(data.y))[:n_rows])
    mean, scale = data.scale()
    process = GaussianProcessRegressor(start, alpha=1e-8 + some.noise / scale**2, optimizer=most_probable)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a length scale at its bound: the setting has a step
        return process.fit(some.x, (some.y - mean) / scale).kernel_


def fit_kernel(data: Targets, seed: int) -> Any:
    """The kernel of a process of all data, where the kernels of an ensemble start."""
    return _fit_kernel(data, None, np.random.default_rng(seed))


@dataclass(frozen=True)
class Process:
    """A fitted Gaussian process.

    **Attributes:**

    - `mean`, `scale`: by which its values are standardised.
    - `noise`: variance of a configuration around the expected value, beside that of its seeds.
    """

    process: GaussianProcessRegressor
    mean: float
    scale: float
    noise: float

    @classmethod
    def fit(cls, data: Targets, weight: Int[np.ndarray, " n"], kernel: Any) -> Process:
        """With a fitted kernel; `weight` counts how often a configuration was drawn."""
        mean, scale = data.scale()
        noise = (data.noise / scale**2 + kernel.k2.noise_level) / weight
        process = GaussianProcessRegressor(kernel.k1, alpha=1e-8 + noise, optimizer=None)
        return cls(process.fit(data.x, (data.y - mean) / scale), mean, scale, kernel.k2.noise_level * scale**2)

    def __call__(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """The expected value."""
        return self.mean + self.scale * self.process.predict(x)

    def moments(self, x: Float[np.ndarray, "n d"]) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """(mean, variance) of the value of a configuration; far from all data the variance is that of the prior."""
        mean, deviation = self.process.predict(x, return_std=True)
        return self.mean + self.scale * mean, (self.scale * deviation) ** 2 + self.noise


def processes(data: Targets, n_members: int, rng: np.random.Generator, kernel: Any) -> list[Process]:
    """Gaussian processes of configurations drawn with replacement; `kernel` is where their own kernels start."""
    members: list[Process] = []
    own: Any = None
    for k in range(n_members):
        some, weight = _drawn(data, rng)
        own = _fit_kernel(some, kernel, rng) if k % N_SHARING == 0 else own
        members.append(Process.fit(some, weight, own))
    return members


def _drawn(data: Targets, rng: np.random.Generator) -> tuple[Targets, Int[np.ndarray, " m"]]:
    """Configurations drawn with replacement, and how often each was drawn."""
    counts = rng.multinomial(len(data.y), np.full(len(data.y), 1 / len(data.y)))
    keep = np.flatnonzero(counts)
    return data.part(keep), counts[keep]


@dataclass(frozen=True)
class Forest:
    """Extremely randomised trees."""

    trees: tuple[Any, ...]

    @classmethod
    def fit(cls, data: Targets, weight: Int[np.ndarray, " n"], n_trees: int, seed: int) -> Forest:
        """`weight` counts how often a configuration was drawn."""
        forest = ExtraTreesRegressor(n_trees, random_state=seed)
        forest.fit(data.x, data.y, sample_weight=weight * data.n)
        return cls(tuple(tree.tree_ for tree in forest.estimators_))

    def __call__(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """The expected value, without the checks and the parallel loop that take milliseconds for a single point."""
        return np.mean([tree.predict(x.astype(np.float32))[:, 0] for tree in self.trees], 0)


def _ensemble(data: Targets, n_members: int, n_trees: int, rng: np.random.Generator, kernel: Any) -> list[Predictor]:
    """Members fitted on configurations drawn with replacement: processes, or forests without a kernel."""
    if kernel is not None:
        return [*processes(data, n_members, rng, kernel)]
    return [Forest.fit(*_drawn(data, rng), n_trees, int(rng.integers(2**31))) for _ in range(n_members)]


def _evaluate(members: Sequence[Predictor], x: Float[np.ndarray, "n d"], bounds) -> Float[np.ndarray, "members n"]:
    return np.clip(np.stack([member(x) for member in members]), *bounds)


def folds(n: int) -> list[tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]]:
    """(rows to fit on, held-out rows) of every fold; a configuration's seeds share a row."""
    return list(KFold(min(N_FOLDS, n), shuffle=True, random_state=0).split(np.arange(n)))


@dataclass(frozen=True)
class _CrossValidated:
    """What one kind of surrogate says of held-out configurations."""

    kernel: Any
    predicted: Float[np.ndarray, " n"]
    variance: Float[np.ndarray, " n"]
    base: Float[np.ndarray, " n"]  # the mean of the others

    @classmethod
    def of(cls, kind: str, data: Targets, sizes: Sizes, seed: int) -> _CrossValidated:
        kernel = fit_kernel(data, seed) if kind == KINDS[1] else None
        predicted, variance, base = np.empty((3, len(data.y)))
        for k, (fit, out) in enumerate(folds(len(data.y))):
            rng = np.random.default_rng([seed, k])
            ensemble = _ensemble(data.part(fit), sizes.fold_members, sizes.trees, rng, kernel)
            draws = _evaluate(ensemble, data.x[out], data.bounds)
            predicted[out], variance[out] = draws.mean(0), draws.var(0, ddof=1)
            base[out] = np.average(data.y[fit], weights=data.n[fit])
        return cls(kernel, predicted, variance, base)


@dataclass(frozen=True)
class Surrogate:
    """A fitted surrogate.

    **Attributes:**

    - `kind`: `forest` (extremely randomised trees), `Gaussian process`, whichever predicted held-out configurations
      better, or both where the difference is within the interval of the better one's skill.
    - `held_out`: prediction of every configuration by members that were not fitted on it.
    - `skill`: R2 of these predictions against predicting the mean of the others; 0 is no skill.
    - `attainable`: the R2 that a perfect surrogate would have, given the noise of the seeds.
    - `floor`, `scale`: the variance of the expected value is `floor` + `scale` x the members' variance, fitted on the
      held-out configurations.
    """

    kind: str
    members: tuple[Predictor, ...]
    data: Targets
    held_out: Float[np.ndarray, " n"]
    skill: Estimate
    attainable: float
    floor: float
    scale: float

    @classmethod
    @one_thread
    def fit(cls, data: Targets, sizes: Sizes = FULL, kinds: Sequence[str] = KINDS, seed: int = 0) -> Surrogate:
        """Fit the kind of surrogate that predicts held-out configurations best, or several that do so equally well."""
        tried = {kind: _CrossValidated.of(kind, data, sizes, seed) for kind in kinds}
        samples = resampled(len(data.y), np.random.default_rng(seed))
        best = max(tried.values(), key=lambda one: _r2(data, one.predicted, one.base))
        least = np.quantile([_r2(data, best.predicted, best.base, rows) for rows in samples], EDGES[0])
        kept = {kind: one for kind, one in tried.items() if _r2(data, one.predicted, one.base) >= least}
        means = np.stack([one.predicted for one in kept.values()])
        predicted, base = means.mean(0), best.base
        variance = means.var(0) + np.mean([one.variance for one in kept.values()], axis=0)
        skill = Estimate.of(
            _r2(data, predicted, base), np.array([_r2(data, predicted, base, rows) for rows in samples])
        )
        total = np.average((data.y - np.average(data.y, weights=data.n)) ** 2, weights=data.n)
        attainable = 1 - np.average(data.noise, weights=data.n) / total if total > 0 else 0.0
        excess = (data.y - predicted) ** 2 - data.noise
        floor, scale = nnls(np.stack([np.ones(len(variance)), variance], 1), excess)[0]
        if floor == scale == 0:  # the residuals are within the noise of the seeds
            scale = 1.0
        members: list[Predictor] = []
        for one in kept.values():
            n, rng = sizes.members // len(kept), np.random.default_rng(seed)
            members += _ensemble(data, n, sizes.trees, rng, one.kernel)
        return cls(
            " and ".join(kept), tuple(members), data, predicted, skill, float(max(0.0, attainable)), floor, scale
        )

    @one_thread
    def draws(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "members n"]:
        """The prediction of every member."""
        return _evaluate(self.members, x, self.data.bounds)

    def predict(self, x: Float[np.ndarray, "n d"]) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """(mean, standard deviation) of the expected value, seeds averaged."""
        draws = self.draws(x)
        return draws.mean(0), self.deviation(draws)

    def deviation(self, draws: Float[np.ndarray, " members *n"]) -> Float[np.ndarray, " *n"]:
        """The calibrated standard deviation of what the members give."""
        return np.sqrt(self.floor + self.scale * draws.var(0, ddof=1))


def resampled(n: int, rng: np.random.Generator, n_draws: int = N_DRAWS) -> Int[np.ndarray, "draws n"]:
    """Rows of bootstrap samples."""
    return rng.integers(n, size=(n_draws, n))


def _r2(data: Targets, predicted, base, rows=slice(None)) -> float:
    y, n = data.y[rows], data.n[rows]
    rest = float(np.sum(n * (y - base[rows]) ** 2))
    return 1 - float(np.sum(n * (y - predicted[rows]) ** 2)) / rest if rest > 0 else 0.0
