"""Circuits of one's own from tables to the recovered parameters."""

import json

import numpy as np
import pytest
from support.pages import follow

from flyjax.circuit import build_connectome, load_parameters
from flyjax.config import Model, Simulation, Training
from flyjax.data import record
from flyjax.models import make_learner
from flyjax.recovery import extract
from flyjax.training import train_sweep


def test_the_page_recovers_three_neurons(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = "train.py experiments/motion_pathway.yaml"
    small = f"{given} --set training.data_augmentation_loop=10 --set simulation.n_frames=100"
    printed = follow(root / "docs" / "how_to" / "own_connectome.md", {given: small})
    assert "connectome three_neurons" in printed[0]
    node = tmp_path / "runs" / "three_neurons" / "nodes" / "0001"
    metrics = json.loads((node / "metrics.json").read_text())
    assert min(metrics[name] for name in ("connectivity_R2", "tau_R2", "V_rest_R2", "test_R2")) > 0.99
    assert (node / "figures" / "activity.png").is_file()


def test_the_page_of_own_parameters(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    follow(root / "docs" / "how_to" / "own_ground_truth.md")
    assert (tmp_path / "mine" / "traces.png").is_file()


@pytest.fixture(scope="module")
def flywire(tmp_path_factory):
    """A made-up export of Codex: 50,000 neurons, 1.3 million edges."""
    folder, rng = tmp_path_factory.mktemp("flywire"), np.random.default_rng(0)
    n, degree = 50_000, 26
    ids = 720575940600000000 + np.arange(n)
    with open(folder / "neurons.csv", "w") as file:
        file.write("root_id,primary_type,input\n")
        file.writelines(f"{ids[k]},T{k % 300},{k % 217 + 1 if k < 2000 else ''}\n" for k in range(n))
    steps = np.stack([rng.choice(n - 1, degree, replace=False) + 1 for _ in range(200)])
    with open(folder / "connections.csv", "w") as file:
        file.write("pre_root_id,post_root_id,neuropil,syn_count,nt_type\n")
        for k in range(n):
            others, kind = ids[(k + steps[k % 200]) % n], ("ACH", "GABA", "GLUT")[k % 3]
            file.write("".join(f"{ids[k]},{other},ME_R,{1 + j % 9},{kind}\n" for j, other in enumerate(others)))
    return folder


def test_a_circuit_of_flywires_size_is_recorded_trained_and_read_off(flywire, tmp_path):
    c = build_connectome(8, flywire)
    assert (c.n_neurons, c.n_edges, c.n_types) == (50_000, 1_300_000, 300)
    weight = 0.02 * c.sign * c.n_syn
    np.savez(tmp_path / "p.npz", weight=weight, tau=np.full(c.n_neurons, 0.05), v_rest=np.full(c.n_neurons, 0.1))
    simulation = Simulation(
        connectome=str(flywire), parameters=str(tmp_path / "p.npz"), visual_input_type="scenes_texture", n_frames=24
    )
    assert np.array_equal(load_parameters(c, tmp_path / "p.npz").weight, weight.astype(np.float32))
    recording = record(simulation, 0.05)
    assert recording.voltage.shape == (24, 50_000) and np.isfinite(recording.voltage).all()
    learner = make_learner(recording.connectome, Model(width=4, n_layers=2))
    training = Training(data_augmentation_loop=0.5, noise_model_level=0.05)
    trained = train_sweep(learner, [training], [(0,)], {0.05: recording})[0][0]
    assert np.isfinite(trained.final_loss)
    estimate = extract(learner, trained.params, recording).estimate
    assert estimate.weight.shape == (1_300_000,) and np.isfinite(estimate.weight).mean() > 0.9
