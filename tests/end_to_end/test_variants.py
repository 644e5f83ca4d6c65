"""Every way to make a recording harder goes through training and evaluation: names of the simulation section."""

import json

import numpy as np
import pytest
from PIL import Image
from support.torch_zip import flyvis_checkpoint

from flyjax.cli.console import Console
from flyjax.config import parse_experiment
from flyjax.experiments.node import NodeSpec, learner_for
from flyjax.experiments.reevaluate import evaluate_saved_node
from flyjax.experiments.train_nodes import train_nodes
from flyjax.ground_truth import known_circuit


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A DAVIS-shaped folder of three tiny videos, and a truth that needs no calibration."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name in ("bear", "camel", "dog"):
        video = folder / "JPEGImages" / "480p" / name
        video.mkdir(parents=True)
        for k in range(12):
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(video / f"{k:05d}.jpg")
    (folder / "model").write_bytes(flyvis_checkpoint(edges_syn_strength=np.full(604, 2e-3)))
    return folder


VARIANTS = {
    "noisy": {
        "measurement_noise_level": 0.02, "n_recordings": 2, "voltage_dtype": "float16", "store_derivative": True,
        "visual_input_type": "DAVIS", "frame_rate": "resampled", "initial": "fade_in",
    },
    "null_and_removed_edges": {"null_edges": 0.3, "null_edges_kind": "random", "removed_edges": 0.2},
}  # fmt: skip


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_variant_is_trained_and_evaluated(folder, tmp_path, changes, capsys):
    simulation = {
        "extent": 0, "n_frames": 120, "n_test_frames": 60, "visual_input_type": "scenes_texture",
        "parameters": str(folder / "model"), "test_visual_input_type": "scenes_flow",
        "data_path": str(folder), **changes,
    }  # fmt: skip
    training = {"data_augmentation_loop": 10, "batch_size": 4, "noise_model_level": 0.05}
    free = {"ranges": {}, "simulation_ranges": {}}
    experiment = parse_experiment(
        {"simulation": simulation, "model": {"width": 8}, "training": training, "search": free}
    )
    out = train_nodes(experiment, [NodeSpec(0, experiment.training, (0,))], tmp_path)
    known = known_circuit(experiment.simulation)[0]
    assert learner_for(experiment.simulation, experiment.model).connectome is known
    metrics = out[0]["metrics"]
    assert metrics["connectivity_R2"] is not None and np.isfinite(metrics["final_loss"])
    assert metrics["test_frames"] == 59
    assert (tmp_path / "nodes" / "0000" / "figures" / "recovery.png").is_file()
    true = 480
    if "removed_edges" in changes:
        assert known.n_edges == pytest.approx(1.3 * 0.8 * true, rel=0.02)
    else:
        assert known.n_edges == true
        path = tmp_path / "nodes" / "0000" / "metrics.json"
        stored = json.loads(path.read_text())
        stored["computed_on"]["training"]["circuit"] = "of another fly"
        path.write_text(json.dumps(stored))
        evaluate_saved_node(tmp_path, 0, Console(), lesion=0.5)
        out = capsys.readouterr().out
        assert "of another fly" in out and "lesion_R2" in out and "figures in" in out
