"""Choosing networks with and without ground truth, in recovery and among the nodes of a run."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from support.recovery_fixtures import SIMULATION

from flyjax.config import Training
from flyjax.experiments.reevaluate import _recordings, node_selection
from flyjax.recovery.model_selection import selection
from flyjax.training.sweep import relative_error, target_spread
from flyjax.utils.errors import UserError


def test_choices_with_and_without_ground_truth():
    networks = {
        1: {"connectivity_R2": 0.9, "test_R2": 0.8, "final_error": 3.0},
        2: {"connectivity_R2": 0.5, "test_R2": 0.99, "final_error": 2.0},
        3: {"connectivity_R2": 0.7, "test_R2": None, "final_error": 1.0},
        4: {"connectivity_R2": None, "test_R2": 1.0, "final_error": 0.1},
    }
    oracle, test, loss = selection(networks)
    assert (oracle["chosen"], oracle["regret"], oracle["rank"], oracle["spearman"]) == (1, 0.0, 1, pytest.approx(1.0))
    assert (test["chosen"], test["of"], test["spearman"]) == (2, 2, None) and test["regret"] == pytest.approx(0.4)
    assert (loss["chosen"], loss["rank"], loss["of"]) == (3, 2, 3) and loss["spearman"] == pytest.approx(-0.5)
    assert selection({1: {"connectivity_R2": None}}) == []


def write_node(run, number, n_frames=100, **metrics):
    folder = run / "nodes" / f"{number:04d}"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"simulation: {{n_frames: {n_frames}}}")
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def test_nodes_are_chosen_within_a_block(tmp_path):
    for number, r2 in ((1, 0.5), (2, 0.6)):  # a stimulus that is hard to predict
        write_node(tmp_path, number, connectivity_R2=r2, test_R2=0.1 * r2, final_error=1 - r2)
    for number, r2 in ((3, 0.3), (4, 0.2), (6, None)):  # an easy one
        write_node(tmp_path, number, 200, connectivity_R2=r2, test_R2=0.9, final_error=0.01)
    rows = node_selection(tmp_path)
    assert [(r["among"], r["chosen_on"], r["chosen"]) for r in rows if r["chosen_on"] == "test_R2"] == [
        ("1-2", "test_R2", 2),
        ("3 nodes from 3", "test_R2", 3),
    ]
    assert all(r["regret"] == 0 for r in rows if r["among"] == "1-2")


def test_losses_of_other_batch_sizes_rollouts_and_noise_compare_as_relative_errors():
    """Of the best constant prediction, the relative error is 1, whatever the shape of the batch."""
    rng = np.random.default_rng(0)
    for noise, batch, steps in ((1.0, 1, 1), (30.0, 4, 1), (30.0, 4, 8)):
        rate = noise * rng.normal(size=(4000, 50)) + np.arange(50)
        like = SimpleNamespace(voltage=rate, pairs=lambda frames, rate=rate: (None, None, rate[frames]))
        error = (rate - rate.mean(axis=0))[: batch * steps * 100].reshape(100, -1)
        loss = np.linalg.norm(error, axis=1).mean()
        training = Training(batch_size=batch, rollout_steps=steps)
        assert relative_error(loss, training, 50, target_spread(like)) == pytest.approx(1, rel=0.05)


def test_recordings_of_a_node_are_those_of_its_run_under_its_runs_limit(tmp_path):
    folder = write_node(tmp_path / "run", 7)
    (tmp_path / "run" / "config.yaml").write_text("search: {max_disk_gb: 150}")
    recordings, line = _recordings(folder, SIMULATION)
    assert (recordings._cache_dir, recordings._max_disk_gb, line) == (
        (tmp_path / "run" / "recordings").resolve(),
        150,
        "",
    )
    (tmp_path / "run" / "config.yaml").write_text("search: {max_disk_gb: many}")
    with pytest.raises(UserError, match="search.max_disk_gb"):
        _recordings(folder, SIMULATION)
    copied = tmp_path / "a" / "copy"
    copied.parent.mkdir()
    folder.rename(copied)
    recordings, line = _recordings(copied, SIMULATION)
    assert recordings._cache_dir == copied / "recordings" and str(copied) in line and "nodes/NNNN" in line
