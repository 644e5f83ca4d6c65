"""A recording of one's own: what is taken, what is refused, and how it is divided in time."""

import logging

import numpy as np
import pytest
import zarr
from support.own_recordings import DT, POST, PRE, TAU, WEIGHT, N, edges, own_arrays

from flyjax.config import Experiment, Simulation, parse_experiment
from flyjax.data import Recording, Recordings, load_recording, own_splits, split_in_time, with_recording
from flyjax.data.arrays import ALL_PAIRS_UP_TO
from flyjax.utils.errors import UserError


def write_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def write_zarr(path, dt, **arrays):
    group = zarr.open_group(path, mode="w")
    group.attrs["dt"] = dt
    for name, value in arrays.items():
        group.create_array(name, data=np.asarray(value))
    return path


def test_the_derivative_is_the_difference_to_the_next_state():
    arrays = own_arrays()
    recording = Recording.from_arrays(**arrays, **edges())
    voltage = arrays["voltage"].astype(np.float32)
    assert recording.n_frames == len(voltage) - 1 and recording.dt == DT and not recording.is_simulated
    v, light, derivative = recording.pairs(np.array([0, 7, recording.n_frames - 1]))
    after = voltage[[1, 8, len(voltage) - 1]]
    assert np.array_equal(v + np.float32(0), voltage[[0, 7, len(voltage) - 2]])
    assert np.array_equal(derivative, (after - v) / np.float32(DT))
    assert np.array_equal(light, arrays["stimulus"][[0, 7, len(voltage) - 2]].astype(np.float32))
    assert np.array_equal(recording.final, voltage[-1])


def test_a_given_derivative_keeps_every_frame():
    arrays = own_arrays()
    derivative = np.ones_like(arrays["voltage"])
    recording = Recording.from_arrays(**arrays, derivative=derivative)
    assert recording.n_frames == len(derivative) and (recording.derivative == 1).all()


def test_edges_are_sorted_and_weights_follow_them():
    order = np.random.default_rng(1).permutation(len(PRE))
    recording = Recording.from_arrays(**own_arrays(), pre=PRE[order], post=POST[order], weight=WEIGHT[order])
    c = recording.connectome
    assert (np.diff(c.receivers.astype(int) * N + c.senders) > 0).all()
    found = dict(zip(zip(c.senders.tolist(), c.receivers.tolist()), np.asarray(recording.parameters.weight)))
    assert found == dict(zip(zip(PRE.tolist(), POST.tolist()), WEIGHT.astype(np.float32)))
    assert recording.unknown == ("tau", "v_rest")


def test_unknown_edges_are_all_pairs_of_a_few_neurons():
    c = Recording.from_arrays(**own_arrays()).connectome
    assert c.n_edges == N * (N - 1) and not (c.senders == c.receivers).any()
    many = {"voltage": np.random.default_rng(0).normal(size=(120, ALL_PAIRS_UP_TO + 1)), "dt": DT}
    with pytest.raises(UserError, match="pre and post"):
        Recording.from_arrays(**many)


def test_one_input_per_neuron_needs_no_list_of_neurons():
    arrays = own_arrays()
    given = {k: v for k, v in arrays.items() if k != "input"} | {
        "stimulus": np.pad(arrays["stimulus"], ((0, 0), (0, N - 2)))
    }
    one, other = (Recording.from_arrays(**a, **edges()) for a in (arrays, given))
    assert one.connectome == other.connectome and np.array_equal(one.luminance, other.luminance)


def test_neurons_that_were_not_recorded_leave_with_their_edges():
    arrays = own_arrays()
    arrays["voltage"][:, 2] = np.nan
    recorded = np.arange(N) != 2
    c = Recording.from_arrays(**arrays, **edges(), tau=TAU, recorded=recorded).connectome
    old = np.flatnonzero(recorded)
    assert c.ids == tuple(map(str, old))
    kept = {(a, b) for a, b in zip(PRE.tolist(), POST.tolist()) if 2 not in (a, b)}
    assert {(old[a], old[b]) for a, b in zip(c.senders, c.receivers)} == kept and c.n_neurons == N - 1


def test_no_pair_spans_two_trials():
    arrays = own_arrays(300)
    trial = np.repeat([4, 9, 4], 100)
    recording = Recording.from_arrays(**arrays, trial=trial)
    assert [s.stop - s.start for s in recording.spans] == [99, 99, 99]
    voltage = arrays["voltage"].astype(np.float32)
    assert np.array_equal(recording.derivative[98], (voltage[99] - voltage[98]) / np.float32(DT))
    assert np.array_equal(recording.voltage[99], voltage[100])
    train, test = split_in_time(recording, 40)
    assert sum(p.n_frames for p in train.all_parts) == train.n_frames == 297 - 40 - 10
    assert np.array_equal(test.voltage, recording.voltage[-40:]) and test.split == "test"


def test_the_last_fifth_is_held_out():
    train, test = split_in_time(Recording.from_arrays(**own_arrays(601)))
    assert (train.n_frames, test.n_frames) == (600 - 120 - 30, 120)
    assert np.array_equal(test.derivative, Recording.from_arrays(**own_arrays(601)).derivative[-120:])


@pytest.mark.parametrize("write", [write_npz, write_zarr])
def test_files_hold_what_arrays_hold(tmp_path, write):
    arrays = own_arrays() | edges() | {"type": np.array(["A", "A", "B", "B", "C", "C"])}
    path = write(tmp_path / ("own.npz" if write is write_npz else "own.zarr"), **arrays)
    expected, found = Recording.from_arrays(**arrays), load_recording(path)
    assert found.fingerprint == expected.fingerprint and found.connectome == expected.connectome
    again = load_recording(found.save(tmp_path / "saved"))
    assert again.fingerprint == found.fingerprint and again.unknown == found.unknown
    train, _ = own_splits(Simulation(recording=str(path)))
    assert Recordings(Simulation(recording=str(path))).train(0.0) is train


BAD = {
    "NaN": ({"voltage": np.where(np.arange(600)[:, None] == 7, np.nan, 1.0) * np.ones((600, N))}, "voltage"),
    "shape": ({"stimulus": np.zeros((599, 2))}, "stimulus"),
    "axes": ({"voltage": np.zeros(600)}, "voltage"),
    "dt": ({"dt": 0.0}, "dt"),
    "negative dt": ({"dt": -0.02}, "dt"),
    "milliseconds": ({"dt": 100.0}, "dt"),
    "no dt": ({"dt": None}, "dt"),
    "short": ({"voltage": np.ones((50, N)), "stimulus": np.ones((50, 2))}, "frames"),
    "edges": ({"pre": [0, 6], "post": [1, 2]}, r"pre\[1\]"),
    "edge twice": ({"pre": [0, 0], "post": [1, 1]}, "0 to 1"),
    "one end": ({"pre": [0]}, "post"),
    "channels": ({"input": None}, "input"),
    "input": ({"input": [0, 9]}, r"input\[1\]"),
    "names": ({"id": list("aabcde")}, "id"),
    "unknown": ({"stimulos": np.ones(3)}, "stimulus"),
    "type": ({"pre": [0.5], "post": [1.0]}, "pre"),
    "tau": ({"tau": np.zeros(N)}, "tau"),
    "trial": ({"trial": np.minimum(np.arange(600), 1)}, "trial"),
}


@pytest.mark.parametrize(("change", "named"), BAD.values(), ids=list(BAD))
def test_bad_arrays_are_one_line(change, named):
    arrays = own_arrays() | change
    with pytest.raises(UserError, match=named) as error:
        Recording.from_arrays(arrays.pop("voltage"), arrays.pop("dt"), **arrays)
    assert "\n" not in str(error.value)


def test_constant_neurons_are_a_warning(caplog):
    arrays = own_arrays()
    arrays["voltage"][:, 4] = 0.5
    with caplog.at_level(logging.WARNING, logger="flyjax"):
        Recording.from_arrays(**arrays)
    assert [r for r in caplog.records if "4" in r.getMessage()]


def test_files_that_are_no_recording(tmp_path):
    (tmp_path / "torn.npz").write_bytes(b"PK\3\4 torn")
    np.savez(tmp_path / "objects.npz", voltage=np.array([{}], object), dt=0.1)
    for name in ("torn.npz", "objects.npz"):
        with pytest.raises(UserError, match=name):
            load_recording(tmp_path / name)
    with pytest.raises(UserError, match="absent"):
        own_splits(Simulation(recording=str(tmp_path / "absent.npz")))


def experiment(path, **sections):
    sections["simulation"] = {"recording": str(path), **sections.get("simulation", {})}
    return parse_experiment(sections)


def test_an_experiment_learns_what_its_recording_is(tmp_path):
    path = write_npz(tmp_path / "own.npz", **own_arrays(601, 1))
    given = experiment(path)
    assert given.search.objective == "blind" and not given.training.noise_model_level
    assert "noise_model_level" not in given.search.ranges and not given.search.simulation_ranges
    found = with_recording(given)
    s = found.simulation
    assert (s.n_frames, s.n_test_frames, s.delta_t) == (450, 120, DT)
    assert with_recording(found) == found and with_recording(Experiment()) == Experiment()
    slow = write_npz(tmp_path / "slow.npz", **own_arrays(601, 1) | {"dt": 0.2})
    assert with_recording(experiment(slow)).simulation.delta_t == 0.2


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"search": {"objective": "connectivity_R2"}}, "search.objective"),
        ({"search": {"objective": "cluster_accuracy"}}, "search.objective"),
        ({"simulation": {"delta_t": 0.03}}, "simulation.delta_t"),
        ({"simulation": {"extent": 2}}, "simulation.extent"),
        ({"training": {"noise_model_level": 0.1}}, "noise_model_level"),
        ({"sweep": {"grid": {"noise_model_level": [0.1]}}}, "noise_model_level"),
        ({"search": {"simulation_ranges": {"n_frames": {"min": 32000, "max": 64000, "scale": "int"}}}}, "simulations"),
        (
            {"model": {"stimulus": "field", "field_frames": 65536}, "training": {"validation_fraction": 0.1}},
            "model.stimulus",
        ),
    ],
)
def test_settings_that_mean_nothing_are_refused(tmp_path, sections, named):
    path = write_npz(tmp_path / "own.npz", **own_arrays())
    with pytest.raises(UserError, match=named):
        with_recording(experiment(path, **sections))


def test_edges_that_the_file_lacks_are_those_of_a_connectome(tmp_path):
    tables, path = tmp_path / "tables", write_npz(tmp_path / "own.npz", **own_arrays())
    tables.mkdir()
    neurons = [f"n{k},{'ab'[k % 2]},{k + 1 if k < 2 else ''}" for k in range(N)]
    pairs = [f"n{a},n{b},1,{np.sign(w):g}" for a, b, w in zip(PRE, POST, WEIGHT)]
    (tables / "neurons.csv").write_text("\n".join(["id,type,input", *neurons]))
    (tables / "edges.csv").write_text("\n".join(["pre,post,count,sign", *pairs]))
    given = experiment(path, simulation={"connectome": str(tables), "extent": 2})
    c = own_splits(with_recording(given).simulation)[0].connectome
    assert set(zip(c.senders.tolist(), c.receivers.tolist())) == set(zip(PRE.tolist(), POST.tolist()))
    assert c.ids == tuple(f"n{k}" for k in range(N)) and c.cell_types == ("a", "b")
    (tables / "neurons.csv").write_text("\n".join(["id,type,input", *neurons, "n6,a,"]))
    with pytest.raises(UserError, match="own.npz"):
        own_splits(given.simulation)


def test_known_weights_allow_their_objective(tmp_path):
    path = write_npz(tmp_path / "own.npz", **own_arrays(), **edges(), weight=WEIGHT)
    assert with_recording(experiment(path, search={"objective": "connectivity_R2"})).simulation.n_frames
