"""Trainings of landscapes whose importance, boundary and seed noise are known in closed form."""

import numpy as np
from scipy.stats import qmc

from flyjax.config import Range
from flyjax.config.ranges import at
from flyjax.landscape import Trainings

RANGES = {
    "learning_rate_W_start": Range(min=1e-4, max=1e-2, scale="log"),
    "coeff_edge_norm": Range(min=0, max=10),
    "coeff_edge_diff": Range(min=0, max=1000),
    "batch_size": Range(scale="choice", values=(1, 2, 4)),
    "data_augmentation_loop": Range(min=10, max=100, scale="int"),
}


def trainings(function, noise, n=256, n_seeds=2, seed=0, conditions=None):
    """`n` Sobol' configurations x seeds of `function(places (n, 5)) -> mean (n,)` with normal seed noise."""
    places, rng = qmc.Sobol(len(RANGES), rng=seed).random(n), np.random.default_rng(seed)
    mean = function(places)
    return Trainings.from_rows(
        {
            "settings": {name: at(span, p) for (name, span), p in zip(RANGES.items(), place)},
            "conditions": conditions or {"learner": "published"},
            "seed": s,
            "metrics": {"connectivity_R2": float(np.clip(m + noise * rng.normal(), 0, 1))},
        }
        for place, m in zip(places, mean)
        for s in range(n_seeds)
    )


#: Coefficients of `additive`: of the first two settings, and of the product of the first and third.
LINEAR, SECOND, PRODUCT = 0.36, 0.24, 0.70
VARIANCES = {"first": LINEAR**2 / 12, "second": SECOND**2 / 12, "pair": PRODUCT**2 / 144}


def additive(u):
    """A sum of independent terms of which `VARIANCES` are the variances."""
    v = u - 0.5
    return 0.5 + LINEAR * v[:, 0] + SECOND * v[:, 1] + PRODUCT * v[:, 0] * v[:, 2]


BOUNDARY, WIDTH = 0.5, 0.1


def ramp(u):
    """With seed noise `WIDTH`, trainings converge with probability Phi((u0 - BOUNDARY) / WIDTH)."""
    return 0.9 + u[:, 0] - BOUNDARY


def steps(u):
    """Failed below a sixth of the first range, converged above a half, partial between."""
    return np.where(u[:, 0] < 1 / 6, 0.02, np.where(u[:, 0] < 0.5, 0.6, 0.98))
