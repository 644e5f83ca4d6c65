"""The probability that a training converges, partly recovers or fails, over the settings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from sklearn.linear_model import LogisticRegression

from flyjax.landscape.seeds import targets
from flyjax.landscape.surrogate import Estimate, Sizes, Surrogate, folds, resampled
from flyjax.utils.metric_names import CONVERGED, FAILED

#: Of a training, from worst to best.
CLASSES = ("failed", "partial", "converged")
SMALL = 1e-3  # the least probability that is stated


def classify(values: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The class of each connectivity_R2, an index of `CLASSES`."""
    return np.where(values > CONVERGED, 2, np.where(values >= FAILED, 1, 0))


@dataclass(frozen=True)
class Threshold:
    """The calibrated probability that a training reaches a threshold.

    The surrogate of the share of seeds that reach it is mapped to a probability by Platt scaling, fitted on its
    predictions for held-out configurations (as `sklearn.calibration.CalibratedClassifierCV(ensemble=False)` does).

    **Attributes:**

    - `surrogate`: None where all trainings, or none, reach the threshold.
    - `rate`: the share of all trainings that reach it.
    - `held_out`: the probability of each configuration, by members and a scaling that were fitted without it.
    """

    surrogate: Surrogate | None
    rate: float
    slope: float
    intercept: float
    held_out: Float[np.ndarray, " configurations"]

    @classmethod
    def fit(cls, x, reached, groups, sizes: Sizes, kinds, seed: int) -> Threshold:
        data = targets(x, reached, groups, bounded=True)
        rate = float(np.mean(reached))
        if rate in (0.0, 1.0):
            return cls(None, rate, 0.0, 0.0, np.full(len(data.y), rate))
        surrogate = Surrogate.fit(data, sizes, kinds, seed)
        raw, held_out = _logit(surrogate.held_out), np.empty(len(data.y))
        for fit, out in folds(len(data.y)):
            slope, intercept = _platt(raw[fit], data.y[fit], data.n[fit])
            held_out[out] = _expit(slope * raw[out] + intercept)
        return cls(surrogate, rate, *_platt(raw, data.y, data.n), held_out)

    def draws(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "members n"]:
        """The probability by every member; by one where it is a constant."""
        if self.surrogate is None:
            return np.full((1, len(x)), self.rate)
        return _expit(self.slope * _logit(self.surrogate.draws(x)) + self.intercept)

    def probability(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """The probability at points of the unit cube."""
        if self.surrogate is None:
            return np.full(len(x), self.rate)
        return _expit(self.slope * _logit(self.surrogate.draws(x).mean(0)) + self.intercept)


@dataclass(frozen=True)
class ClassMap:
    """Probabilities of the classes.

    **Attributes:**

    - `skill`: 1 - log loss / log loss of the base rates, on held-out configurations; 0 is no skill.
    - `log_loss`, `base_log_loss`, `brier`: per held-out training.
    - `held_out`: probabilities of the classes for every configuration by a map without it.
    - `rates`: the share of trainings of each class.
    """

    partial: Threshold  # partial or better
    converged: Threshold
    skill: Estimate
    log_loss: float
    base_log_loss: float
    brier: float
    held_out: Float[np.ndarray, "configurations 3"]
    rates: Float[np.ndarray, " 3"]

    @classmethod
    def fit(cls, x, values, groups, sizes: Sizes, kinds, seed: int = 0) -> ClassMap:
        """Fit on the connectivity_R2 of trainings; `groups` numbers their configurations."""
        labels = classify(values)
        partial, converged = (Threshold.fit(x, 1.0 * (labels >= k), groups, sizes, kinds, seed) for k in (1, 2))
        held_out = _join(partial.held_out, converged.held_out)
        counts = np.zeros((len(held_out), 3))
        np.add.at(counts, (groups, labels), 1)
        base = np.empty_like(counts)
        for fit, out in folds(len(counts)):
            base[out] = (counts[fit].sum(0) + 0.5) / (counts[fit].sum() + 1.5)
        loss, base_loss = (-(counts * np.log(p)).sum(1) for p in (held_out, base))
        draws = resampled(len(loss), np.random.default_rng(seed))
        brier = sum((held_out - np.eye(3)[k]) ** 2 @ np.ones(3) * counts[:, k] for k in range(3)).sum() / counts.sum()
        # Without a second class there is nothing to tell apart.
        skill = [1 - loss[rows].sum() / base_loss[rows].sum() for rows in (np.arange(len(loss)), *draws)]
        one_class = (counts.sum(0) > 0).sum() < 2
        return cls(
            partial,
            converged,
            Estimate(0.0, 0.0, 0.0) if one_class else Estimate.of(skill[0], np.array(skill[1:])),
            float(loss.sum() / counts.sum()),
            float(base_loss.sum() / counts.sum()),
            float(brier),
            held_out,
            counts.sum(0) / counts.sum(),
        )

    def probabilities(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n 3"]:
        """Of `CLASSES` at points of the unit cube."""
        return _join(self.partial.probability(x), self.converged.probability(x))

    def draws(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "members n 3"]:
        """Of `CLASSES` by every member."""
        return _join(*np.broadcast_arrays(self.partial.draws(x), self.converged.draws(x)))


def reliability(probability, share, n, n_bins: int = 8) -> Float[np.ndarray, "bins 4"]:
    """Of configurations in bins of stated probability: (mean probability, observed share, its standard error, n).

    **Arguments:**

    - `probability`: stated for held-out configurations.
    - `share`: of their trainings that reached the threshold.
    - `n`: number of their trainings.
    """
    order = np.argsort(probability)
    rows = []
    for part in np.array_split(order, min(n_bins, max(1, len(order) // 5))):
        weight = n[part] / n[part].sum()
        observed = float(weight @ share[part])
        error = float(np.sqrt(np.sum(weight**2 * (share[part] - observed) ** 2)))
        rows.append((float(weight @ probability[part]), observed, error, int(n[part].sum())))
    return np.array(rows)


def _join(partial, converged) -> np.ndarray:
    """Probabilities of the three classes from those of reaching the two thresholds."""
    converged = np.clip(converged, SMALL, 1 - 2 * SMALL)
    partial = np.clip(partial, converged + SMALL, 1 - SMALL)
    return np.stack([1 - partial, partial - converged, converged], -1)


def _platt(raw, share, n) -> tuple[float, float]:
    """Slope and intercept of the logistic regression of the trainings on the surrogate's logit."""
    weights = np.concatenate([n * share, n * (1 - share)])
    model = LogisticRegression(C=10.0).fit(
        np.tile(raw, 2)[:, None], np.repeat([1, 0], len(raw)), sample_weight=np.maximum(weights, 1e-9)
    )
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def _logit(p) -> np.ndarray:
    p = np.clip(p, 0.01, 0.99)
    return np.log(p / (1 - p))


def _expit(z) -> np.ndarray:
    return 1 / (1 + np.exp(-z))
