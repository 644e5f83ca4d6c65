"""Variable projection: W by least squares on learned messages, within a training."""

import jax
import numpy as np
import pytest

from flyjax.circuit import build_connectome
from flyjax.config import Model, Simulation, Training
from flyjax.data import record
from flyjax.models import make_learner
from flyjax.recovery import closed_form, extract
from flyjax.recovery.metrics import circuit_metrics
from flyjax.training import train_sweep
from flyjax.training.hparams import CHUNK, check_trainable, projection_chunks
from flyjax.training.projection import _regressors, projected_weights
from flyjax.utils.errors import UserError

SIMULATION = Simulation(extent=0, visual_input_type="scenes_texture", n_frames=120, n_test_frames=16)
OPTIONS = dict(data_augmentation_loop=50, batch_size=2, noise_model_level=0.1)  # 600 steps of 120 frames
PROJECTED = Training(**OPTIONS, n_projections=1)  # after the first chunk
MODEL = Model(width=8, units="data")


@pytest.fixture(scope="module")
def learner():
    return make_learner(build_connectome(0), MODEL)


@pytest.fixture(scope="module")
def recording():
    return record(SIMULATION, 0.1)


@pytest.fixture(scope="module")
def trained(learner, recording):
    return train_sweep(learner, [PROJECTED], [[3]], {0.1: recording}, n_devices=1)[0][0]


def test_true_messages_and_time_constants_give_the_true_weights(recording):
    learner = make_learner(recording.connectome, Model(variant="known_ode"))
    truth, n = recording.ground_truth[1], recording.connectome.n_neurons
    params = {"W": np.zeros_like(truth.weight), "log_tau": np.log(truth.tau), "v_rest": np.zeros(n, np.float32)}
    found = projected_weights(learner, params, recording, len(recording.voltage))
    identifiable = closed_form(recording).edges
    assert identifiable.mean() > 0.5
    np.testing.assert_allclose(found[identifiable], truth.weight[identifiable], atol=2e-3)


def test_the_sign_of_the_messages_is_that_of_the_update(learner, recording):
    """f may learn to decrease with its messages: W is then negative where a synapse excites."""
    ode = make_learner(recording.connectome, Model(variant="known_ode"))
    truth, n = recording.ground_truth[1], recording.connectome.n_neurons

    class Mirrored:
        connectome = recording.connectome

        def __getattr__(self, name):
            return getattr(ode, name)

        def update(self, params, voltage, msg, stimulus):
            return ode.update(params, voltage, -msg, stimulus)

    params = {"W": np.zeros_like(truth.weight), "log_tau": np.log(truth.tau), "v_rest": np.zeros(n, np.float32)}
    plain = projected_weights(ode, params, recording, len(recording.voltage))
    mirrored = projected_weights(Mirrored(), params, recording, len(recording.voltage))
    np.testing.assert_allclose(mirrored, -plain, rtol=1e-5, atol=1e-6)


def test_the_last_projection_leaves_time_to_learn_around_it():
    assert projection_chunks(PROJECTED, 120) == (1,)
    long = Training(batch_size=1, data_augmentation_loop=50, n_projections=3)
    assert projection_chunks(long, 1_000) == (8, 16, 24)  # of 40
    assert projection_chunks(Training(), 1_000) == ()
    assert projection_chunks(PROJECTED, 50) == ()  # 250 steps
    assert projection_chunks(PROJECTED, 51) == (1,)


def test_weights_are_those_of_the_messages_at_the_projection(learner, recording, trained):
    first_chunk = Training(**OPTIONS | {"data_augmentation_loop": 250 * 2 / 0.2 / 120})
    (before,) = train_sweep(learner, [first_chunk], [[3]], {0.1: recording}, n_devices=1)[0]
    assert before.n_steps == CHUNK and trained.n_steps == 600
    expected = projected_weights(learner, before.params, recording, len(recording.voltage))
    np.testing.assert_allclose(trained.params["W"], expected, rtol=1e-4, atol=1e-5)
    assert np.abs(trained.params["embedding"] - before.params["embedding"]).max() > 1e-3  # the others learn on


def test_held_out_frames_are_not_used(learner, recording, trained):
    def poisoned(frames):
        voltage, luminance, derivative = recording.pairs(frames)
        assert np.max(np.arange(len(recording.voltage))[frames]) < 80
        return voltage, luminance, derivative

    class Watched:
        connectome, pairs = recording.connectome, staticmethod(poisoned)

        def __getattr__(self, name):
            return getattr(recording, name)

    assert np.isfinite(projected_weights(learner, trained.params, Watched(), 80)).all()


def test_lanes_with_and_without_share_a_program(learner, recording, trained):
    plain = Training(**OPTIONS)
    alone = train_sweep(learner, [plain], [[3]], {0.1: recording}, n_devices=1)[0][0]
    both = train_sweep(learner, [plain, PROJECTED], [[3], [3]], {0.1: recording}, n_devices=1)
    for one, other in ((both[0][0], alone), (both[1][0], trained)):
        np.testing.assert_allclose(one.params["W"], other.params["W"], rtol=2e-2, atol=2e-3)
    assert np.abs(alone.params["W"] - trained.params["W"]).max() > 1e-2


def test_the_average_of_a_lane_without_stays(learner, recording):
    options = OPTIONS | dict(data_augmentation_loop=22, select="average", average_decay=0.999)  # 264 steps
    plain, projected = Training(**options), Training(**options, n_projections=1)
    alone = train_sweep(learner, [plain], [[3]], {0.1: recording}, n_devices=1)[0][0]
    shared = train_sweep(learner, [plain, projected], [[3], [3]], {0.1: recording}, n_devices=1)[0][0]
    np.testing.assert_allclose(shared.params["W"], alone.params["W"], rtol=1e-3, atol=1e-5)


def test_weights_stay_where_messages_are_not_finite(learner, recording):
    params = jax.tree.map(lambda x: np.asarray(x) * np.float32(1e12), learner.init(jax.random.key(0)))
    with np.errstate(all="ignore"):
        found = projected_weights(learner, params, recording, len(recording.voltage))
    np.testing.assert_array_equal(found, params["W"])


def test_devices_do_not_matter(learner, recording, trained):
    sharded = train_sweep(learner, [PROJECTED], [[3, 4, 5]], {0.1: recording}, n_devices=4)[0]
    np.testing.assert_allclose(sharded[0].params["W"], trained.params["W"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("chunks", [1, 2])
def test_resumed_is_uninterrupted(learner, recording, trained, tmp_path, chunks):
    def kill(progress):
        if progress.lane_steps >= min(chunks * CHUNK, 600):
            raise KeyboardInterrupt

    options = dict(checkpoint_dir=tmp_path, checkpoint_every=CHUNK, n_devices=1)
    with pytest.raises(KeyboardInterrupt):
        train_sweep(learner, [PROJECTED], [[3]], {0.1: recording}, on_progress=kill, **options)
    resumed = train_sweep(learner, [PROJECTED], [[3]], {0.1: recording}, **options)[0][0]
    jax.tree.map(np.testing.assert_array_equal, resumed.params, trained.params)
    np.testing.assert_array_equal(resumed.losses, trained.losses)


def test_the_average_takes_up_projected_weights(learner, recording):
    averaged = Training(**OPTIONS, n_projections=1, select="average", average_decay=0.9)
    result = train_sweep(learner, [averaged], [[3]], {0.1: recording}, n_devices=1)[0][0]
    last = train_sweep(learner, [PROJECTED], [[3]], {0.1: recording}, n_devices=1)[0][0]
    np.testing.assert_allclose(result.params["W"], last.params["W"], rtol=1e-3, atol=1e-4)


def test_the_reported_learning_rate_of_W_ends_with_the_first_projection(learner, recording):
    rates = []

    def keep(progress):
        rates.append(progress.lanes[0].values["rate_W"])

    train_sweep(learner, [PROJECTED], [[3]], {0.1: recording}, on_progress=keep, n_devices=1)
    assert rates[0] > 0 and not any(rates[1:])


def test_weights_are_recovered_sooner(recording):
    learner = make_learner(recording.connectome, Model(width=16, units="data", activation="gelu", embedding_size=4))
    rates = {f"learning_rate_{name}start": 5e-3 for name in ("", "W_", "embedding_")}
    candidates = [Training(**OPTIONS | rates | {"data_augmentation_loop": 100}, n_projections=n) for n in (0, 3)]
    results = train_sweep(learner, candidates, [[3], [3]], {0.1: recording}, n_devices=1)
    readouts = [extract(learner, one.params, recording) for (one,) in results]
    plain, projected = (circuit_metrics(r.estimate, recording).values["connectivity_R2"] for r in readouts)
    assert 1 - projected < 0.7 * (1 - plain)


@pytest.mark.parametrize(
    "model, training",
    [
        (Model(variant="B", width=8), PROJECTED),
        (Model(stimulus="field", width=8), Training(**OPTIONS, n_projections=1, validation_fraction=0.1)),
        (Model(variant="known_ode"), PROJECTED),
    ],
)
def test_what_cannot_be_projected_is_refused(recording, model, training):
    with pytest.raises(UserError, match="n_projections"):
        check_trainable(make_learner(recording.connectome, model), [training], recording)


def test_hidden_layers_of_few_frames_are_in_memory_at_once():
    learner = make_learner(build_connectome(1), Model(width=80))
    n_frames, c = 500, learner.connectome
    frames = [jax.ShapeDtypeStruct((n_frames, n), np.float32) for n in (c.n_neurons, c.n_columns)]
    found = _regressors.lower(learner, learner.shapes, *frames).compile().memory_analysis()
    assert found.temp_size_in_bytes < 0.2 * 4 * n_frames * c.n_neurons * 80
