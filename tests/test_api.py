"""flyjax.train_candidates: what it returns, and that it compiles once."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

import flyjax
from flyjax.circuit.connectome import CONNECTOME_FILE
from flyjax.data import held_out
from flyjax.utils.errors import UserError

SIMULATION = flyjax.Simulation(extent=0, visual_input_type="scenes_texture", n_frames=320, n_test_frames=40)
MODEL = flyjax.Model(width=8)
CANDIDATE = {"noise_model_level": 0.1, "batch_size": 4, "data_augmentation_loop": 10}


@pytest.fixture(scope="module")
def recordings():
    """Two recordings of one circuit, each with a connectome object of its own, as read from disk."""
    made = [flyjax.record(SIMULATION, 0.1, seed=seed) for seed in (0, 1)]
    return [
        dataclasses.replace(r, connectome=dataclasses.replace(r.connectome, senders=r.connectome.senders.copy()))
        for r in made
    ]


def test_the_interface_imports_neither_plotting_nor_signal_processing(root):
    heavy = ("matplotlib", "scipy.signal", "anthropic", "dask")
    code = f"import sys, flyjax.api; sys.exit(', '.join(m for m in {heavy} if m in sys.modules) or 0)"
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


class Compilations:
    """Counts the programs that XLA compiles, or reads from its persistent cache, within a block."""

    def __enter__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._event)
        return self

    def _event(self, name, duration, **options):
        self.count += name == "/jax/core/compile/backend_compile_duration"

    def __exit__(self, *error):
        jax.monitoring.unregister_event_duration_listener(self._event)


@pytest.fixture(scope="module")
def first(recordings):
    with Compilations() as compiled:
        results = flyjax.train_candidates(recordings[0], [CANDIDATE], seeds=[0], model=MODEL)
    assert compiled.count > 0
    return results


def test_a_second_call_compiles_nothing(recordings, first):
    with Compilations() as compiled:
        (again,) = flyjax.train_candidates(recordings[0], [CANDIDATE], seeds=[0], model=MODEL)
    assert compiled.count == 0
    assert again.learner == first[0].learner
    np.testing.assert_array_equal(again.trained[0].losses, first[0].trained[0].losses)


def test_another_recording_of_the_circuit_compiles_nothing(recordings, first):
    with Compilations() as compiled:
        (other,) = flyjax.train_candidates(
            recordings[1], [CANDIDATE | {"learning_rate_start": 2e-3}], seeds=[7], model=MODEL
        )
    assert compiled.count == 0
    assert not np.array_equal(other.trained[0].losses, first[0].trained[0].losses)


def test_results_are_by_candidate_and_seed(recordings, first):
    (result,) = first
    assert result.seeds == (0,) and len(result.params) == len(result.per_seed) == len(result.trained) == 1
    assert result.params[0]["W"].shape == (recordings[0].connectome.n_edges,)
    assert result.metrics["connectivity_R2"] == pytest.approx(result.per_seed[0]["connectivity_R2"])
    assert result.training.batch_size == 4 and result.evaluation is not None


@pytest.mark.parametrize(
    "arguments, match",
    [
        ({"candidates": []}, "at least one candidate"),
        ({"seeds": []}, "one seed"),
        ({"candidates": [{"noise_model_level": 0.2}]}, "0.2"),
        ({"candidates": [{"batch_sise": 4}]}, "batch_size"),
        ({"model": flyjax.Model(variant="B")}, "variant"),
    ],
)
def test_bad_arguments_are_refused(recordings, arguments, match):
    options = {"candidates": [CANDIDATE], "seeds": [0], "model": MODEL} | arguments
    with pytest.raises(UserError, match=match) as error:
        flyjax.train_candidates(recordings[0], **options)
    assert "\n" not in str(error.value)


TYPES = [*(f"R{k}" for k in range(1, 9)), "L1", "L2", "L3", "Mi1", "Tm3", "C3"]


@pytest.fixture(scope="module")
def small_connectome(tmp_path_factory):
    """A connectome file of 14 cell types."""
    data = json.loads(CONNECTOME_FILE.read_text())
    data["nodes"] = [node for node in data["nodes"] if node["name"] in TYPES]
    data["edges"] = [edge for edge in data["edges"] if edge["src"] in TYPES and edge["tar"] in TYPES]
    data |= {"input_units": TYPES[:8], "output_units": ["Tm3"]}
    path = tmp_path_factory.mktemp("own") / "small.json"
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize("own", ["parameters", "connectome"])
def test_an_own_circuit_is_evaluated_on_itself(own, small_connectome, tmp_path):
    extent = 1 if own == "connectome" else 0
    simulation = SIMULATION.model_copy(update={"extent": extent, "initial": "fade_in"})
    c = flyjax.build_connectome(extent, small_connectome if own == "connectome" else None)
    p = flyjax.sample_parameters(c, seed=5)
    rec = flyjax.record(simulation, 0.1, connectome=c, parameters=p)
    test = held_out(rec)
    assert test.split == "test" and test.noise_model_level == 0 and test.n_frames == 40
    v = np.asarray(flyjax.simulate(c, p, test.luminance, initial=test.voltage[0]))
    np.testing.assert_allclose(test.voltage[1:], v[:-1], atol=1e-5)
    loaded = flyjax.load_recording(rec.save(tmp_path / "rec"))
    np.testing.assert_array_equal(held_out(loaded).voltage, test.voltage)
    (result,) = flyjax.train_candidates(loaded, [CANDIDATE], seeds=[0], model=MODEL)
    assert result.metrics["test_R2"] is not None
    assert result.metrics["computed_on"] == {"training": rec.origin, "held_out": test.origin}
    assert rec.origin["circuit"] == test.origin["circuit"] and test.origin["visual_input_type"] == "scenes_flow"


def test_parameters_given_by_hand_score_as_the_same_ones_by_default():
    c = flyjax.build_connectome(0)
    own = flyjax.record(SIMULATION, 0.1, parameters=flyjax.sample_parameters(c, seed=0))
    (expected,) = flyjax.train_candidates(SIMULATION, [CANDIDATE], seeds=[0], model=MODEL)
    (found,) = flyjax.train_candidates(own, [CANDIDATE], seeds=[0], model=MODEL)
    for name in ("test_R2", "one_step_R2", "connectivity_R2"):
        assert found.metrics[name] == pytest.approx(expected.metrics[name], rel=1e-4)
    assert found.metrics["computed_on"]["held_out"]["circuit"] == expected.metrics["computed_on"]["held_out"]["circuit"]


def other_voltages(rec):
    return dataclasses.replace(rec, voltage=rec.voltage[::-1].copy())


def other_parameters(rec):
    return dataclasses.replace(rec, parameters=rec.parameters._replace(tau=2 * np.asarray(rec.parameters.tau)))


def other_luminance(rec):
    return dataclasses.replace(rec, luminance=1 - rec.luminance)


def the_test_split(rec):
    return flyjax.record(rec.simulation, 0.1, split="test")


def no_held_out_stimulus(rec):
    simulation = rec.simulation.model_copy(update={"test_visual_input_type": "DAVIS", "data_path": "/nowhere"})
    return dataclasses.replace(rec, simulation=simulation)


@pytest.mark.parametrize(
    "change", [other_voltages, other_parameters, other_luminance, the_test_split, no_held_out_stimulus]
)
def test_a_recording_without_a_held_out_one_is_refused(recordings, change):
    with pytest.raises(UserError) as error:
        held_out(change(recordings[0]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("changes", [{"measurement_noise_level": 0.1}, {"n_recordings": 2}, {"null_edges": 0.5}])
def test_every_recording_of_a_simulation_has_a_held_out_one(changes):
    rec = flyjax.record(SIMULATION.model_copy(update={**changes, "voltage_dtype": "float16"}), 0.1, seed=3)
    test = held_out(rec)
    assert test.connectome == rec.connectome and test.origin["circuit"] == rec.origin["circuit"]


@pytest.fixture
def jax_flag():
    """Set a flag of JAX for one test."""
    before = {}

    def set_flag(name, value):
        before.setdefault(name, jax.config.values[name])
        jax.config.update(name, value)

    yield set_flag
    for name, value in before.items():
        jax.config.update(name, value)


def test_double_precision_changes_no_number(jax_flag, recordings, first):
    jax_flag("jax_enable_x64", True)
    rec = flyjax.record(SIMULATION, 0.1)
    assert rec.voltage.dtype == np.float32
    np.testing.assert_allclose(rec.voltage, recordings[0].voltage, atol=1e-5)
    (result,) = flyjax.train_candidates(rec, [CANDIDATE], seeds=[0], model=MODEL)
    np.testing.assert_allclose(result.trained[0].losses, first[0].trained[0].losses, rtol=1e-3)


@pytest.mark.parametrize("flag", ["jax_debug_nans", "jax_debug_infs"])
def test_stopping_at_nan_is_refused_before_the_training(jax_flag, recordings, flag):
    jax_flag(flag, True)
    with pytest.raises(UserError, match=flag.upper()):
        flyjax.train_candidates(recordings[0], [CANDIDATE], seeds=[0], model=MODEL)


def test_the_default_stimulus_without_its_data_is_one_line_with_the_remedy(monkeypatch):
    monkeypatch.delenv("FLYJAX_DATA", raising=False)
    for use in (flyjax.record, lambda simulation: flyjax.train_candidates(simulation, [{}])):
        with pytest.raises(UserError, match="DAVIS.*FLYJAX_DATA.*scenes_texture") as error:
            use(flyjax.Simulation(extent=0))
        assert "\n" not in str(error.value)
