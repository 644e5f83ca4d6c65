"""Nodes trained together: what is complete when the training ends."""

import time
from types import SimpleNamespace

import pytest

from flyjax.config import Simulation, Training
from flyjax.data import Recording, Recordings, load_recording
from flyjax.experiments import workers
from flyjax.experiments.node import NodeSpec


@pytest.mark.parametrize("ends", [KeyboardInterrupt, None])
def test_recordings_are_stored_when_a_training_ends(tmp_path, monkeypatch, ends):
    simulation = Simulation(extent=0, visual_input_type="scenes_texture", n_frames=50, n_test_frames=50)
    experiment = SimpleNamespace(training=Training())
    save, used = Recording.save, []

    def slow(recording, path):
        time.sleep(0.3)
        return save(recording, path)

    def train_sweep(learner, candidates, seeds, recording_of, **options):
        used.append(recording_of(0.05))
        assert not list(tmp_path.glob("recordings/[0-9a-f]*"))
        if ends is not None:
            raise ends

    monkeypatch.setattr(Recording, "save", slow)
    monkeypatch.setattr(workers, "train_sweep", train_sweep)
    recordings = Recordings(simulation, tmp_path / "recordings", beside=True)
    spec, learner = NodeSpec(1, experiment.training, (0,)), SimpleNamespace()
    arguments = tmp_path, experiment, simulation, [spec], learner, recordings
    if ends is None:
        workers.train_nodes_together(*arguments)
    else:
        with pytest.raises(ends):
            workers.train_nodes_together(*arguments)
    assert load_recording(tmp_path / "recordings" / used[0].cache_key).n_frames == 50
