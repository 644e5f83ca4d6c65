"""An unknown stimulus: the field, its training data and its evaluation."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from support.training_fixtures import Noise

from flyjax.circuit import build_connectome
from flyjax.config import Model, Simulation, Training, parse_experiment
from flyjax.data.cache import Recordings
from flyjax.experiments import recovery_report, recovery_table, reevaluate
from flyjax.experiments.node import NodeSpec, learner_for
from flyjax.experiments.train_nodes import train_nodes
from flyjax.models import losses, make_learner, stimulus_field
from flyjax.recovery import evaluate
from flyjax.recovery.learned_stimulus import RecordingWithLearnedStimulus, with_learned_stimulus
from flyjax.training import load_params, train_sweep
from flyjax.training.data import batch_of, stack_recordings, with_luminance
from flyjax.training.grouping import sizes_without_data
from flyjax.training.hparams import held_out_of_field, static_of, traced_hparams
from flyjax.training.optimizer import group_of
from flyjax.training.step import draw_frames, init_state
from flyjax.utils.errors import UserError

MODEL = Model(width=8, stimulus="field", field_frames=128, field_width=16)
TRAINING = Training(
    batch_size=4, data_augmentation_loop=25, validation_fraction=0.2, noise_model_level=0.1
)  # 80 steps of 64 frames


@pytest.fixture(scope="module")
def fly():
    return build_connectome(0)


@pytest.fixture(scope="module")
def learner(fly):
    return make_learner(fly, MODEL)


def trained(learner, recording, *candidates, seeds=(3,)):
    return [
        r
        for own in train_sweep(learner, candidates, [seeds] * len(candidates), {0.1: recording}, n_devices=1)
        for r in own
    ]


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# -- the field itself ----------------------------------------------------------------------------


def test_the_grids_span_the_movie_and_are_interpolated():
    config = Model(field_frames=21, field_spacing=2, field_levels=3, field_features=2, stimulus="field")
    assert stimulus_field.spacings(config).tolist() == [2, 4, 8] and stimulus_field.nodes(config).tolist() == [11, 6, 4]
    made = stimulus_field.Field(config, nnx.Rngs(0))
    table = np.asarray(made.tables[...])
    assert table.shape == (21, 2)
    rows_at = {
        0: [0, 11, 17],
        8: [4, 13, 18],
        16: [8, 15, 19],
        20: [10, 16, (19, 20)],
        9: [(4, 5), (13, 13, 13, 14), (18,) * 7 + (19,)],
    }
    for frame, want in rows_at.items():
        at = np.concatenate([table[list(np.atleast_1d(w))].mean(axis=0) for w in want])
        np.testing.assert_allclose(made.features(jnp.array([frame]))[0], at, atol=1e-6, err_msg=str(frame))


def test_a_field_is_between_0_and_1_and_differs_between_columns():
    c = build_connectome(1)
    luminance = np.asarray(stimulus_field.Field(MODEL, nnx.Rngs(0))(jnp.arange(128), c.columns))
    assert luminance.shape == (128, 7) and luminance.dtype == np.float32
    assert (luminance > 0).all() and (luminance < 1).all()
    assert np.ptp(luminance[0]) > 1e-3 and np.ptp(luminance[:, 0]) > 1e-3
    where = stimulus_field.position_features(build_connectome(8).columns)
    apart = np.linalg.norm(where[:, None] - where[None], axis=2) + 9 * np.eye(len(where))
    assert apart.min() > 1.0  # the waves distinguish all columns of the eye


def test_a_field_can_hold_a_moving_wave():
    columns = build_connectome(1).columns
    x, y = (p[None, :] for p in stimulus_field.positions(columns))
    t = np.arange(128)[:, None]
    wave = (0.5 + 0.3 * np.sin(0.11 * t + 1.1 * x - 0.6 * y)).astype(np.float32)
    wave[64:] = 1 - wave[64:]  # a cut, between frames that are trained on
    graph, state = nnx.split(stimulus_field.Field(MODEL, nnx.Rngs(0)))
    held_out = np.arange(9, 128, 10)
    frames = jnp.asarray(np.setdiff1d(np.arange(128), held_out))
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(carry, _):
        state, moments = carry
        gradient = jax.grad(lambda s: jnp.mean((nnx.merge(graph, s)(frames, columns) - wave[frames]) ** 2))(state)
        with jax.numpy_dtype_promotion("standard"):
            updates, moments = optimizer.update(gradient, moments)
        return (optax.apply_updates(state, updates), moments), None

    state = jax.lax.scan(step, (state, optimizer.init(state)), None, 300)[0][0]
    fitted = np.asarray(nnx.merge(graph, state)(jnp.arange(128), columns))
    assert np.corrcoef(fitted[held_out].ravel(), wave[held_out].ravel())[0, 1] ** 2 > 0.98
    assert (
        np.corrcoef(wave[held_out].ravel(), np.repeat(wave[held_out].mean(axis=1), 7))[0, 1] ** 2 < 0.8
    )  # columns do differ


# -- training ------------------------------------------------------------------------------------


def test_a_known_stimulus_has_neither_field_nor_its_hparams(fly):
    learner = make_learner(fly, Model(width=8))
    assert not learner.learns_stimulus and "field" not in learner.init(jax.random.key(0))
    hparams = traced_hparams(TRAINING, 64, 0)
    assert not {"holdout_stride", "coeff_light_diff", "learning_rate_field_start"} & set(hparams)
    state = init_state(learner, static_of(TRAINING), hparams, jax.random.key(0))
    assert "field" not in state.params and "field" not in str(jax.tree.structure(state.optimizer))


def test_the_field_is_a_group_of_its_own_and_learns_at_its_rate(learner, fly):
    groups = {name: group_of(name) for name in learner.init(jax.random.key(0))}
    assert groups["field"] == "field" and list(groups.values()).count("field") == 1
    start = train_sweep(learner, [TRAINING], [[3]], {0.1: Noise(fly, 0)}, n_devices=1)[0][0].params
    slow = trained(learner, Noise(fly, 0), TRAINING.model_copy(update={"learning_rate_field_start": 1e-20}))[0].params
    assert (
        np.abs(start["field"]["tables"]).max()
        > np.abs(slow["field"]["tables"]).max()
        == pytest.approx(stimulus_field.INITIAL_SCALE, rel=1e-2)
    )
    assert not np.allclose(slow["W"], start["W"], atol=1e-5)


def test_a_batch_moves_the_nodes_around_its_frames_alone(learner, fly):
    data = stack_recordings([Noise(fly, 0)], field=True)
    assert set(data) == {"voltage", "target", "x_norm"}  # the luminance is not even on the device
    hparams = traced_hparams(TRAINING, 64, 0, field=True)
    params = learner.init(jax.random.key(1))
    batch = batch_of(learner, data, 0, jnp.array([11, 40]))
    assert set(batch) == {"voltage", "frame", "target"}

    def total(params):
        return losses.loss(learner, params, hparams, with_luminance(learner, params, batch), jnp.float32(1.0))[0]

    gradient = jax.jit(jax.grad(total))(params)["field"]["tables"]
    moved = np.flatnonzero(np.abs(gradient).max(axis=1) > 0)
    first = np.cumsum(stimulus_field.nodes(MODEL)) - stimulus_field.nodes(MODEL)
    want = {
        f + n
        for f, s in zip(first, stimulus_field.spacings(MODEL))
        for frame in (11, 40)
        for n in {frame // s, frame // s + (frame % s > 0)}
    }
    assert set(moved) == want


def test_the_luminance_regulariser_penalises_a_falling_f_alone(learner, fly):
    start, voltage = learner.init(jax.random.key(1)), jnp.asarray(Noise(fly, 0).voltage[5:7])

    def term(params):
        luminance = learner.luminance(params, jnp.array([5, 6]))
        batch = {"voltage": voltage, "luminance": luminance}
        return 7.0 * losses.light_diff(learner, params, batch, None)

    def flipped(sign):
        signals = start["update_network"]["signals"].at[2].multiply(sign)
        return {**start, "update_network": {**start["update_network"], "signals": signals}}

    both = []
    for params in map(flipped, (1.0, -1.0)):
        luminance = learner.luminance(params, jnp.array([5]))
        now, brighter = (
            np.asarray(learner.derivative(params, voltage[:1], x))[0, fly.inputs]
            for x in (luminance, luminance + losses.LUMINANCE_STEP)
        )
        both.append(7.0 * np.linalg.norm(np.maximum(now - brighter, 0)))
        assert term(params) == pytest.approx(both[-1], rel=1e-3, abs=1e-6)
    assert max(both) > 0.01
    falling = flipped((1.0, -1.0)[int(np.argmax(both))])
    gradient = jax.jit(jax.grad(term))(falling)
    moved = {k: sum(np.abs(x).sum() for x in jax.tree.leaves(g)) for k, g in gradient.items()}
    assert {k for k, size in moved.items() if size > 0} == {"update_network"}


def test_the_true_stimulus_is_never_read(learner, fly):
    one, other = Noise(fly, 0), Noise(fly, 0)
    other.luminance = np.full_like(one.luminance, np.nan)
    a, b = (trained(learner, r, TRAINING)[0] for r in (one, other))
    equal(a.params, b.params)
    equal(a.losses, b.losses)
    assert a.n_steps == 80 and np.isfinite(a.losses).all()


def test_frames_held_out_enter_no_loss(learner, fly):
    held_out = held_out_of_field(TRAINING, 64)
    assert held_out.tolist() == list(range(4, 64, 5))
    hparams = traced_hparams(TRAINING, 64, 0, field=True)
    assert [int(hparams[k]) for k in ("n_starts", "n_held_out", "holdout_stride")] == [52, 12, 5]
    one, other = Noise(fly, 0), Noise(fly, 0)
    other.voltage[held_out] = other.voltage[
        held_out[::-1]
    ]  # their spread scales the regularisers, so they only change places
    other.derivative[held_out] = 1e3
    a, b = (trained(learner, r, TRAINING)[0] for r in (one, other))
    equal(a.params, b.params)
    equal(a.losses, b.losses)
    assert b.validation[-1, 1] > 100 * a.validation[-1, 1] > 0  # it is measured on them
    other.derivative[held_out - 1] = 1e3
    assert not np.array_equal(trained(learner, other, TRAINING)[0].losses, a.losses)


def test_all_other_frames_are_drawn(learner):
    static, hparams = static_of(TRAINING), traced_hparams(TRAINING, 64, 0, field=True)
    state = init_state(learner, static, hparams, jax.random.key(0))
    drawn = draw_frames(static, hparams, state, 300)
    assert set(np.unique(drawn)) == set(range(64)) - set(range(4, 64, 5))


def test_together_is_as_alone(learner, fly):
    slow = TRAINING.model_copy(update={"learning_rate_field_start": 1e-3, "coeff_light_diff": 1.0})
    together = trained(learner, Noise(fly, 0), TRAINING, slow, seeds=(3, 4))
    alone = [trained(learner, Noise(fly, 0), c, seeds=(s,))[0] for c in (TRAINING, slow) for s in (3, 4)]
    for a, b in zip(together, alone, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-4), a.params, b.params)
    assert not np.allclose(together[0].params["field"]["tables"], together[2].params["field"]["tables"], atol=1e-3)


def test_targets_are_stored_where_they_cannot_be_computed():
    simulation = Simulation(extent=2, n_frames=250_000)
    assert not sizes_without_data(simulation, Model()).stores_target
    assert sizes_without_data(simulation, Model(stimulus="field")).stores_target


# -- from configuration to metrics -------------------------------------------------------------------------------

SIMULATION = Simulation(extent=0, visual_input_type="scenes_texture", n_frames=600, n_test_frames=40)
LONG = dict(
    batch_size=16, data_augmentation_loop=200, validation_fraction=0.1, noise_model_level=0.05,
    schedule="warmup_cosine", learning_rate_W_start=5e-3, learning_rate_start=5e-3, learning_rate_embedding_start=5e-3,
)  # fmt: skip
LEARNER = dict(width=16, activation="gelu", embedding_size=4, units="data", stimulus="field", field_frames=600)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("field")
    free = {"ranges": {}, "simulation_ranges": {}}
    experiment = parse_experiment(
        {"simulation": SIMULATION.model_dump(), "model": LEARNER, "training": LONG, "search": free}
    )
    found = train_nodes(experiment, [NodeSpec(1, experiment.training, (0, 1))], folder)
    return experiment, folder, found[1]


def test_the_stimulus_is_recovered_and_its_run_is_marked(run):
    _, folder, found = run
    metrics = json.loads((folder / "nodes" / "0001" / "metrics.json").read_text())
    assert metrics["stimulus"] == "field" and all(seed["stimulus"] == "field" for seed in metrics["per_seed"])
    assert metrics["external_input_R2"] > 0.85 and metrics["external_input_frames"] == 60
    assert metrics["external_input_R2_training"] > 0.95 and metrics["external_input_frames_training"] == 540
    assert metrics["external_input_R2_inverted"] is not None
    for name in ("test_R2", "test_pearson", "test_rmse"):
        assert metrics[name] is None and "field" in metrics["reasons"][name]
    assert metrics["one_step_R2"] > 0.8
    assert "no rollout" in found["activity"]
    figures = {p.stem for p in (folder / "nodes" / "0001" / "figures").glob("*.png")}
    assert "light" in figures and "activity" not in figures


@pytest.fixture(scope="module")
def ends(run):
    """A trained learner, its parameters, recordings and frames held out."""
    experiment, folder, _ = run
    learner = learner_for(experiment.simulation, experiment.model)
    params = load_params(folder / "nodes" / "0001" / "params" / "seed_0", learner.init(jax.random.key(0)))
    recordings = Recordings(experiment.simulation, folder / "recordings")
    return learner, params, recordings.train(0.05), recordings.test, held_out_of_field(experiment.training, 600)


def test_the_evaluation_never_reads_the_true_stimulus(ends):
    learner, params, recording, test, held_out = ends
    honest = evaluate(learner, params, recording, test, held_out=held_out, with_ceiling=False).metrics
    # The same recording with another luminance; derivatives stay those of the original.
    dark = RecordingWithLearnedStimulus(
        **{f.name: getattr(recording, f.name) for f in dataclasses.fields(recording)}
        | {"luminance": recording.luminance[::-1].copy()},
        source=recording,
    )
    other = evaluate(learner, params, dark, test, held_out=held_out, with_ceiling=False).metrics
    of_luminance = ("external_input_R2", "external_input_R2_training")
    assert {k: v for k, v in honest.items() if k not in of_luminance} == {
        k: v for k, v in other.items() if k not in of_luminance
    }
    assert honest["external_input_R2"] > other["external_input_R2"] + 0.5
    # That of another movie changes nothing but the metrics of the inverted update function.
    reversed_luminance = test.luminance[::-1].copy()
    night = dataclasses.replace(test, luminance=reversed_luminance, stored_derivative=test.derivative)
    third = evaluate(learner, params, recording, night, held_out=held_out, with_ceiling=False).metrics
    changed = {k for k in honest if honest[k] != third[k]}
    assert changed and all(k.startswith("external_input_R2_inverted") for k in changed)


def test_a_recording_with_learned_stimulus_keeps_its_targets(ends):
    learner, params, recording, *_ = ends
    seen = with_learned_stimulus(learner, params, recording)
    frames = np.array([3, 500, 17])
    voltage, luminance, target = seen.pairs(frames)
    for mine, true in zip((voltage, target), recording.pairs(frames)[::2], strict=True):
        np.testing.assert_array_equal(mine, true)
    np.testing.assert_allclose(luminance, learner.luminance(params, frames), atol=1e-6)
    assert seen.fingerprint != recording.fingerprint and not np.allclose(
        luminance, recording.luminance[frames], atol=1e-3
    )
    given = make_learner(recording.connectome, Model(width=8))
    assert with_learned_stimulus(given, None, recording) is recording


def test_external_input_is_the_squared_correlation_on_frames_held_out(ends):
    learner, params, recording, test, held_out = ends
    result = evaluate(learner, params, recording, test, held_out=held_out, with_refit=False, with_ceiling=False)
    learned = np.asarray(learner.luminance(params, held_out)).ravel()
    want = np.corrcoef(learned, recording.luminance[held_out].ravel())[0, 1] ** 2
    assert result.metrics["external_input_R2"] == pytest.approx(want, abs=1e-5)
    assert result.rollout is None and result.activity["rollout"] is None
    with pytest.raises(UserError, match="held out"):
        evaluate(learner, params, recording, test)


def test_a_node_is_evaluated_again_without_a_lesion(run):
    _, folder, _ = run

    class Quiet:
        def log(self, text):
            pass

        def table(self, rows, columns):
            pass

    reevaluate.evaluate_saved_node(folder, 1, Quiet())
    seeds = json.loads((folder / "nodes" / "0001" / "evaluation.json").read_text())["seeds"]
    assert {m["stimulus"] for m in seeds.values()} == {"field"}
    with pytest.raises(UserError, match="--lesion"):
        reevaluate.evaluate_saved_node(folder, 1, Quiet(), lesion=0.5)


# -- refused configurations -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"model": {"variant": "known_ode"}}, "variant A or B"),
        ({"training": {"rollout_steps": 2}}, "rollout_steps to 1"),
        ({"training": {"validation_fraction": 0}}, "validation_fraction, for example to 0.1"),
        ({"model": {"field_frames": 599}}, "at least 600"),
        ({"search": {"objective": "blind"}}, "choose another objective"),
    ],
)
def test_refused_in_one_line(changes, match):
    base = {
        "simulation": SIMULATION.model_dump(),
        "model": LEARNER,
        "training": LONG,
        "search": {"ranges": {}, "simulation_ranges": {}},
    }
    with pytest.raises(UserError, match=match) as caught:
        parse_experiment({k: {**v, **changes.get(k, {})} for k, v in base.items()})
    assert "\n" not in str(caught.value)


def test_refused_where_no_experiment_is_read(learner, fly):
    several = TRAINING.model_copy(update={"rollout_steps": 2})
    for training, match in ((several, "rollout_steps"), (Training(noise_model_level=0.1), "validation_fraction")):
        with pytest.raises(UserError, match=match):
            trained(learner, Noise(fly, 0), training)
    with pytest.raises(UserError, match="field_frames"):
        trained(learner, Noise(fly, 0, n_frames=129), TRAINING)


def test_a_row_of_the_table_names_the_field_and_refuses_lesions(tmp_path):
    base = {
        "simulation": {"extent": 0},
        "model": {"stimulus": "field", "field_frames": 64_000},
        "training": {"validation_fraction": 0.1},
    }
    table = recovery_table.Table(
        name="t",
        title="T",
        base=base,
        rows=(recovery_table.Row(name="cut", lesion=0.5), recovery_table.Row(name="kept")),
    )
    with pytest.raises(UserError, match="lesion"):
        recovery_table.run_row(table, table.rows[0], table.experiment(table.rows[0]), tmp_path, {})
    event = {
        "per_seed": [
            {"external_input_R2": 0.9, "external_input_R2_training": 0.97, "external_input_R2_inverted": 0.95}
        ],
        "diverged": 0,
        "n_steps": 1,
        "train_s": 1.0,
        **dict(hardware="h", device="cpu", jax="j", date="d"),
        "config": {"model": {"stimulus": "field"}},
    }
    assert "| kept | .900 | .970 | .950 |" in recovery_report.render([(table, {"kept": event})])
    event["per_seed"] = [{"external_input_R2": 0.9}]  # of a stimulus that was given
    assert "by inverting f" not in recovery_report.render([(table, {"kept": event})])
