r"""Do the learned properties tell the cell types apart, without ever having seen them?

Each neuron is described by [a, tau, V_rest, mean and std of its incoming and of its outgoing W*].
A Gaussian mixture clusters the neurons, the Hungarian method matches clusters to cell types one to
one, and the accuracy is the share of neurons whose cluster is matched to their type (the published
estimator of Allier et al. has 100 components on raw features; with 65 types, 35 of them can match
nothing, so that even the true parameters do not reach 1). The same on the true parameters, where
there is no embedding a, says what the features allow.

Mixtures have diagonal covariances with 1e-6 added to each variance and start from k-means: with
seven neurons per type (extent 1) a full covariance is singular, and the accuracies agreed within .02.
"""

from __future__ import annotations

import warnings
from threading import Lock

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

from flyjax.data.recording import Recording
from flyjax.recovery.metrics import Metrics, true_tau
from flyjax.recovery.readout import per_recording

COVARIANCE = "diag"
REGULARISATION = 1e-6
#: Starts of the 65-component mixtures, of which the likeliest is kept. The published one has one.
N_INIT = 2
#: EM steps at most; clear clusters take 10, blurred ones never settle and change by less than .005 later.
MAX_ITER = 40


def weight_moments(index: Int[np.ndarray, " E"], weight: Float[np.ndarray, " E"], n: int):
    """Mean and std of the weights that share an index; 0 where there are none."""
    count = np.maximum(np.bincount(index, minlength=n), 1)
    mean = np.bincount(index, weight, n) / count
    # About the mean, so that equal weights have std 0 and no rounding remainder.
    variance = np.bincount(index, (weight - mean[index]) ** 2, n) / count
    return mean, np.sqrt(variance)


def features(connectome, weight, tau, v_rest, embedding=None) -> Float[np.ndarray, "N F"]:
    """[a, tau, V_rest, mean and std of in-going, mean and std of out-going weights] per neuron."""
    weight = np.asarray(weight, np.float64)
    n = connectome.n_neurons
    columns = [tau, v_rest]
    for index in (connectome.receivers, connectome.senders):
        columns += weight_moments(index, weight, n)
    if embedding is not None:
        columns = [*np.asarray(embedding).T, *columns]
    return np.stack([np.asarray(column, np.float64) for column in columns], axis=1)


def standardise(x):
    """Mean 0 and std 1 per feature; a constant feature becomes 0."""
    std = x.std(axis=0)
    return (x - x.mean(axis=0)) / np.where(std > 0, std, 1.0)


def accuracy(labels, types) -> float:
    """Share of neurons whose cluster is the one matched to their type (Hungarian method)."""
    table = np.zeros((labels.max() + 1, types.max() + 1), np.int64)
    np.add.at(table, (labels, types), 1)
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].sum() / len(types))


class _Quiet:
    """No warnings while any thread is in it: Python's own filter is one for all, and is left as it was found."""

    def __init__(self):
        self._lock, self._inside, self._filter = Lock(), 0, None

    def __enter__(self):
        with self._lock:
            if not self._inside:
                self._filter = warnings.catch_warnings()
                self._filter.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *error):
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._filter.__exit__(*error)


_QUIET = _Quiet()


def cluster(x, n_components: int, seed: int, n_init: int = 1) -> tuple[np.ndarray | None, str | None]:
    """Mixture labels (N,), or None and the reason why there are none."""
    bad = int(np.sum(~np.isfinite(x).all(axis=1)))
    if bad:
        return None, f"{bad} of {len(x)} neurons have features that are not finite"
    if len(x) < n_components:
        return None, f"{len(x)} neurons are fewer than the {n_components} components"
    mixture = GaussianMixture(
        n_components,
        covariance_type=COVARIANCE,
        reg_covar=REGULARISATION,
        init_params="kmeans",
        n_init=n_init,
        max_iter=MAX_ITER,
        random_state=seed,
    )
    with _QUIET:  # duplicate points and unconverged mixtures are no errors here
        try:
            return mixture.fit_predict(x), None
        except ValueError as error:
            return None, f"the mixture failed: {str(error).splitlines()[0]}"


def cluster_metrics(x, types, seed: int = 0, n_embedding: int = 0, suffix: str = "") -> Metrics:
    """cluster_accuracy (100 components, raw), cluster_accuracy_65 and ARI (65, standardised).

    With an embedding in the first `n_embedding` columns also cluster_accuracy_embedding: 65
    components on the standardised embedding alone.
    """
    metrics = Metrics()

    def put(name, labels, reason, score=accuracy):
        metrics.put(name + suffix, None if labels is None else score(labels, types), reason)

    put("cluster_accuracy", *cluster(x, 100, seed))
    if np.isfinite(x).all():
        x = standardise(x)
    labels, reason = cluster(x, 65, seed, N_INIT)
    put("cluster_accuracy_65", labels, reason)
    put("ARI", labels, reason, lambda found, true: adjusted_rand_score(true, found))
    if n_embedding:
        put("cluster_accuracy_embedding", *cluster(x[:, :n_embedding], 65, seed))
    return metrics


@per_recording
def true_cluster_metrics(recording: Recording) -> Metrics:
    """The same on the true parameters (names end in _true): what the features allow."""
    p = recording.parameters
    x = features(recording.connectome, p.weight, true_tau(recording), p.v_rest)
    return cluster_metrics(x, recording.connectome.cell_type, suffix="_true")


def all_cluster_metrics(found, embedding, recording: Recording, seed: int = 0, refitted=None) -> Metrics:
    """Learned and, beside them, true values. `found` has weight, tau and v_rest.

    `refitted` is clustered by the features of the true parameters, without embedding (names end in _refit).
    """
    c = recording.connectome
    x = features(c, found.weight, found.tau, found.v_rest, embedding)
    n_embedding = 0 if embedding is None else np.shape(embedding)[1]
    metrics = cluster_metrics(x, c.cell_type, seed, n_embedding)
    metrics.update(true_cluster_metrics(recording))
    if refitted is not None:
        metrics.update(
            cluster_metrics(
                features(c, refitted.weight, refitted.tau, refitted.v_rest), c.cell_type, seed, suffix="_refit"
            )
        )
    return metrics
