"""Networks that are evaluated together: the numbers of each alone, and few programs however many there are."""

import dataclasses

import jax
import numpy as np
import pytest
from support.recovery_fixtures import recordings
from support.true_learner import TrueLearner

from flyjax.config import Model
from flyjax.data.recording import Part
from flyjax.models import make_learner
from flyjax.recovery import evaluate, extract, group, rollout
from flyjax.recovery.group import Group, group_size
from flyjax.recovery.network_outputs import _outputs, together
from flyjax.recovery.rollout import _advance, rollouts
from flyjax.training.grouping import Memory


@pytest.fixture(scope="module")
def both():
    return recordings()


@pytest.fixture(scope="module")
def learner(both):
    return TrueLearner(both[0].connectome)


@pytest.fixture(scope="module")
def networks(both, learner):
    """The true circuit, others beside it, one whose rollout diverges and one whose messages are not finite."""
    true, rng = learner.params(both[0]), np.random.default_rng(0)
    n = both[0].connectome.n_neurons
    near = [{**true, "tau": true["tau"] * (1 + 0.2 * rng.random(n).astype(np.float32))} for _ in range(2)]
    return [true, {**true, "tau": -true["tau"]}, *near, {**true, "v_rest": true["v_rest"] * np.float32("nan")}]


def test_a_group_gives_what_each_network_gives_alone(both, learner, networks):
    train, test = both
    together = Group(learner, networks, train, test)
    found = [evaluate(learner, params, train, test, place=(together, k)) for k, params in enumerate(networks)]
    diverged = [one.rollout.divergence_frame for one in found]
    assert diverged[0] is None and diverged[1] is not None and diverged[4] == 1
    for one, params in zip(found, networks, strict=True):
        alone = evaluate(learner, params, dataclasses.replace(train), test)
        assert one.metrics["reasons"] == alone.metrics["reasons"]
        for name, value in alone.metrics.items():
            if isinstance(value, float):
                assert one.metrics[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name
        np.testing.assert_allclose(one.rollout.voltage, alone.rollout.voltage, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(one.estimate.weight, alone.estimate.weight, rtol=1e-5)
    assert len({one.metrics["tau_R2"] for one in found}) == 4, "none for those two"


def test_a_diverged_rollout_is_missing_from_its_own_frame_on(both, learner, networks):
    """In every part of a recording, while others go on."""
    test = dataclasses.replace(both[1], parts=(Part(140, 0), Part(both[1].n_frames - 140, 1)))
    together_, alone = rollouts(learner, together(networks), test), [rollout(learner, p, test) for p in networks]
    for one, expected in zip(together_, alone, strict=True):
        assert one.divergence_frame == expected.divergence_frame
        np.testing.assert_allclose(one.voltage, expected.voltage, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["cpu", "accelerator"])
def test_programs_do_not_depend_on_the_number_of_networks(both, form):
    """And give what each network gives alone, in both forms of the networks."""
    learner = make_learner(both[0].connectome, Model(width=6, form=form))
    networks = [learner.init(jax.random.key(k)) for k in range(7)]
    alone = [(extract(learner, p, both[0]).slope_f, rollout(learner, p, both[1]).voltage) for p in networks]

    def programs(n):
        made = Group(learner, networks[:n], *both)
        for k, (slope, voltage) in enumerate(alone[:n]):
            np.testing.assert_allclose(made.readout(k).slope_f, slope, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(made.rollout(k).voltage, voltage, rtol=1e-5, atol=1e-5)
        return _outputs._cache_size(), _advance._cache_size()

    three = programs(3)
    assert programs(4) == three
    assert programs(5) == tuple(k + 1 for k in three) == programs(7)


@pytest.mark.parametrize("gigabytes, size", [(0.001, 1), (0.5, 4), (80, group.MAX_NETWORKS)])
def test_a_group_fits_the_memory(both, learner, monkeypatch, gigabytes, size):
    assert group_size(learner, *both) == 1  # on a CPU
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(group, "device_memory", lambda: Memory(int(gigabytes * 1e9), "given", False))
    monkeypatch.setattr(group, "available_ram", lambda: int(1e12))
    assert group_size(learner, *both) == size
    learner = make_learner(both[0].connectome, Model(stimulus="field", field_frames=1200))
    assert group_size(learner, *both) == 1  # each has a stimulus of its own
