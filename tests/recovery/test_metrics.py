"""Scores, rollouts and activity: perfect for the true functions, None with a reason where undefined."""

import dataclasses
import json

import numpy as np
import pytest
from support.recovery_fixtures import recordings
from support.true_learner import TrueLearner

from flyjax.recovery import CircuitEstimate, compare, evaluate, rollout
from flyjax.recovery.activity import activity, activity_line, describe, rank, signal_to_noise
from flyjax.recovery.metrics import Metrics, circuit_metrics, evaluation_pairs, explained, input_metrics, true_tau
from flyjax.recovery.network_outputs import about_grey, together
from flyjax.recovery.rollout import CHUNK, rollout_metrics
from flyjax.utils.errors import UserError


@pytest.fixture(scope="module")
def both():
    return recordings()


@pytest.fixture(scope="module")
def perfect(both):
    learner = TrueLearner(both[0].connectome)
    return evaluate(learner, learner.params(both[0]), *both, final_loss=0.5)


def test_the_true_functions_are_perfect_everywhere(perfect):
    m = perfect.metrics
    for name in (
        "connectivity_R2 tau_R2 V_rest_R2 external_input_R2 one_step_R2 test_R2 test_pearson "
        "connectivity_R2_identity tau_R2_identity V_rest_R2_identity external_input_R2_identity "
        "connectivity_R2_slope tau_R2_slope V_rest_R2_slope"
    ).split():
        assert m[name] == pytest.approx(1.0, abs=1e-3), name
    assert m["final_loss"] == 0.5 and m["test_frames"] == 299
    assert m["final_loss_total"] is None and m["reasons"]["final_loss_total"]
    # The same parameters as the truth: the clusters can only be as good as on the truth.
    assert m["cluster_accuracy"] == pytest.approx(m["cluster_accuracy_true"], abs=0.05)
    json.dumps(m, allow_nan=False)
    assert {k for k, v in m.items() if v is None} == set(m["reasons"])


def test_a_message_offset_changes_v_rest_but_not_the_dynamics(both, perfect):
    learner = TrueLearner(both[0].connectome, offset=0.3)
    m = evaluate(learner, learner.params(both[0]), *both).metrics
    assert m["test_R2"] > 0.999 and m["one_step_R2"] > 0.999 and m["connectivity_R2"] > 0.999
    assert m["V_rest_R2"] < perfect.metrics["V_rest_R2"] - 0.02


def test_outliers_are_left_out_of_r2_to_the_identity_line_and_counted(both):
    recording = both[0]
    n = recording.connectome.n_neurons
    estimate = recording.parameters._replace(v_rest=np.array(recording.parameters.v_rest) + 0.1)
    estimate.v_rest[: n // 2] += 0.2  # a half is 0.3 off: more than 0.2
    m = circuit_metrics(estimate, recording, "_refit").values
    true = np.asarray(recording.parameters.v_rest, np.float64)[n // 2 :]
    assert m["V_rest_R2_refit_outliers"] == pytest.approx((n // 2) / n) and m["tau_R2_refit_outliers"] == 0
    assert m["V_rest_R2_refit_inliers"] == pytest.approx(1 - 0.01 / true.var(), abs=1e-4)
    assert m["tau_R2_refit_inliers"] > 0.99
    lost = circuit_metrics(estimate._replace(tau=np.full(n, np.nan, np.float32)), recording)
    assert lost.values["tau_R2_outliers"] == 1 and lost.reasons["tau_R2_inliers"]
    assert (
        "tau_R2_identifiable_outliers"
        not in circuit_metrics(estimate, recording, "_identifiable", neurons=np.arange(n) < 9).values
    )


def test_r2_is_squared_pearson_with_slope_and_identity_beside_it():
    rng = np.random.default_rng(0)
    x = rng.normal(size=200)
    y = -0.5 * x + 0.1 * rng.normal(size=200) + 3
    fit = compare(x, y)
    assert fit.R2 == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)
    assert fit.slope == pytest.approx(np.polyfit(x, y, 1)[0])
    assert fit.identity == pytest.approx(1 - np.sum((y - x) ** 2) / np.sum((x - x.mean()) ** 2))


@pytest.mark.parametrize(
    "true, learned, word",
    [
        ([1, 2, 3], [1, np.nan, 3], "not finite"),
        ([1, 2, 3], [1, np.inf, 3], "not finite"),
        ([1, 2, 3], [0.1, 0.1, 0.1], "constant"),
        ([2, 2, 2], [1, 2, 3], "constant"),
        ([1], [1], "few"),
    ],
)
def test_what_cannot_be_scored_is_none_with_a_reason(true, learned, word):
    fit = compare(true, learned)
    assert fit.R2 is None and word in fit.reason


def test_tau_is_compared_with_the_integrated_one_and_far_weights_are_dropped(both):
    train = both[0]
    true = train.parameters
    weight = np.array(true.weight)
    weight[:3] += np.array([6, -6, 4.9], np.float32)
    found = CircuitEstimate(weight=weight, tau=true_tau(train), v_rest=np.full_like(true.v_rest, np.nan))
    m = circuit_metrics(found, train, suffix="_refit")
    assert m.values["connectivity_R2_refit_dropped"] == 2
    close = np.r_[2 : len(weight)]
    assert m.values["connectivity_R2_refit"] == pytest.approx(
        np.corrcoef(np.asarray(true.weight, np.float64)[close], weight[close])[0, 1] ** 2
    )
    assert m.values["tau_R2_refit"] == pytest.approx(1.0)
    assert m.values["V_rest_R2_refit"] is None and "443 of 443" in m.reasons["V_rest_R2_refit"]
    assert (true_tau(train) >= np.float32(train.simulation.delta_t)).all()


def test_input_is_solved_by_one_newton_step(both):
    test = both[1]

    class Quadratic(TrueLearner):  # not affine in I: one step from 0.5 leaves a known remainder
        def update(self, params, voltage, msg, stimulus):
            return stimulus + stimulus**2

    learner = Quadratic(test.connectome)
    params = learner.params(both[0])
    voltage, luminance, derivative = evaluation_pairs(test)
    c = test.connectome
    (found,) = about_grey(learner, together([params]), voltage)
    true = luminance[:, c.input_column]
    solved = 0.5 + (derivative[:, c.inputs] - 0.75) / 2.0
    expected = np.corrcoef(true.ravel(), solved.ravel())[0, 1] ** 2
    assert input_metrics(found, test).values["external_input_R2"] == pytest.approx(expected, abs=1e-4)


def test_rollout_against_a_numpy_loop(both):
    test = both[1]
    learner = TrueLearner(test.connectome, drift=-2.0)
    params = learner.params(both[0])
    run = rollout(learner, params, test)
    assert len(test.voltage) > CHUNK + 1  # more than one chunk
    v = np.asarray(test.voltage[0], np.float64)
    c, p = test.connectome, test.parameters
    for t in range(len(test.voltage) - 1):
        stimulus = np.zeros(c.n_neurons)
        stimulus[c.inputs] = test.luminance[t][c.input_column]
        msg = np.bincount(c.receivers, np.asarray(p.weight, np.float64) * np.maximum(v, 0)[c.senders], c.n_neurons)
        v = v + test.simulation.delta_t * ((-v + np.asarray(p.v_rest) + msg + stimulus) / true_tau(test) - 2.0 * v)
        assert np.allclose(run.voltage[t + 1], v, atol=1e-4)
    m = rollout_metrics(run, test).values
    true, learned = (np.asarray(a[1:], np.float64) for a in (test.voltage, run.voltage))
    assert m["test_R2"] == pytest.approx(1 - np.sum((learned - true) ** 2) / np.sum((true - true.mean()) ** 2))
    moving = true.std(axis=0) > 1e-3
    r = [np.corrcoef(a, b)[0, 1] for a, b in zip(true.T[moving], learned.T[moving])]
    assert m["test_pearson"] == pytest.approx(np.mean(r), abs=1e-6)
    assert m["test_pearson_neurons"] == moving.sum()


def test_a_diverging_rollout_is_null_with_its_frame(both):
    train, test = both
    learner = TrueLearner(test.connectome, drift=200.0)
    evaluation = evaluate(learner, learner.params(train), train, test)
    m, frame = evaluation.metrics, evaluation.rollout.divergence_frame
    assert frame is not None and 0 < frame < 60
    limit = 100 * max(np.abs(test.voltage).max(), 1.0)
    assert np.abs(evaluation.rollout.voltage[:frame]).max() <= limit
    assert m["test_R2"] is None and m["test_pearson"] is None and f"frame {frame}" in m["reasons"]["test_R2"]
    assert m["test_divergence_frame"] == frame and evaluation.activity["divergence_frame"] == frame
    assert f"diverged at frame {frame}" in evaluation.activity_line
    json.dumps([m, evaluation.activity], allow_nan=False)


def test_nonfinite_numbers_never_reach_the_metrics():
    m = Metrics()
    m.put("a", float("inf"))
    m.put("b", np.float32(2))
    assert m.as_dict() == {"a": None, "b": 2.0, "reasons": {"a": "the value is inf"}}
    assert explained([1.0, 2.0], [1.0, np.nan])[0] is None and explained([1.0, 1.0], [1.0, 2.0])[0] is None


def test_recordings_of_another_circuit_or_with_noise_are_refused(both):
    learner = TrueLearner(both[0].connectome)
    params = learner.params(both[0])
    with pytest.raises(UserError, match="noisy"):
        evaluate(learner, params, both[0], both[0])
    with pytest.raises(UserError, match="edges"):
        evaluate(learner, {**params, "W": params["W"][:-1]}, *both)


def test_activity_numbers_on_known_traces(both):
    t = np.arange(400)
    traces = np.stack([np.sin(t / 7), np.cos(t / 7) - 5, 3 + 0.5 * np.sin(t / 7), np.full(400, -1.0)], axis=1)
    known = describe(traces.astype(np.float32))
    assert known["silent"] == 0.5 and known["always_active"] == 0.25
    assert known["rank"] == 2
    assert known["mean"] == pytest.approx(traces.mean(), abs=1e-5)
    assert rank(np.zeros((10, 3), np.float32)) == (None, None)
    assert signal_to_noise(both[1]) is None and signal_to_noise(both[0]) >= 0
    learner = TrueLearner(both[0].connectome)
    run = rollout(learner, learner.params(both[0]), both[1])
    content = activity(both[0], run)
    line = activity_line(content)
    # The signal-to-noise ratio needs the true tau: it is in activity.json, not in the line that a blind search shows.
    assert "\n" not in line and "rollout" in line and "SNR" not in line and content["recording"]["snr"] >= 0
    json.dumps(content, allow_nan=False)


def test_metrics_name_what_they_were_computed_on(both, perfect):
    """Circuits that differ in one parameter have other checksums, and are never compared."""
    train, test = both
    on = perfect.metrics["computed_on"]
    assert on["training"]["circuit"] == on["held_out"]["circuit"]
    assert on["training"]["recording"] != on["held_out"]["recording"]
    for origin, recording in ((on["training"], train), (on["held_out"], test)):
        for name in ("split", "visual_input_type", "n_frames", "noise_model_level"):
            assert origin[name] == getattr(recording, name), name
    learner = TrueLearner(train.connectome)
    for name in train.parameters._fields:
        changed = np.array(getattr(train.parameters, name))
        changed[0] += 1e-3
        other = dataclasses.replace(test, parameters=test.parameters._replace(**{name: changed}))
        assert other.origin["circuit"] != test.origin["circuit"]
        with pytest.raises(UserError, match=other.origin["circuit"]):
            evaluate(learner, learner.params(train), train, other)
