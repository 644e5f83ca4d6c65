"""Clusters of neurons: matching, determinism, and what the true parameters allow."""

import warnings

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from sklearn.mixture import GaussianMixture
from support.recovery_fixtures import recordings

from flyjax.recovery.clusters import (
    accuracy,
    all_cluster_metrics,
    cluster,
    cluster_metrics,
    features,
    true_cluster_metrics,
    weight_moments,
)
from flyjax.recovery.metrics import true_tau


@pytest.fixture(scope="module")
def train():
    return recordings()[0]


def test_accuracy_does_not_depend_on_names_and_matches_one_to_one():
    types = np.repeat(np.arange(5), 10)
    permuted = np.random.default_rng(0).permutation(5)[types]
    assert accuracy(permuted, types) == 1.0
    assert accuracy(np.zeros(50, int), types) == pytest.approx(0.2)  # one cluster matches one type only
    split = np.arange(50) // 5  # two clusters per type: one of them matches none
    assert accuracy(split, types) == pytest.approx(0.5)
    noisy = np.where(np.arange(50) % 7 == 0, (permuted + 1) % 5, permuted)
    table = np.array([[np.sum((noisy == a) & (types == b)) for b in range(5)] for a in range(5)])
    assert accuracy(noisy, types) == table[linear_sum_assignment(-table)].sum() / 50


def test_features_against_numpy(train):
    c, p = train.connectome, train.parameters
    embedding = np.random.default_rng(0).normal(size=(c.n_neurons, 2))
    x = features(c, p, embedding)
    assert x.shape == (c.n_neurons, 8)
    weight = np.asarray(p.weight, np.float64)
    for i in range(0, c.n_neurons, 41):
        expected = [*embedding[i], p.tau[i], p.v_rest[i]]
        for index in (c.receivers, c.senders):
            mine = weight[index == i]
            expected += [mine.mean(), mine.std()] if len(mine) else [0, 0]
        assert np.allclose(x[i], np.array(expected, float), atol=1e-6)
    assert weight_moments(np.array([0, 0]), np.array([1.0, 3.0]), 2)[1].tolist() == [1.0, 0.0]


def test_well_separated_types_are_found_and_seeds_repeat(train):
    types = train.connectome.cell_type
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(65, 6)) * 10
    x = centres[types] + 0.01 * rng.normal(size=(len(types), 6))
    m = cluster_metrics(x, types, seed=0, n_embedding=2)
    assert m.values["cluster_accuracy_65"] > 0.97 and m.values["ARI"] > 0.95
    # 100 components split types, and only one of the parts counts.
    assert 0.6 < m.values["cluster_accuracy"] < 0.95
    assert m.values == cluster_metrics(x, types, seed=0, n_embedding=2).values
    shuffled = rng.permutation(len(types))
    again = cluster_metrics(x[shuffled], types[shuffled], seed=0, n_embedding=2)
    assert again.values["cluster_accuracy_65"] == pytest.approx(m.values["cluster_accuracy_65"], abs=0.05)
    random = cluster_metrics(x, rng.permutation(types), seed=0)
    assert random.values["cluster_accuracy_65"] < 0.4 and abs(random.values["ARI"]) < 0.05


def test_true_parameters_are_clustered_once_and_beside_the_estimate(train):
    p = train.parameters
    m = all_cluster_metrics(p._replace(tau=true_tau(train)), None, train, seed=0).values
    for name in ("cluster_accuracy", "cluster_accuracy_65", "ARI"):
        assert m[name] == m[f"{name}_true"]
    assert "cluster_accuracy_embedding" not in m
    assert true_cluster_metrics(train) is true_cluster_metrics(train)


def test_a_refit_is_clustered_by_the_features_of_the_true_parameters(train):
    p = train.parameters
    exact = p._replace(tau=true_tau(train))
    embedding = np.random.default_rng(0).normal(size=(443, 8))
    m = all_cluster_metrics(exact._replace(weight=np.zeros(8174)), embedding, train, seed=0, refit=exact).values
    for name in ("cluster_accuracy", "cluster_accuracy_65", "ARI"):
        assert m[f"{name}_refit"] == m[f"{name}_true"] > m[name]


def test_what_cannot_be_clustered_is_none_with_a_reason(train):
    p = train.parameters
    weight = np.array(p.weight)
    weight[0] = np.nan
    m = all_cluster_metrics(p._replace(weight=weight), np.ones((443, 2)), train)
    assert m.values["cluster_accuracy"] is None and "not finite" in m.reasons["cluster_accuracy"]
    assert m.values["cluster_accuracy_true"] is not None
    labels, reason = cluster(np.zeros((60, 3)), 65, 0)
    assert labels is None and "fewer" in reason


@pytest.mark.filterwarnings("ignore:Best performing initialization")
@pytest.mark.parametrize("n_init", [1, 2])
def test_labels_are_those_of_scikit_learn(train, n_init):
    rng = np.random.default_rng(3)
    p = train.parameters
    blurred = p._replace(weight=np.asarray(p.weight) * rng.normal(1, 0.3, train.connectome.n_edges))
    x = features(train.connectome, blurred, rng.normal(size=(443, 2)))
    mixture = GaussianMixture(65, covariance_type="diag", reg_covar=1e-6, n_init=n_init, max_iter=40, random_state=5)
    np.testing.assert_array_equal(cluster(x, 65, 5, n_init)[0], mixture.fit_predict(x))


def test_mixtures_that_do_not_converge_give_no_warning():
    x = np.random.default_rng(0).normal(size=(2000, 6))  # without clusters
    before = list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labels, _ = cluster(x, 65, 0)
    assert labels is not None and warnings.filters == before
