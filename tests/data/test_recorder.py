"""Recordings in parts, lesions, and recordings on disk."""

import dataclasses
from collections import Counter

import jax
import numpy as np
import pytest
from support.true_learner import TrueLearner

from flyjax import circuit, simulation
from flyjax.circuit import Parameters
from flyjax.config import Simulation
from flyjax.data import load_recording, record
from flyjax.data.recorder import lesioned
from flyjax.recovery.rollout import lesion_metrics, rollout, rollout_metrics
from flyjax.utils import array_store
from flyjax.utils.errors import UserError

FLY = Simulation(extent=0, visual_input_type="scenes_texture", n_frames=50, n_test_frames=50)


def sim(**changes):
    return FLY.model_copy(update=changes)


@pytest.fixture(scope="module")
def fly():
    c = circuit.build_connectome(0)
    rng = np.random.default_rng(0)
    weight = (c.sign * rng.lognormal(0, 0.5, c.n_edges) * 0.05).astype(np.float32)
    tau = rng.uniform(0.02, 0.2, c.n_neurons).astype(np.float32)
    return dict(connectome=c, parameters=Parameters(weight, tau, np.full(c.n_neurons, 0.3, np.float32)))


def test_parts_follow_each_other_and_no_pair_spans_a_border(fly):
    rec = record(sim(n_frames=150, n_recordings=3), 0.05, **fly)
    assert [(s.start, s.stop) for s in rec.spans] == [(0, 50), (50, 100), (100, 150)]
    grey = simulation.steady_state(fly["connectome"], fly["parameters"])
    np.testing.assert_array_equal(rec.voltage[[0, 50, 100]], np.stack([grey] * 3))
    step = np.diff(rec.voltage, axis=0) - 0.02 * rec.derivative[:-1]
    assert np.abs(step[[49, 99]]).max() > 0.4  # a jump, which belongs to no pair
    assert abs(np.delete(step, [49, 99], axis=0).std() - 0.05) < 0.003
    alone = record(FLY, 0.05, **fly)
    np.testing.assert_array_equal(rec.voltage[:50], alone.voltage)
    assert np.abs(rec.luminance[50:100] - rec.luminance[:50]).mean() > 0.05
    assert len({part.seed for part in rec.parts}) == 3
    assert len(record(sim(n_recordings=3), 0.05, "test", **fly).spans) == 1


def test_parts_have_noise_of_their_own_and_are_stored(fly, tmp_path):
    noisy = sim(n_frames=100, n_recordings=2, measurement_noise_level=0.03)
    rec = record(noisy, 0.05, **fly)
    seen = rec.voltage - record(noisy.model_copy(update=dict(measurement_noise_level=0.0)), 0.05, **fly).voltage
    np.testing.assert_allclose(rec.measurement(slice(None))[0], seen, atol=1e-6)
    assert abs(np.corrcoef(seen[:50].ravel(), seen[50:].ravel())[0, 1]) < 0.06
    index = np.array([49, 50, 99, 3])
    np.testing.assert_allclose(rec.pairs(index)[2], rec.derivative[index], atol=1e-4)
    rec.save(tmp_path / "a")
    again = load_recording(tmp_path / "a")
    assert again.parts == rec.parts and again.fingerprint == rec.fingerprint
    np.testing.assert_array_equal(again.derivative, rec.derivative)


def test_a_rollout_starts_again_in_each_part(fly):
    rec = record(sim(n_frames=100, n_recordings=2), 0.0, **fly)
    learner = TrueLearner(fly["connectome"])
    run = rollout(learner, learner.params(rec), rec)
    np.testing.assert_allclose(run.voltage, rec.voltage, atol=1e-4)
    metrics = rollout_metrics(run, rec)
    assert metrics.values["test_frames"] == 98 and metrics.values["test_R2"] > 0.9999
    # Run through, the second part would begin where the first ended.
    through = rollout(learner, learner.params(rec), dataclasses.replace(rec, parts=()))
    assert np.abs(through.voltage[50] - rec.voltage[50]).max() > 0.01


@pytest.mark.parametrize("edits", [{}, {"null_edges": 0.5, "removed_edges": 0.1}])
def test_a_lesion_cuts_fly_and_learner_alike(fly, edits):
    full = record(sim(**edits), 0.05, **fly)
    recording, intact = lesioned(full, 0.5, seed=2)
    c, known = fly["connectome"], full.connectome
    assert recording.connectome is known and recording.split == "test" and intact.shape == (known.n_edges,)
    true_weight = np.asarray(recording.ground_truth[1].weight)
    assert (true_weight == 0).sum() == round(0.5 * c.n_edges)
    weight_of = dict(zip(zip(c.senders.tolist(), c.receivers.tolist()), true_weight.tolist()))
    for k, pair in enumerate(zip(known.senders.tolist(), known.receivers.tolist())):
        assert intact[k] == (pair not in weight_of or weight_of[pair] != 0)
        assert recording.parameters.weight[k] == weight_of.get(pair, 0.0)
    healthy = record(sim(**edits), 0.0, "test", **fly)
    assert np.abs(healthy.voltage - recording.voltage).max() > 1e-2
    if not edits:
        learner = TrueLearner(c)
        params = learner.params(full)
        assert lesion_metrics(learner, params, full, 0.5, seed=2)[0].values["lesion_R2"] > 0.9999
        assert rollout_metrics(rollout(learner, params, recording), recording).values["test_R2"] < 0.999
    assert not np.array_equal(lesioned(full, 0.5, seed=3).intact, intact) and lesioned(full, 0.0).intact.all()
    with pytest.raises(UserError, match="share"):
        lesioned(full, 1.0)


@pytest.mark.parametrize(
    "changes", [{}, {"measurement_noise_level": 0.02, "n_recordings": 2, "store_derivative": True}]
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_store_has_what_was_recorded(fly, tmp_path, monkeypatch, dtype, changes):
    monkeypatch.setattr(
        array_store, "_CHUNK_BYTES", 11 * 65 * 4
    )  # rows of several chunks in one block, and the reverse
    simulation = sim(voltage_dtype=dtype, **changes)
    written = record(simulation, 0.05, store=tmp_path / "a", chunk=7, **fly)
    memory = record(simulation, 0.05, **fly)
    tolerance = 2e-6 if dtype == "float32" else 2e-3
    np.testing.assert_allclose(written.voltage, memory.voltage, atol=tolerance)
    np.testing.assert_allclose(written.final, memory.final, atol=2e-6)
    assert written.voltage.dtype == np.float32 and written.parts == memory.parts
    stored = array_store.read_store(tmp_path / "a")[0]
    assert stored["voltage"].dtype == dtype and ("derivative" in stored) == simulation.store_derivative
    # Targets are those of the rounded voltages.
    loaded = load_recording(tmp_path / "a")
    np.testing.assert_array_equal(loaded.voltage, written.voltage)
    computed = dataclasses.replace(loaded, stored_derivative=None).derivative
    np.testing.assert_allclose(loaded.derivative, computed, atol=2e-4)
    memory.save(tmp_path / "b")
    again = load_recording(tmp_path / "b")
    np.testing.assert_array_equal(again.voltage, memory.voltage)
    np.testing.assert_array_equal(again.derivative, memory.derivative)
    test = record(simulation, 0.05, "test", store=tmp_path / "t", **fly)
    np.testing.assert_array_equal(test.voltage, record(FLY, 0.05, "test", **fly).voltage)


def test_a_recording_that_fails_leaves_no_store(fly, tmp_path):
    wild = dict(fly, parameters=fly["parameters"]._replace(weight=np.full(fly["connectome"].n_edges, 50, np.float32)))
    with pytest.raises(UserError, match="diverged"):
        record(sim(n_frames=400), 0.0, store=tmp_path / "a", **wild)
    assert not list(tmp_path.iterdir())


def test_a_fade_in_starts_as_the_simulator_does(fly):
    rec = record(sim(initial="fade_in"), 0.0, **fly)
    after = simulation.simulate(*fly.values(), rec.luminance, initial="fade_in")
    np.testing.assert_allclose(rec.voltage[1:], after[:-1], atol=1e-5)
    assert np.abs(rec.initial - record(FLY, 0.0, **fly).initial).max() > 1e-3


def test_the_steady_state_and_the_held_out_movie_share_a_program(fly):
    compiled = Counter()

    def count(name, seconds, **more):
        compiled[more.get("fun_name")] += name.endswith("backend_compile_duration")

    jax.monitoring.register_event_duration_secs_listener(count)
    own = sim(delta_t=1 / 43, n_test_frames=100)  # frames that no other test has
    found = record(own, split="test", **fly)
    jax.monitoring.unregister_event_duration_listener(count)
    assert compiled["jit(solve)"] == 1
    np.testing.assert_array_equal(found.voltage, record(own, split="test", chunk=100, **fly).voltage)
