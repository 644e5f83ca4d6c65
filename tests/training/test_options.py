"""Validation, selection, rollouts and targets computed chunk by chunk, against independent computations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flyjax.circuit import build_connectome
from flyjax.config import Model, Simulation, Training, parse_experiment, split_sizes
from flyjax.data import record
from flyjax.models import losses, make_learner, rollout_loss
from flyjax.recovery import extract
from flyjax.training import data as training_data
from flyjax.training import train_sweep
from flyjax.training.data import batch_of, stack_recordings
from flyjax.training.hparams import check_trainable, static_of, traced_hparams
from flyjax.training.step import draw_frames, init_state, result_params, targets_of, train_chunk, train_step
from flyjax.utils.errors import UserError

SIMULATION = Simulation(extent=0, visual_input_type="scenes_texture", n_frames=120, n_test_frames=16)
OPTIONS = dict(data_augmentation_loop=50, batch_size=2, noise_model_level=0.1)  # 600 steps of 120 frames


@pytest.fixture(scope="module")
def learner():
    return make_learner(build_connectome(0), Model(width=8))


@pytest.fixture(scope="module")
def recording():
    return record(SIMULATION, 0.1)


@pytest.fixture(scope="module")
def trained(learner, recording):
    """Three ways to select, two fractions, of one seed each, in one call."""
    candidates = [
        Training(**OPTIONS, validation_fraction=0.2, select="best"),
        Training(**OPTIONS, validation_fraction=0.4, select="best"),
        Training(**OPTIONS, validation_fraction=0.2),
        Training(**OPTIONS, select="average", average_decay=0.9),
        Training(**OPTIONS, select="average", average_decay=0.0),
        Training(**OPTIONS),
    ]
    return candidates, [r[0] for r in train_sweep(learner, candidates, [[3]] * 6, {0.1: recording}, n_devices=1)]


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_held_out_frames_are_the_last_and_have_a_gap():
    assert split_sizes(Training(validation_fraction=0.1), 1_000) == (875, 100)
    assert split_sizes(Training(validation_fraction=0.5), 64_000) == (31_950, 32_000)
    assert split_sizes(Training(), 100) == (100, 0)


def test_too_few_frames_for_validation_are_refused(learner, recording):
    with pytest.raises(UserError, match="record more frames"):
        check_trainable(learner, [Training(validation_fraction=0.005)], recording)


def test_held_out_frames_are_never_drawn(learner):
    training = Training(validation_fraction=0.3, batch_size=8)
    hparams = traced_hparams(training, 100, 0)
    state = init_state(learner, static_of(training), hparams, jax.random.key(0))
    frames = np.asarray(draw_frames(static_of(training), hparams, state, 500))
    assert frames.min() == 0 and frames.max() == 100 - 30 - 7 - 1


def test_frames_are_drawn_by_step_counter(learner):
    training = Training(batch_size=4)
    static, hparams = static_of(training), traced_hparams(training, 100, 0)
    state = init_state(learner, static, hparams, jax.random.key(0))
    frames = draw_frames(static, hparams, state, 3)
    for step in range(3):
        want = jax.random.randint(jax.random.fold_in(state.key, step), (4,), 0, 100)
        np.testing.assert_array_equal(frames[step], want)


def test_validation_loss_is_the_error_on_held_out_frames(learner, recording, trained):
    candidates, (best, _, last, *_) = trained
    assert last.validation[:, 0].tolist() == [250, 500, 600]
    frames = 119 - np.floor((np.arange(32) + 0.5) / 32 * 24).astype(int)
    assert frames.min() >= 96
    voltage, luminance, target = recording.pairs(frames)
    error = np.asarray(learner.derivative(last.params, voltage, luminance)) - target
    assert last.validation[-1, 1] == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-3)
    assert last.validation[-1, 1] < last.validation[0, 1]


def test_the_best_is_selected(learner, recording, trained):
    _, (best, other, last, *_) = trained
    # The selected parameters' own error is the smallest of the history.
    voltage, luminance, target = recording.pairs(119 - np.floor((np.arange(32) + 0.5) / 32 * 24).astype(int))
    error = np.asarray(learner.derivative(best.params, voltage, luminance)) - target
    assert np.sqrt(np.mean(error**2)) == pytest.approx(best.validation[:, 1].min(), rel=1e-3)
    np.testing.assert_allclose(best.validation, last.validation, rtol=0.05)
    assert not np.allclose(best.validation[:, 1], other.validation[:, 1], rtol=1e-3)


def test_a_worse_end_does_not_replace_the_best(learner, recording):
    training = Training(**OPTIONS, validation_fraction=0.2, select="best")
    static, data = static_of(training), stack_recordings([recording])
    hparams = jax.tree.map(jnp.asarray, traced_hparams(training, 120, 0))
    state = init_state(learner, static, hparams, jax.random.key(1))
    chunk = jax.jit(lambda hparams, state: train_chunk(learner, static, 50, hparams, data, state))
    good, losses = chunk(hparams, state)
    assert float(good.selected_loss) == float(losses[49, 2])
    wild = hparams | {"learning_rate_start": jnp.float32(1.0)}
    bad, losses = chunk(wild, good)
    assert float(losses[49, 2]) > float(good.selected_loss) == float(bad.selected_loss)
    close(result_params(bad), good.params, rtol=0, atol=0)


def test_average_is_the_average(learner, recording, trained):
    candidates, results = trained
    averaged, undecayed, last = results[3:]
    close(undecayed.params, last.params, rtol=5e-3, atol=5e-4)
    training = candidates[3]
    static, data = static_of(training), stack_recordings([recording])
    hparams = jax.tree.map(jnp.asarray, traced_hparams(training, 120, 0))
    state = init_state(learner, static, hparams, jax.random.key(1))
    step = jax.jit(lambda state, frames: train_step(learner, static, hparams, data, state, frames)[0])
    want = jax.tree.map(np.asarray, state.params)
    for t in range(12):
        state = step(state, jnp.array([t, t + 1]))
        decay = min(0.9, (1 + t) / (10 + t))
        want = {k: decay * want[k] + (1 - decay) * np.asarray(state.params[k]) for k in want}
    close(result_params(state), want, rtol=1e-4, atol=1e-6)


def test_selection_is_the_same_alone_and_resumed(learner, recording, trained, tmp_path):
    candidates, results = trained

    class Killed(Exception):
        pass

    def kill(progress):
        if progress.lane_steps >= 500:
            raise Killed

    for k in (0, 3):
        arguments = dict(checkpoint_dir=tmp_path, checkpoint_every=250, n_devices=1)
        with pytest.raises(Killed):
            train_sweep(learner, [candidates[k]], [[3]], {0.1: recording}, on_progress=kill, **arguments)
        resumed = train_sweep(learner, [candidates[k]], [[3]], {0.1: recording}, **arguments)[0][0]
        alone = train_sweep(learner, [candidates[k]], [[3]], {0.1: recording}, n_devices=1)[0][0]
        close(resumed.params, alone.params, rtol=0, atol=0)
        np.testing.assert_array_equal(resumed.validation, alone.validation)
        close(alone.params, results[k].params, rtol=2e-2, atol=2e-3)


def test_a_diverged_lane_returns_its_best_and_affects_no_other(learner, recording):
    candidate = Training(**OPTIONS, validation_fraction=0.2, select="best")
    wild = candidate.model_copy(update={"learning_rate_start": 1e30})
    pair = train_sweep(learner, [candidate, wild], [[3], [3]], {0.1: recording}, n_devices=1)
    twice = train_sweep(learner, [candidate, candidate], [[3], [3]], {0.1: recording}, n_devices=1)
    assert pair[1][0].diverged_at is not None
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(pair[1][0].params))
    close(pair[0][0].params, twice[0][0].params, rtol=0, atol=0)


def test_best_needs_frames():
    with pytest.raises(UserError, match="validation_fraction"):
        parse_experiment({"training": {"select": "best"}})


# -- targets computed chunk by chunk -----------------------------------------------------------------


def test_computed_targets_are_the_stored_ones(learner, recording, monkeypatch):
    stored = stack_recordings([recording, recording])
    monkeypatch.setattr(training_data, "TARGET_BYTES", 1e3)
    computed = stack_recordings([recording, recording])
    assert "target" not in computed and "circuit" not in stored
    frames = jnp.array([0, 7, 119])
    a, b = (batch_of(learner, data, 1, frames) for data in (stored, computed))
    close(a, b, rtol=1e-4, atol=1e-4)
    assert np.ptp(b["target"]) > 1


def test_a_chunk_with_computed_targets_is_one_with_stored_targets(learner, recording, monkeypatch):
    static, length = static_of(Training(batch_size=3)), 50  # 150 frames: two groups and a part of a third
    hparams = jax.tree.map(jnp.asarray, traced_hparams(Training(batch_size=3), len(recording.voltage), 0))
    state = init_state(learner, static, hparams, jax.random.key(0))
    stored = stack_recordings([recording])
    monkeypatch.setattr(training_data, "TARGET_BYTES", 1e3)
    computed = stack_recordings([recording])
    frames = draw_frames(static, hparams, state, length)
    targets = targets_of(learner, static, hparams, computed, frames)
    close(targets, stored["target"][0, frames], rtol=1e-4, atol=1e-4)
    assert targets_of(learner, static, hparams, stored, frames) is None
    (_, a), (_, b) = (train_chunk(learner, static, length, hparams, data, state) for data in (stored, computed))
    close(a, b, rtol=1e-3, atol=1e-3)


def test_targets_with_measurement_noise_are_stored(monkeypatch):
    monkeypatch.setattr(training_data, "TARGET_BYTES", 1e3)
    noisy = record(SIMULATION.model_copy(update={"measurement_noise_level": 0.02, "n_frames": 20}), 0.1)
    assert "target" in stack_recordings([noisy])


# -- several steps ------------------------------------------------------------------------------------


def rollout_batch(recording, starts, n_steps):
    frames = np.asarray(starts)[:, None] + np.arange(n_steps)
    return dict(
        zip(("voltage", "luminance", "target"), (x.reshape(*frames.shape, -1) for x in recording.pairs(frames.ravel())))
    )


COEFFICIENTS = {name: np.float32(0) for name in losses.COEFFICIENTS}


def test_rollout_loss_is_a_plain_loop(learner, recording):
    params, dt, starts = learner.init(jax.random.key(2)), recording.dt, [3, 40]
    batch = rollout_batch(recording, starts, 4)
    total = 0.0
    for b in range(2):
        state = batch["voltage"][b, 0].astype(np.float64)
        for s in range(4):
            change = np.asarray(
                learner.derivative(params, state[None].astype(np.float32), batch["luminance"][b, s][None])
            )[0]
            recorded = batch["voltage"][b, s] + dt * batch["target"][b, s]
            total += np.sum(((state + dt * change - recorded) / dt) ** 2)
            state = state + dt * change
    got = rollout_loss(learner, params, COEFFICIENTS, batch, jnp.float32(1.0), jnp.float32(dt))
    assert float(got[1]) == pytest.approx(np.sqrt(total), rel=1e-4)


def test_one_step_is_the_ordinary_loss(learner, recording):
    params = learner.init(jax.random.key(2))
    batch = rollout_batch(recording, [3, 40], 1)
    flat = {name: x[:, 0] for name, x in batch.items()}
    coefficients = {name: np.float32(0.1) for name in losses.COEFFICIENTS}
    one = rollout_loss(learner, params, coefficients, batch, jnp.float32(1.0), jnp.float32(recording.dt))
    np.testing.assert_allclose(one, losses.loss(learner, params, coefficients, flat, jnp.float32(1.0)), rtol=1e-5)


def test_the_true_circuit_differs_at_later_steps_by_the_noise_alone():
    noise, dt = 0.1, 0.02
    noisy, still = (record(SIMULATION, level) for level in (noise, 0.0))
    learner = make_learner(noisy.connectome, Model(variant="known_ode"))
    c, p = noisy.ground_truth
    params = {"W": jnp.asarray(p.weight), "log_tau": jnp.log(jnp.maximum(p.tau, dt)), "v_rest": jnp.asarray(p.v_rest)}
    starts = np.arange(0, 100, 5)

    def rms(recording, n):
        batch = rollout_batch(recording, starts, n)
        data = rollout_loss(learner, params, COEFFICIENTS, batch, jnp.float32(1.0), jnp.float32(dt))[1]
        return float(data) / np.sqrt(len(starts) * c.n_neurons)

    assert rms(noisy, 1) < 1e-3 and rms(still, 4) < 2e-2
    # One noise draw of std 0.1 between the steps, divided by dt; what leaks away until the next state is less.
    assert rms(noisy, 2) == pytest.approx(noise / dt, rel=0.5)


def test_rollouts_train_and_stay_within_their_part(learner):
    two_parts = record(SIMULATION.model_copy(update={"n_recordings": 2}), 0.1)
    data = stack_recordings([two_parts])
    assert np.asarray(data["last"])[0, [0, 59, 60, 119]].tolist() == [59, 59, 119, 119]
    training = Training(**OPTIONS, rollout_steps=5, learning_rate_start=1e-3)
    result = train_sweep(learner, [training], [[0]], {0.1: two_parts}, n_devices=1)[0][0]
    assert result.diverged_at is None and result.losses[-50:, 0].mean() < 0.8 * result.losses[:50, 0].mean()
    # Frame 58 belongs to a rollout that starts at 55: the border is not crossed.
    static, hparams = static_of(training), jax.tree.map(jnp.asarray, traced_hparams(training, 120, 0))
    state = init_state(learner, static, hparams, jax.random.key(1))
    step = jax.jit(lambda frames: train_step(learner, static, hparams, data, state, frames)[1])
    np.testing.assert_array_equal(step(jnp.array([58, 55])), step(jnp.array([55, 55])))
    with pytest.raises(UserError, match="lower rollout_steps"):
        check_trainable(learner, [Training(rollout_steps=64)], two_parts)


# -- read-out ----------------------------------------------------------------------------------------


def test_known_ode_is_read_out_exactly(recording):
    learner = make_learner(recording.connectome, Model(variant="known_ode"))
    rng = np.random.default_rng(0)
    params = {
        "W": jnp.asarray(rng.normal(size=recording.connectome.n_edges), jnp.float32),
        "log_tau": jnp.log(jnp.asarray(rng.uniform(0.03, 0.2, recording.connectome.n_neurons), jnp.float32)),
        "v_rest": jnp.asarray(rng.normal(size=recording.connectome.n_neurons), jnp.float32),
    }
    found = extract(learner, params, recording).estimate
    np.testing.assert_allclose(found.tau, np.exp(params["log_tau"]), rtol=1e-2)
    np.testing.assert_allclose(found.v_rest, params["v_rest"], atol=1e-2)
    np.testing.assert_allclose(found.weight, params["W"], rtol=2e-2, atol=1e-3)
