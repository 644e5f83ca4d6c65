"""The read-out of W*, tau and V_rest: on the true functions, and against NumPy on a real network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.recovery_fixtures import recordings
from support.true_learner import TrueLearner

from flyjax.config import Model
from flyjax.models import make_learner
from flyjax.recovery import compare, extract, linear_readout, refit
from flyjax.recovery.metrics import true_tau
from flyjax.recovery.network_outputs import _outputs, about_grey, message_gain, network_outputs, together
from flyjax.recovery.readout import N_FRAMES, N_POINTS, N_WATCHED_POINTS, fit_line, probe
from flyjax.recovery.samples import moments


@pytest.fixture(scope="module")
def train():
    return recordings()[0]


@pytest.fixture(scope="module")
def network(train):
    learner = make_learner(train.connectome, Model(width=12, activation="tanh"))
    params = learner.init(jax.random.key(3))
    # Distinct embeddings: initialised to ones, every neuron would have the same functions.
    params["embedding"] = jax.random.normal(jax.random.key(4), params["embedding"].shape)
    return learner, params


@pytest.mark.parametrize("n_points", [N_POINTS, N_WATCHED_POINTS])
def test_true_functions_give_back_the_circuit(train, n_points):
    learner = TrueLearner(train.connectome)
    found = extract(learner, learner.params(train), train, n_points).estimate
    assert np.allclose(found.weight, train.parameters.weight, rtol=2e-4, atol=1e-5)
    assert np.allclose(found.tau, true_tau(train), rtol=2e-4)
    assert np.allclose(found.v_rest, train.parameters.v_rest, atol=2e-4)


def test_a_constant_in_the_message_is_absorbed_by_v_rest_alone(train):
    learner = TrueLearner(train.connectome, offset=0.2)
    found, true = extract(learner, learner.params(train), train).estimate, train.parameters
    assert compare(true.weight, found.weight).R2 > 0.9999
    assert compare(true_tau(train), found.tau).R2 > 0.9999
    c = train.connectome
    shift = np.asarray(true.v_rest) - found.v_rest
    expected = 0.2 * np.bincount(c.receivers, np.asarray(true.weight), c.n_neurons)
    assert np.allclose(shift, expected, atol=2e-3)
    assert compare(true.v_rest, found.v_rest).R2 < 0.98


def test_the_scale_shared_by_message_and_weight_drops_out(train):
    scale = np.exp(np.random.default_rng(0).normal(size=train.connectome.n_neurons)).astype(np.float32)
    learner = TrueLearner(train.connectome, scale=scale)
    params = learner.params(train)
    assert compare(train.parameters.weight, params["W"]).R2 < 0.9
    found = extract(learner, params, train).estimate
    active = (probe(train).mean + probe(train).std > 0)[train.connectome.senders]  # s_g is 1 for the others
    assert active.mean() > 0.5
    assert np.allclose(found.weight[active], np.asarray(train.parameters.weight)[active], rtol=5e-4, atol=1e-5)


def test_every_formula_against_numpy(train, network):
    learner, params = network
    found, data, c = extract(learner, params, train), probe(train), train.connectome
    voltage = np.asarray(train.voltage, np.float64)
    mean, std = voltage.mean(axis=0), voltage.std(axis=0)
    assert np.allclose(data.mean, mean, atol=1e-5) and np.allclose(data.std, std, atol=1e-5)

    frames = np.linspace(0, len(voltage) - 1, N_FRAMES + 2).round().astype(int)[1:-1]
    v = jnp.asarray(train.voltage[frames].T)
    g = np.asarray(learner.message(params, v), np.float64)
    msg = np.zeros_like(g)
    np.add.at(msg, c.receivers, np.asarray(params["W"], np.float64)[:, None] * g[c.senders])
    stimulus = np.zeros(v.shape, np.float32)
    stimulus[c.inputs] = train.luminance[frames].T[c.input_column]
    h = 1e-2
    up, down = (learner.update(params, v, jnp.asarray(msg + s, jnp.float32), jnp.asarray(stimulus)) for s in (h, -h))
    gain = np.median((np.asarray(up, np.float64) - np.asarray(down)) / (2 * h), axis=1)
    assert np.allclose(gain, found.gain, atol=1e-3)

    # The grids of all neurons at once, then a textbook fit for each.
    t = np.linspace(-2, 2, N_POINTS)
    grid = (mean[:, None] + std[:, None] * t).astype(np.float32)
    f = np.asarray(learner.update(params, grid, np.zeros_like(grid), np.zeros_like(grid)), np.float64)
    low = np.maximum(mean - 2 * std, 0)
    positive = (low[:, None] + (mean + 2 * std - low)[:, None] * np.linspace(0, 1, N_POINTS)).astype(np.float32)
    g = np.asarray(learner.message(params, positive), np.float64)
    for i in range(0, c.n_neurons, 37):
        slope, offset = np.polyfit(grid[i].astype(np.float64), f[i], 1)
        assert np.isclose(found.slope_f[i], slope, rtol=2e-3, atol=1e-5)
        assert np.isclose(found.offset_f[i], offset, rtol=2e-3, atol=1e-5)
        expected = 1.0 if mean[i] + std[i] <= 0 else np.polyfit(positive[i].astype(np.float64), g[i], 1)[0]
        assert np.isclose(found.slope_g[i], expected, rtol=2e-3, atol=1e-5)
    with np.errstate(divide="ignore"):
        assert np.allclose(found.estimate.tau, np.clip(-1 / found.slope_f, 0, 1), rtol=1e-5)
        assert np.allclose(found.estimate.v_rest, -found.offset_f / found.slope_f, rtol=1e-5)
        product = (
            -np.asarray(params["W"]) * found.slope_g[c.senders] * found.gain[c.receivers] / found.slope_f[c.receivers]
        )
    assert np.allclose(found.estimate.weight, product, rtol=1e-4)


def test_a_silent_neuron_has_slope_one_and_a_constant_neuron_is_finite(train):
    voltage = train.voltage.copy()
    voltage[:, 5] = -1.0 + 1e-2 * np.sin(np.arange(len(voltage)))
    silent = dataclasses.replace(train, voltage=voltage)
    learner = TrueLearner(train.connectome)
    found = extract(learner, learner.params(train), silent)
    assert found.slope_g[5] == 1.0
    voltage[:, 5] = 0.3  # constant: probed on a narrow interval
    constant = dataclasses.replace(train, voltage=voltage.copy())
    found = extract(learner, learner.params(train), constant).estimate
    assert np.isfinite(found.weight).all() and np.isclose(found.tau[5], true_tau(train)[5], rtol=0.05)


def test_all_read_outs_of_equal_learners_share_one_program(train, network):
    learner, params = network
    extract(learner, params, train)
    before = _outputs._cache_size()
    again = make_learner(train.connectome, Model(width=12, activation="tanh"))  # an equal learner, another object
    params = again.init(jax.random.key(9))
    published, linear = extract(again, params, train), linear_readout(again, params, train)
    refit(again, params, train, published, linear)
    about_grey(again, together([params]), train.voltage[:5])
    assert _outputs._cache_size() == before


def test_derivatives_of_the_update_are_those_of_its_arguments(train):
    learner = TrueLearner(train.connectome)
    networks, tau, c = together([learner.params(train)]), true_tau(train), train.connectome
    voltage, luminance = train.voltage[:45], train.luminance[:45]  # more than one block
    (gain,) = message_gain(learner, networks, voltage, luminance)
    assert np.allclose(gain.derivative, 1 / tau, rtol=1e-5)
    (found,) = about_grey(learner, networks, voltage)
    assert found.update.shape == voltage.shape and np.allclose(found.derivative, 1 / tau, rtol=1e-5)
    (shown,) = network_outputs(learner, networks, voltage, np.full_like(luminance, 0.5))
    assert np.allclose(found.update, shown.update, rtol=1e-5, atol=1e-5)
    (dark,) = network_outputs(learner, networks, voltage, np.zeros_like(luminance))
    difference = np.zeros(c.n_neurons)
    difference[c.inputs] = 0.5 / tau[c.inputs]
    assert np.allclose(shown.update - dark.update, difference, atol=1e-4)


def test_lines_are_fitted_exactly():
    slope, offset = np.array([-3.0, 0.5, 20.0]), np.array([1.0, 0.0, -4.0])
    middle, width = np.array([-0.95, 3.5, 0.25]), np.array([0.1, 3.0, 0.5])
    position = np.linspace(-0.5, 0.5, 7)
    found = fit_line(position, slope * (middle + width * position[:, None]) + offset, middle, width)
    assert np.allclose(found[0], slope) and np.allclose(found[1], offset)


def test_moments_of_small_changes_on_a_large_mean():
    x = (100 + 1e-3 * np.random.default_rng(1).normal(size=(3000, 4))).astype(np.float32)
    mean, std, low, high = moments(x)
    assert np.allclose(mean, x.astype(np.float64).mean(axis=0), rtol=1e-12)
    assert np.allclose(std, x.astype(np.float64).std(axis=0), rtol=1e-6)
    assert np.array_equal(low, x.min(axis=0)) and np.array_equal(high, x.max(axis=0))
