"""Several nodes judged at once are judged as each alone, in order, and warnings are left as they were."""

import warnings

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from flyjax import nodes
from flyjax.config import Model, Simulation, Training
from flyjax.recovery import clusters, equations
from flyjax.training import train_sweep

SIMULATION = Simulation(extent=0, visual_input_type="scenes_texture", n_frames=320, n_test_frames=60)


@pytest.fixture(scope="module")
def trained():
    model = Model(width=8)
    learner, recordings = nodes.learner_for(SIMULATION, model), nodes.Recordings(SIMULATION)
    specs = [nodes.NodeSpec(k, Training(noise_model_level=level, data_augmentation_loop=2), (k,)) for k, level in enumerate((0.05, 0.1, 0.05, 0.1, 0.05))]
    return learner, specs, train_sweep(learner, [s.training for s in specs], [s.seeds for s in specs], recordings.train), recordings


@pytest.mark.parametrize("cores", [1, 4])
def test_together_is_as_alone_in_order(trained, cores, monkeypatch):
    learner, specs, runs, recordings = trained
    monkeypatch.setattr(equations, "cores", lambda: cores)
    before = list(warnings.filters)
    together = list(nodes.judged(learner, specs, runs, recordings))
    assert warnings.filters == before
    with threadpool_limits(1):
        alone = [nodes.judge(learner, spec, own, recordings) for spec, own in zip(specs, runs, strict=True)]
    for (found, evaluation), (expected, reference) in zip(together, alone, strict=True):
        assert [m for m in found[0] if found[0][m] != expected[0][m]] == []
        np.testing.assert_array_equal(evaluation.found.weight, reference.found.weight)
    assert len({m[0]["connectivity_R2"] for m, _ in together}) == len(specs), "each has its own result"


def test_one_that_fails_is_told(trained, monkeypatch):
    learner, specs, runs, recordings = trained
    judge = nodes.judge

    def breaks(learner, spec, *rest):
        if spec.id == 3:
            raise RuntimeError("node 3 broke")
        return judge(learner, spec, *rest)

    monkeypatch.setattr(nodes, "judge", breaks)
    got = nodes.judged(learner, specs, runs, recordings)
    assert [next(got) is not None for _ in range(3)] == [True] * 3
    with pytest.raises(RuntimeError, match="node 3 broke"):
        next(got)


def test_threads_that_compute_at_once_share_the_cores(monkeypatch):
    monkeypatch.setattr(equations, "cores", lambda: 8)
    assert equations._workers() == 8
    with equations.sharing(3):
        assert equations._workers() == 2
    with equations.sharing(20):
        assert equations._workers() == 1
    assert equations._workers() == 8


def test_no_more_recordings_at_once_than_have_room():
    recordings = nodes.Recordings(SIMULATION, hold_bytes=1)
    recordings.train(0.05)
    assert recordings.room == 1
    assert nodes.Recordings(SIMULATION, hold_bytes=1e9).room >= 1


def test_warnings_are_quiet_while_any_thread_is_in_it():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with clusters._QUIET:
            with clusters._QUIET:
                warnings.warn("unheard")
            warnings.warn("unheard still")
        warnings.warn("heard")
    assert [str(w.message) for w in seen] == ["heard"]
