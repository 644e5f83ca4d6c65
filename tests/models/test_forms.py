"""Both forms of the networks, of CPUs and of accelerators, give the same loss and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flyjax.circuit import build_connectome
from flyjax.config import Model
from flyjax.models import losses, make_learner, network, rollout_loss

N_FRAMES, N_LANES = 3, 2
MODELS = {
    "A": {},
    "A in units of the data": {"units": "data", "activation": "gelu", "embedding_size": 4},
    "A of four layers": {"n_layers": 4, "activation": "softplus"},
    "A with an unknown stimulus": {"stimulus": "field", "field_frames": 16, "field_levels": 2, "field_width": 4},
    "B": {"variant": "B"},
    "known_ode": {"variant": "known_ode"},
    "known_ode_tanh": {"variant": "known_ode_tanh"},
}


@pytest.fixture(autouse=True)
def padded(monkeypatch):
    """Small circuits are padded, too."""
    monkeypatch.setattr(network, "PADDED_FROM", 1)
    monkeypatch.setattr(network, "NEURONS", 16)


@pytest.fixture(scope="module")
def circuit():
    return build_connectome(0)


def learners(circuit, **settings):
    return [make_learner(circuit, Model(width=8, **settings, form=form)) for form in ("cpu", "accelerator")]


def lanes_and_batch(learner, dtype):
    """Parameters of some lanes, moved from their start, and random frames."""
    rng = np.random.default_rng(1)
    move = lambda x: np.asarray(np.asarray(x) + 0.3 * rng.normal(size=(N_LANES, *x.shape)), dtype)  # noqa: E731
    c = learner.connectome
    batch = {
        "voltage": rng.normal(size=(N_FRAMES, c.n_neurons)).astype(dtype),
        "luminance": rng.uniform(size=(N_FRAMES, c.n_columns)).astype(dtype),
        "target": rng.normal(size=(N_FRAMES, c.n_neurons)).astype(dtype),
    }
    return jax.tree.map(move, learner.init(jax.random.key(0))), batch


def loss_and_gradients(learner, params, batch, dtype):
    names, batch = losses.coefficient_names(learner.learns_stimulus), jax.tree.map(jnp.asarray, batch)
    coefficients = {name: np.asarray(0.1 + 0.1 * k, dtype) for k, name in enumerate(names)}

    def total(p):
        return losses.loss(learner, p, coefficients, batch, np.asarray(1.3, dtype), with_curvature=True)

    return jax.jit(jax.vmap(jax.value_and_grad(total, has_aux=True)))(params)


def assert_close(one, other, rtol):
    """Each array within `rtol` of its largest value."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(a).max() + 1e-30),
        *(jax.tree.map(np.asarray, each) for each in (one, other)),
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype, rtol", [("float64", 1e-11), ("float32", 2e-4)])
def test_forms_agree(circuit, name, dtype, rtol):
    one, other = learners(circuit, **MODELS[name])
    params, batch = lanes_and_batch(one, dtype)
    with jax.enable_x64(dtype == "float64"):
        want, got = (loss_and_gradients(each, params, batch, dtype) for each in (one, other))
    assert got[0][0].dtype == dtype
    assert_close(want, got, rtol)


def test_forms_agree_in_segments_and_over_steps(circuit):
    one, other = learners(circuit)
    params, batch = lanes_and_batch(one, "float32")
    in_segments = make_learner(circuit, other.config, segment_rows=40)
    assert_close(*(loss_and_gradients(each, params, batch, "float32") for each in (one, in_segments)), 2e-4)
    steps = {name: jnp.stack([x, x[::-1]]) for name, x in batch.items()}
    own = jax.tree.map(lambda x: x[0], params)
    coefficients = {name: np.float32(0.1) for name in losses.COEFFICIENTS}
    total = [
        jax.jit(jax.grad(lambda p: rollout_loss(each, p, coefficients, steps, jnp.float32(1.3), jnp.float32(0.02))[0]))
        for each in (one, other)
    ]
    assert_close(*(gradient(own) for gradient in total), 1e-3)


def test_the_form_of_accelerators_multiplies_each_embedding_once(circuit):
    one, other = learners(circuit)
    params, batch = lanes_and_batch(one, "float32")
    own, batch = jax.tree.map(lambda x: x[0], params), jax.tree.map(jnp.asarray, batch)
    rows = N_FRAMES * circuit.n_neurons

    def rows_put_together(learner):
        total = lambda p: learner.squared_error(p, **batch)  # noqa: E731
        text = jax.jit(jax.grad(total)).lower(own).as_text()
        n_in = 3 + learner.config.embedding_size + 1
        return f"tensor<{rows}x{n_in}xf32>" in text

    assert rows_put_together(one) and not rows_put_together(other)


def test_messages_are_evaluated_at_no_voltage_twice(circuit):
    _, other = learners(circuit)
    params, batch = lanes_and_batch(other, "float32")
    own, one_frame = jax.tree.map(lambda x: x[0], params), {name: jnp.asarray(x[:1]) for name, x in batch.items()}
    coefficients = {name: np.float32(0.1) for name in losses.COEFFICIENTS}

    def total(p):
        return losses.loss(other, p, coefficients, one_frame, jnp.float32(1.3), with_curvature=False)[0]

    text = jax.jit(jax.grad(total)).lower(own).as_text()
    # f once; g at v for the data term and coeff_edge_diff, at v + 0.05 x and 2 x. 65 neurons are padded to 80.
    assert [n for n in range(1, 9) if f"tensor<{80 * n}x8xf32>" in text] == [1, 3]


@pytest.mark.parametrize("coefficient", [0.0, 0.5])
def test_neurons_that_send_to_none_have_a_gradient(circuit, coefficient):
    one, other = learners(circuit)
    params, batch = lanes_and_batch(one, "float32")
    own = jax.tree.map(lambda x: x[0], params) | {"W": np.zeros(circuit.n_edges, np.float32)}
    batch = jax.tree.map(jnp.asarray, batch)
    coefficients = {name: np.float32(coefficient) for name in losses.COEFFICIENTS}

    def gradient(learner):
        total = lambda p: losses.loss(learner, p, coefficients, batch, jnp.float32(1.3))[0]  # noqa: E731
        return jax.jit(jax.grad(total))(own)

    found = gradient(other)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    assert_close(gradient(one), found, 2e-4)


def test_both_forms_are_read_out_alike(circuit):
    one, other = learners(circuit)
    params, batch = lanes_and_batch(one, "float32")
    own = jax.tree.map(lambda x: x[0], params)
    voltage = jnp.asarray(batch["voltage"].T)

    def slope(learner):
        rest = voltage, jnp.zeros_like(voltage)
        return jax.jvp(lambda v: learner.update(own, v, *rest), (voltage,), (jnp.ones_like(voltage),))

    assert_close(slope(one), slope(other), 1e-6)
    assert_close(one.message(own, voltage), other.message(own, voltage), 1e-6)


def test_the_backend_chooses_the_form(circuit, monkeypatch):
    for backend, by_neuron in (("cpu", False), ("gpu", True), ("tpu", True)):
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        learner = make_learner(circuit, Model(width=8), segment_rows=4096)
        assert learner.bind(learner.init(jax.random.key(0))).update_network.by_neuron is by_neuron


@pytest.mark.parametrize("form", ["cpu", "accelerator"])
def test_layers_kept_in_bfloat16_are_close(circuit, form):
    exact = make_learner(circuit, Model(width=8, form=form))
    rounded = make_learner(circuit, Model(width=8, form=form, matmul_precision="bfloat16_kept"))
    params, batch = lanes_and_batch(exact, "float32")
    want, got = (loss_and_gradients(each, params, batch, "float32") for each in (exact, rounded))
    (loss, data), gradient = got
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(gradient))
    np.testing.assert_allclose(loss, want[0][0], rtol=0.02)
    for a, b in zip(jax.tree.leaves(want[1]), jax.tree.leaves(gradient), strict=True):
        assert np.linalg.norm(a - b) < 0.1 * np.linalg.norm(a) + 1e-6
    assert not np.allclose(data, want[0][1], rtol=1e-6)
