"""Noise in the measurement: known bias taken out, differenced targets, and choices made without the truth."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from scipy.signal import lfilter
from scipy.stats import norm
from support.recovery_fixtures import SIMULATION, truth
from support.true_learner import TrueLearner

from flyjax.config import Training
from flyjax.data import load_recording, record
from flyjax.data.transforms import concatenate
from flyjax.experiments.reevaluate import _recordings, node_selection
from flyjax.recovery import closed_form, extract, refit
from flyjax.recovery.activity import signal_to_noise
from flyjax.recovery.errors_in_variables import (
    START,
    Table,
    biases,
    corrected,
    laid,
    sent_noise,
    table_range,
    unbent,
    unbent_noise,
    window_of,
)
from flyjax.recovery.metrics import circuit_metrics
from flyjax.recovery.model_selection import selection
from flyjax.recovery.normal_equations import accumulate, solve, target_noise
from flyjax.training.halving import relative_error, target_spread
from flyjax.training.train import computes_target
from flyjax.utils.errors import UserError

SIGMA = 0.03


def recorded(split="train", **changes):
    c, p = truth()
    simulation = SIMULATION.model_copy(update={"n_frames": 12_000, **changes})
    return record(simulation, 0.05, split, connectome=c, parameters=p)


@pytest.fixture(scope="module")
def clean():
    return recorded()


@pytest.fixture(scope="module")
def noisy():
    return recorded(measurement_noise_level=SIGMA)


@pytest.mark.parametrize("v", [-0.3, -0.02, 0.0, 0.03, 0.5])
def test_unbent_is_relu_on_average(v):
    x = v + SIGMA * np.random.default_rng(0).normal(size=(400_000, 1))
    bent = np.maximum(x, 0).mean() - max(v, 0)
    assert abs(unbent(x, SIGMA).mean() - max(v, 0)) < max(0.65 * bent, 3e-4)
    noise = unbent_noise(x, SIGMA)
    h = unbent(x, SIGMA)
    assert np.mean((x - v) * h) == pytest.approx(SIGMA**2 * noise.slope[0], abs=2e-5)  # Stein
    assert np.mean(h * h) - noise.excess[0] == pytest.approx(max(v, 0) ** 2, abs=0.15 * SIGMA**2)


def test_a_table_is_unbent_as_relu_is():
    rng = np.random.default_rng(1)
    v = rng.uniform(-0.15, 0.15, size=(100_000, 2))
    x = v + SIGMA * rng.normal(size=v.shape)
    points = table_range(x, SIGMA)
    table = Table(points, np.stack([np.maximum(points, 0), 0.3 * points - 1]))
    assert np.allclose(table(x), np.stack([np.maximum(x[:, 0], 0), 0.3 * x[:, 1] - 1], 1), atol=2e-3)
    h = table.unbent(SIGMA)
    assert np.allclose(h(x)[:, 0], unbent(x[:, 0], SIGMA), atol=2e-3)
    assert np.allclose(h(x)[:, 1], 0.3 * x[:, 1] - 1, atol=1e-6)  # what is straight stays
    noise, mean = sent_noise(h, x, SIGMA), Table(points, h.over_noise(SIGMA)[0])
    assert noise.slope == pytest.approx([np.mean((x - v)[:, 0] * h(x)[:, 0]) / SIGMA**2, 0.3], rel=0.03)  # Stein
    assert noise.excess == pytest.approx(np.mean((h(x) - mean(v)) ** 2, axis=0), rel=0.03)
    assert noise.excess[1] == pytest.approx((0.3 * SIGMA) ** 2, rel=1e-3)


def softly(x, width):
    """relu averaged over noise of std `width`: what a network trained on noisy voltages learns in place of relu."""
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
        points = table_range(x, sigma)
        table = Table(points, np.stack([softly(points, width)] * 2))
        clean_sent, sent, of_sent = (
            softly(v, width),
            table.unbent(sigma)(x.T).T,
            sent_noise(table.unbent(sigma), x.T, sigma),
        )
    else:
        clean_sent, sent, of_sent = np.maximum(v, 0), unbent(x, sigma), unbent_noise(x.T, sigma)
    for sign in (1.0, -1.0):
        # In two pieces, the second going on where the first ends.
        def pieces(s, own, target):
            return [(s[:, a], [(own[:, a],)], target[:, a]) for a in (slice(0, n // 3), slice(n // 3, n))]

        clean = accumulate(Two, laid(pieces(clean_sent, sign * v, rate), decay), n_own=1).moments[1]
        raw = accumulate(Two, laid(pieces(sent, sign * x, y), decay), n_own=1)
        mended = raw.moments[1] - list(biases(raw, Two, sigma, dt, of_sent, sign, decay))[1]
        bias, left = np.abs(raw.moments[1] - clean), np.abs(mended - clean)
        for entry in ((0, 0), (1, 1), (2, 2), (1, 2), (1, 4), (2, 4), (4, 4)):  # rows: source, autapse, leak, 1, target
            assert left[entry] < 0.12 * bias[entry] + 1e-5, (sign, entry)


def test_the_window_keeps_the_equation_and_starts_anew_where_asked():
    rng = np.random.default_rng(3)
    sent, own, other = rng.normal(size=(3, 2, 300))
    target = 3 * sent - 2 * own + 0.5 * other + 1
    whole = list(laid([(sent, [(own, other)], target)], 0.8))[0]
    assert whole[0].shape == (2, 300 - START) and len(whole[1]) == 1
    one, two = [[sent, [(own,), (other,)], target]], [slice(0, 100), slice(100, 300)]
    for joined in (True, False):
        cut = [(sent[:, a], [(own[:, a],), (other[:, a],)], target[:, a]) for a in two]
        for s, ((a,), (b,)), y in laid(cut, 0.8, joined):
            assert np.allclose(y, 3 * s - 2 * a + 0.5 * b + 1)  # the constant stays what it is
        second = list(laid(cut, 0.8, joined))[1][0]
        straight = list(laid(one, 0.8))[0][0]
        assert second.shape[1] == (200 if joined else 200 - START)
        assert np.allclose(second[:, :1], straight[:, 100 - START :][:, :1]) == joined
    assert np.allclose(list(laid(one, 0.0))[0][2], target)


def test_of_a_source_that_is_noise_alone_nothing_is_made():
    class Two:
        n_neurons, senders, receivers = 2, np.array([0]), np.array([1])

    rng, n, sigma = np.random.default_rng(1), 2000, 0.2
    v = np.stack([np.full(n, -0.1), 0.5 + 0.5 * rng.normal(size=n)])
    noise, later = sigma * rng.normal(size=(2, 2, n))
    x, y = v + noise, -v / 0.05 + (later - noise) / 0.02
    raw = accumulate(Two, [(unbent(x, sigma), [(x,)], y)], n_own=1)
    clean, ridge = corrected(raw, Two, sigma, 0.02, unbent_noise(x.T, sigma), 1.0)
    found = solve(clean, ridge)
    assert found.own[1, 0] == pytest.approx(-20, rel=0.15) and abs(found.source[0]) < 15


def test_slopes_come_back_and_what_can_be_told_does_not_depend_on_the_measurement(clean, noisy):
    free, found = closed_form(clean), closed_form(noisy)
    assert (free.edges == found.edges).mean() > 0.995 and (free.neurons == found.neurons).mean() > 0.995
    m = found.metrics
    for name in ("connectivity_R2", "tau_R2"):
        raw, mended = (m[f"{name}_ceiling{k}_identifiable_slope"] for k in ("", "_corrected"))
        # Most weights of this circuit are small: what the noise leaves open of them, the prior takes.
        assert raw < 0.7 and abs(1 - mended) < 0.6 * abs(1 - raw), name
    assert m["connectivity_R2_ceiling_corrected_identifiable"] > m["connectivity_R2_ceiling_identifiable"] + 0.03
    for name in ("tau_R2", "V_rest_R2"):
        assert m[f"{name}_ceiling_corrected_identifiable"] > 0.99 > m[f"{name}_ceiling_identifiable"]
    assert "connectivity_R2_ceiling_corrected" not in free.metrics


class Bent(TrueLearner):
    """Messages as a network learns them from noisy voltages: without a kink."""

    def message(self, params, voltage):
        z = voltage / (1.5 * SIGMA)
        return voltage * jax.scipy.stats.norm.cdf(z) + 1.5 * SIGMA * jax.scipy.stats.norm.pdf(z)


@pytest.mark.parametrize("kind", [TrueLearner, Bent])
def test_the_refit_is_corrected_beside_the_plain_one(clean, noisy, kind):
    learner = kind(noisy.connectome)
    params = learner.params(noisy)
    found = refit(learner, params, noisy, extract(learner, params, noisy))
    told = closed_form(noisy)
    scores = [circuit_metrics(x, noisy, "", told.edges, told.neurons).values for x in (found, found.corrected)]
    assert scores[0]["connectivity_R2_slope"] < 0.65 < 0.72 < scores[1]["connectivity_R2_slope"] < 1.1
    assert scores[1]["connectivity_R2"] > scores[0]["connectivity_R2"] + 0.03
    assert scores[0]["tau_R2_slope"] < 0.7 < 0.95 < scores[1]["tau_R2_slope"] < 1.05
    assert scores[1]["tau_R2"] > 0.995 > scores[0]["tau_R2"] and scores[1]["V_rest_R2"] > 0.98 > scores[0]["V_rest_R2"]
    assert refit(learner, params, clean, extract(learner, params, clean)).corrected is None


def test_no_window_where_targets_hold_the_process_noise(noisy):
    assert window_of(noisy.simulation, "train") > 0.5
    differenced = SIMULATION.model_copy(update={"target": "difference"})
    assert window_of(differenced, "train") == 0.0 < window_of(differenced, "test")
    m = closed_form(recorded(measurement_noise_level=SIGMA, target="difference")).metrics
    assert abs(m["tau_R2_ceiling_corrected_identifiable_slope"] - 1) < 0.1


def test_differences_of_the_recorded_voltages(clean, tmp_path):
    rec = recorded(target="difference", store_derivative=True)
    np.testing.assert_array_equal(rec.voltage, clean.voltage)
    states = np.concatenate([rec.voltage, rec.final[None]])
    np.testing.assert_allclose(rec.derivative, np.diff(states, axis=0) / np.float32(rec.dt), rtol=1e-6)
    np.testing.assert_allclose(rec.pairs(np.array([11_999, 5]))[2], rec.derivative[[11_999, 5]])
    # Process noise is in them, and nothing else beside the right-hand side.
    assert np.std(rec.derivative - clean.derivative) == pytest.approx(0.05 / rec.dt, rel=0.01)
    assert target_noise(rec) == pytest.approx(0.05 / rec.dt) and not computes_target(rec)
    rec.save(tmp_path / "a")
    np.testing.assert_array_equal(load_recording(tmp_path / "a").derivative, rec.derivative)
    test = recorded("test", target="difference")
    np.testing.assert_array_equal(test.derivative, recorded("test").derivative)
    with pytest.raises(UserError, match="n_recordings"):
        recorded(target="difference", n_recordings=2)
    with pytest.raises(UserError, match="joined"):
        concatenate([rec, dataclasses.replace(rec)])


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


def test_choices_with_and_without_the_truth():
    networks = {
        1: {"connectivity_R2": 0.9, "test_R2": 0.8, "final_error": 3.0},
        2: {"connectivity_R2": 0.5, "test_R2": 0.99, "final_error": 2.0},
        3: {"connectivity_R2": 0.7, "test_R2": None, "final_error": 1.0},
        4: {"connectivity_R2": None, "test_R2": 1.0, "final_error": 0.1},
    }
    truth_, test, loss = selection(networks)
    assert (truth_["chosen"], truth_["lost"], truth_["rank"], truth_["spearman"]) == (1, 0.0, 1, pytest.approx(1.0))
    assert (test["chosen"], test["of"], test["spearman"]) == (2, 2, None) and test["lost"] == pytest.approx(0.4)
    assert (loss["chosen"], loss["rank"], loss["of"]) == (3, 2, 3) and loss["spearman"] == pytest.approx(-0.5)
    assert selection({1: {"connectivity_R2": None}}) == []


def write_node(run, number, n_frames=100, **metrics):
    folder = run / "nodes" / f"{number:04d}"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"simulation: {{n_frames: {n_frames}}}")
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def test_nodes_are_chosen_within_a_block(tmp_path):
    for number, r2 in ((1, 0.5), (2, 0.6)):  # a stimulus that is hard to predict
        write_node(tmp_path, number, connectivity_R2=r2, test_R2=0.1 * r2, final_error=1 - r2)
    for number, r2 in ((3, 0.3), (4, 0.2), (6, None)):  # an easy one
        write_node(tmp_path, number, 200, connectivity_R2=r2, test_R2=0.9, final_error=0.01)
    rows = node_selection(tmp_path)
    assert [(r["among"], r["chosen_on"], r["chosen"]) for r in rows if r["chosen_on"] == "test_R2"] == [
        ("1-2", "test_R2", 2),
        ("3 nodes from 3", "test_R2", 3),
    ]
    assert all(r["lost"] == 0 for r in rows if r["among"] == "1-2")


def test_losses_of_other_batch_sizes_rollouts_and_noise_compare_as_relative_errors():
    """Of the best constant prediction, the relative error is 1, whatever the shape of the batch."""
    rng = np.random.default_rng(0)
    for noise, batch, steps in ((1.0, 1, 1), (30.0, 4, 1), (30.0, 4, 8)):
        rate = noise * rng.normal(size=(4000, 50)) + np.arange(50)
        like = SimpleNamespace(voltage=rate, pairs=lambda frames, rate=rate: (None, None, rate[frames]))
        error = (rate - rate.mean(axis=0))[: batch * steps * 100].reshape(100, -1)
        loss = np.linalg.norm(error, axis=1).mean()
        training = Training(batch_size=batch, rollout_steps=steps)
        assert relative_error(loss, training, 50, target_spread(like)) == pytest.approx(1, rel=0.05)


def test_recordings_of_a_judged_node_are_its_runs_under_its_runs_limit(tmp_path):
    folder = write_node(tmp_path / "run", 7)
    (tmp_path / "run" / "config.yaml").write_text("search: {max_disk_gb: 150}")
    recordings, line = _recordings(folder, SIMULATION)
    assert (recordings._cache, recordings._max, line) == ((tmp_path / "run" / "recordings").resolve(), 150, "")
    (tmp_path / "run" / "config.yaml").write_text("search: {max_disk_gb: many}")
    with pytest.raises(UserError, match="says no valid search.max_disk_gb"):
        _recordings(folder, SIMULATION)
    copied = tmp_path / "a" / "copy"
    copied.parent.mkdir()
    folder.rename(copied)
    recordings, line = _recordings(copied, SIMULATION)
    assert recordings._cache == copied / "recordings" and str(copied) in line and "nodes/NNNN" in line
