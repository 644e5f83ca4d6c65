"""A learner in the recording's own units: the same network on rescaled numbers, with fixed units."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flyjax.circuit import build_connectome
from flyjax.config import Model, Simulation, Training
from flyjax.data import record
from flyjax.models import loss, make_learner
from flyjax.models.losses import COEFFICIENTS
from flyjax.training import train_sweep
from flyjax.training.hparams import units_of

VOLT, RATE = 0.13, 6.0
COEFFICIENT = dict.fromkeys(COEFFICIENTS, jnp.float32(0)) | {
    "coeff_edge_norm": jnp.float32(1),
    "coeff_edge_diff": jnp.float32(500),
}


@pytest.fixture(scope="module", params=["A", "B"])
def learners(request):
    """(in units of the data, as recorded) with the same parameters but for the units, and a batch."""
    c = build_connectome(0)
    scaled, plain = (make_learner(c, Model(width=8, units=units, variant=request.param)) for units in ("data", "none"))
    params = scaled.init(jax.random.key(1))
    params["W"] = 30 * params["W"]
    rng = np.random.default_rng(0)
    voltage, target = (jnp.asarray(rng.normal(size=(3, c.n_neurons)), jnp.float32) for _ in range(2))
    luminance = jnp.asarray(rng.uniform(size=(3, c.n_columns)), jnp.float32)
    return scaled, plain, params, {"voltage": voltage, "luminance": luminance, "target": target}


def with_units(params, volt, rate):
    return {**params, "units": jnp.asarray([volt, rate], jnp.float32)}


def without(params):
    return {name: value for name, value in params.items() if name != "units"}


def test_the_same_network_on_rescaled_numbers(learners):
    """dv/dt(v) in units s, r is r times the plain network's at v/s: summed messages rescale with the voltages."""
    scaled, plain, params, batch = learners
    own = scaled.derivative(with_units(params, VOLT, RATE), VOLT * batch["voltage"], batch["luminance"])
    other = plain.derivative(without(params), batch["voltage"], batch["luminance"])
    assert float(jnp.std(other)) > 0.01
    np.testing.assert_allclose(own, RATE * other, rtol=1e-4, atol=1e-4)


def test_the_loss_is_that_of_the_prediction_and_units_get_no_gradient(learners):
    scaled, _, params, batch = learners
    params = with_units(params, VOLT, RATE)

    def total(params):
        return loss(scaled, params, COEFFICIENT, batch, jnp.float32(1.5 * VOLT))

    (_, data), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    error = scaled.derivative(params, batch["voltage"], batch["luminance"]) - batch["target"]
    np.testing.assert_allclose(data, jnp.linalg.norm(error), rtol=1e-5)
    np.testing.assert_array_equal(gradient["units"], 0)
    assert all(float(jnp.abs(g).max()) > 0 for name, g in gradient.items() if name in ("W", "embedding"))


def test_message_and_update_compose_to_the_derivative():
    c = build_connectome(0)
    learner = make_learner(c, Model(width=8, units="data"))
    params = with_units(learner.init(jax.random.key(0)), VOLT, RATE)
    voltage = 0.2 * jax.random.normal(jax.random.key(2), (c.n_neurons, 4))
    sent = learner.message(params, voltage)
    total = np.zeros_like(sent)
    np.add.at(total, c.receivers, np.asarray(params["W"])[:, None] * np.asarray(sent)[c.senders])
    dark = jnp.zeros_like(voltage)
    expected = learner.update(params, voltage, jnp.asarray(total), dark)
    found = learner.derivative(params, voltage.T, jnp.zeros((4, c.n_columns))).T
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_each_level_trains_in_its_recordings_units():
    """Two noise levels in one program: the units of each lane are those of its own recording, to the last bit."""
    simulation = Simulation(extent=0, visual_input_type="scenes_texture", n_frames=60, n_test_frames=16)
    recordings = {level: record(simulation, level) for level in (0.05, 0.5)}
    learner = make_learner(recordings[0.05].connectome, Model(width=8, units="data"))
    candidates = [Training(noise_model_level=level, batch_size=2, select="last") for level in recordings]
    for candidate, (run,) in zip(
        candidates, train_sweep(learner, candidates, [[0], [0]], recordings, n_devices=1), strict=True
    ):
        recording = recordings[candidate.noise_model_level]
        expected = np.std(recording.voltage), np.std(recording.derivative)
        np.testing.assert_allclose(run.params["units"], expected, rtol=1e-5)
        np.testing.assert_array_equal(run.params["units"], np.float32(units_of(recording)))


def test_a_model_without_readable_circuit_is_refused_before_the_training():
    import flyjax
    from flyjax.utils.errors import UserError

    simulation = Simulation(extent=0, visual_input_type="scenes_texture", n_frames=60, n_test_frames=16)
    with pytest.raises(UserError, match="use variant A"):
        flyjax.train_candidates(simulation, [{}], model=Model(width=8, variant="B"))
