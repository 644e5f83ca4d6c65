"""Functions evaluated in pieces against the same functions in one piece."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flyjax.circuit import build_connectome
from flyjax.config import Model
from flyjax.models import chunked_map, losses, make_learner


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
def test_sum_of_squares_and_gradient_do_not_depend_on_the_pieces(problem, n):
    shared, rows, fixed = problem
    plain = lambda shared, rows: jnp.sum(jnp.square(values(shared, (rows, fixed))))  # noqa: E731
    cut = lambda shared, rows: chunked_map.square_sum(values, n, shared, rows, fixed)  # noqa: E731
    assert float(cut(shared, rows)) == pytest.approx(float(plain(shared, rows)), rel=1e-5)
    # Through a root, as in a norm: the cotangent is not 1.
    wanted, got = (jax.grad(lambda s, r: losses.safe_root(f(s, r)), (0, 1))(shared, rows) for f in (plain, cut))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), wanted, got)


def test_pieces_of_lanes_are_lanes_of_pieces(problem):
    shared, rows, fixed = problem
    lanes = jax.tree.map(lambda x: jnp.stack([x, 2.0 * x]), shared)
    gradient = jax.grad(lambda s: chunked_map.square_sum(values, 5, s, rows, fixed))
    together = jax.jit(jax.vmap(gradient))(lanes)
    for k in range(2):
        alone = gradient(jax.tree.map(lambda x: x[k], lanes))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[k], b, rtol=1e-4, atol=1e-6), together, alone)


def test_values_and_gradient_in_pieces(problem):
    shared, rows, fixed = problem
    np.testing.assert_allclose(
        chunked_map.mapped(values, 4, shared, (rows, fixed)), values(shared, (rows, fixed)), rtol=1e-5, atol=1e-6
    )
    total = lambda n: lambda s: jnp.sum(jnp.sin(chunked_map.mapped(values, n, s, (rows, fixed))))  # noqa: E731
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        *(jax.grad(total(n))(shared) for n in (1, 4)),
    )


def test_the_loss_does_not_depend_on_the_pieces(monkeypatch):
    learner = make_learner(build_connectome(0), Model(width=8))
    params, rng = learner.init(jax.random.key(0)), np.random.default_rng(1)
    n = learner.connectome.n_neurons
    batch = {name: rng.normal(size=(3, n)).astype(np.float32) for name in ("voltage", "target")}
    batch["luminance"] = rng.uniform(size=(3, learner.connectome.n_columns)).astype(np.float32)
    coefficients = {name: np.float32(0.1 * (i + 1)) for i, name in enumerate(losses.COEFFICIENTS)}
    gradient = jax.value_and_grad(lambda p: losses.loss(learner, p, coefficients, batch, jnp.float32(1.3))[0])
    whole = gradient(params)
    monkeypatch.setattr(chunked_map, "CPU_ROWS", 32)
    assert chunked_map.n_pieces(3 * n) == -(-3 * n // 32) > 3
    cut = gradient(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole, cut)


def test_lanes_that_take_turns_are_lanes_side_by_side(monkeypatch):
    """Large lanes are trained one after the other within a chunk, small ones as a batch: same results."""
    from types import SimpleNamespace

    from flyjax.config import Training
    from flyjax.training import train

    learner, rng = make_learner(build_connectome(0), Model(width=4)), np.random.default_rng(2)
    n = learner.connectome.n_neurons
    recording = SimpleNamespace(
        voltage=rng.normal(size=(8, n)).astype(np.float32),
        derivative=rng.normal(size=(8, n)).astype(np.float32),
        luminance=rng.uniform(size=(8, learner.connectome.n_columns)).astype(np.float32),
    )
    data, training = train.stack_recordings([recording]), Training(batch_size=2, data_augmentation_loop=100)
    static = train.static_of(training)
    numbers = [
        train.numbers_of(training.model_copy(update={"learning_rate_start": rate}), 8, 0) for rate in (1e-3, 1e-2)
    ]
    numbers = jax.tree.map(lambda *x: jnp.stack(x), *numbers)
    keys = jax.vmap(jax.random.key)(jnp.arange(2, dtype=jnp.uint32))
    state = jax.vmap(lambda numbers, key: train.init_state(learner, static, numbers, key))(numbers, keys)
    side_by_side = train.train_lanes(learner, static, 5, numbers, data, state)
    monkeypatch.setattr(chunked_map, "CPU_ROWS", n // 2)
    in_turn = train.train_lanes(learner, static, 5, numbers, data, state)
    assert np.asarray(in_turn[0].step).tolist() == [5, 5]
    for a, b in zip(
        jax.tree.leaves((side_by_side[0].params, side_by_side[1])), jax.tree.leaves((in_turn[0].params, in_turn[1]))
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    assert not np.allclose(in_turn[0].params["W"][0], in_turn[0].params["W"][1])
