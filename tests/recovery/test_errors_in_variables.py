"""Measurement noise and finite-difference targets: the bias of least squares and its correction."""

import jax
import numpy as np
import pytest
from scipy.signal import lfilter
from scipy.stats import norm
from support.recovery_fixtures import SIMULATION, circuit
from support.true_learner import TrueLearner

from flyjax.data import load_recording, record
from flyjax.models.normal_equations import accumulate, solve, target_noise
from flyjax.recovery import closed_form, extract, linear_readout, refit
from flyjax.recovery.activity import signal_to_noise
from flyjax.recovery.errors_in_variables import (
    WARM_UP,
    FunctionTable,
    apply_window,
    correct_moments,
    debiased_relu,
    message_noise,
    noise_bias,
    relu_noise,
    table_points,
    window_decay,
)
from flyjax.recovery.metrics import circuit_metrics
from flyjax.training.data import computes_target
from flyjax.utils.errors import UserError

SIGMA = 0.03


def recorded(split="train", **changes):
    c, p = circuit()
    simulation = SIMULATION.model_copy(update={"n_frames": 12_000, **changes})
    return record(simulation, 0.05, split, connectome=c, parameters=p)


@pytest.fixture(scope="module")
def clean():
    return recorded()


@pytest.fixture(scope="module")
def noisy():
    return recorded(measurement_noise_level=SIGMA)


@pytest.mark.parametrize("v", [-0.3, -0.02, 0.0, 0.03, 0.5])
def test_debiased_relu_is_relu_on_average(v):
    x = v + SIGMA * np.random.default_rng(0).normal(size=(400_000, 1))
    bias = np.maximum(x, 0).mean() - max(v, 0)
    h, noise = debiased_relu(x, SIGMA), relu_noise(x, SIGMA)
    assert abs(h.mean() - max(v, 0)) < max(0.65 * bias, 3e-4)
    assert np.mean((x - v) * h) == pytest.approx(SIGMA**2 * noise.slope[0], abs=2e-5)  # Stein
    assert np.mean(h * h) - noise.variance[0] == pytest.approx(max(v, 0) ** 2, abs=0.15 * SIGMA**2)


def test_a_table_is_debiased_as_relu_is():
    rng = np.random.default_rng(1)
    v = rng.uniform(-0.15, 0.15, size=(100_000, 2))
    x = v + SIGMA * rng.normal(size=v.shape)
    points = table_points(x, SIGMA)
    table = FunctionTable(points, np.stack([np.maximum(points, 0), 0.3 * points - 1]))
    assert np.allclose(table(x), np.stack([np.maximum(x[:, 0], 0), 0.3 * x[:, 1] - 1], 1), atol=2e-3)
    h = table.debiased(SIGMA)
    assert np.allclose(h(x)[:, 0], debiased_relu(x[:, 0], SIGMA), atol=2e-3)
    assert np.allclose(h(x)[:, 1], 0.3 * x[:, 1] - 1, atol=1e-6)  # linear functions do not change
    noise, mean = message_noise(h, x, SIGMA), FunctionTable(points, h.noise_moments(SIGMA)[0])
    assert noise.slope == pytest.approx([np.mean((x - v)[:, 0] * h(x)[:, 0]) / SIGMA**2, 0.3], rel=0.03)  # Stein
    assert noise.variance == pytest.approx(np.mean((h(x) - mean(v)) ** 2, axis=0), rel=0.03)
    assert noise.variance[1] == pytest.approx((0.3 * SIGMA) ** 2, rel=1e-3)


def softly(x, width):
    """relu averaged over noise of std `width`: what a network trained on noisy voltages learns instead of relu."""
    z = x / width
    return x * norm.cdf(z) + width * norm.pdf(z)


@pytest.mark.parametrize("width", [0.0, 0.15])  # of the kink of the messages
@pytest.mark.parametrize("decay", [0.0, 0.8])
def test_moments_without_bias_are_those_of_the_clean_states(decay, width):
    class Two:  # 0 -> 1 and an autapse of 1
        n_neurons, senders, receivers = 2, np.array([0, 1]), np.array([1, 1])

    rng, n, dt, sigma = np.random.default_rng(0), 400_000, 0.02, 0.2
    v = 0.4 + lfilter([1], [1, -0.8], rng.normal(size=(2, n)), axis=1) * np.array([[0.3], [0.25]])
    noise = sigma * rng.normal(size=(2, n + 1))
    rate = rng.normal(size=(2, n)) + v
    x, y = v + noise[:, :-1], rate + np.diff(noise) / dt
    if width:
        points = table_points(x, sigma)
        table = FunctionTable(points, np.stack([softly(points, width)] * 2))
        clean_sent, sent, of_sent = (
            softly(v, width),
            table.debiased(sigma)(x.T).T,
            message_noise(table.debiased(sigma), x.T, sigma),
        )
    else:
        clean_sent, sent, of_sent = np.maximum(v, 0), debiased_relu(x, sigma), relu_noise(x.T, sigma)
    for sign in (1.0, -1.0):

        def chunks(*columns):  # two, the second following from the first
            return [[column[:, a] for column in columns] for a in (slice(0, n // 3), slice(n // 3, n))]

        clean = accumulate(Two, apply_window(chunks(clean_sent, sign * v, rate), decay), n_own=1).moments[1]
        raw = accumulate(Two, apply_window(chunks(sent, sign * x, y), decay), n_own=1)
        corrected = raw.moments[1] - list(noise_bias(raw, Two, sigma, dt, of_sent, sign, decay))[1]
        bias, rest = np.abs(raw.moments[1] - clean), np.abs(corrected - clean)
        for entry in ((0, 0), (1, 1), (2, 2), (1, 2), (1, 4), (2, 4), (4, 4)):  # rows: source, autapse, leak, 1, target
            assert rest[entry] < 0.12 * bias[entry] + 1e-5, (sign, entry)


def test_the_window_preserves_the_equation_and_starts_anew_if_not_continuous():
    rng = np.random.default_rng(3)
    sent, own, other = rng.normal(size=(3, 2, 300))
    target = 3 * sent - 2 * own + 0.5 * other + 1
    columns = sent, own, other, target
    straight = list(apply_window([columns], 0.8))[0]
    assert [column.shape for column in straight] == 4 * [(2, 300 - WARM_UP)]
    chunks = [[column[:, a] for column in columns] for a in (slice(0, 100), slice(100, 300))]
    for continuous in (True, False):
        windowed = list(apply_window(chunks, 0.8, continuous))
        for s, a, b, y in windowed:
            assert np.allclose(y, 3 * s - 2 * a + 0.5 * b + 1)  # the constant does not change
        second = windowed[1][0]
        assert second.shape[1] == (200 if continuous else 200 - WARM_UP)
        assert np.allclose(second[:, :1], straight[0][:, 100 - WARM_UP :][:, :1]) == continuous
    assert np.allclose(list(apply_window([columns], 0.0))[0][3], target)


def test_a_source_of_noise_alone_gets_a_small_weight():
    class Two:
        n_neurons, senders, receivers = 2, np.array([0]), np.array([1])

    rng, n, sigma = np.random.default_rng(1), 2000, 0.2
    v = np.stack([np.full(n, -0.1), 0.5 + 0.5 * rng.normal(size=n)])
    noise, later = sigma * rng.normal(size=(2, 2, n))
    x, y = v + noise, -v / 0.05 + (later - noise) / 0.02
    raw = accumulate(Two, [(debiased_relu(x, sigma), x, y)], n_own=1)
    normal, ridge = correct_moments(raw, Two, sigma, 0.02, relu_noise(x.T, sigma), 1.0)
    found = solve(normal, ridge)
    assert found.own[1, 0] == pytest.approx(-20, rel=0.15) and abs(found.source[0]) < 15


def test_slopes_are_restored_and_identifiability_does_not_depend_on_the_measurement(clean, noisy):
    free, found = closed_form(clean), closed_form(noisy)
    assert (free.edges == found.edges).mean() > 0.995 and (free.neurons == found.neurons).mean() > 0.995
    m = found.metrics
    for name in ("connectivity_R2", "tau_R2"):
        raw, corrected = (m[f"{name}_ceiling{k}_identifiable_slope"] for k in ("", "_corrected"))
        # Most weights of this circuit are small, and the prior shrinks those that the noise leaves undetermined.
        assert raw < 0.7 and abs(1 - corrected) < 0.6 * abs(1 - raw), name
    assert m["connectivity_R2_ceiling_corrected_identifiable"] > m["connectivity_R2_ceiling_identifiable"] + 0.03
    for name in ("tau_R2", "V_rest_R2"):
        assert m[f"{name}_ceiling_corrected_identifiable"] > 0.99 > m[f"{name}_ceiling_identifiable"]
    assert "connectivity_R2_ceiling_corrected" not in free.metrics


class SmoothMessages(TrueLearner):
    """Messages as a network learns them from noisy voltages: without a kink."""

    def message(self, params, voltage):
        z = voltage / (1.5 * SIGMA)
        return voltage * jax.scipy.stats.norm.cdf(z) + 1.5 * SIGMA * jax.scipy.stats.norm.pdf(z)


@pytest.mark.parametrize("kind", [TrueLearner, SmoothMessages])
def test_the_refit_is_corrected_beside_the_plain_one(clean, noisy, kind):
    learner = kind(noisy.connectome)
    params = learner.params(noisy)
    noisy_fit, clean_fit = (
        refit(learner, params, r, extract(learner, params, r), linear_readout(learner, params, r))
        for r in (noisy, clean)
    )
    bound = closed_form(noisy)
    scores = [circuit_metrics(x, noisy, "", bound.edges, bound.neurons).values for x in noisy_fit]
    assert scores[0]["connectivity_R2_slope"] < 0.65 < 0.72 < scores[1]["connectivity_R2_slope"] < 1.1
    assert scores[1]["connectivity_R2"] > scores[0]["connectivity_R2"] + 0.03
    assert scores[0]["tau_R2_slope"] < 0.7 < 0.95 < scores[1]["tau_R2_slope"] < 1.05
    assert scores[1]["tau_R2"] > 0.995 > scores[0]["tau_R2"] and scores[1]["V_rest_R2"] > 0.98 > scores[0]["V_rest_R2"]
    assert clean_fit.corrected is None


def test_no_window_where_targets_contain_the_process_noise(noisy):
    assert window_decay(noisy.simulation, "train") > 0.5
    differenced = SIMULATION.model_copy(update={"target": "difference"})
    assert window_decay(differenced, "train") == 0.0 < window_decay(differenced, "test")
    m = closed_form(recorded(measurement_noise_level=SIGMA, target="difference")).metrics
    assert abs(m["tau_R2_ceiling_corrected_identifiable_slope"] - 1) < 0.1


def test_differences_of_the_recorded_voltages(clean, tmp_path):
    rec = recorded(target="difference", store_derivative=True)
    np.testing.assert_array_equal(rec.voltage, clean.voltage)
    states = np.concatenate([rec.voltage, rec.final[None]])
    np.testing.assert_allclose(rec.derivative, np.diff(states, axis=0) / np.float32(rec.dt), rtol=1e-6)
    np.testing.assert_allclose(rec.pairs(np.array([11_999, 5]))[2], rec.derivative[[11_999, 5]])
    # They contain the process noise and the right-hand side.
    assert np.std(rec.derivative - clean.derivative) == pytest.approx(0.05 / rec.dt, rel=0.01)
    assert target_noise(rec) == pytest.approx(0.05 / rec.dt) and not computes_target(rec)
    rec.save(tmp_path / "a")
    np.testing.assert_array_equal(load_recording(tmp_path / "a").derivative, rec.derivative)
    test = recorded("test", target="difference")
    np.testing.assert_array_equal(test.derivative, recorded("test").derivative)
    with pytest.raises(UserError, match="n_recordings"):
        recorded(target="difference", n_recordings=2)


def test_the_closed_form_of_differences_is_unbiased():
    found = closed_form(recorded(target="difference"))
    m = found.metrics
    assert 0.6 < m["connectivity_R2_ceiling_identifiable"] < 0.9999  # most weights of this circuit are small
    assert (
        abs(m["tau_R2_ceiling_identifiable_slope"] - 1) < 0.1
        and abs(m["V_rest_R2_ceiling_identifiable_slope"] - 1) < 0.1
    )


def test_measurement_noise_is_no_signal(clean, noisy):
    # As signal it would add a quarter: 0.03 squared against the 0.004 that the process noise gives a typical neuron.
    assert (
        1 + signal_to_noise(noisy) == pytest.approx(1 + signal_to_noise(clean), rel=0.03) and signal_to_noise(clean) > 0
    )
