"""The learner, its loss and its training against independent computations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.training_fixtures import Noise, numpy_network

from flyjax.circuit import build_connectome
from flyjax.config import Model, Training
from flyjax.models import losses, make_learner, parameter_groups
from flyjax.training import lanes, load_params, n_steps, plan, save_params, train_sweep
from flyjax.training.train import make_optimizer, numbers_of, pack, static_of, unpack


@pytest.fixture(scope="module")
def circuit():
    return build_connectome(0)


@pytest.fixture(scope="module")
def learner(circuit):
    return make_learner(circuit, Model(width=8))


@pytest.fixture(scope="module")
def recordings(circuit):
    return {0.05: Noise(circuit, 0), 0.1: Noise(circuit, 1)}


def random_params(learner, seed=0):
    """Parameters away from their special starts (embeddings of ones, small W)."""
    params = learner.init(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32), params)


def numpy_message(params, voltage, embedding):
    return numpy_network(params["message_network"], np.column_stack([voltage, embedding])) ** 2


def numpy_inputs(circuit, params, voltage, luminance):
    """What arrives at every neuron in one frame, the message computed anew on every edge, and what it sees."""
    seen = np.zeros(circuit.n_neurons)
    for neuron, column in zip(circuit.inputs, circuit.input_column):
        seen[neuron] = luminance[column]
    msg = np.zeros(circuit.n_neurons)
    per_edge = params["W"] * numpy_message(params, voltage[circuit.senders], params["embedding"][circuit.senders])
    np.add.at(msg, circuit.receivers, per_edge)
    return msg, seen


def numpy_update(params, voltage, msg, seen):
    return numpy_network(params["update_network"], np.column_stack([voltage, msg, seen, params["embedding"]]))


def numpy_derivative(circuit, params, voltage, luminance):
    """dv/dt of one frame by the equations."""
    return numpy_update(params, voltage, *numpy_inputs(circuit, params, voltage, luminance))


def numpy_loss(circuit, params, c, batch, x, inputs=None):
    """`inputs`: what arrives and is seen where the update's bend is asked, if not what the parameters say."""
    prediction = np.stack(
        [numpy_derivative(circuit, params, v, s) for v, s in zip(batch["voltage"], batch["luminance"])]
    )
    v, a = batch["voltage"][0], params["embedding"]
    rise = numpy_message(params, v, a) - numpy_message(params, v + 0.05 * x, a)
    far = numpy_message(params, np.full_like(v, 2 * x), a)
    data = np.linalg.norm(prediction - batch["target"])
    total = data + c["coeff_W_L1"] * np.abs(params["W"]).sum()
    total += c["coeff_edge_diff"] * np.linalg.norm(np.maximum(rise, 0))
    total += c["coeff_edge_norm"] * np.linalg.norm(far - 2 * x)
    total += c["coeff_edge_bend"] * np.linalg.norm(numpy_message(params, v, a) - 2 * numpy_message(params, v / 2, a))
    msg, seen = inputs or numpy_inputs(circuit, params, v, batch["luminance"][0])
    last, nothing = batch["voltage"][-1], np.zeros_like(v)
    middle = numpy_update(params, (v + last) / 2, msg / 2, seen / 2)
    ends = numpy_update(params, v, msg, seen) + numpy_update(params, last, nothing, nothing)
    total += c["coeff_update_bend"] * np.linalg.norm(ends - 2 * middle)
    for name in ("message", "update"):
        for matrix in (leaf for leaf in jax.tree.leaves(params[f"{name}_network"]) if leaf.ndim == 2):
            total += c[f"coeff_{name}_L1"] * np.abs(matrix).sum() + c[f"coeff_{name}_L2"] * (matrix**2).sum()
    return total, data


def in_float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


@pytest.fixture
def problem(learner, recordings):
    r = recordings[0.05]
    batch = {"voltage": r.voltage[:3], "luminance": r.luminance[:3], "target": r.derivative[:3]}
    coefficients = {name: np.float32(0.1 * (i + 1)) for i, name in enumerate(losses.COEFFICIENTS)}
    return random_params(learner), coefficients, batch


def test_jraph_network_is_the_written_equations(circuit, learner, problem):
    params, _, batch = problem
    got = learner.derivative(params, batch["voltage"], batch["luminance"])
    exact = in_float64(params)
    want = [numpy_derivative(circuit, exact, v, s) for v, s in zip(batch["voltage"], batch["luminance"])]
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("term", [*losses.COEFFICIENTS, None])
def test_each_loss_term_is_its_formula(circuit, learner, problem, term):
    params, coefficients, batch = problem
    only = {k: v if k == term else np.float32(0) for k, v in coefficients.items()}
    got = losses.loss(learner, params, only, batch, jnp.float32(1.3))
    want = numpy_loss(circuit, in_float64(params), only, in_float64(batch), 1.3)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    if term is not None:
        assert got[0] > got[1], f"{term} adds nothing"


def test_gradient_is_the_finite_difference(circuit, learner, problem):
    params, coefficients, batch = problem
    # The regularisers on messages do not reach the embeddings, so they are tested without them.
    gradient = jax.grad(lambda p: losses.loss(learner, p, coefficients, batch, jnp.float32(1.3))[0])(params)
    rng = np.random.default_rng(3)
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape), in_float64(params))
    direction["embedding"] = np.zeros_like(direction["embedding"])
    exact, h = in_float64(params), 1e-6
    # The update's bend is asked at messages as they are: they are given, not moved.
    inputs = numpy_inputs(circuit, exact, in_float64(batch)["voltage"][0], batch["luminance"][0])
    up, down = (
        numpy_loss(
            circuit,
            jax.tree.map(lambda p, d: p + s * d, exact, direction),
            coefficients,
            in_float64(batch),
            1.3,
            inputs,
        )[0]
        for s in (h, -h)
    )
    along = sum(
        float(np.sum(np.asarray(g, np.float64) * d)) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)))
    )
    assert along == pytest.approx((up - down) / (2 * h), rel=1e-3)


def test_regularisers_leave_embeddings_alone(learner, problem):
    params, coefficients, batch = problem
    terms = lambda p: sum(losses.regularisers(learner, p, coefficients, batch, jnp.float32(1.3)).values())  # noqa: E731
    gradient = jax.grad(terms)(params)
    assert not np.any(gradient["embedding"])
    assert np.any(gradient["message_network"]["signals"])


def test_bends_are_left_out_where_no_candidate_asks(learner, problem):
    params, coefficients, batch = problem
    free = coefficients | dict.fromkeys(losses.BENDS, np.float32(0))
    every = losses.loss(learner, params, free, batch, jnp.float32(1.3))
    np.testing.assert_array_equal(every, losses.loss(learner, params, free, batch, jnp.float32(1.3), bends=False))
    assert not static_of(Training()).bends
    assert static_of(Training(coeff_edge_bend=1e-3)).bends and static_of(Training(coeff_update_bend=1e-3)).bends


@pytest.mark.parametrize("variant", ["A", "B"])
def test_straight_functions_have_no_bend(circuit, problem, variant):
    """An update without hidden kinks (biases 0, all units positive or all negative) costs nothing; one with them does."""
    learner = make_learner(circuit, Model(width=8, variant=variant))
    params, batch = learner.init(jax.random.key(1)), problem[2]
    only = dict.fromkeys(losses.COEFFICIENTS, np.float32(0)) | {"coeff_update_bend": np.float32(1)}
    bend = lambda p: float(losses.regularisers(learner, p, only, batch, jnp.float32(1.3))["coeff_update_bend"])  # noqa: E731
    assert bend(params) > 1e-3
    network = params["update_network"]
    network["signals"], network["embedded"]["bias"] = (
        jnp.abs(network["signals"]) * 0.01,
        network["embedded"]["bias"] + 100.0,
    )
    network["hidden"] = jax.tree.map(jnp.abs, network["hidden"])
    assert bend(params) < 1e-3 * float(jnp.abs(network["readout"]["kernel"]).sum())


def test_packing_loses_nothing(learner):
    params = random_params(learner)
    back = unpack(learner, pack(params))
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_each_group_has_its_rate(learner):
    packed = pack(random_params(learner))
    training = Training(learning_rate_W_start=1e-2, learning_rate_start=2e-3, learning_rate_embedding_start=3e-4)
    optimizer = make_optimizer(numbers_of(training, 100, 0), "constant")
    gradient = jax.tree.map(jnp.ones_like, packed)
    updates, _ = optimizer.update(gradient, optimizer.init(packed), packed)
    # Adam's first step is the rate, whatever the gradient.
    rates = jax.tree.map(lambda update, group: (np.full(update.shape, {"W": 1e-2, "networks": 2e-3, "embedding": 3e-4}[group])),
                         unpack(learner, updates), parameter_groups(random_params(learner)))  # fmt: skip
    jax.tree.map(lambda u, r: np.testing.assert_allclose(u, -r, rtol=1e-4), unpack(learner, updates), rates)


def test_cosine_schedule_warms_up_and_ends_at_zero():
    packed = {name: jnp.zeros(3) for name in ("W", "embedding", "networks")}
    numbers = numbers_of(Training(schedule="warmup_cosine", warmup_fraction=0.1), 200, 0)
    optimizer = make_optimizer(numbers, "warmup_cosine")

    def body(state, _):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, packed), state, packed)
        return state, jnp.max(jnp.abs(updates["W"]))

    _, sizes = jax.lax.scan(body, optimizer.init(packed), None, length=int(numbers["n_steps"]))
    sizes = np.asarray(sizes)
    assert np.argmax(sizes) == pytest.approx(100, abs=2)
    assert sizes[0] < 0.02 * max(sizes) and sizes[-1] < 0.01 * max(sizes)


def test_steps_follow_the_predecessor():
    assert n_steps(Training(batch_size=4, data_augmentation_loop=35), 64_000) == 112_000
    assert n_steps(Training(batch_size=1, data_augmentation_loop=25), 1_600) == 8_000


CANDIDATES = [
    Training(data_augmentation_loop=20, learning_rate_start=1e-3),  # 256 steps
    Training(data_augmentation_loop=25, noise_model_level=0.1, coeff_W_L1=1e-4),  # 320 steps
    Training(data_augmentation_loop=25, batch_size=2, coeff_edge_diff=10.0),  # 160 steps
]
SEEDS = [[1, 2], [3], [4, 5]]


def assert_equal(a, b, **tolerance):
    for mine, theirs in zip(a, b, strict=True):
        for x, y in zip(mine, theirs, strict=True):
            assert (x.seed, x.n_steps, x.diverged_at) == (y.seed, y.n_steps, y.diverged_at)
            for p, q in zip(*map(jax.tree.leaves, (x.params, y.params)), strict=True):
                np.testing.assert_allclose(p, q, **tolerance)
            np.testing.assert_allclose(x.losses, y.losses, **tolerance)


@pytest.fixture(scope="module")
def together(learner, recordings):
    return train_sweep(learner, CANDIDATES, SEEDS, recordings, n_devices=1)


def test_groups_share_a_signature():
    groups = plan(CANDIDATES, SEEDS, 64)
    assert [(g.static.batch_size, len(g.lanes), g.n_steps) for g in groups] == [
        (1, 3, (256, 256, 320)),
        (2, 2, (160, 160)),
    ]


def test_many_are_the_same_as_each_alone(learner, recordings, together):
    alone = [
        [train_sweep(learner, [c], [[s]], recordings, n_devices=1)[0][0] for s in seeds]
        for c, seeds in zip(CANDIDATES, SEEDS)
    ]
    # Batched matrix products sum in another order; 320 steps of Adam amplify the last bit.
    assert_equal(together, alone, rtol=5e-3, atol=5e-4)


def test_sharded_is_unsharded(learner, recordings, together):
    assert jax.local_device_count() == 4
    sharded = train_sweep(learner, CANDIDATES, SEEDS, recordings)
    assert_equal(together, sharded, rtol=5e-3, atol=5e-4)


def test_loss_falls_and_seeds_differ(together):
    first = together[0][0]
    assert first.losses.shape == (256, 2) and np.isfinite(first.losses).all()
    assert first.final_loss == pytest.approx(first.losses[-12:, 0].mean(), rel=1e-6)
    assert first.losses[-50:, 1].mean() < 0.9 * first.losses[:50, 1].mean()
    assert not np.allclose(first.params["W"], together[0][1].params["W"])


def test_one_program_per_signature(learner, recordings, together):
    compiled = lanes.compiled(learner, plan(CANDIDATES, SEEDS, 64)[0].static, 1)[1]
    before = compiled._cache_size()
    others = [c.model_copy(update={"learning_rate_W_start": 3e-3, "coeff_edge_norm": 2.0}) for c in CANDIDATES]
    train_sweep(learner, others, SEEDS, recordings, n_devices=1)
    assert compiled._cache_size() == before


def test_a_diverging_lane_hurts_nobody(learner, recordings, together):
    wild = CANDIDATES[1].model_copy(update={"learning_rate_start": 1e30})
    mixed = train_sweep(learner, [CANDIDATES[0], wild, CANDIDATES[2]], SEEDS, recordings, n_devices=1)
    lost = mixed[1][0]
    assert lost.diverged_at is not None and lost.diverged_at < 20 and lost.final_loss is None
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(lost.params))
    for k in (0, 2):
        for mine, theirs in zip(mixed[k], together[k], strict=True):
            for p, q in zip(*map(jax.tree.leaves, (mine.params, theirs.params)), strict=True):
                np.testing.assert_array_equal(p, q)


class Killed(Exception):
    pass


def test_resumed_is_uninterrupted(learner, recordings, together, tmp_path):
    def kill(progress):
        if progress.group == 0 and progress.lane_steps >= 250 * 3:
            raise Killed

    arguments = dict(checkpoint_dir=tmp_path, checkpoint_every=250, n_devices=1)
    with pytest.raises(Killed):
        train_sweep(learner, CANDIDATES, SEEDS, recordings, on_progress=kill, **arguments)
    # Killed before its first checkpoint was due, then again after it.
    seen = []
    with pytest.raises(Killed):
        train_sweep(
            learner, CANDIDATES, SEEDS, recordings, on_progress=lambda p: (seen.append(p), kill_second(p)), **arguments
        )
    resumed = []
    again = train_sweep(learner, CANDIDATES, SEEDS, recordings, on_progress=resumed.append, **arguments)
    assert resumed[0].lane_steps > 750, "began from the start instead of the checkpoint"
    assert_equal(together, again, rtol=0, atol=0)


def kill_second(progress):
    if progress.group == 0 and progress.lane_steps > 750:
        raise Killed


def test_damaged_checkpoint_falls_back(learner, recordings, tmp_path, caplog):
    candidate = CANDIDATES[1].model_copy(update={"data_augmentation_loop": 70})  # 896 steps, 4 chunks

    def kill(progress):
        if progress.lane_steps > 750:
            raise Killed

    arguments = dict(checkpoint_dir=tmp_path, checkpoint_every=250, n_devices=1)
    with pytest.raises(Killed):
        train_sweep(learner, [candidate], [[7]], recordings, on_progress=kill, **arguments)
    newest = max(
        (int(p.name), p) for p in next(p for p in tmp_path.iterdir() if p.is_dir()).iterdir() if p.name.isdigit()
    )
    for file in newest[1].rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    resumed = []
    again = train_sweep(learner, [candidate], [[7]], recordings, on_progress=resumed.append, **arguments)
    assert "going back" in caplog.text
    assert resumed[0].lane_steps == 250 * newest[0]
    assert_equal(again, train_sweep(learner, [candidate], [[7]], recordings, n_devices=1), rtol=0, atol=0)


def test_params_survive_the_disk(learner, tmp_path):
    params = random_params(learner)
    save_params(tmp_path / "params", params)
    back = load_params(tmp_path / "params", learner.init(jax.random.key(9)))
    jax.tree.map(np.testing.assert_array_equal, params, back)
