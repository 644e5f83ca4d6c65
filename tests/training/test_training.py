"""The learner, its loss and its training against independent computations."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.training_fixtures import Noise, numpy_network

from flyjax.circuit import build_connectome
from flyjax.config import Model, Simulation, Training
from flyjax.data import load_recording, record
from flyjax.models import losses, make_learner
from flyjax.training import lanes, load_params, n_steps, plan, save_params, train_sweep
from flyjax.training.data import stack_recordings
from flyjax.training.grouping import Limits
from flyjax.training.hparams import static_of, traced_hparams
from flyjax.training.optimizer import make_optimizer, pack, unpack
from flyjax.training.step import draw_frames, init_state, train_chunk, train_step
from flyjax.utils.errors import UserError
from flyjax.utils.signals import Interrupted, interruptible


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
    """Message sum and stimulus of every neuron in one frame, the message computed on every edge."""
    stimulus = np.zeros(circuit.n_neurons)
    for neuron, column in zip(circuit.inputs, circuit.input_column):
        stimulus[neuron] = luminance[column]
    msg = np.zeros(circuit.n_neurons)
    per_edge = params["W"] * numpy_message(params, voltage[circuit.senders], params["embedding"][circuit.senders])
    np.add.at(msg, circuit.receivers, per_edge)
    return msg, stimulus


def numpy_update(params, voltage, msg, stimulus):
    return numpy_network(params["update_network"], np.column_stack([voltage, msg, stimulus, params["embedding"]]))


def numpy_derivative(circuit, params, voltage, luminance):
    """dv/dt of one frame by the equations."""
    return numpy_update(params, voltage, *numpy_inputs(circuit, params, voltage, luminance))


def numpy_loss(circuit, params, c, batch, x, inputs=None):
    """`inputs`: message sum and stimulus for the update's curvature, if not those of the parameters."""
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
    msg, stimulus = inputs or numpy_inputs(circuit, params, v, batch["luminance"][0])
    last, nothing = batch["voltage"][-1], np.zeros_like(v)
    middle = numpy_update(params, (v + last) / 2, msg / 2, stimulus / 2)
    ends = numpy_update(params, v, msg, stimulus) + numpy_update(params, last, nothing, nothing)
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
    loss = lambda p, batch: losses.loss(learner, p, coefficients, batch, jnp.float32(1.3))[0]  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(params, batch)
    rng = np.random.default_rng(3)
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape), in_float64(params))
    direction["embedding"] = np.zeros_like(direction["embedding"])
    exact, h = in_float64(params), 1e-6
    # The update's curvature is evaluated at fixed message sums.
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
    terms = lambda p, batch: sum(  # noqa: E731
        losses.regularisers(learner, p, coefficients, batch, jnp.float32(1.3)).values()
    )
    gradient = jax.jit(jax.grad(terms))(params, batch)
    assert not np.any(gradient["embedding"])
    assert np.any(gradient["message_network"]["signals"])


def test_curvature_is_left_out_where_no_candidate_needs_it(learner, problem):
    params, coefficients, batch = problem
    free = coefficients | dict.fromkeys(losses.CURVATURE_COEFFICIENTS, np.float32(0))
    every = losses.loss(learner, params, free, batch, jnp.float32(1.3))
    np.testing.assert_array_equal(
        every, losses.loss(learner, params, free, batch, jnp.float32(1.3), with_curvature=False)
    )
    assert not static_of(Training()).with_curvature
    assert (
        static_of(Training(coeff_edge_bend=1e-3)).with_curvature
        and static_of(Training(coeff_update_bend=1e-3)).with_curvature
    )


@pytest.mark.parametrize("variant", ["A", "B"])
def test_linear_functions_have_no_curvature(circuit, problem, variant):
    """An update without kinks (biases 0, all units of one sign) costs nothing; one with kinks does."""
    learner = make_learner(circuit, Model(width=8, variant=variant))
    params, batch = learner.init(jax.random.key(1)), problem[2]
    only = dict.fromkeys(losses.COEFFICIENTS, np.float32(0)) | {"coeff_update_bend": np.float32(1)}
    curvature = lambda p: float(losses.regularisers(learner, p, only, batch, jnp.float32(1.3))["coeff_update_bend"])  # noqa: E731
    assert curvature(params) > 1e-3
    network = params["update_network"]
    network["signals"], network["embedded"]["bias"] = (
        jnp.abs(network["signals"]) * 0.01,
        network["embedded"]["bias"] + 100.0,
    )
    network["hidden"] = jax.tree.map(jnp.abs, network["hidden"])
    assert curvature(params) < 1e-3 * float(jnp.abs(network["readout"]["kernel"]).sum())


def test_packing_loses_nothing(learner):
    params = random_params(learner)
    back = unpack(learner, pack(params))
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


RATES = dict(
    learning_rate_W_start=1e-2,
    learning_rate_start=2e-3,
    learning_rate_embedding_start=3e-4,
    learning_rate_field_start=7e-5,
)


@pytest.mark.parametrize(
    "model, expected",
    [
        (
            {"units": "data"},
            {"W": 1e-2, "embedding": 3e-4, "message_network": 2e-3, "update_network": 2e-3, "units": 0},
        ),
        ({"variant": "B"}, {"W": 1e-2, "embedding": 3e-4, "message_network": 2e-3, "update_network": 2e-3}),
        ({"variant": "known_ode"}, {"W": 1e-2, "log_tau": 3e-4, "v_rest": 3e-4}),
        (
            {"stimulus": "field", "field_frames": 64},
            {"W": 1e-2, "embedding": 3e-4, "message_network": 2e-3, "update_network": 2e-3, "field": 7e-5},
        ),
    ],
)
def test_each_parameter_learns_at_its_rate(circuit, recordings, model, expected):
    """The first step of Adam moves a parameter by its learning rate, whatever the size of its gradient."""
    learner = make_learner(circuit, Model(width=8, **model))
    training = Training(**RATES, batch_size=2, validation_fraction=0.25)
    static, field = static_of(training), learner.learns_stimulus
    hparams = jax.tree.map(jnp.asarray, traced_hparams(training, 64, 0, (0.1, 5.0), field))
    data = stack_recordings([recordings[0.05]], field)
    state = init_state(learner, static, hparams, jax.random.key(0))
    after, _ = jax.jit(lambda state: train_step(learner, static, hparams, data, state, jnp.array([3, 40])))(state)
    old, new = (unpack(learner, each.params) for each in (state, after))
    moved = {
        name: max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (old[name], new[name]))))
        for name in old
    }
    assert moved == pytest.approx(expected, rel=1e-2)


def test_steps_are_adam_with_the_rates_and_moments_of_each_parameter(learner, recordings):
    """Four steps against Adam written out for every parameter on its own (Kingma & Ba 2015)."""
    training = Training(**RATES, batch_size=2, data_augmentation_loop=10)
    static, hparams = static_of(training), jax.tree.map(jnp.asarray, traced_hparams(training, 64, 0))
    data = stack_recordings([recordings[0.05]])
    state = init_state(learner, static, hparams, jax.random.key(0))
    step = jax.jit(lambda state, frames: train_step(learner, static, hparams, data, state, frames)[0])
    gradient = jax.jit(
        jax.grad(lambda params, batch: losses.loss(learner, params, hparams, batch, data["x_norm"][0])[0])
    )
    rates = {"W": 1e-2, "embedding": 3e-4, "message_network": 2e-3, "update_network": 2e-3}
    params = unpack(learner, state.params)
    first = {name: jax.tree.map(np.zeros_like, value) for name, value in params.items()}
    second = {name: jax.tree.map(np.zeros_like, value) for name, value in params.items()}
    for t, frames in enumerate(([3, 40], [7, 8], [0, 63], [3, 21]), 1):
        voltage, luminance, target = recordings[0.05].pairs(np.array(frames))
        slopes = gradient(params, {"voltage": voltage, "luminance": luminance, "target": target})
        for name, rate in rates.items():
            first[name] = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first[name], slopes[name])
            second[name] = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, second[name], slopes[name])
            params[name] = jax.tree.map(
                lambda p, m, v: p - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8),
                *(params[name], first[name], second[name]),
            )
        state = step(state, jnp.array(frames))
    trained = unpack(learner, state.params)
    for name, rate in rates.items():
        for mine, theirs in zip(*map(jax.tree.leaves, (trained[name], params[name])), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=0.02 * rate, err_msg=name)


def test_cosine_schedule_warms_up_and_ends_at_zero():
    packed = {name: jnp.zeros(3) for name in ("W", "embedding", "networks")}
    hparams = traced_hparams(Training(schedule="warmup_cosine", warmup_fraction=0.1), 200, 0)
    optimizer = make_optimizer(hparams, "warmup_cosine")

    def body(state, _):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, packed), state, packed)
        return state, jnp.max(jnp.abs(updates["W"]))

    _, sizes = jax.lax.scan(body, optimizer.init(packed), None, length=int(hparams["n_steps"]))
    sizes = np.asarray(sizes)
    assert np.argmax(sizes) == pytest.approx(100, abs=2)
    assert sizes[0] < 0.02 * max(sizes) and sizes[-1] < 0.01 * max(sizes)


@pytest.fixture(scope="module")
def one_lane(learner, recordings):
    """(static signature, hyperparameters, data, state before the first step) of one training."""
    training = Training(batch_size=2)
    static, hparams = static_of(training), jax.tree.map(jnp.asarray, traced_hparams(training, 64, 0))
    data = stack_recordings([recordings[0.05]])
    return static, hparams, data, init_state(learner, static, hparams, jax.random.key(5))


def test_the_scale_of_the_regularisers_is_one_and_a_half_standard_deviations(recordings):
    own = list(recordings.values())
    wanted = [1.5 * np.sqrt(np.mean(np.square(r.voltage - r.voltage.mean(), dtype=np.float64))) for r in own]
    np.testing.assert_allclose(stack_recordings(own)["x_norm"], wanted, rtol=1e-6)


def test_a_recording_is_not_copied_to_a_device_that_is_the_host(tmp_path):
    recording = record(Simulation(extent=0, visual_input_type="scenes_texture", n_frames=50), 0.05)
    for one in (recording, load_recording(recording.save(tmp_path / "a"))):
        data = stack_recordings([one])
        for name, array in (("voltage", one.voltage), ("target", one.derivative)):
            assert data[name].unsafe_buffer_pointer() == array.ctypes.data, name
    both = stack_recordings([one, recording])
    np.testing.assert_array_equal(both["voltage"][1], recording.voltage)


def test_each_chunk_draws_the_frames_after_those_of_the_last(learner, one_lane):
    static, hparams, data, state = one_lane
    frames = np.asarray(draw_frames(static, hparams, state, 12))
    later = np.asarray(draw_frames(static, hparams, state._replace(step=jnp.int32(7)), 5))
    np.testing.assert_array_equal(later, frames[7:])
    assert not np.array_equal(later, frames[:5])
    chunk = jax.jit(lambda state, n: train_chunk(learner, static, n, hparams, data, state), static_argnums=1)
    (first, losses), (once, all_losses) = chunk(state, 5), chunk(state, 10)
    twice, more_losses = chunk(first, 5)
    np.testing.assert_allclose(np.concatenate([losses, more_losses]), all_losses, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), twice.params, once.params)


def test_every_frame_is_drawn_as_often_as_any_other(one_lane):
    static, hparams, _, state = one_lane
    counts = np.bincount(np.asarray(draw_frames(static, hparams, state, 6_400)).ravel(), minlength=64)
    assert len(counts) == 64 and counts.sum() == 12_800
    np.testing.assert_allclose(counts, 200, atol=5 * np.sqrt(200))


def test_every_seed_starts_from_weights_and_frames_of_its_own(learner, one_lane):
    static, hparams, *_ = one_lane
    states = lanes.stack_states([lanes.start(learner, static, hparams, jax.random.key(seed)) for seed in (1, 2, 1)])
    for group in ("W", "networks"):
        values = np.asarray(states.params[group])
        np.testing.assert_array_equal(values[0], values[2])
        assert abs(np.corrcoef(values[0], values[1])[0, 1]) < 0.5 and not np.array_equal(values[0], values[1])
    frames = [np.asarray(draw_frames(static, hparams, jax.tree.map(lambda x: x[i], states), 20)) for i in range(3)]
    assert np.array_equal(frames[0], frames[2]) and not np.array_equal(frames[0], frames[1])


def test_a_diverged_lane_takes_no_further_step(learner, one_lane):
    static, hparams, data, state = one_lane
    broken = data | {"target": data["target"].at[0, 9].set(jnp.nan)}
    step = jax.jit(lambda state, frames: train_step(learner, static, hparams, broken, state, frames))
    good, losses = step(state, jnp.array([1, 2]))
    assert int(good.step) == 1 and bool(good.is_finite) and np.isfinite(losses).all()
    bad, losses = step(good, jnp.array([1, 9]))
    assert not bool(bad.is_finite) and np.isnan(losses).all()
    later, losses = step(bad, jnp.array([1, 2]))  # finite again, and all the same not taken
    assert np.isnan(losses).all() and int(later.step) == 1 and not bool(later.is_finite)
    for state in (bad, later):
        jax.tree.map(np.testing.assert_array_equal, state.params, good.params)


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
    groups = plan(CANDIDATES, SEEDS, 64, lambda *_: Limits(9, 9, 1))
    assert [(g.static.batch_size, [lane.n_steps for lane in g.lanes]) for g in groups] == [
        (1, [256, 256, 320]),
        (2, [160, 160]),
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
    compiled = lanes.compiled(learner, static_of(CANDIDATES[0]), 1).chunk
    before = compiled._cache_size()
    others = [c.model_copy(update={"learning_rate_W_start": 3e-3, "coeff_edge_norm": 2.0}) for c in CANDIDATES]
    train_sweep(learner, others, SEEDS, recordings, n_devices=1)
    assert compiled._cache_size() == before


def test_a_diverging_lane_affects_no_other(learner, recordings, together):
    wild = CANDIDATES[1].model_copy(update={"learning_rate_start": 1e30})
    mixed = train_sweep(learner, [CANDIDATES[0], wild, CANDIDATES[2]], SEEDS, recordings, n_devices=1)
    diverged = mixed[1][0]
    assert diverged.diverged_at is not None and diverged.diverged_at < 20 and diverged.final_loss is None
    assert len(diverged.losses) == diverged.n_steps == diverged.diverged_at
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(diverged.params))
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


def test_a_signal_saves_the_training_at_the_end_of_the_chunk(learner, recordings, tmp_path):
    candidate = CANDIDATES[1].model_copy(update={"data_augmentation_loop": 70})  # 896 steps, 4 chunks
    arguments = dict(checkpoint_dir=tmp_path, checkpoint_every=2000, n_devices=1)
    with pytest.raises(Interrupted, match="SIGTERM"), interruptible():
        train_sweep(
            learner, [candidate], [[7]], recordings, on_progress=lambda p: signal.raise_signal(signal.SIGTERM),
            **arguments,
        )  # fmt: skip

    def limit(progress):
        raise UserError("enough")

    with pytest.raises(UserError):
        train_sweep(learner, [candidate], [[7]], recordings, on_progress=limit, **arguments)
    steps = []
    train_sweep(learner, [candidate], [[7]], recordings, on_progress=lambda p: steps.append(p.lane_steps), **arguments)
    assert steps == [750, 896]


def checkpoint_folders(folder):
    """Folders of checkpoints; the plan beside them has one of its own."""
    return {path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("planned")}


@pytest.mark.parametrize("before, after", [(4, 2), (2, 4), (1, 3)])
def test_another_number_of_devices_goes_on_where_it_was(learner, recordings, together, tmp_path, before, after):
    def kill(progress):
        if progress.group == 0 and progress.lane_steps > 750:
            raise Killed

    arguments = dict(checkpoint_dir=tmp_path, checkpoint_every=250)
    with pytest.raises(Killed):
        train_sweep(learner, CANDIDATES, SEEDS, recordings, on_progress=kill, n_devices=before, **arguments)
    folders = checkpoint_folders(tmp_path)
    resumed = []
    again = train_sweep(
        learner, CANDIDATES, SEEDS, recordings, on_progress=resumed.append, n_devices=after, **arguments
    )
    assert resumed[0].lane_steps > 750, "began from the start instead of the checkpoint"
    assert folders <= checkpoint_folders(tmp_path) and len(folders) == 1
    assert_equal(together, again, rtol=5e-3, atol=5e-4)


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
        (int(p.name), p) for folder in checkpoint_folders(tmp_path) for p in folder.iterdir() if p.name.isdigit()
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
