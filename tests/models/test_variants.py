"""Every variant of the learner against its equations in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.training_fixtures import numpy_network

from flyjax.circuit import build_connectome
from flyjax.config import Model, Training, parse_experiment
from flyjax.models import losses, make_learner
from flyjax.training import train_sweep
from flyjax.utils.errors import UserError

N_FRAMES = 3


@pytest.fixture(scope="module")
def circuit():
    return build_connectome(0)


def learner_and_params(circuit, variant):
    learner = make_learner(circuit, Model(variant=variant, width=8))
    rng = np.random.default_rng(4)
    move = lambda x: x + jnp.asarray(0.2 * rng.normal(size=x.shape), jnp.float32)  # noqa: E731
    return learner, jax.tree.map(move, learner.init(jax.random.key(0)))


@pytest.fixture(scope="module")
def batch(circuit):
    rng = np.random.default_rng(5)
    return {
        "voltage": rng.normal(size=(N_FRAMES, circuit.n_neurons)).astype(np.float32),
        "luminance": rng.uniform(size=(N_FRAMES, circuit.n_columns)).astype(np.float32),
        "target": rng.normal(size=(N_FRAMES, circuit.n_neurons)).astype(np.float32),
    }


def written_out(variant, circuit, p, voltage, luminance):
    """dv/dt of one frame, edge by edge."""
    seen = np.zeros(circuit.n_neurons)
    seen[circuit.inputs] = luminance[circuit.input_column]
    s, r = circuit.senders, circuit.receivers
    if variant == "B":
        a = p["embedding"]
        sent = numpy_network(p["message_network"], np.column_stack([voltage[s], voltage[r], a[s], a[r]])) ** 2
    else:
        sent = np.maximum(voltage[s], 0)
    msg = np.zeros(circuit.n_neurons)
    np.add.at(msg, r, p["W"] * sent)
    if variant == "B":
        return numpy_network(p["update_network"], np.column_stack([voltage, msg, seen, p["embedding"]]))
    h = np.tanh(msg) if variant == "known_ode_tanh" else msg
    return (-voltage + p["v_rest"] + h + seen) / np.exp(p["log_tau"])


def exact(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


VARIANTS = ["B", "known_ode", "known_ode_tanh"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_jraph_network_is_the_written_equations(circuit, batch, variant):
    learner, params = learner_and_params(circuit, variant)
    want = [written_out(variant, circuit, exact(params), *frame) for frame in zip(batch["voltage"], batch["luminance"])]
    got = learner.derivative(params, batch["voltage"], batch["luminance"])
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4)
    square = np.sum((np.asarray(want) - batch["target"]) ** 2)
    assert float(learner.squared_error(params, **batch)) == pytest.approx(square, rel=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_is_the_finite_difference(circuit, batch, variant):
    learner, params = learner_and_params(circuit, variant)
    coefficients = {name: np.float32(0) for name in losses.COEFFICIENTS} | {"coeff_W_L1": np.float32(0.1)}
    loss = lambda p, batch: losses.loss(learner, p, coefficients, batch, jnp.float32(1.3))[0]  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(params, batch)

    def total(p):
        want = [
            written_out(variant, circuit, p, *frame)
            for frame in zip(exact(batch["voltage"]), exact(batch["luminance"]))
        ]
        return np.linalg.norm(np.asarray(want) - batch["target"]) + 0.1 * np.abs(p["W"]).sum()

    rng, h = np.random.default_rng(6), 1e-6
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape), exact(params))
    up, down = (total(jax.tree.map(lambda p, d: p + s * d, exact(params), direction)) for s in (h, -h))
    along = sum(
        float(np.sum(np.asarray(g, np.float64) * d)) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)))
    )
    assert along == pytest.approx((up - down) / (2 * h), rel=2e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_segments_change_no_gradient(circuit, batch, variant):
    learner, params = learner_and_params(circuit, variant)
    other = make_learner(circuit, learner.config, segment_rows=100)
    one, many = (
        jax.jit(jax.grad(lambda p, batch: each.squared_error(p, **batch)))(params, batch) for each in (learner, other)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-2), one, many)


def test_regularisers_of_pairs_probe_one_edge_of_each_source(circuit, batch):
    learner, params = learner_and_params(circuit, "B")
    only = {name: np.float32(name == "coeff_edge_norm") for name in losses.COEFFICIENTS}
    voltage, x = batch["voltage"][0], 1.3
    got = losses.regularisers(learner, params, only, batch, jnp.float32(x))["coeff_edge_norm"]
    first = {}
    for s, r in zip(circuit.senders, circuit.receivers):
        first.setdefault(int(s), int(r))
    partner = [first.get(j, j) for j in range(circuit.n_neurons)]
    p = exact(params)
    a = p["embedding"]
    far = (
        numpy_network(
            p["message_network"], np.column_stack([np.full_like(voltage, 2 * x), voltage[partner], a, a[partner]])
        )
        ** 2
    )
    assert float(got) == pytest.approx(np.linalg.norm(far - 2 * x), rel=1e-4)


def test_pairs_have_no_message_of_one_neuron(circuit, batch):
    learner, params = learner_and_params(circuit, "B")
    with pytest.raises(UserError, match="use variant A"):
        learner.message(params, batch["voltage"].T)


def test_the_old_name_of_a_variant_still_works():
    assert parse_experiment({"model": {"variant": "gnn"}}).model == Model(variant="A") == Model()
    with pytest.raises(UserError, match="variant"):
        parse_experiment({"model": {"variant": "C"}})


class RandomStates:
    """A recording of a circuit made by hand, at random states."""

    fingerprint = "random states"

    def __init__(self, circuit, params, variant, n_frames=400):
        rng = np.random.default_rng(7)
        self.voltage = rng.normal(size=(n_frames, circuit.n_neurons)).astype(np.float32)
        self.luminance = rng.uniform(size=(n_frames, circuit.n_columns)).astype(np.float32)
        frames = [written_out(variant, circuit, params, *f) for f in zip(self.voltage, self.luminance)]
        self.derivative = self.derivative_in_memory = np.asarray(frames, np.float32)


@pytest.mark.parametrize("variant", ["known_ode", "known_ode_tanh"])
def test_known_ode_recovers_a_circuit(circuit, variant, tmp_path):
    rng = np.random.default_rng(8)
    truth = {
        "W": 0.1 * rng.normal(size=circuit.n_edges),
        "log_tau": np.log(rng.uniform(0.05, 0.2, circuit.n_neurons)),
        "v_rest": 0.3 * rng.normal(size=circuit.n_neurons),
    }
    learner = make_learner(circuit, Model(variant=variant))
    training = Training(
        batch_size=32,
        data_augmentation_loop=800,
        learning_rate_W_start=1e-2,
        learning_rate_embedding_start=1e-2,
        coeff_W_L1=0,
        schedule="warmup_cosine",
    )  # 2,000 steps
    (found,) = train_sweep(
        learner, [training], [[0]], {0.05: RandomStates(circuit, truth, variant)}, checkpoint_dir=tmp_path
    )[0]
    assert found.diverged_at is None
    np.testing.assert_allclose(np.exp(found.params["log_tau"]), np.exp(truth["log_tau"]), rtol=0.02)
    np.testing.assert_allclose(found.params["v_rest"], truth["v_rest"], atol=0.02)
    np.testing.assert_allclose(found.params["W"], truth["W"], atol=0.02)


def test_rounded_products_are_close_and_other(circuit, batch):
    learner, params = learner_and_params(circuit, "A")
    exact_ = learner.derivative(params, batch["voltage"], batch["luminance"])
    for precision, tolerance in (("highest", 1e-6), ("bfloat16", 0.05)):
        other = make_learner(circuit, Model(width=8, matmul_precision=precision))
        got = other.derivative(params, batch["voltage"], batch["luminance"])
        assert got.dtype == jnp.float32
        assert float(jnp.linalg.norm(got - exact_) / jnp.linalg.norm(exact_)) < tolerance
        assert precision == "highest" or not np.allclose(got, exact_, rtol=1e-5)
        gradient = jax.jit(jax.grad(lambda p, batch: other.squared_error(p, **batch)))(params, batch)
        assert all(np.isfinite(g).all() and g.dtype == jnp.float32 for g in jax.tree.leaves(gradient))
