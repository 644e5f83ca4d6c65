"""flyjax.train_candidates: what it returns, and that it compiles once."""

import dataclasses

import jax
import numpy as np
import pytest

import flyjax
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
