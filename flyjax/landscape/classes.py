"""The probability that a training converges, partly recovers or fails, over the settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.special import stdtr

from flyjax.landscape.seeds import targets
from flyjax.landscape.surrogate import (
    Estimate,
    Process,
    Sizes,
    Targets,
    fit_kernel,
    folds,
    one_thread,
    processes,
    resampled,
)
from flyjax.utils.metric_names import CONVERGED, FAILED

#: Of a training, from worst to best.
CLASSES = ("failed", "partial", "converged")
SMALL = 1e-3  # the least probability that is stated
FREEDOM = 4  # of the distribution of a training around its expected value
#: Mean and standard deviation of arcsin(sqrt(R2)) where nothing was trained: an R2 of 0.25, which is that of a typical
#: setting of the study, and any class is possible.
PRIOR = np.pi / 6, np.pi / 6


def classify(values: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The class of each connectivity_R2, an index of `CLASSES`."""
    return np.where(values > CONVERGED, 2, np.where(values >= FAILED, 1, 0))


@dataclass(frozen=True)
class Exceedance:
    """Where trainings exceed a level of connectivity_R2.

    **Attributes:**

    - `rate`: the share of all trainings that do.
    - `held_out`: the probability of each configuration, by members that were fitted without it.
    - `skill`: 1 - log loss / log loss of the base rate, on held-out configurations; 0 is no skill.
    """

    level: float
    classes: ClassMap

    def draws(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "members n"]:
        """The probability by every member, at points of the unit cube."""
        return self.classes.exceeds(self.level, *self.classes.moments(x))

    def probability(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """The probability at points of the unit cube."""
        return self.draws(x).mean(0)

    @cached_property
    def _reached(self) -> Float[np.ndarray, "configurations 2"]:
        """Numbers of trainings of each configuration that do not and that do."""
        counts = np.zeros((len(self.classes.data.y), 2))
        np.add.at(counts, (self.classes.groups, 1 * (self.classes.values > self.level)), 1)
        return counts

    @property
    def rate(self) -> float:
        return float(self._reached[:, 1].sum() / self._reached.sum())

    @cached_property
    def held_out(self) -> Float[np.ndarray, " configurations"]:
        return self.classes.exceeds(self.level, *self.classes.held_out_moments).mean(0)

    @cached_property
    def skill(self) -> Estimate:
        p = np.clip(self.held_out, SMALL, 1 - SMALL)
        return _Score.of(np.stack([1 - p, p], 1), self._reached, self.classes.seed).skill


@dataclass(frozen=True)
class _Score:
    """How well probabilities predict held-out trainings, against the base rates of the others."""

    skill: Estimate
    log_loss: float
    base_log_loss: float
    brier: float

    @classmethod
    def of(
        cls, p: Float[np.ndarray, "configurations k"], counts: Float[np.ndarray, "configurations k"], seed: int
    ) -> _Score:
        """**Arguments:** `counts`: of the trainings of each configuration by class."""
        base = np.empty_like(counts)
        for fit, out in folds(len(counts)):
            base[out] = (counts[fit].sum(0) + 0.5) / (counts[fit].sum() + 0.5 * counts.shape[1])
        loss, base_loss = (-(counts * np.log(q)).sum(1) for q in (p, base))
        draws = resampled(len(loss), np.random.default_rng(seed))
        brier = sum(((p - one) ** 2).sum(1) @ counts[:, k] for k, one in enumerate(np.eye(counts.shape[1])))
        skill = [1 - loss[rows].sum() / base_loss[rows].sum() for rows in (np.arange(len(loss)), *draws)]
        # Without a second class there is nothing to tell apart.
        one_class = (counts.sum(0) > 0).sum() < 2
        return cls(
            Estimate(0.0, 0.0, 0.0) if one_class else Estimate.of(skill[0], np.array(skill[1:])),
            float(loss.sum() / counts.sum()),
            float(base_loss.sum() / counts.sum()),
            float(brier / counts.sum()),
        )


@dataclass(frozen=True)
class ClassMap:
    """Probabilities of the classes, from Gaussian processes of arcsin(sqrt(connectivity_R2)).

    On that scale the noise of the seeds is about the same everywhere. Where there are no trainings nearby the
    probabilities are those of the prior.

    **Attributes:**

    - `data`: of the configurations, on that scale.
    - `within`: variance between the seeds of a configuration; 0 where none was trained twice.
    - `values`, `groups`: connectivity_R2 and configuration of every training.
    """

    members: tuple[Process, ...]
    data: Targets
    within: float
    values: Float[np.ndarray, " trainings"]
    groups: Int[np.ndarray, " trainings"]
    kernel: Any
    n_held_out: int  # members during cross-validation
    seed: int

    @classmethod
    @one_thread
    def fit(cls, x, values, groups, sizes: Sizes, seed: int = 0) -> ClassMap:
        """Fit on the connectivity_R2 of trainings; `groups` numbers their configurations."""
        data = replace(targets(x, _angle(values), groups, bounded=False), prior=PRIOR)
        kernel = fit_kernel(data, seed)
        members = processes(data, sizes.members, np.random.default_rng(seed), kernel)
        within = float((data.noise * data.n).max())
        return cls(tuple(members), data, within, values, groups, kernel, sizes.fold_members, seed)

    @one_thread
    def moments(self, x: Float[np.ndarray, "n d"]) -> tuple[np.ndarray, np.ndarray]:
        """(mean, variance) of a training's value on the scale of the processes, by every member."""
        mean, variance = zip(*(member.moments(x) for member in self.members))
        return np.stack(mean), np.stack(variance) + self.within

    def exceeds(self, level: float, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
        """The probability that a training exceeds a level.

        Student's t: some seeds fail where others do not, so that the tails are heavier than those of a Gaussian.
        """
        return stdtr(FREEDOM, (mean - _angle(np.array(level))) / np.sqrt(variance))

    def above(self, level: float) -> Exceedance:
        """Where trainings exceed a level."""
        return Exceedance(level, self)

    @cached_property
    def converged(self) -> Exceedance:
        return self.above(CONVERGED)

    def _probabilities(self, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
        partial, converged = (self.exceeds(level, mean, variance) for level in (FAILED, CONVERGED))
        p = np.clip(np.stack([1 - partial, partial - converged, converged], -1), SMALL, 1)
        return p / p.sum(-1, keepdims=True)

    def probabilities(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n 3"]:
        """Of `CLASSES` at points of the unit cube."""
        return self.draws(x).mean(0)

    def draws(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "members n 3"]:
        """Of `CLASSES` by every member."""
        return self._probabilities(*self.moments(x))

    @cached_property
    @one_thread
    def held_out_moments(self) -> tuple[np.ndarray, np.ndarray]:
        """`moments` at every configuration, by members that were fitted without it."""
        mean, variance = np.empty((2, self.n_held_out, len(self.data.y)))
        for k, (fit, out) in enumerate(folds(len(self.data.y))):
            rng = np.random.default_rng([self.seed, k])
            members = processes(self.data.part(fit), self.n_held_out, rng, self.kernel)
            for i, member in enumerate(members):
                mean[i, out], variance[i, out] = member.moments(self.data.x[out])
        return mean, variance + self.within

    @cached_property
    def held_out(self) -> Float[np.ndarray, "configurations 3"]:
        """Probabilities of the classes for every configuration by a map without it."""
        return self._probabilities(*self.held_out_moments).mean(0)

    @cached_property
    def _counts(self) -> Float[np.ndarray, "configurations 3"]:
        counts = np.zeros((len(self.data.y), 3))
        np.add.at(counts, (self.groups, classify(self.values)), 1)
        return counts

    @property
    def rates(self) -> Float[np.ndarray, " 3"]:
        """The share of trainings of each class."""
        return self._counts.sum(0) / self._counts.sum()

    @cached_property
    def score(self) -> _Score:
        """Of the held-out configurations: skill, log loss, that of the base rates, and Brier score per training."""
        return _Score.of(self.held_out, self._counts, self.seed)

    @property
    def skill(self) -> Estimate:
        """1 - log loss / log loss of the base rates, on held-out configurations; 0 is no skill."""
        return self.score.skill


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


def _angle(values: Float[np.ndarray, " *n"]) -> Float[np.ndarray, " *n"]:
    """arcsin(sqrt(R2)), from 0 to pi / 2, on which shares have about the same variance everywhere."""
    return np.arcsin(np.sqrt(np.clip(values, 0, 1)))
