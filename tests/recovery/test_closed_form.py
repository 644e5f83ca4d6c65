"""The closed form, identifiability, and the refit on learned messages."""

import dataclasses
import importlib

import jax
import numpy as np
import pytest
from support.recovery_fixtures import recordings
from support.true_learner import TrueLearner

from flyjax.models import normal_equations
from flyjax.models.normal_equations import RIDGE, accumulate, accumulate_all, solve
from flyjax.recovery import closed_form, compare, evaluate, extract, linear_readout, refit
from flyjax.recovery.metrics import true_tau
from flyjax.recovery.readout import probe


@pytest.fixture(scope="module")
def train():
    return recordings(0.05)[0]


@pytest.fixture(scope="module")
def bound(train):
    return closed_form(train)


def refitted(learner, params, recording):
    readouts = extract(learner, params, recording), linear_readout(learner, params, recording)
    return refit(learner, params, recording, *readouts).estimate


def design(recording, i):
    """Regressors and target of one neuron, in float64."""
    c = recording.connectome
    edges = np.flatnonzero(c.receivers == i)
    v = recording.voltage.astype(np.float64)
    stimulus = np.zeros(len(v))
    if i in c.inputs:
        stimulus = recording.luminance[:, c.input_column[list(c.inputs).index(i)]].astype(np.float64)
    columns = [np.maximum(v[:, c.senders[edges]], 0), (stimulus - v[:, i])[:, None], np.ones((len(v), 1))]
    return edges, np.concatenate(columns, axis=1), recording.derivative[:, i].astype(np.float64)


def test_the_closed_form_is_exact_on_identifiable_parameters(train, bound):
    true = train.parameters
    assert bound.edges.mean() > 0.5 and bound.neurons.mean() > 0.7
    assert np.abs(bound.weight - np.asarray(true.weight))[bound.edges].max() < 1e-3
    assert np.abs(bound.tau / true_tau(train) - 1)[bound.neurons].max() < 1e-3
    assert np.abs(bound.v_rest - np.asarray(true.v_rest))[bound.neurons].max() < 1e-3
    assert bound.metrics["connectivity_R2_ceiling_identifiable"] > 0.99999
    assert closed_form(train) is bound and closed_form(train, n_workers=1) is bound  # computed once


@pytest.mark.parametrize("i", [3, 100, 301])
def test_one_neuron_against_numpy(train, bound, i):
    edges, x, y = design(train, i)
    expected = [
        np.sqrt(np.mean((x[:, k] - np.delete(x, k, 1) @ np.linalg.lstsq(np.delete(x, k, 1), x[:, k])[0]) ** 2))
        for k in range(x.shape[1])
    ]
    fit = bound.regressors
    found = [*fit.source_unique_std[edges], fit.own_unique_std[i, 0], fit.constant_unique_std[i]]
    assert np.allclose(found, expected, rtol=1e-3, atol=2e-5)
    if min(expected) > 1e-3:
        coefficients = np.linalg.lstsq(x, y)[0]
        assert np.allclose(bound.weight[edges], coefficients[:-2] / coefficients[-2], atol=1e-4)
        assert np.isclose(bound.tau[i], 1 / coefficients[-2], rtol=1e-4)
        assert np.isclose(bound.v_rest[i], coefficients[-1] / coefficients[-2], atol=1e-4)


def test_silent_sources_and_autapses_of_active_neurons_are_not_identifiable(train):
    c = train.connectome
    inputs = np.isin(np.arange(c.n_neurons), c.inputs)
    autapses = np.flatnonzero((c.senders == c.receivers) & ~inputs[c.receivers])
    active = c.receivers[autapses[0]]
    silent = next(j for j in range(c.n_neurons) if j != active and np.sum(c.senders == j) > 5)
    voltage = train.voltage.copy()
    voltage[:, silent] = -np.abs(voltage[:, silent]) - 0.01
    voltage[:, active] = np.abs(voltage[:, active]) + 0.01
    found = closed_form(dataclasses.replace(train, voltage=voltage, cache_key=None))
    assert not found.edges[c.senders == silent].any()
    assert np.abs(found.weight[c.senders == silent]).max() < 1e-6
    assert not found.neurons[active] and not found.edges[c.receivers == active].any()
    # The leak includes the autapse: only (1 - W) v / tau is observed.
    weight = np.asarray(train.parameters.weight)[autapses[0]]
    assert found.tau[active] == pytest.approx(true_tau(train)[active] / (1 - weight), rel=0.02)
    assert abs(found.weight[autapses[0]]) < 1e-3


@pytest.mark.parametrize("chunk, n_workers", [(77, 1), (1000, 3)])
def test_chunks_and_workers_do_not_matter(train, bound, monkeypatch, chunk, n_workers):
    monkeypatch.setattr(importlib.import_module("flyjax.recovery.closed_form"), "CHUNK", chunk)
    again = closed_form.__wrapped__(train, n_workers=n_workers)
    assert np.allclose(again.weight[bound.edges], bound.weight[bound.edges], atol=1e-6)
    assert (again.edges == bound.edges).mean() > 0.9999


def test_moments_and_prior_on_a_small_problem():
    class Three:  # 0 -> 2 and 1 -> 2
        n_neurons, senders, receivers = 3, np.array([0, 1]), np.array([2, 2])

    rng = np.random.default_rng(0)
    sent, own = rng.normal(size=(3, 50)), rng.normal(size=(3, 50))
    sent[1] = 0.0  # silent
    target = np.zeros((3, 50))
    target[2] = 2.0 * sent[0] - 3.0 * own[2] + 0.5
    chunks = [(sent[:, s], own[:, s], target[:, s]) for s in (slice(0, 20), slice(20, 50))]
    normal = accumulate(Three, chunks, n_own=1)
    x = np.stack([sent[0], sent[1], own[2], np.ones(50), target[2]])
    assert np.allclose(normal.moments[2], x @ x.T / 50) and normal.n_frames == 50
    solution = solve(normal)
    assert np.allclose(solution.source, [2.0, 0.0], atol=1e-8)
    assert solution.own[2, 0] == pytest.approx(-3.0) and solution.constant[2] == pytest.approx(0.5)
    assert solution.source_unique_std[1] <= np.sqrt(RIDGE)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_each_neuron_has_its_own_table(train, monkeypatch, backend):
    """The products of an accelerator are run on the CPU here."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    c = train.connectome
    rng = np.random.default_rng(2)
    sent, own, target = rng.normal(size=(3, c.n_neurons, 7))
    normal = accumulate(c, [(sent, own, own + sent, target)], n_own=2)
    both = accumulate_all(c, [[(2 * sent, own, own, target), (sent, own, own + sent, target)]], n_own=2, n=2)
    assert not np.allclose(both[0].moments[7], normal.moments[7])
    for i in (0, 7, 123, 300, c.n_neurons - 1):
        np.testing.assert_array_equal(both[1].moments[i], normal.moments[i])
        mine = c.senders[c.receivers == i]
        x = np.concatenate([sent[mine], own[i : i + 1], own[i : i + 1] + sent[i], np.ones((1, 7)), target[i : i + 1]])
        assert np.allclose(normal.moments[i], x @ x.T / 7, rtol=1e-12, atol=1e-12)


def test_a_factor_and_all_eigenvectors_give_the_same_solution(train, monkeypatch):
    rng = np.random.default_rng(4)
    sent, own, target = rng.normal(size=(3, train.connectome.n_neurons, 400)) + 0.1
    normal = accumulate(train.connectome, [(sent, own, target + own)], n_own=1)
    found = solve(normal)
    monkeypatch.setattr(normal_equations, "MAX_INFLATION", 0.0)
    for one, other in zip(vars(found).values(), vars(solve(normal)).values(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-10)


def test_refit_on_the_true_functions_is_exact(train, bound):
    learner = TrueLearner(train.connectome)
    params = learner.params(train)
    found = refitted(learner, params, train)
    clear = bound.edges & (bound.regressors.source_unique_std > 0.02)
    assert compare(np.asarray(train.parameters.weight)[clear], found.weight[clear]).R2 > 0.999
    assert compare(true_tau(train)[bound.neurons], found.tau[bound.neurons]).R2 > 0.9999
    assert compare(np.asarray(train.parameters.v_rest)[bound.neurons], found.v_rest[bound.neurons]).R2 > 0.999


def test_refit_removes_the_effect_of_a_message_offset_on_v_rest(train, bound):
    learner = TrueLearner(train.connectome, offset=0.3)
    params = learner.params(train)
    true, mask = np.asarray(train.parameters.v_rest), bound.neurons
    assert compare(true[mask], extract(learner, params, train).estimate.v_rest[mask]).R2 < 0.98
    assert compare(true[mask], refitted(learner, params, train).v_rest[mask]).R2 > 0.999


def test_the_scale_of_messages_does_not_matter_to_the_refit(train, bound):
    """Sources that are rarely above zero included: the published read-out gives their messages the slope 1."""
    c, true, data = train.connectome, np.asarray(train.parameters.weight), probe(train)
    rare = (np.asarray(data.mean) + np.asarray(data.std) <= 0)[c.senders] & (bound.regressors.source_unique_std > 5e-3)
    assert np.sum(rare & bound.edges) > 20
    slopes = []
    for scale in (1.0, 3.0):
        learner = TrueLearner(c, scale=np.full(c.n_neurons, scale, np.float32))
        params = learner.params(train)
        found = refitted(learner, params, train)
        slopes.append(compare(true[rare], found.weight[rare]).slope)
    assert slopes[1] == pytest.approx(slopes[0], rel=1e-3) and slopes[1] == pytest.approx(1.0, abs=0.05)


def test_a_network_that_is_not_finite_gives_none_with_reasons(train):
    learner = TrueLearner(train.connectome)
    params = {k: v * np.float32("nan") for k, v in learner.params(train).items()}
    m = evaluate(learner, params, train, recordings(0.05)[1]).metrics
    for name in ("connectivity_R2", "tau_R2", "V_rest_R2", "test_R2", "cluster_accuracy", "external_input_R2"):
        assert m[name] is None and m["reasons"][name]
    assert m["connectivity_R2_refit"] is not None  # its messages are the true ones, and the refit does not use W
    assert m["connectivity_R2_ceiling_identifiable"] > 0.99999


def test_scores_over_identifiable_parameters_have_their_own_names(train):
    learner = TrueLearner(train.connectome)
    m = evaluate(learner, learner.params(train), train, recordings(0.05)[1]).metrics
    for kind in ("", "_refit"):
        for name in ("connectivity_R2", "tau_R2", "V_rest_R2"):
            # A separate column for the input costs the refit a little at the photoreceptors.
            assert m[f"{name}{kind}_identifiable"] > 0.98 and f"{name}{kind}" in m
    assert 0 < m["identifiable_edges"] <= 1 and 0 < m["identifiable_neurons"] <= 1
    without = evaluate(learner, learner.params(train), train, recordings(0.05)[1], with_refit=False, with_ceiling=False)
    assert not any("_refit" in k or "_ceiling" in k or "_identifiable" in k for k in without.metrics)
