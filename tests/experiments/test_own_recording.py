"""Learning from a recording of one's own: as from a simulated one, and with no ground truth in any result."""

import json

import jax
import numpy as np
import pytest
from support.own_recordings import V_REST, WEIGHT, edges, own_arrays
from support.pages import follow

from flyjax.config import Model, Simulation, Training, load_experiment
from flyjax.data import Recording, load_recording, record
from flyjax.models import make_learner
from flyjax.recovery import closed_form
from flyjax.training import train_sweep

TRUTH = ("connectivity_R2", "tau_R2", "V_rest_R2", "cluster_accuracy", "ARI", "identifiable_weight_variance")
SETTINGS = (
    "model.width=8", "model.units=data", "training.data_augmentation_loop=10", "search.n_blocks=1",
    "search.n_iter_block=1", "search.n_candidates=2", "search.confirm_share=0", "search.proposer=rules",
)  # fmt: skip


@pytest.fixture
def own_file(tmp_path):
    np.savez(tmp_path / "own.npz", **own_arrays())
    return tmp_path / "own.npz"


@pytest.mark.parametrize("target", ["exact", "difference"])
def test_an_exported_recording_trains_bit_by_bit_as_the_simulated_one(target):
    simulation = Simulation(extent=0, visual_input_type="scenes_texture", n_frames=120, n_test_frames=16, target=target)
    simulated = record(simulation, 0.05)
    c, voltage, light = simulated.connectome, simulated.voltage, simulated.luminance
    arrays = {"derivative": simulated.derivative}
    if target == "difference":
        voltage, light, arrays = np.vstack([voltage, simulated.final]), np.vstack([light, light[-1:]]), {}
    own = Recording.from_arrays(
        voltage, simulated.dt, stimulus=light, input=c.inputs, input_channel=c.input_column, pre=c.senders,
        post=c.receivers, type=np.array(c.cell_types)[c.cell_type], **arrays,
    )  # fmt: skip
    assert own.n_frames == simulated.n_frames
    training = Training(data_augmentation_loop=5, coeff_edge_bend=10)
    results = [
        train_sweep(make_learner(r.connectome, Model(width=8, units="data")), [training], [[3]], lambda _, r=r: r)[0][0]
        for r in (simulated, own)
    ]
    assert np.array_equal(results[0].losses, results[1].losses)
    assert jax.tree.all(jax.tree.map(np.array_equal, results[0].params, results[1].params))


def test_the_closed_form_recovers_what_is_known_and_compares_nothing_else():
    bound = closed_form(Recording.from_arrays(**own_arrays(), **edges(), weight=WEIGHT))
    assert bound.metrics["connectivity_R2_ceiling"] > 0.99
    assert not [name for name in bound.metrics if "tau" in name or "V_rest" in name]
    assert np.allclose(bound.v_rest, V_REST, atol=1e-2)
    unknown = closed_form(Recording.from_arrays(**own_arrays(), **edges()))
    assert not [name for name in unknown.metrics if "_R2" in name] and unknown.metrics["identifiable_edges"] == 1


def test_a_blind_search_ends_without_any_ground_truth(script, root, own_file, tmp_path):
    run = tmp_path / "run"
    settings = [x for s in (f"simulation.recording={own_file}", *SETTINGS) for x in ("--set", s)]
    config = root / "experiments" / "own_recording.yaml"
    code, out, err = script("meta_loop", config, "--run", run, *settings)
    assert code == 0, err
    for node in ("0001", "0002"):
        folder = run / "nodes" / node
        metrics = json.loads((folder / "metrics.json").read_text())
        assert not [name for name in [*metrics, *metrics["reasons"]] if name.startswith(TRUTH)]
        assert metrics["test_R2"] is not None and metrics["one_step_R2"] > 0
        assert all(name in metrics["ground_truth"] for name in ("weight", "tau", "v_rest", "cell types"))
        assert sorted(p.name for p in (folder / "figures").iterdir()) == [
            "activity.png",
            "embedding.png",
            "functions.png",
        ]
        with np.load(folder / "circuit.npz") as circuit:
            assert np.isfinite(circuit["weight_refit"]).all() and len(circuit["pre"]) == 30
    assert "recording without ground truth" in (run / "report.html").read_text("utf-8")
    assert load_experiment(run / "config.yaml").simulation.n_frames == 451
    code, out, err = script("evaluate", run)
    assert code == 0, err


@pytest.mark.parametrize("name", ["meta_loop", "train", "sweep"])
@pytest.mark.parametrize("bad", ["search.objective=tau_R2", "simulation.recording=absent.npz", "simulation.seed=3"])
def test_what_cannot_be_used_is_exit_code_2_and_one_line(script, root, own_file, tmp_path, name, bad):
    given = ["--set", f"simulation.recording={own_file}", "--set", bad, "--set", "sweep.n_random=1"]
    code, out, err = script(name, root / "experiments" / "own_recording.yaml", "--run", tmp_path / "run", *given)
    assert code == 2 and len(err.strip().splitlines()) == 1 and bad.partition("=")[0] in err


def test_a_saved_recording_of_a_simulation_is_refused(script, root, tmp_path):
    simulation = Simulation(extent=0, visual_input_type="scenes_texture", n_frames=120, n_test_frames=16)
    path = record(simulation, 0.0).save(tmp_path / "saved")
    assert load_recording(path).is_simulated and not load_recording(path).unknown
    code, out, err = script(
        "train", root / "experiments" / "own_recording.yaml", "--set", f"simulation.recording={path}", "--run", tmp_path
    )
    assert code == 2 and "saved" in err


def test_the_page_on_own_recordings_runs(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = "--set simulation.recording=my_recording.npz"
    small = "n_blocks=1 n_iter_block=1 n_candidates=1 confirm_share=0".split()
    options = ["training.data_augmentation_loop=10", *(f"search.{one}" for one in small)]
    follow(root / "docs" / "how_to" / "own_recording.md", {given: " --set ".join([given, *options])})
    for run in ("own_recording-train", "own_recording"):
        assert (tmp_path / "runs" / run / "nodes" / "0001" / "circuit.npz").is_file()
