"""Several nodes judged at once are judged as each alone, in order, and warnings are left as they were."""

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from flyjax.config import Model, Simulation, Training
from flyjax.data.cache import Recordings
from flyjax.experiments import nodes
from flyjax.recovery import clusters, normal_equations
from flyjax.recovery.readout import per_recording
from flyjax.training import train_sweep

SIMULATION = Simulation(extent=0, visual_input_type="scenes_texture", n_frames=320, n_test_frames=60)


@pytest.fixture(scope="module")
def trained():
    model = Model(width=8)
    learner, recordings = nodes.learner_for(SIMULATION, model), Recordings(SIMULATION)
    specs = [
        nodes.NodeSpec(k, Training(noise_model_level=level, data_augmentation_loop=2), (k,))
        for k, level in enumerate((0.05, 0.1, 0.05, 0.1, 0.05))
    ]
    return (
        learner,
        specs,
        train_sweep(learner, [s.training for s in specs], [s.seeds for s in specs], recordings.train),
        recordings,
    )


@pytest.mark.parametrize("cores", [1, 4])
def test_together_is_as_alone_in_order(trained, cores, monkeypatch):
    learner, specs, runs, recordings = trained
    monkeypatch.setattr(normal_equations, "cores", lambda: cores)
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
    monkeypatch.setattr(normal_equations, "cores", lambda: 8)
    assert normal_equations._workers() == 8
    with normal_equations.sharing(3):
        assert normal_equations._workers() == 2
    with normal_equations.sharing(20):
        assert normal_equations._workers() == 1
    assert normal_equations._workers() == 8


@pytest.mark.parametrize("capacity, most", [(1, 1), (2, 2), (99, 4)])
def test_no_more_at_once_than_have_room(trained, capacity, most, monkeypatch):
    learner, specs, runs, recordings = trained
    now, seen, lock, together = [], [], threading.Lock(), threading.Barrier(most)

    def slow(learner, spec, *rest):
        with lock:
            now.append(spec.id)
            seen.append(len(now))
        if spec.id:  # the first is alone
            together.wait(10)  # fewer at once would never meet
        with lock:
            now.remove(spec.id)
        return spec.id, None

    monkeypatch.setattr(nodes, "judge", slow)
    monkeypatch.setattr(Recordings, "capacity", capacity)
    monkeypatch.setattr(normal_equations, "cores", lambda: 8)
    assert [k for k, _ in nodes.judged(learner, specs, runs, recordings)] == [s.id for s in specs]
    assert max(seen) <= most


def test_capacity_counts_derivatives_that_are_loaded():
    recordings = Recordings(SIMULATION)
    recording = recordings.train(0.05)
    recordings._max_bytes = 4 * recording.voltage.nbytes
    before = recordings.capacity
    assert recording.derivative is not None
    assert (before, recordings.capacity) == (4, 2)


def test_an_interrupt_says_that_it_waits_and_begins_no_more(trained, monkeypatch):
    learner, specs, runs, recordings = trained
    begun, said, inside, told = [], [], threading.Event(), threading.Event()

    def judge(learner, spec, *rest):
        begun.append(spec.id)
        if spec.id == 2:
            inside.set()
        assert spec.id != 2 or told.wait(10), "nobody said that node 2 is waited for"
        return spec.id, None

    def say(text):
        said.append(text)
        told.set()

    monkeypatch.setattr(nodes, "judge", judge)
    monkeypatch.setattr(Recordings, "capacity", 2)
    monkeypatch.setattr(normal_equations, "cores", lambda: 2)
    going = nodes.judged(learner, specs, runs, recordings, say)
    assert [next(going)[0], next(going)[0]] == [0, 1] and inside.wait(10)
    with pytest.raises(KeyboardInterrupt):
        going.throw(KeyboardInterrupt)
    assert said == ["stopping when the nodes in judgement are done"] and max(begun) == 2


def test_recordings_are_computed_on_side_by_side_and_each_once():
    class Thing:
        pass

    calls = []

    @per_recording
    def slow(recording):
        calls.append(recording)
        together.wait(5)  # passes only where both are inside at once
        return len(calls)

    one, other, together = Thing(), Thing(), threading.Barrier(2)
    with ThreadPoolExecutor(4) as pool:
        got = [pool.submit(slow, thing).result for thing in (one, other, one, other)]
        assert {f() for f in got} <= {1, 2}
    assert len(calls) == 2


def test_warnings_are_quiet_while_any_thread_is_in_it():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with clusters._QUIET:
            with clusters._QUIET:
                warnings.warn("unheard")
            warnings.warn("unheard still")
        warnings.warn("heard")
    assert [str(w.message) for w in seen] == ["heard"]
