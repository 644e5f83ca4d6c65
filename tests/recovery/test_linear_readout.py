"""The read-out at training frames: exact on the true functions, also where the published read-out is not."""

import jax.numpy as jnp
import numpy as np
import pytest
from support.recovery_fixtures import recordings
from support.true_learner import TrueLearner

from flyjax.recovery import compare, evaluate, extract, linear_readout
from flyjax.recovery.linear_readout import _fit_message_lines, _fit_planes
from flyjax.recovery.metrics import true_tau


@pytest.fixture(scope="module")
def train():
    return recordings()[0]


def active_edges(recording):
    """Edges whose source is ever above zero."""
    return (recording.voltage > 0).any(axis=0)[recording.connectome.senders]


def test_true_functions_give_back_the_circuit(train):
    learner = TrueLearner(train.connectome)
    readout, active = linear_readout(learner, learner.params(train), train), active_edges(train)
    found = readout.estimate
    assert active.mean() > 0.5
    assert np.allclose(found.weight[active], np.asarray(train.parameters.weight)[active], rtol=2e-3, atol=1e-4)
    assert np.allclose(found.tau, true_tau(train), rtol=2e-3)
    assert np.allclose(found.v_rest, train.parameters.v_rest, atol=2e-3)
    assert readout.nonlinear_share.max() < 1e-6


def test_a_constant_in_the_message_does_not_affect_v_rest(train):
    learner = TrueLearner(train.connectome, offset=0.3)
    params = learner.params(train)
    true = np.asarray(train.parameters.v_rest)
    assert compare(true, extract(learner, params, train).estimate.v_rest).R2 < 0.98
    assert np.allclose(linear_readout(learner, params, train).estimate.v_rest, true, atol=5e-3)


class WrongOffData(TrueLearner):
    """Exact at all training frames; wrong in the dark without input, where there is none."""

    def update(self, params, voltage, msg, stimulus):
        total = super().update(params, voltage, msg, stimulus)
        return jnp.where((msg == 0) & (stimulus == 0), total + 40.0 * voltage - 20.0, total)


def test_f_away_from_the_data_does_not_matter(train):
    learner = WrongOffData(train.connectome)
    params = learner.params(train)
    c = train.connectome
    active = np.maximum(train.voltage, 0)[:, c.senders] > 0
    receives = np.isin(np.arange(c.n_neurons), c.inputs) | np.array(
        [active[:, c.receivers == i].any(axis=1).all() for i in range(c.n_neurons)]
    )
    assert receives.mean() > 0.5
    assert compare(true_tau(train), extract(learner, params, train).estimate.tau).R2 < 0.5
    found = linear_readout(learner, params, train).estimate
    assert np.allclose(found.tau[receives], true_tau(train)[receives], rtol=2e-3)
    assert np.allclose(found.v_rest[receives], np.asarray(train.parameters.v_rest)[receives], atol=2e-3)


def test_planes_and_lines_against_numpy():
    rng = np.random.default_rng(0)
    v, m, f, g = rng.normal(size=(4, 60, 3))
    constant = np.full((60, 3), 0.4)
    found, share = _fit_planes([v, m, constant], f)
    slope, offset = _fit_message_lines(v, g, np.ones((9, 3)), np.zeros((9, 3)))
    for i in range(3):
        x = np.stack([v[:, i], m[:, i], np.ones(60)], axis=1)
        expected = np.linalg.lstsq(x, f[:, i])[0]
        assert np.allclose(found[i], [expected[0], expected[1], 0.0, expected[2]])
        assert share[i] == pytest.approx(np.var(f[:, i] - x @ expected) / np.var(f[:, i]))
        positive = v[:, i] > 0
        assert np.allclose([slope[i], offset[i]], np.polyfit(v[positive, i], g[positive, i], 1))
    grid = np.linspace(0, 1, 9)[:, None] * np.array([0.0, 0.2, 2.0])  # silent, and twice rarely above zero
    slope, offset = _fit_message_lines(-np.abs(v), g, grid, 3 * grid + 1)
    assert np.allclose(slope, [0, 3, 3]) and np.allclose(offset, [g[:, 0].mean(), 1, 1])


def test_metrics_have_their_own_names_and_are_none_for_a_network_that_is_not_finite(train):
    learner, test = TrueLearner(train.connectome), recordings()[1]
    m = evaluate(learner, learner.params(train), train, test, with_refit=False).metrics
    for name in ("connectivity_R2", "tau_R2", "V_rest_R2"):
        assert m[f"{name}_data_identifiable"] > 0.999 and f"{name}_data_slope" in m
    assert m["update_affine_R2_data"] > 0.999
    broken = {k: v * np.float32("nan") for k, v in learner.params(train).items()}
    metrics = evaluate(learner, broken, train, test, with_refit=False, with_ceiling=False).metrics
    assert metrics["connectivity_R2_data"] is None and metrics["reasons"]["connectivity_R2_data"]
    assert np.isnan(linear_readout(learner, broken, train).estimate.weight).all()
