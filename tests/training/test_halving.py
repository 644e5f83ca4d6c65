"""Successive halving: which lanes stop, when, and that the others are unaffected."""

import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from support.training_fixtures import Noise

from flyjax.circuit import build_connectome
from flyjax.config import Model, Training
from flyjax.models import make_learner
from flyjax.training import Halving, train_sweep
from flyjax.training.grouping import CHUNK
from flyjax.training.sweep import candidates_to_stop, check_comparable, rungs, target_spread
from flyjax.utils.errors import UserError


class LearnableNoise(Noise):
    """Random voltages whose targets can be learned in part: a share of each voltage, the rest is noise."""

    def __init__(self, connectome, seed, spread, n_frames=64):
        super().__init__(connectome, seed, n_frames)
        self.derivative = (spread * (self.derivative - 3.0 * self.voltage)).astype(np.float32)


def test_rungs_rise_to_the_end():
    assert rungs(32, None) == [32]
    assert rungs(32, Halving(2, 2)) == [8, 16, 32]
    assert rungs(32, Halving(4, 3)) == [2, 8, 32]  # 0.5 chunks is no rung
    assert rungs(1, Halving(2, 4)) == [1]


def test_the_worst_stop_and_the_finished_cannot():
    scores = {0: 0.5, 1: math.inf, 2: 0.1, 3: 0.5, 4: float("nan")}
    assert candidates_to_stop(scores, set(), 2) == {1, 4}  # three of five stay, ties to the lower number: 2, 0, 3
    assert candidates_to_stop(scores, {1}, 5) == {0, 3, 4}


def test_spread_is_the_error_of_the_mean():
    target = np.random.default_rng(0).normal(size=(4000, 7)) * 30 + np.arange(7)
    recording = SimpleNamespace(voltage=target, pairs=lambda frames: (None, None, target[frames]))
    assert (
        target_spread(recording)
        == pytest.approx(np.std(target, axis=0).mean(), rel=5e-2)
        == pytest.approx(30, rel=1e-1)
    )


def test_losses_of_other_rollouts_are_not_ranked(problem):
    learner, recordings = problem
    mixed = [Training(rollout_steps=1), Training(rollout_steps=4)]
    with pytest.raises(UserError, match="set validation_fraction") as error:
        train_sweep(learner, mixed, [[1], [2]], recordings, halving=HALVING)
    assert "\n" not in str(error.value)
    check_comparable(
        [c.model_copy(update={"validation_fraction": 0.1}) for c in mixed]
    )  # held-out errors are of one step
    check_comparable([Training(rollout_steps=4)] * 2)


HALVING = Halving(2, 2)
#: 1,024 steps: five chunks, rungs after the first and the second. Batch sizes and levels make losses of other sizes.
CANDIDATES = [
    Training(data_augmentation_loop=80, learning_rate_start=1e-3),
    Training(data_augmentation_loop=80, learning_rate_start=1e-5),
    Training(data_augmentation_loop=80, learning_rate_start=1e-3, noise_model_level=0.2),
    Training(data_augmentation_loop=160, learning_rate_start=3e-4, batch_size=2),
    Training(data_augmentation_loop=80, learning_rate_start=1e30),  # diverges
]
SEEDS = [[1, 2], [3], [4], [5], [6]]


@pytest.fixture(scope="module")
def problem():
    circuit = build_connectome(0)
    learner = make_learner(circuit, Model(width=8))
    return learner, {0.05: LearnableNoise(circuit, 0, 1.0), 0.2: LearnableNoise(circuit, 1, 20.0)}


@pytest.fixture(scope="module")
def halved(problem):
    learner, recordings = problem
    return train_sweep(learner, CANDIDATES, SEEDS, recordings, n_devices=1, halving=HALVING)


@pytest.fixture(scope="module")
def without_halving(problem):
    learner, recordings = problem
    return train_sweep(learner, CANDIDATES, SEEDS, recordings, n_devices=1)


def test_the_better_half_continues(problem, halved, without_halving):
    _, recordings = problem

    def error(k, chunks):  # from the run without halving, by the definition
        candidate = CANDIDATES[k]
        target = recordings[candidate.noise_model_level].derivative
        size = np.sqrt(candidate.batch_size * np.sum(np.square(target - target.mean(axis=0))) / len(target))
        taken = [t.losses[: chunks * CHUNK] for t in without_halving[k]]
        return np.mean([t[-CHUNK:, 0].mean() / size if len(t) == chunks * CHUNK else np.inf for t in taken])

    racing, stopped = set(range(5)), {}
    for chunks in (1, 2):
        order = sorted(racing, key=lambda k: error(k, chunks))
        for k in order[math.ceil(len(order) / 2) :]:
            racing.remove(k)
            stopped[k] = chunks * CHUNK
    assert 4 in stopped and len(stopped) == 3
    del stopped[4]  # it had stopped itself
    for k, own in enumerate(halved):
        for one, full in zip(own, without_halving[k], strict=True):
            assert one.stopped_at == stopped.get(k)
            assert one.n_steps == stopped.get(k, full.n_steps) and one.diverged_at == full.diverged_at
            # What it did until then is what it would have done (in another width, so not to the last bit).
            np.testing.assert_allclose(one.losses, full.losses[: one.n_steps], rtol=2e-2)
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(one.params))


class Killed(Exception):
    pass


def test_a_killed_race_ends_the_same_bit_for_bit(problem, halved, tmp_path):
    learner, recordings = problem
    arguments = dict(checkpoint_dir=tmp_path, checkpoint_every=250, n_devices=1, halving=HALVING)

    def kill(progress):
        if max(lane.step for lane in progress.lanes) >= 3 * CHUNK:  # behind both rungs
            raise Killed

    with pytest.raises(Killed):
        train_sweep(learner, CANDIDATES, SEEDS, recordings, on_progress=kill, **arguments)
    seen = []
    again = train_sweep(learner, CANDIDATES, SEEDS, recordings, on_progress=seen.append, **arguments)
    assert min(lane.step for lane in seen[0].lanes) > 2 * CHUNK, "began before the second rung"
    assert seen[-1].lane_steps == seen[-1].total_lane_steps
    for own, others in zip(halved, again, strict=True):
        for one, other in zip(own, others, strict=True):
            assert (one.n_steps, one.stopped_at, one.diverged_at) == (
                other.n_steps,
                other.stopped_at,
                other.diverged_at,
            )
            jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
            np.testing.assert_array_equal(one.losses, other.losses)
