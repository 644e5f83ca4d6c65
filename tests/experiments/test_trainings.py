"""The table of trainings: what its rows say, and that a stopped or extended study goes on."""

import numpy as np
import pytest

from flyjax.cli.console import Console
from flyjax.config import Range, parse_experiment
from flyjax.config.ranges import unit
from flyjax.experiments import trainings, workers
from flyjax.experiments.node import learner_for
from flyjax.experiments.sweep import node_specs, sobol_settings, sweep_candidates
from flyjax.recovery import evaluate
from flyjax.utils.errors import UserError

RANGES = {
    "learning_rate_start": {"min": 1e-5, "max": 1e-3, "scale": "log"},
    "noise_model_level": {"scale": "choice", "values": [0, 0.05]},
    "batch_size": {"scale": "choice", "values": [1, 2]},
}
STUDY = {
    "name": "tiny",
    "simulation": {"extent": 0, "visual_input_type": "scenes_texture", "n_frames": 200, "n_test_frames": 60},
    "model": {"width": 8},
    "training": {"n_seeds": 2, "data_augmentation_loop": 2},
    "search": {"ranges": RANGES, "simulation_ranges": {}},
}


def study(n, **training):
    return parse_experiment(
        {**STUDY, "training": STUDY["training"] | training, "sweep": {"n_sobol": n, "output": "trainings"}}
    )


def run(experiment, run_dir):
    trainings.run_trainings(experiment, node_specs(experiment, sweep_candidates(experiment)), run_dir, Console())
    return trainings.read_rows(run_dir / "trainings.csv")


def test_a_sobol_sequence_fills_every_range_evenly_and_a_longer_one_continues_it():
    ranges = {
        "a": Range(min=1e-4, max=1, scale="log"),
        "b": Range(min=-2, max=6),
        "c": Range(min=1, max=4, scale="int"),
        "d": Range(scale="choice", values=("x", "y")),
    }
    points = sobol_settings(ranges, 64, seed=3)
    for name in "ab":
        places = np.array([unit(ranges[name], p[name]) for p in points])
        # Rounded to three digits, a value at a border may fall into the next of the 32 intervals.
        assert np.abs(np.sort(places) - (np.arange(64) + 0.5) / 64).max() < 1.2 / 64
    assert [sum(p["c"] == v for p in points) for v in (1, 2, 3, 4)] == [16] * 4
    assert sum(p["d"] == "x" for p in points) == 32
    assert sobol_settings(ranges, 21, seed=3) == points[:21] and sobol_settings(ranges, 21, seed=4) != points[:21]


def test_a_row_has_the_metrics_of_the_trained_network(tmp_path, monkeypatch):
    kept, train_sweep = [], workers.train_sweep

    def train(learner, candidates, seeds, recordings, **options):
        out = train_sweep(learner, candidates, seeds, recordings, **options)
        kept.extend((c, one, recordings(c.noise_model_level)) for c, own in zip(candidates, out) for one in own)
        return out

    monkeypatch.setattr(workers, "train_sweep", train)
    experiment = study(3)
    rows = run(experiment, tmp_path / "run")
    assert len(rows) == 6 and {row["node"] for row in rows} == {1, 2, 3}
    test = trainings.Recordings(experiment.simulation, tmp_path / "run" / "recordings").test
    for row in rows:
        candidate, one, recording = next(each for each in kept if each[1].seed == row["seed"])
        learner = learner_for(experiment.simulation, experiment.model)
        known = evaluate(learner, one.params, recording, test, final_loss=one.final_loss, with_refit=False).metrics
        for name in trainings.METRICS:
            assert row[name] == known[name]
        assert all(row[name] == getattr(candidate, name) for name in RANGES)


def test_a_stopped_study_loses_one_chunk_and_a_larger_one_trains_only_what_is_new(tmp_path, monkeypatch):
    monkeypatch.setattr(trainings, "LANES", 4)
    calls, train_sweep = [], workers.train_sweep

    def train(learner, candidates, *arguments, **options):
        calls.append(len(candidates))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train_sweep(learner, candidates, *arguments, **options)

    monkeypatch.setattr(workers, "train_sweep", train)
    with pytest.raises(KeyboardInterrupt):
        run(study(4), tmp_path)
    rows = run(study(4), tmp_path)
    assert calls == [2] * 3 and len(rows) == len({(row["node"], row["seed"]) for row in rows}) == 8
    assert run(study(4), tmp_path) == rows and len(calls) == 3
    longer = run(study(6), tmp_path)
    assert longer[:8] == rows and sorted({row["node"] for row in longer[8:]}) == [5, 6]
    with pytest.raises(UserError, match="--run"):
        run(study(6, coeff_W_L1=0.5), tmp_path)


def test_a_training_that_diverges_is_a_row_without_metrics(tmp_path):
    rows = run(study(1, learning_rate_embedding_start=1e12), tmp_path)
    assert len(rows) == 2 and all("diverged at step" in r["reason"] and r["connectivity_R2"] is None for r in rows)
    assert all(r["final_loss"] is None and r["n_steps"] < 80 for r in rows)


@pytest.mark.parametrize(
    "table", ["seed\n1\n", "node,seed\n1,x\n", "node,seed\n1\n", "node,seed,node\n1,2,3\n", "node,seed\n1,2\n\0"]
)
def test_a_damaged_table_is_one_line_and_not_continued(tmp_path, table):
    path = tmp_path / "trainings.csv"
    path.write_text(table)
    with pytest.raises(UserError, match=str(path)):
        trainings.read_rows(path)
