"""Nodes evaluated concurrently give the results of each alone, in order, and leave warning filters unchanged."""

import dataclasses
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from flyjax.config import Model, Simulation, Training
from flyjax.data.cache import Recordings
from flyjax.experiments import node
from flyjax.models import normal_equations
from flyjax.recovery.samples import per_recording
from flyjax.training import train_sweep

SIMULATION = Simulation(extent=0, visual_input_type="scenes_texture", n_frames=320, n_test_frames=60)


@pytest.fixture(scope="module")
def trained():
    model = Model(width=8)
    learner, recordings = node.learner_for(SIMULATION, model), Recordings(SIMULATION)
    specs = [
        node.NodeSpec(k, Training(noise_model_level=level, data_augmentation_loop=2), (k,))
        for k, level in enumerate((0.05, 0.1, 0.05, 0.1, 0.05))
    ]
    return (
        learner,
        specs,
        train_sweep(learner, [s.training for s in specs], [s.seeds for s in specs], recordings.train),
        recordings,
    )


def arguments(spec, trained, recordings):
    return spec.training, trained, recordings.train(spec.training.noise_model_level), recordings.test


def test_each_seed_has_its_own_metrics(trained):
    """And the estimates of a node are those of the seed with the lowest training loss, wherever it stands."""
    learner, specs, runs, recordings = trained
    several = [runs[0][0], runs[2][0], runs[4][0]]  # of one noise level
    best = min(range(3), key=lambda k: several[k].final_loss)
    for order in ([best, *(k for k in range(3) if k != best)], [*(k for k in range(3) if k != best), best]):
        own = [several[k] for k in order]
        per_seed, evaluation = node.evaluate_node(learner, *arguments(specs[0], own, recordings))
        alone = [node.evaluate_node(learner, *arguments(specs[0], [one], recordings)) for one in own]
        for metrics, one, (expected, _) in zip(per_seed, own, alone, strict=True):
            assert metrics["final_loss"] == one.final_loss
            assert metrics["connectivity_R2"] == pytest.approx(expected[0]["connectivity_R2"])
        assert len({m["connectivity_R2"] for m in per_seed}) == 3
        np.testing.assert_allclose(evaluation.estimate.weight, alone[order.index(best)][1].estimate.weight, rtol=1e-6)
        pooled = node.pool_metrics(per_seed)
        assert pooled["connectivity_R2"] == pytest.approx(np.mean([m["connectivity_R2"] for m in per_seed]))


@pytest.mark.parametrize("cores", [1, 4])
def test_concurrent_evaluation_gives_the_same_results_in_order(trained, cores, monkeypatch):
    learner, specs, runs, recordings = trained
    monkeypatch.setattr(node, "cores", lambda: cores)
    monkeypatch.setattr(normal_equations, "cores", lambda: cores)
    before = list(warnings.filters)
    together = list(node.evaluate_nodes(learner, specs, runs, recordings))
    assert warnings.filters == before
    with threadpool_limits(1):
        alone = [
            node.evaluate_node(learner, *arguments(spec, own, recordings))
            for spec, own in zip(specs, runs, strict=True)
        ]
    for (found, evaluation), (expected, reference) in zip(together, alone, strict=True):
        assert [m for m in found[0] if found[0][m] != expected[0][m]] == []
        np.testing.assert_array_equal(evaluation.estimate.weight, reference.estimate.weight)
    assert len({m[0]["connectivity_R2"] for m, _ in together}) == len(specs), "each has its own result"


def test_nodes_of_one_recording_are_evaluated_together(trained, monkeypatch):
    """A seed that diverged is in no group; at most two networks at once."""
    learner, specs, runs, recordings = trained
    order = (0, 2, 4, 1, 3)
    specs, runs = [specs[k] for k in order], [runs[k] for k in order]
    runs[1] = [dataclasses.replace(runs[1][0], diverged_at=3), *runs[1]]
    made = []

    class Counted(node.Group):
        def __init__(self, learner, networks, *recordings):
            super().__init__(learner, networks, *recordings)
            made.append(len(networks))

    alone = [
        node.evaluate_node(learner, *arguments(spec, own, recordings)) for spec, own in zip(specs, runs, strict=True)
    ]
    monkeypatch.setattr(node, "group_size", lambda *_: 2)
    monkeypatch.setattr(node, "Group", Counted)
    together = list(node.evaluate_nodes(learner, specs, runs, recordings))
    assert made == [2, 1, 2]
    for (found, _), (expected, _) in zip(together, alone, strict=True):
        for one, other in zip(found, expected, strict=True):
            assert one.keys() == other.keys()
            numbers = {k: v for k, v in other.items() if isinstance(v, float)}
            assert {k: one[k] for k in numbers} == pytest.approx(numbers, rel=1e-5)
    assert together[1][0][0]["final_loss"] is None


def test_the_metrics_of_a_node_name_its_recordings_even_where_all_seeds_diverged(trained):
    learner, specs, runs, recordings = trained
    diverged = [dataclasses.replace(one, diverged_at=3) for one in runs[1]]
    metrics = node.pool_metrics(node.evaluate_node(learner, *arguments(specs[1], diverged, recordings))[0])
    assert metrics["connectivity_R2"] is None
    assert metrics["computed_on"] == {"training": recordings.train(0.1).origin, "held_out": recordings.test.origin}


def test_a_failing_evaluation_raises_in_order(trained, monkeypatch):
    learner, specs, runs, recordings = trained
    evaluate_node = node.evaluate_node

    def breaks(learner, training, trained, *rest):
        if trained is runs[3]:
            raise RuntimeError("node 3 broke")
        return evaluate_node(learner, training, trained, *rest)

    monkeypatch.setattr(node, "evaluate_node", breaks)
    got = node.evaluate_nodes(learner, specs, runs, recordings)
    assert [next(got) is not None for _ in range(3)] == [True] * 3
    with pytest.raises(RuntimeError, match="node 3 broke"):
        next(got)


@pytest.mark.parametrize("cores, threads_each", [(8, 2), (2, 1)])
def test_concurrent_evaluations_share_the_cores(trained, cores, threads_each, monkeypatch):
    learner, specs, runs, recordings = trained
    monkeypatch.setattr(node, "evaluate_node", lambda *arguments: arguments[5:])
    monkeypatch.setattr(node, "cores", lambda: cores)
    got = list(node.evaluate_nodes(learner, specs, runs, recordings))
    assert got == [()] + 4 * [(threads_each,)]  # the first is alone


@pytest.mark.parametrize("capacity, most", [(1, 1), (2, 2), (99, 4)])
def test_no_more_evaluations_at_once_than_fit_in_memory(trained, capacity, most, monkeypatch):
    learner, specs, runs, recordings = trained
    now, counts, lock, together = [], [], threading.Lock(), threading.Barrier(most)

    def slow(learner, training, trained, *rest):
        k = [run is trained for run in runs].index(True)
        with lock:
            now.append(k)
            counts.append(len(now))
        if k:  # the first is alone
            together.wait(10)  # fewer at once would never meet
        with lock:
            now.remove(k)
        return k, None

    monkeypatch.setattr(node, "evaluate_node", slow)
    monkeypatch.setattr(Recordings, "capacity", capacity)
    monkeypatch.setattr(node, "cores", lambda: 8)
    assert [k for k, _ in node.evaluate_nodes(learner, specs, runs, recordings)] == [s.id for s in specs]
    assert max(counts) == most


def test_capacity_counts_derivatives_that_are_loaded():
    recordings = Recordings(SIMULATION)
    recording = recordings.train(0.05)
    recordings._max_bytes = 4 * recording.voltage.nbytes
    before = recordings.capacity
    assert recording.derivative is not None
    assert (before, recordings.capacity) == (4, 2)


def test_an_interrupt_reports_that_it_waits_and_starts_no_more(trained, monkeypatch):
    learner, specs, runs, recordings = trained
    begun, reports, inside, reported = [], [], threading.Event(), threading.Event()

    def evaluate(learner, training, trained, *rest):
        k = [run is trained for run in runs].index(True)
        begun.append(k)
        if k == 2:
            inside.set()
            assert reported.wait(10), "nothing reports that node 2 is waited for"
        return k, None

    def report(text):
        reports.append(text)
        reported.set()

    monkeypatch.setattr(node, "evaluate_node", evaluate)
    monkeypatch.setattr(Recordings, "capacity", 2)
    monkeypatch.setattr(node, "cores", lambda: 2)
    evaluations = node.evaluate_nodes(learner, specs, runs, recordings, report)
    assert [next(evaluations)[0], next(evaluations)[0]] == [0, 1] and inside.wait(10)
    with pytest.raises(KeyboardInterrupt):
        evaluations.throw(KeyboardInterrupt)
    assert len(reports) == 1 and max(begun) == 2


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
