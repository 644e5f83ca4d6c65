"""Functions evaluated in segments against the same functions in one segment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.training_fixtures import Noise

from flyjax.circuit import build_connectome
from flyjax.config import Model, Training
from flyjax.models import chunked_map, losses, make_learner
from flyjax.training.data import stack_recordings
from flyjax.training.hparams import static_of, traced_hparams
from flyjax.training.step import init_state, train_lanes


def values(shared, rows):
    """Any row-wise function of two shared and three row arrays."""
    (x, a), y = rows
    return jnp.tanh(x * a[:, :1] @ shared["k"] + shared["b"]) - y


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {"k": draw(3, 4), "b": draw(1, 4)}, (draw(23, 3), draw(23, 2)), draw(23, 4)


@pytest.mark.parametrize("n", [1, 2, 5, 23])
def test_sum_of_squares_and_gradient_do_not_depend_on_the_segments(problem, n):
    shared, rows, fixed = problem
    plain = lambda shared, rows: jnp.sum(jnp.square(values(shared, (rows, fixed))))  # noqa: E731
    cut = lambda shared, rows: chunked_map.square_sum(values, n, shared, rows, fixed)  # noqa: E731
    assert float(cut(shared, rows)) == pytest.approx(float(plain(shared, rows)), rel=1e-5)
    # Through a root, as in a norm: the cotangent is not 1.
    wanted, got = (
        jax.jit(jax.grad(lambda s, r: losses.safe_root(f(s, r)), (0, 1)))(shared, rows) for f in (plain, cut)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), wanted, got)


def test_segments_of_lanes_are_lanes_of_segments(problem):
    shared, rows, fixed = problem
    lanes = jax.tree.map(lambda x: jnp.stack([x, 2.0 * x]), shared)
    gradient = jax.jit(jax.grad(lambda s: chunked_map.square_sum(values, 5, s, rows, fixed)))
    together = jax.vmap(gradient)(lanes)
    for k in range(2):
        alone = gradient(jax.tree.map(lambda x: x[k], lanes))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[k], b, rtol=1e-4, atol=1e-6), together, alone)


def test_values_and_gradient_in_segments(problem):
    shared, rows, fixed = problem
    np.testing.assert_allclose(
        chunked_map.mapped(values, 4, shared, (rows, fixed)), values(shared, (rows, fixed)), rtol=1e-5, atol=1e-6
    )
    total = lambda n: lambda s: jnp.sum(jnp.sin(chunked_map.mapped(values, n, s, (rows, fixed))))  # noqa: E731
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        *(jax.jit(jax.grad(total(n)))(shared) for n in (1, 4)),
    )


def test_the_loss_does_not_depend_on_the_segments():
    circuit, rng = build_connectome(0), np.random.default_rng(1)
    n = circuit.n_neurons
    one, many = (make_learner(circuit, Model(width=8), segment_rows=rows) for rows in (None, 32))
    assert chunked_map.n_segments(3 * n, one.segment_rows) == 1
    assert chunked_map.n_segments(3 * n, many.segment_rows) == -(-3 * n // 32) > 3
    params = one.init(jax.random.key(0))
    batch = {name: rng.normal(size=(3, n)).astype(np.float32) for name in ("voltage", "target")}
    batch["luminance"] = rng.uniform(size=(3, circuit.n_columns)).astype(np.float32)
    coefficients = {name: np.float32(0.1 * (i + 1)) for i, name in enumerate(losses.COEFFICIENTS)}

    def loss_and_gradient(learner):
        loss = lambda p, batch: losses.loss(learner, p, coefficients, batch, jnp.float32(1.3))[0]  # noqa: E731
        return jax.jit(jax.value_and_grad(loss))(params, batch)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *map(loss_and_gradient, (one, many))
    )


def test_lanes_in_turn_are_lanes_side_by_side():
    """Large lanes are trained one after the other within a chunk, small ones as a batch: same results."""
    circuit = build_connectome(0)
    batched, in_turn = (
        make_learner(circuit, Model(width=4), segment_rows=rows) for rows in (None, circuit.n_neurons // 2)
    )
    data = stack_recordings([Noise(circuit, 2, n_frames=8)])
    training = Training(batch_size=2, data_augmentation_loop=100)
    static = static_of(training)
    hparams = [traced_hparams(training.model_copy(update={"learning_rate_start": rate}), 8, 0) for rate in (1e-3, 1e-2)]
    hparams = jax.tree.map(lambda *x: jnp.stack(x), *hparams)
    keys = jax.vmap(jax.random.key)(jnp.arange(2, dtype=jnp.uint32))

    def trained(learner):
        state = jax.vmap(lambda hparams, key: init_state(learner, static, hparams, key))(hparams, keys)
        return train_lanes(learner, static, 5, hparams, data, state)

    (state, losses_), (other, others) = trained(batched), trained(in_turn)
    assert np.asarray(other.step).tolist() == [5, 5]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        (state.params, losses_),
        (other.params, others),
    )
    assert not np.allclose(other.params["W"][0], other.params["W"][1])
