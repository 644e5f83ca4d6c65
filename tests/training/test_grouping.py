"""Plans fit into memory, and the result of a training does not depend on them."""

import gc
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.training_fixtures import Noise

from flyjax.circuit import build_connectome
from flyjax.config import Model, Simulation, Training
from flyjax.models import make_learner
from flyjax.training import data, grouping, lanes, sweep, train_sweep
from flyjax.training.data import stack_recordings
from flyjax.training.grouping import CHUNK, Budget, Limits, Memory, Sizes
from flyjax.training.hparams import Static, traced_hparams
from flyjax.training.lanes import Reporter
from flyjax.training.optimizer import make_optimizer, schedule_factor
from flyjax.utils.errors import UserError
from flyjax.utils.format import format_bytes


@pytest.fixture(scope="module")
def circuit():
    return build_connectome(0)


@pytest.fixture(scope="module")
def learner(circuit):
    return make_learner(circuit, Model(width=8))


FULL = Sizes(64_000, 13_741, 217, 434_112, 434_112 + 2 * 13_741 + 14_000)
WIDE = Model(width=80)


def test_a_full_scale_recording_is_as_large_as_its_arrays():
    shapes = (64_000, 13_741), (64_000, 13_741), (64_000, 217)
    assert grouping.recording_bytes(FULL) == sum(np.prod(s) * 4 for s in shapes)
    assert format_bytes(grouping.recording_bytes(FULL)) == "7.09 GB"
    assert format_bytes(grouping.recording_bytes(FULL._replace(stores_target=False))) == "3.57 GB"


@pytest.mark.parametrize("variant", ["A", "B", "known_ode"])
def test_lane_memory_is_what_the_compiler_reserves(circuit, variant):
    model = Model(width=64, variant=variant)
    learner = make_learner(circuit, model)
    batch, n_frames = 8, 32
    sizes = grouping.sizes_of(learner, n_frames)
    assert sizes.n_params == sum(leaf.size for leaf in jax.tree.leaves(learner.init(jax.random.key(0))))
    program = lanes.compiled(learner, Static(batch, "constant"), 1)
    hparams = lanes.stack_hparams([traced_hparams(Training(batch_size=batch), n_frames, 0)])
    hparams = jax.device_put(hparams, program.by_lane)
    stacked = jax.device_put(stack_recordings([Noise(circuit, 0, n_frames)]), program.replicated)
    start = lanes.start(learner, Static(batch, "constant"), traced_hparams(Training(), n_frames, 0), jax.random.key(0))
    state = jax.device_put(lanes.stack_states([start]), program.by_lane)
    measured = program.chunk.lower(hparams, stacked, state).compile().memory_analysis()
    estimate = grouping.lane_bytes(sizes, model, batch, shared=True)
    stored = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.optimizer)))
    assert estimate["params"] + estimate["adam"] == pytest.approx(stored, rel=0.01)
    ratio = (estimate["step"] + estimate["activations"]) / measured.temp_size_in_bytes
    if variant == "A":
        assert ratio == pytest.approx(1, abs=0.15)
    else:  # an upper estimate
        assert 0.8 < ratio < 8
    assert grouping.recording_bytes(sizes) == sum(leaf.nbytes for leaf in jax.tree.leaves(stacked)) - 4


def test_work_follows_the_variant():
    """Of an extent-8 frame: B evaluates a network on 434,112 edges, a known equation none."""
    n, e = FULL.n_neurons, FULL.n_edges
    work = {v: grouping.gflop_per_frame(Model(variant=v), 1, n, e) for v in ("A", "B", "known_ode", "known_ode_tanh")}
    message_a, message_b, update = (signals * 80 + 80 * 80 + 80 for signals in (3, 6, 5))
    assert work["A"] == pytest.approx(6e-9 * n * (4 * message_a + update))
    assert work["B"] == pytest.approx(6e-9 * ((e + 3 * n) * message_b + n * update)) and work["B"] / work["A"] > 7
    assert work["known_ode"] == work["known_ode_tanh"] < work["A"]
    activations = {v: grouping.lane_bytes(FULL, Model(variant=v), 4)["activations"] for v in work}
    assert activations["B"] > 5 * activations["A"] and activations["known_ode"] < activations["A"] / 5
    assert grouping.lane_bytes(FULL, Model(variant="B"), 4, shared=True)["activations"] < activations["B"] / 3


def test_curvature_regularisers_are_work_on_one_frame_of_the_batch():
    more = [
        grouping.gflop_per_frame(Model(), b, 443, 0, True) - grouping.gflop_per_frame(Model(), b, 443, 0)
        for b in (1, 4)
    ]
    assert more[0] > 0 and more[0] == pytest.approx(4 * more[1])
    # With both regularisers a step of one frame is about twice the work.
    assert 1.5 < 1 + more[0] / grouping.gflop_per_frame(Model(), 1, 443, 0) < 2.2


@settings(max_examples=60, deadline=None)
@given(
    free=st.floats(15e9, 400e9),
    shared=st.booleans(),
    devices=st.integers(1, 8),
    cells=st.lists(
        st.tuples(st.sampled_from([0.0, 0.05, 0.1, 0.2]), st.sampled_from([1, 4]), st.integers(1, 3)),
        min_size=1,
        max_size=12,
    ),
)
def test_every_program_fits_and_every_lane_is_trained_once(free, shared, devices, cells):
    memory = Memory(int(free), "given", shared)
    candidates = [Training(noise_model_level=level, batch_size=batch) for level, batch, _ in cells]
    seeds = [list(range(n)) for *_, n in cells]

    budget = Budget(FULL, WIDE, memory, devices)
    try:
        groups = grouping.plan(candidates, seeds, FULL.n_frames, budget.limits)
    except UserError:
        assert free * grouping.SHARE < 2.1 * grouping.recording_bytes(FULL)  # not even one
        return
    for group in groups:
        assert budget.group_bytes(group) <= grouping.SHARE * free
        assert group.levels == tuple(sorted({candidates[lane.candidate].noise_model_level for lane in group.lanes}))
        assert {candidates[lane.candidate].batch_size for lane in group.lanes} == {group.static.batch_size}
        assert group.width % group.n_devices == 0 and group.n_devices <= devices
    packed = sorted((lane.candidate, lane.replicate) for group in groups for lane in group.lanes)
    assert packed == [(k, s) for k, own in enumerate(seeds) for s in own]


def test_eight_levels_on_one_accelerator_of_40_gb_take_two_programs():
    memory = Memory(40_000_000_000, "given", False)
    candidates = [Training(noise_model_level=0.01 * k) for k in range(8)]
    groups = grouping.plan(candidates, [[0]] * 8, FULL.n_frames, Budget(FULL, WIDE, memory, 1).limits)
    assert [len(g.levels) for g in groups] == [4, 4] and len({g.width for g in groups}) == 1


def test_what_cannot_fit_is_refused_in_one_line():
    with pytest.raises(UserError, match="14.2 GB.*8 GB.*simulation.n_frames") as error:
        Budget(FULL, WIDE, Memory(8_000_000_000, "available RAM", True), 2).limits(Static(1, "constant"), 4, 1)
    assert "\n" not in str(error.value)


def test_sizes_need_no_data():
    simulation = Simulation(extent=1, parameters="flow/0000/000", visual_input_type="DAVIS", removed_edges=0.5)
    sizes = grouping.sizes_without_data(simulation, Model(width=8))
    assert not grouping.sizes_without_data(Simulation(parameters="flow/0000/000"), Model(width=8)).stores_target
    assert sizes.n_frames == 64_000 and sizes.stores_target and sizes.n_neurons == 443 and sizes.n_edges == 8_174 / 2
    all_edges = grouping.sizes_without_data(simulation.model_copy(update={"removed_edges": 0.0}), Model(width=8))
    assert all_edges.n_params - sizes.n_params == 8_174 / 2


def test_finished_lanes_are_dropped_where_that_saves_enough():
    lanes = tuple(grouping.Lane(k, 0, k, 8_000 if k == 3 else 1_000, 0.05) for k in range(4))
    group = grouping.Group(Static(1, "constant"), lanes, 2)
    saved = 3 * 7_000  # four lanes become one
    assert grouping.split_at_finished(group, 0, 32, 1.0, saved + 1) == [(group, 0, 32)]
    (wide, a, b), (narrow, c, d) = grouping.split_at_finished(group, 0, 32, 1.0, saved)
    assert (wide, a, b, c, d) == (group, 0, 4, 4, 32)
    assert narrow.lanes == lanes[3:] and narrow.n_devices == 1 and narrow.levels == group.levels
    assert [segment[1:] for segment in grouping.split_at_finished(group, 10, 20, 1.0, 0.0)] == [(10, 20)]
    assert grouping.split_at_finished(group, 32, 40, 1.0, 0.0) == []


# -- trained ---------------------------------------------------------------------------------------

CANDIDATES = [
    Training(data_augmentation_loop=20, learning_rate_start=1e-3),  # 256 steps
    Training(data_augmentation_loop=20, noise_model_level=0.1),
    Training(data_augmentation_loop=60, coeff_W_L1=1e-4),  # 768 steps
    Training(data_augmentation_loop=20, noise_model_level=0.1, coeff_edge_diff=10.0),
]
SEEDS = [[1], [2], [3], [4]]


def assert_same(a, b, rtol, atol):
    for x, y in zip([t for own in a for t in own], [t for own in b for t in own], strict=True):
        assert (x.seed, x.n_steps, x.diverged_at, x.stopped_at) == (y.seed, y.n_steps, y.diverged_at, y.stopped_at)
        for p, q in zip(*map(jax.tree.leaves, (x.params, y.params)), strict=True):
            np.testing.assert_allclose(p, q, rtol=rtol, atol=atol)
        np.testing.assert_allclose(x.losses, y.losses, rtol=rtol, atol=atol)


@pytest.fixture(scope="module")
def recordings(circuit):
    return {0.05: Noise(circuit, 0), 0.1: Noise(circuit, 1)}


@pytest.fixture(scope="module")
def together(learner, recordings):
    return train_sweep(learner, CANDIDATES, SEEDS, recordings, n_devices=1)


def recordings_on_devices(circuit):
    """Recordings now on devices, by their voltages."""
    return sum(x.shape[0] for x in jax.live_arrays() if x.ndim == 3 and x.shape[1:] == (64, circuit.n_neurons)) // 2


def test_programs_split_by_memory_give_the_same_and_hold_one_level(circuit, learner, recordings, together, monkeypatch):
    monkeypatch.setattr(data, "PADDING_BYTES", 0)
    gc.collect()  # recordings of the training before
    sizes = grouping.sizes_of(learner, 64)
    lane = sum(grouping.lane_bytes(sizes, learner.config, 1).values())
    memory = Memory(int((2 * lane + grouping.recording_bytes(sizes)) / grouping.SHARE) + 1, "given", False)
    requested, most = [], []

    def recording_of(level):
        requested.append(level)
        return recordings[level]

    split = train_sweep(
        learner,
        CANDIDATES,
        SEEDS,
        recording_of,
        memory=memory,
        n_devices=1,
        on_progress=lambda p: most.append((p.n_groups, recordings_on_devices(circuit))),
    )
    assert {n for n, _ in most} == {2}
    assert {n for _, n in most} == {1}, "the recording of the previous program is still there"
    assert requested == sorted(requested), "a level was requested again"
    # Sums of other widths round otherwise; Adam amplifies the last bit.
    assert_same(split, together, rtol=5e-3, atol=5e-4)


class Killed(Exception):
    pass


def test_less_memory_at_resume_loses_no_checkpoint(learner, recordings, together, tmp_path, monkeypatch, caplog):
    sizes = grouping.sizes_of(learner, 64)
    lane, level = sum(grouping.lane_bytes(sizes, learner.config, 1).values()), grouping.recording_bytes(sizes)
    free = [Memory(int((9 * lane + 3 * level) / grouping.SHARE), "available RAM", False)]
    monkeypatch.setattr(grouping, "device_memory", lambda: free[0])
    options = dict(checkpoint_dir=tmp_path, checkpoint_every=CHUNK, n_devices=1)

    def kill(progress):
        if progress.lanes[2].step >= 3 * CHUNK:
            raise Killed

    with pytest.raises(Killed):
        train_sweep(learner, CANDIDATES, SEEDS, recordings, on_progress=kill, **options)
    free[0] = free[0]._replace(free=int((2 * lane + level) / grouping.SHARE) + 1)
    seen = []
    again = train_sweep(learner, CANDIDATES, SEEDS, recordings, on_progress=seen.append, **options)
    assert seen[0].n_groups == 1 and seen[0].lanes[2].step == 3 * CHUNK, "began anew"
    (line,) = caplog.messages
    assert "free memory" in line and str(tmp_path) in line
    assert_same(again, together, rtol=0, atol=0)
    # Other work in the same folder is planned for what there is now.
    other = train_sweep(learner, CANDIDATES[:2], [[5], [6]], recordings, on_progress=seen.append, **options)
    assert len(other) == 2 and seen[-1].n_groups == 2 and len(caplog.messages) == 1


def test_a_plan_is_recorded_from_the_first_checkpoint_on(tmp_path):
    large, small = Memory(100, "a", True), Memory(50, "b", True)
    assert grouping.planned_for(None, "x", large, 4) == (large, 4)
    assert grouping.planned_for(tmp_path, "x", large, 4) == (large, 4)
    assert grouping.planned_for(tmp_path, "x", small, 2) == (small, 2)  # nothing is lost
    assert grouping.planned_for(tmp_path, "x", large, 4) == (large, 4)
    (tmp_path / "program" / "4").mkdir(parents=True)
    assert grouping.planned_for(tmp_path, "x", small, 2) == (large, 4)
    assert grouping.planned_for(tmp_path, "y", small, 2) == (small, 2)
    accelerator = small._replace(shared=False)
    assert grouping.planned_for(tmp_path, "x", accelerator, 1) == (accelerator, 1)
    for torn in ('{"free": 1', "[]", "{}"):
        (tmp_path / "planned_x" / "plan.json").write_text(torn, encoding="utf-8")
        assert grouping.planned_for(tmp_path, "x", small, 2) == (small, 2)


def test_narrower_programs_give_the_same(learner, recordings, together, monkeypatch):
    monkeypatch.setattr(sweep, "MIN_SAVING", {"cpu": 0.0})
    widths = []
    narrow = train_sweep(
        learner, CANDIDATES, SEEDS, recordings, n_devices=1, on_progress=lambda p: widths.append(len(p.lanes))
    )
    assert widths == [4, 4, 1, 1]
    assert_same(narrow, together, rtol=5e-3, atol=5e-4)


def test_the_number_of_noise_levels_compiles_nothing(learner, recordings, together):
    compiled = lanes.compiled(learner, Static(1, "constant"), 1).chunk
    before = compiled._cache_size()
    one_level = [c.model_copy(update={"noise_model_level": 0.05}) for c in CANDIDATES]
    alone = train_sweep(learner, one_level, SEEDS, recordings, n_devices=1)
    assert compiled._cache_size() == before
    # The lanes of that level are not touched by what the others read.
    assert_same([alone[0], alone[2]], [together[0], together[2]], rtol=0, atol=0)


def test_progress_counts_every_step_once(learner, recordings):
    seen = []
    train_sweep(
        learner,
        CANDIDATES,
        SEEDS,
        recordings,
        n_devices=1,
        on_progress=seen.append,
        monitor=lambda lane, params, is_trained: {"W": float(len(params["W"]))},
    )
    steps = [p.lane_steps for p in seen]
    assert steps == sorted(steps) and steps[-1] == seen[-1].total_lane_steps == 256 * 3 + 768
    first = seen[0].lanes[0]
    assert first.step == CHUNK and first.values["total"] > first.values["loss"] > 0 and first.values["W"] == 480
    assert [lane.status for lane in seen[-1].lanes] == ["finished"] * 4
    assert seen[0].loss == pytest.approx(np.mean([lane.values["loss"] for lane in seen[0].lanes]))


def test_every_program_is_monitored():
    """Four programs one after the other: each gets its share of the budget, though its first reading compiles, and
    the reading of the trained network."""
    now, read, first_s, chunk_s = [0.0], [], 30.0, 1.0

    def monitor(lane, params, is_trained):
        compiles = lane.candidate not in [candidate for candidate, _, _ in read]
        now[0] += first_s if compiles else 1.0
        read.append((lane.candidate, *params))
        return {"connectivity_R2": float(params[0])}

    seen = []
    reporter = Reporter(seen.append, monitor, [], clock=lambda: now[0])
    newest = np.ones((CHUNK, 1, 3))
    for k in range(4):
        lane, at = grouping.Lane(k, 0, 1, 100 * CHUNK, 0.05), [0]
        group = grouping.Group(Static(k + 1, "constant"), (lane,))
        segment = SimpleNamespace(
            group=group,
            lanes=[lanes.LaneState(lane)],
            params=lambda i, is_trained, at=at: (at[0], is_trained),
            rates=lambda i, step: {},
        )
        for done in range(1, 101):
            now[0] += chunk_s
            at[0] = done
            reporter(segment, done, newest, np.array([done * CHUNK]), np.array([True]))
        last = seen[-1].lanes[0]
        assert (last.status, last.values["connectivity_R2"]) == ("finished", 100), "the result, not an earlier state"
    times = [sum(candidate == k for candidate, _, _ in read) for k in range(4)]
    assert min(times) >= 5 and max(times) <= 10
    assert [done for _, done, is_trained in read if is_trained] == [100] * 4
    charged = len(read) - 8  # without the first and the last reading of each
    assert charged <= 0.05 * now[0] + 1


@pytest.mark.parametrize("schedule", ["constant", "warmup_cosine"])
def test_reported_rates_are_those_of_the_steps(schedule, learner, recordings):
    """Under a constant gradient of 1 a step of Adam is its rate."""
    training = Training(schedule=schedule, warmup_fraction=0.2, data_augmentation_loop=25)  # 320 steps
    hparams = traced_hparams(training, 64, 0)
    optimizer = make_optimizer(hparams, schedule)
    ones = {group: jnp.ones(1) for group in ("W", "networks", "embedding")}
    update, state, taken = jax.jit(optimizer.update), optimizer.init(ones), []
    for _ in range(320):
        step, state = update(ones, state, ones)
        taken.append({group: -float(value[0]) for group, value in step.items()})
    reported = {}
    train_sweep(
        learner,
        [training],
        [[1]],
        recordings,
        n_devices=1,
        on_progress=lambda p: reported.update({p.lanes[0].step: p.lanes[0].values}),
    )
    assert sorted(reported) == [250, 320]
    for step, values in reported.items():
        assert {g: values[f"rate_{g}"] for g in ones} == pytest.approx(taken[step - 1], rel=1e-4, abs=1e-9)


def test_the_schedule_warms_up_linearly_and_decays_as_a_cosine():
    hparams = traced_hparams(Training(warmup_fraction=0.2, data_augmentation_loop=25), 64, 0)
    factors = [float(schedule_factor("warmup_cosine", hparams, step, np)) for step in (0, 32, 64, 320)]
    cosine = [0.5 * (1 + np.cos(np.pi * step / 320)) for step in (0, 32, 64, 320)]
    assert factors == pytest.approx(np.multiply(cosine, [0, 0.5, 1, 1]), abs=1e-5)
    assert schedule_factor("constant", hparams, 32, np) == 1
    traced = jax.jit(lambda count: schedule_factor("warmup_cosine", hparams, count))
    assert [float(traced(jnp.int32(step))) for step in (0, 32, 64, 320)] == pytest.approx(factors, abs=1e-6)


def test_within_the_limits_one_program():
    (group,) = grouping.plan(CANDIDATES, SEEDS, 64, lambda *_: Limits(4, 2, 1))
    assert [(lane.candidate, lane.seed, lane.level) for lane in group.lanes] == [
        (k, k + 1, CANDIDATES[k].noise_model_level) for k in range(4)
    ]
