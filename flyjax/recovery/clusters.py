r"""Cell types found by clustering the recovered parameters, without labels.

Each neuron is described by [a, tau, V_rest, mean and std of its incoming and of its outgoing W*]. A Gaussian mixture
clusters the neurons, the Hungarian method matches clusters to cell types one to one, and the accuracy is the share of
neurons whose cluster is matched to their type. The published estimator (Allier et al., flyvis-gnn) has 100 components
on raw features; of these, 35 match none of the 65 types, so that even the true parameters do not reach 1. The same on
the true parameters, which have no embedding a, shows what the features allow.

Mixtures have diagonal covariances with 1e-6 added to each variance and start from k-means: with seven neurons per type
(extent 1) a full covariance is singular, and the accuracies agreed within .02. EM is scikit-learn's, compiled: the same
labels in a fifth of the time.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from sklearn.metrics.cluster import contingency_matrix

from flyjax.circuit import Parameters
from flyjax.data.own_recording import has_types
from flyjax.data.recording import Recording
from flyjax.recovery.metrics import CircuitEstimate, Metrics, true_tau
from flyjax.recovery.samples import per_recording
from flyjax.utils.ahead import compile_ahead, ready

#: Starts of the 65-component mixtures, of which the likeliest is used. The published one has one.
N_INIT = 2
#: EM steps at most; clear clusters take 10, blurred ones never settle and change by less than .005 later.
MAX_ITER = 40
#: EM ends where the mean log likelihood changes by less.
TOLERANCE = 1e-3
#: Added to each variance.
REG_COVAR = 1e-6
#: Features are padded to a multiple of the first and components to the second, so that all mixtures share a program.
WIDTH, MAX_COMPONENTS = 16, 100
#: Features of a neuron beside its embedding.
N_FEATURES = 6


@jax.jit
def _expectation_maximization(
    x: Float[Array, "N F"], responsibility: Float[Array, "N K"], n_components: int
) -> tuple[Int[Array, " N"], float | Array]:
    """Labels and mean log likelihood of the mixture that EM finds from these responsibilities; as in scikit-learn.

    Components beyond `n_components` are not used.
    """
    square, used = x**2, (jnp.arange(responsibility.shape[1]) < n_components)[None]

    def maximize(responsibility):
        size = responsibility.sum(axis=0) + 10 * jnp.finfo(x.dtype).eps
        mean = responsibility.T @ x / size[:, None]
        variance = responsibility.T @ square / size[:, None] - mean**2 + REG_COVAR
        return size / size.sum(), mean, 1.0 / variance

    def log_density(share, mean, precision):
        constant = jnp.log(share) + 0.5 * jnp.sum(jnp.log(precision) - mean**2 * precision, axis=1)
        density = constant[None] + x @ (mean * precision).T - 0.5 * square @ precision.T
        return jnp.where(used, density, -jnp.inf)

    def step(state):
        n, mixture, before, _ = state
        density = log_density(*mixture)
        largest = density.max(axis=1, keepdims=True)
        relative = jnp.exp(density - largest)
        total = relative.sum(axis=1, keepdims=True)
        likelihood = jnp.mean(largest + jnp.log(total))
        return n + 1, maximize(relative / total), likelihood, jnp.abs(likelihood - before)

    start = (0, maximize(responsibility), -jnp.inf, jnp.inf)
    _, mixture, likelihood, _ = jax.lax.while_loop(lambda s: (s[0] < MAX_ITER) & (s[3] >= TOLERANCE), step, start)
    return jnp.argmax(log_density(*mixture), axis=1), likelihood


def compile_mixtures_ahead(n_neurons: int, n_features: int) -> None:
    """Begin to compile the program of the mixtures of so many features."""

    def lowered():
        with jax.enable_x64(True):
            x = jax.ShapeDtypeStruct((n_neurons, n_features + -n_features % WIDTH), jnp.float64)
            start = jax.ShapeDtypeStruct((n_neurons, MAX_COMPONENTS), jnp.float64)
            return _expectation_maximization.lower(x, start, MAX_COMPONENTS)

    compile_ahead(_expectation_maximization, lowered)


def weight_moments(
    index: Int[np.ndarray, " E"], weight: Float[np.ndarray, " E"], n: int
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Mean and std of the weights that share an index; 0 where there are none."""
    count = np.maximum(np.bincount(index, minlength=n), 1)
    mean = np.bincount(index, weight, n) / count
    # About the mean, so that equal weights have std 0 and no rounding remainder.
    variance = np.bincount(index, (weight - mean[index]) ** 2, n) / count
    return mean, np.sqrt(variance)


def features(connectome, estimate: CircuitEstimate | Parameters, embedding=None) -> Float[np.ndarray, "N F"]:
    """[a, tau, V_rest, mean and std of incoming, mean and std of outgoing weights] per neuron."""
    weight = np.asarray(estimate.weight, np.float64)
    columns = [] if embedding is None else [*np.asarray(embedding).T]
    columns += [estimate.tau, estimate.v_rest]
    for index in (connectome.receivers, connectome.senders):
        columns += weight_moments(index, weight, connectome.n_neurons)
    return np.stack([np.asarray(column, np.float64) for column in columns], axis=1)


def accuracy(labels: Int[np.ndarray, " N"], types: Int[np.ndarray, " N"]) -> float:
    """Share of neurons whose cluster is the one matched to their type (Hungarian method)."""
    table = contingency_matrix(labels, types)
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / len(types))


def cluster(x, n_components: int, seed: int, n_init: int = 1) -> tuple[np.ndarray | None, str | None]:
    """Mixture labels (N,), or None and the reason why there are none."""
    if bad := int(np.sum(~np.isfinite(x).all(axis=1))):
        return None, f"{bad} of {len(x)} neurons have features that are not finite"
    if len(x) < n_components:
        return None, f"{len(x)} neurons are fewer than the {n_components} components"
    padded = np.pad(x, ((0, 0), (0, -x.shape[1] % WIDTH)))  # constant columns distinguish no components
    random, found = np.random.RandomState(seed), []
    with np.errstate(all="ignore"), jax.enable_x64(True):
        for _ in range(n_init):
            start = KMeans(n_components, n_init=1, random_state=random).fit(x).labels_
            labels, likelihood = ready(_expectation_maximization)(
                padded, np.eye(n_components, MAX_COMPONENTS)[start], n_components
            )
            found.append((float(likelihood), np.asarray(labels)))
    likelihood, labels = max(found, key=lambda fit: fit[0])
    return (labels, None) if np.isfinite(likelihood) else (None, "the mixture failed: its likelihood is not finite")


def cluster_metrics(x, types, seed: int = 0, n_embedding: int = 0, suffix: str = "") -> Metrics:
    """cluster_accuracy (100 components, raw), cluster_accuracy_65 and ARI (65, standardised).

    With an embedding in the first `n_embedding` columns also cluster_accuracy_embedding: 65 components on the
    standardised embedding alone.
    """
    metrics = Metrics()

    def put(name, labels, reason, score=accuracy):
        metrics.put(name + suffix, None if labels is None else score(labels, types), reason)

    put("cluster_accuracy", *cluster(x, MAX_COMPONENTS, seed))
    if np.isfinite(x).all():
        std = x.std(axis=0)
        x = (x - x.mean(axis=0)) / np.where(std > 0, std, 1.0)
    labels, reason = cluster(x, 65, seed, N_INIT)
    put("cluster_accuracy_65", labels, reason)
    put("ARI", labels, reason, adjusted_rand_score)
    if n_embedding:
        put("cluster_accuracy_embedding", *cluster(x[:, :n_embedding], 65, seed))
    return metrics


@per_recording
def true_cluster_metrics(recording: Recording) -> Metrics:
    """The cluster metrics of the true parameters (names end in _true): what the features allow."""
    true = recording.parameters._replace(tau=true_tau(recording))
    return cluster_metrics(features(recording.connectome, true), recording.connectome.cell_type, suffix="_true")


def all_cluster_metrics(
    estimate: CircuitEstimate | Parameters,
    embedding: Float[np.ndarray, "N d"] | None,
    recording: Recording,
    seed: int = 0,
    refit: CircuitEstimate | Parameters | None = None,
) -> Metrics:
    """Cluster metrics of an estimate and, beside them, of the true parameters as far as they are known.

    None where cell types are unknown.

    `refit` is clustered by the features of the true parameters, without embedding (names end in _refit).
    """
    c = recording.connectome
    if not (recording.is_simulated or has_types(c)):
        return Metrics()
    n_embedding = 0 if embedding is None else np.shape(embedding)[1]
    metrics = cluster_metrics(features(c, estimate, embedding), c.cell_type, seed, n_embedding)
    refitted = [] if refit is None else [cluster_metrics(features(c, refit), c.cell_type, seed, suffix="_refit")]
    return metrics.update(*([] if recording.unknown else [true_cluster_metrics(recording)]), *refitted)
