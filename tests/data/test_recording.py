"""Recordings: the pair convention by hand, independence of chunks, and stores that are complete or refused."""

import json
import os
import shutil
import threading

import numpy as np
import pytest

from flyjax import circuit, simulation
from flyjax.circuit import Connectome, Parameters
from flyjax.config import Simulation
from flyjax.data import Recording, Recordings, load_recording, record, recorder, recording
from flyjax.data import cache as cache_module
from flyjax.data.cache import cached_recording
from flyjax.ground_truth import build_ground_truth, known_circuit
from flyjax.ground_truth.build import without_edges
from flyjax.simulation import rollout
from flyjax.utils import array_store
from flyjax.utils.errors import UserError

DT = 0.02


def two_neurons():
    """R1 drives one neuron with weight 2; the neuron inhibits itself with -0.5."""
    i = lambda *x: np.array(x, np.int32)  # noqa: E731
    f = lambda *x: np.array(x, np.float32)  # noqa: E731
    c = Connectome(
        extent=0,
        cell_types=("R1", "X"),
        input_types=("R1",),
        output_types=("X",),
        columns=np.zeros((1, 2), np.int32),
        cell_type=i(0, 1),
        column=i(0, 0),
        u=i(0, 0),
        v=i(0, 0),
        senders=i(0, 1),
        receivers=i(1, 1),
        edge_pair=i(0, 1),
        offset_key=i(0, 1),
        sign=f(1, -1),
        n_syn=f(1, 1),
        pairs=np.array([[0, 1], [1, 1]], np.int32),
        pair_sign=f(1, -1),
        keys=np.array([[0, 1, 0, 0], [1, 1, 0, 0]], np.int32),
        key_pair=i(0, 1),
        key_n_syn=f(1, 1),
        inputs=i(0),
        input_column=i(0),
    )
    return c, Parameters(weight=f(2.0, -0.5), tau=f(0.05, 0.01), v_rest=f(-0.3, 0.1))


def by_hand(luminance, v):
    """dV/dt of the two neurons; tau of the second is clamped from 0.01 to dt."""
    return np.array([(-v[0] - 0.3 + luminance) / 0.05, (-v[1] + 0.1 + 2 * max(v[0], 0) - 0.5 * max(v[1], 0)) / DT])


SMALL = Simulation(
    extent=0, visual_input_type="scenes_texture", n_frames=50, n_test_frames=50, delta_t=DT, parameters="sampled"
)


def sim(**changes):
    return SMALL.model_copy(update=changes)


def test_the_pair_convention_on_two_neurons():
    c, p = two_neurons()
    rec = record(SMALL, 0.0, connectome=c, parameters=p)
    assert rec.voltage.shape == rec.derivative.shape == (50, 2) and rec.luminance.shape == (50, 1)
    assert rec.voltage.dtype == rec.luminance.dtype == rec.derivative.dtype == np.float32
    v = np.array([-0.3, 0.1])
    for _ in range(50):  # grey for a second
        v = v + DT * by_hand(0.5, v)
    for t in range(50):
        np.testing.assert_allclose(rec.voltage[t], v, atol=2e-6)
        np.testing.assert_allclose(rec.derivative[t], by_hand(rec.luminance[t, 0], v), atol=2e-4)
        v = v + DT * by_hand(rec.luminance[t, 0], v)
    np.testing.assert_allclose(rec.final, v, atol=2e-6)
    # The luminance must vary, or a shifted pairing would pass.
    assert np.abs(np.diff(rec.luminance[:, 0])).max() > 0.05


def test_the_grey_before_the_first_frame_lasts_as_long_as_asked():
    c, p = two_neurons()
    v = np.array([-0.3, 0.1])
    for _ in range(5):
        v = v + DT * by_hand(0.5, v)
    np.testing.assert_allclose(record(sim(warm_up=0.1), 0.0, connectome=c, parameters=p).initial, v, atol=2e-6)


def test_noise_moves_the_states_and_never_the_targets():
    c, p = two_neurons()
    rec = record(sim(n_frames=4000), 0.05, connectome=c, parameters=p)
    truth = np.array([by_hand(x, v) for x, v in zip(rec.luminance[:, 0], rec.voltage.astype(float), strict=True)])
    np.testing.assert_allclose(rec.derivative, truth, atol=5e-5)
    noise = np.diff(np.concatenate([rec.voltage, rec.final[None]]), axis=0) - DT * rec.derivative
    assert abs(noise.std() - 0.05) < 0.002 and abs(noise.mean()) < 0.003
    assert abs(np.corrcoef(noise[1:, 0], noise[:-1, 0])[0, 1]) < 0.06
    # Another level has the same draws, scaled: levels differ in nothing else.
    other = record(sim(n_frames=4000), 0.1, connectome=c, parameters=p)
    double = np.diff(np.concatenate([other.voltage, other.final[None]]), axis=0) - DT * other.derivative
    np.testing.assert_allclose(double, 2 * noise, atol=1e-5)
    np.testing.assert_array_equal(other.luminance, rec.luminance)


@pytest.fixture(scope="module")
def fly():
    """One column with mild parameters of its own: sampling is tested elsewhere."""
    c = circuit.build_connectome(0)
    rng = np.random.default_rng(0)
    weight = (c.sign * rng.lognormal(0, 0.5, c.n_edges) * 0.05).astype(np.float32)
    tau = rng.uniform(0.02, 0.2, c.n_neurons).astype(np.float32)
    return dict(connectome=c, parameters=Parameters(weight, tau, np.full(c.n_neurons, 0.3, np.float32)))


FLY = sim(n_frames=50, n_test_frames=50)  # as long as the grey second: fewer programs to compile


def test_chunks_of_7_equal_one_of_1000(fly):
    a, b = (record(FLY, 0.05, chunk=k, **fly) for k in (7, 1000))
    # Another length is another compiled program: the last bits may differ, the noise may not.
    np.testing.assert_allclose(a.voltage, b.voltage, atol=2e-6)
    np.testing.assert_allclose(a.final, b.final, atol=2e-6)
    np.testing.assert_allclose(a.derivative, b.derivative, atol=2e-4)
    np.testing.assert_array_equal(a.luminance, b.luminance)
    index = np.array([3, 49, 21])
    for some, every in zip(a.pairs(index), (a.voltage, a.luminance, a.derivative), strict=True):
        np.testing.assert_allclose(some, every[index], atol=1e-5)


def test_targets_of_any_number_of_frames_come_from_one_program(fly):
    rec = record(sim(n_frames=300), 0.0, **fly)
    _ = rec.pairs([0])
    compiled = rollout._derivative._cache_size()
    for frames in (slice(0, 300), np.array([299, 5]), slice(290, 300)):
        exact = simulation.derivative(*rec.ground_truth, rec.voltage[frames], rec.luminance[frames], rec.dt)
        assert np.allclose(rec.pairs(frames)[2], exact, rtol=1e-5, atol=1e-4)
    assert rollout._derivative._cache_size() == compiled + 3  # of the exact ones


def test_the_test_split_is_noise_free_other_and_starts_grey(fly):
    rec = record(sim(n_test_frames=50, initial="rest"), 0.5, "test", **fly)
    assert rec.noise_model_level == 0 and rec.visual_input_type == "scenes_flow" and rec.n_frames == 50
    grey = simulation.steady_state(fly["connectome"], fly["parameters"], DT)
    np.testing.assert_array_equal(rec.initial, grey)
    step = np.diff(rec.voltage, axis=0) - DT * rec.derivative[:-1]
    assert np.abs(step).max() < 1e-5
    named = sim(n_test_frames=50, test_visual_input_type="scenes_edges")
    assert record(named, 0.5, "test", **fly).visual_input_type == "scenes_edges"
    same = sim(n_test_frames=50, test_visual_input_type="scenes_texture")
    train = record(FLY, 0.0, **fly).luminance[:50]
    assert np.abs(record(same, 0.0, "test", **fly).luminance - train).mean() > 0.05


def test_seeds_differ_in_stimulus_and_noise(fly):
    a, b = (record(FLY, 0.05, seed=k, **fly) for k in (0, 1))
    assert np.abs(a.luminance - b.luminance).mean() > 0.05
    assert a.fingerprint != b.fingerprint
    assert a.fingerprint == record(FLY, 0.05, **fly).fingerprint


def test_bad_input_is_one_line(fly):
    with pytest.raises(UserError, match="Did you mean 'scenes_edges'"):
        record(sim(visual_input_type="scene_edges"), **fly)
    with pytest.raises(UserError, match="split"):
        record(FLY, split="validation", **fly)
    with pytest.raises(UserError, match="extent"):
        record(sim(extent=1), **fly)
    c, p = two_neurons()
    with pytest.raises(UserError, match="diverged at frame"):
        record(
            sim(n_frames=400),
            0.0,
            connectome=c,
            parameters=Parameters(np.array([2, 500.0], np.float32), p.tau, p.v_rest),
        )
    with pytest.raises(UserError, match="fetch_flyvis"):
        build_ground_truth(sim(parameters="flow/0000/999"))
    with pytest.raises(UserError, match="sampled"):
        build_ground_truth(sim(parameters="sample"))


# -- stores ----------------------------------------------------------------------------------------


def same(a, b):
    for name in ("voltage", "luminance", "final", "derivative"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for mine, other in zip(a.parameters, b.parameters, strict=True):
        np.testing.assert_array_equal(mine, other)
    for name in ("simulation", "noise_model_level", "split", "seed", "visual_input_type", "cache_key", "fingerprint"):
        assert getattr(a, name) == getattr(b, name)
    return True


def test_saved_and_loaded_is_the_same(fly, tmp_path):
    rec = record(FLY, 0.05, **fly)
    rec.save(tmp_path / "a")
    loaded = load_recording(tmp_path / "a")
    assert same(rec, loaded) and loaded.connectome is fly["connectome"]
    rec.save(tmp_path / "a")  # replaces, leaves nothing else
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    c, p = two_neurons()
    hand = record(SMALL, 0.05, connectome=c, parameters=p)
    hand.save(tmp_path / "b")
    again = load_recording(tmp_path / "b")
    assert same(hand, again) and again.connectome.cell_types == ("R1", "X")


def a_chunk(path):
    return max((p for p in path.rglob("*") if p.is_file() and "voltage" in p.parts), key=lambda p: p.stat().st_size)


def flip_a_bit(path):
    data = bytearray(a_chunk(path).read_bytes())
    data[len(data) // 2] ^= 1
    a_chunk(path).write_bytes(data)


def edit_the_manifest(path):
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["arrays"].remove("luminance")
    (path / "manifest.json").write_text(json.dumps(manifest)[:-20])


DAMAGE = {
    "bit": (flip_a_bit, "checksum"),
    "torn": (lambda p: a_chunk(p).write_bytes(a_chunk(p).read_bytes()[:100]), "checksum"),
    "missing chunk": (lambda p: a_chunk(p).unlink(), "missing"),
    "no manifest": (lambda p: (p / "manifest.json").unlink(), "no recording"),
    "torn manifest": (edit_the_manifest, "torn or edited"),
    "foreign file": (lambda p: (p / "voltage" / "extra").write_text("x"), "does not belong"),
}


@pytest.mark.parametrize("damage, message", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_torn_or_edited_store_is_refused_in_one_line(fly, tmp_path, damage, message):
    record(FLY, 0.0, **fly).save(tmp_path / "a")
    damage(tmp_path / "a")
    with pytest.raises(UserError, match=message) as caught:
        load_recording(tmp_path / "a")
    assert "\n" not in str(caught.value)


def test_a_crash_while_saving_leaves_the_old_store(fly, tmp_path, monkeypatch):
    rec = record(FLY, 0.0, **fly)
    rec.save(tmp_path / "a")
    monkeypatch.setattr(
        array_store.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(UserError, match="No space left"):
        record(FLY, 0.1, **fly).save(tmp_path / "a")
    assert same(rec, load_recording(tmp_path / "a"))
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="is no recording"):
        rec.save(tmp_path / "mine")


@pytest.fixture
def cache(fly, tmp_path, monkeypatch):
    """The cache with a counter of how often something was recorded."""
    made = []
    original = recorder.record

    def counting(simulation, *args, **kwargs):
        made.append((simulation, args))
        return original(simulation, *args, **kwargs)

    monkeypatch.setattr(cache_module, "record", counting)
    monkeypatch.setattr(recorder, "build_ground_truth", lambda _: (fly["connectome"], fly["parameters"]))
    return (
        lambda *args, **kwargs: cached_recording(*args, cache_dir=tmp_path / "cache", **kwargs),
        made,
        tmp_path / "cache",
    )


def test_the_cache_records_once_and_rebuilds_what_was_damaged(cache):
    get, made, folder = cache
    a = get(FLY, 0.05)
    assert same(a, get(FLY, 0.05)) and len(made) == 1
    # Everything that matters makes another recording; what does not matter does not.
    for changed in (dict(noise_model_level=0.1), dict(seed=1), dict(split="test")):
        get(FLY, **{"noise_model_level": 0.05, **changed})
    for changed in (dict(delta_t=0.021), dict(n_frames=49), dict(parameters_seed=3), dict(seed=2)):
        get(FLY.model_copy(update=changed), 0.05)
    assert len(made) == 8
    get(FLY, 0.2, "test")  # tests are noise-free at any level
    get(
        FLY.model_copy(update=dict(n_test_frames=30, test_visual_input_type="scenes_edges", data_path="/nowhere")), 0.05
    )
    assert len(made) == 8
    flip_a_bit(folder / a.cache_key)
    assert same(a, get(FLY, 0.05)) and len(made) == 9
    assert same(a, get(FLY, 0.05)) and len(made) == 9


def test_the_cache_drops_the_least_recently_used(cache):
    get, made, folder = cache
    paths = []
    for k, level in enumerate((0.1, 0.2, 0.3)):
        paths.append(folder / get(FLY, level).cache_key)
        os.utime(paths[-1] / "manifest.json", (k, k))
    get(FLY, 0.1)  # used again: now the newest
    room = 2.5 * array_store.store_bytes(paths[0]) / 1e9
    newest = folder / get(FLY, 0.4, max_disk_gb=room).cache_key
    assert newest.exists() and paths[0].exists() and not paths[1].exists() and not paths[2].exists()
    alone = folder / get(FLY, 0.5, max_disk_gb=1e-9).cache_key
    assert [p for p in folder.iterdir()] == [alone]


# -- variants --------------------------------------------------------------------------------------


def test_measurement_noise_is_seen_and_differenced_but_moves_nothing(fly):
    level = 0.03
    clean, seen = record(FLY, 0.05, **fly), record(sim(n_frames=50, measurement_noise_level=level), 0.05, **fly)
    n = np.concatenate([seen.voltage, seen.final[None]]) - np.concatenate([clean.voltage, clean.final[None]])
    assert abs(n.std() - level) < 0.05 * level and abs(n.mean()) < 0.1 * level
    r = np.corrcoef(np.stack([n[1:].ravel(), n[:-1].ravel()]))[0, 1]
    process = np.diff(clean.voltage, axis=0) - DT * clean.derivative[:-1]
    assert abs(r) < 0.06 and abs(np.corrcoef(process.ravel(), n[:-2].ravel())[0, 1]) < 0.06
    np.testing.assert_allclose(seen.derivative, clean.derivative + np.diff(n, axis=0) / DT, atol=1e-4)
    index = np.array([7, 3])
    np.testing.assert_allclose(seen.pairs(index)[2], seen.derivative[index], atol=1e-4)
    test = record(sim(n_test_frames=50, measurement_noise_level=level), 0.05, "test", **fly)
    np.testing.assert_array_equal(test.voltage, record(FLY, 0.05, "test", **fly).voltage)


def pairs_of(c):
    return set(zip(c.senders.tolist(), c.receivers.tolist(), strict=True))


@pytest.mark.parametrize("kind", ["per_source", "random"])
def test_the_learner_is_given_null_edges_and_lacks_removed_ones(fly, tmp_path, kind):
    edited = sim(n_frames=50, null_edges=1.5, null_edges_kind=kind, removed_edges=0.2)
    rec, plain = record(edited, 0.05, **fly), record(FLY, 0.05, **fly)
    np.testing.assert_array_equal(rec.voltage, plain.voltage)
    np.testing.assert_array_equal(rec.derivative, plain.derivative)
    true, known = fly["connectome"], rec.connectome
    removed = round(0.2 * true.n_edges)
    shared = pairs_of(true) & pairs_of(known)
    null = pairs_of(known) - shared
    assert len(shared) == true.n_edges - removed and not null & pairs_of(true)
    assert known.n_edges == len(pairs_of(known)) and abs(len(null) / (1.5 * len(shared)) - 1) < 0.12
    order = known.receivers.astype(int) * known.n_neurons + known.senders
    assert (np.diff(order) > 0).all()
    weight_of = dict(
        zip(zip(true.senders.tolist(), true.receivers.tolist()), np.asarray(fly["parameters"].weight).tolist())
    )
    for pair, weight in zip(zip(known.senders.tolist(), known.receivers.tolist()), rec.parameters.weight.tolist()):
        assert weight == (weight_of[pair] if pair in shared else 0.0)
    if kind == "per_source":
        own = np.bincount([j for j, _ in shared], minlength=known.n_neurons)
        extra = np.bincount([j for j, _ in null], minlength=known.n_neurons)
        assert np.abs(extra - 1.5 * own)[own < 20].max() <= 0.5 and rec.ground_truth[0] is true
    rec.save(tmp_path / "a")
    loaded = load_recording(tmp_path / "a")
    assert same(rec, loaded) and loaded.connectome is rec.connectome and loaded.ground_truth[0] is true


def test_cut_edges_are_in_neither_circuit(tmp_path):
    whole, cut = build_ground_truth(SMALL), build_ground_truth(sim(cut_edges=0.25, removed_edges=0.1))
    assert cut[0].n_edges == whole[0].n_edges - round(0.25 * whole[0].n_edges)
    weight_of = dict(zip(whole[0].node_pairs.tolist(), np.asarray(whole[1].weight).tolist(), strict=True))
    assert all(weight_of[k] == w for k, w in zip(cut[0].node_pairs.tolist(), np.asarray(cut[1].weight).tolist()))
    rec = cached_recording(sim(cut_edges=0.25, removed_edges=0.1), 0.05, cache_dir=tmp_path)
    assert rec.ground_truth[0] == cut[0] and rec.connectome.n_edges == round(0.9 * cut[0].n_edges)
    assert np.abs(rec.voltage - record(SMALL, 0.05).voltage).max() > 1e-3
    again = cached_recording(sim(cut_edges=0.25, removed_edges=0.1), 0.05, cache_dir=tmp_path)
    assert again.connectome == rec.connectome and again.origin == rec.origin


def test_a_lesion_is_another_circuit(fly):
    c, weight = without_edges(fly["connectome"], fly["parameters"].weight, 0.5, seed=3)
    assert c.n_edges == fly["connectome"].n_edges - round(0.5 * fly["connectome"].n_edges)
    remaining = np.isin(fly["connectome"].node_pairs, c.node_pairs)
    np.testing.assert_array_equal(weight, np.asarray(fly["parameters"].weight)[remaining])
    np.testing.assert_array_equal(c.senders, fly["connectome"].senders[remaining])
    p = fly["parameters"]._replace(weight=weight)
    assert np.abs(record(FLY, 0.0, connectome=c, parameters=p).voltage - record(FLY, 0.0, **fly).voltage).max() > 1e-3


def test_the_sampled_fly_is_active_under_the_scenes(tmp_path):
    simulation = sim(extent=1, n_frames=1000)
    rec = cached_recording(simulation, 0.0, cache_dir=tmp_path)
    crosses = (rec.voltage.min(0) < 0) & (rec.voltage.max(0) > 0)
    assert crosses.mean() >= 0.95
    assert rec.connectome is known_circuit(simulation)[0] is build_ground_truth(simulation)[0]
    assert same(rec, cached_recording(simulation, 0.0, cache_dir=tmp_path))


def test_a_stored_derivative_is_read_from_the_cache_and_not_computed_again(tmp_path, monkeypatch):
    wanted = sim(store_derivative=True)
    made = cached_recording(wanted, 0.05, cache_dir=tmp_path)
    monkeypatch.setattr(recording, "derivative", lambda *arguments: pytest.fail("computed"))
    again = cached_recording(wanted, 0.05, cache_dir=tmp_path)
    np.testing.assert_array_equal(again.derivative, made.derivative)
    np.testing.assert_array_equal(again.pairs(slice(3, 9))[2], made.derivative[3:9])


def test_a_recording_under_the_name_of_another_is_not_taken_for_it(tmp_path):
    rec = cached_recording(sim(), 0.0, cache_dir=tmp_path)
    other = cached_recording(sim(), 0.05, cache_dir=tmp_path)
    shutil.rmtree(tmp_path / rec.cache_key)
    shutil.copytree(tmp_path / other.cache_key, tmp_path / rec.cache_key)
    assert same(rec, cached_recording(sim(), 0.0, cache_dir=tmp_path))
    assert same(other, cached_recording(sim(), 0.05, cache_dir=tmp_path))


@pytest.fixture
def writing(monkeypatch):
    """An event without which no store is written."""
    may_write, save = threading.Event(), Recording.save

    def waiting(recording, path):
        assert may_write.wait(60)
        return save(recording, path)

    monkeypatch.setattr(Recording, "save", waiting)
    yield may_write
    may_write.set()


def test_a_recording_is_used_while_its_store_is_written(writing, tmp_path):
    recordings = Recordings(FLY, tmp_path, beside=True)
    recording = recordings.train(0.05)
    path = tmp_path / recording.cache_key
    assert recording.n_frames == FLY.n_frames and not path.exists()
    writing.set()
    recordings.written()
    assert same(load_recording(path), recording)


def test_a_store_that_could_not_be_written_is_an_error_later(tmp_path, monkeypatch):
    def full(recording, path):
        raise UserError(f"cannot write {path}: no space left on device")

    monkeypatch.setattr(Recording, "save", full)
    recordings = Recordings(FLY, tmp_path, beside=True)
    recordings.train(0.05)
    with pytest.raises(UserError, match="no space"):
        _ = recordings.test
    recordings.train(0.1)
    with pytest.raises(UserError, match="no space"):
        recordings.written()
    recordings.written()


def test_a_recording_stays_in_memory_for_the_next_iteration(tmp_path):
    first = Recordings(FLY, tmp_path / "a")
    train, test = first.train(0.05), first.test
    again = Recordings(FLY.model_copy(), tmp_path / "a")
    assert again.train(0.05) is train and again.test is test
    other = Recordings(FLY.model_copy(update={"n_test_frames": 30}), tmp_path / "a")
    assert other.train(0.05).voltage is train.voltage and other.train(0.05).simulation.n_test_frames == 30
    assert len(other.test.voltage) == 30
    assert Recordings(FLY, tmp_path / "b").train(0.05) is not train
    small = Recordings(FLY, tmp_path / "a", max_bytes=1)
    small.train(0.1)
    assert small.train(0.05) is not train


def test_what_is_in_memory_counts_as_used_on_disk(tmp_path):
    train = Recordings(FLY, tmp_path).train(0.05)
    manifest = tmp_path / train.cache_key / "manifest.json"
    os.utime(manifest, (1, 1))
    assert Recordings(FLY, tmp_path).train(0.05) is train and manifest.stat().st_mtime > 1
