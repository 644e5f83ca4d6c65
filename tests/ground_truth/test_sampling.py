"""The random ground truth: its distributions, activity and stability."""

import numpy as np
import pytest

from flyjax import stimulus
from flyjax.circuit import build_connectome
from flyjax.ground_truth import sample_parameters, sampling
from flyjax.simulation import simulate
from flyjax.utils.errors import UserError


@pytest.fixture(scope="module")
def sampled():
    return {extent: (c := build_connectome(extent), sample_parameters(c, seed=0)) for extent in (1, 2)}


def test_the_distributions_are_the_documented_ones(sampled):
    c, p = sampled[2]
    weight, tau = np.asarray(p.weight), np.asarray(p.tau)
    assert tau.min() > 0.02 and tau.max() <= 0.3 and len(np.unique(tau)) == 65
    assert (np.sign(weight) == c.sign).all()
    # One strength per type pair: weights in proportion to synapse counts.
    strength = np.abs(weight) / c.n_syn
    first = np.zeros(len(c.pairs))
    first[c.edge_pair] = strength
    np.testing.assert_allclose(strength, first[c.edge_pair], rtol=1e-5)
    # L2 norm of the in-weights, per type.
    power = np.bincount(c.cell_type[c.receivers], weight.astype(np.float64) ** 2, c.n_types)
    norm = np.sqrt(power / np.bincount(c.cell_type))
    free = ~np.isin(c.cell_types, c.input_types) & (norm > 0)
    np.testing.assert_allclose(norm[free], 0.7, rtol=1e-3)
    # Bounded by construction.
    dense = np.zeros((c.n_neurons, c.n_neurons))
    dense[c.receivers, c.senders] = np.maximum(weight, 0)
    assert np.abs(np.linalg.eigvals(dense)).max() < 0.95


def test_each_type_is_biased_to_cross_zero(sampled):
    c, p = sampled[1]
    v = np.asarray(simulate(c, p, sampling.calibration_stimulus(c), 0.02, initial="rest"))[50:]
    for k in range(c.n_types):
        own = v[:, c.cell_type == k]
        if own.std() > 1e-6:
            assert abs(own.mean() / own.std() - 0.3) < 0.02, c.cell_types[k]


@pytest.mark.parametrize("scene", ["scenes_texture", "scenes_flow", "scenes_edges"])
@pytest.mark.parametrize("extent", [1, 2])
def test_neurons_cross_zero_under_the_built_in_scenes(sampled, extent, scene):
    c, p = sampled[extent]
    v = np.asarray(simulate(c, p, stimulus.luminance(scene, c.columns, 1000, 0.02)))
    crosses = (v.max(axis=0) > 0) & (v.min(axis=0) < 0)
    assert crosses.mean() >= 0.95
    assert np.median(v.std(axis=0)) > 0.02, "active: signals reach the deep types"


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("dt", [0.01, 0.02, 0.05])
def test_corners_of_the_protocol_stay_finite(sampled, dt, noise):
    c, p = sampled[1]
    x = np.random.default_rng(0).integers(0, 2, (1000, c.n_columns))  # the harshest contrast there is
    v = np.asarray(simulate(c, p, x, dt, noise=noise, key=0))
    assert np.isfinite(v).all() and np.abs(v).max() < 30


def test_a_seed_is_a_circuit():
    c = build_connectome(0)
    a, b, other = (sample_parameters(c, seed) for seed in (1, 1, 2))
    for x, y, z in zip(a, b, other):
        np.testing.assert_array_equal(x, y)
        assert not np.array_equal(x, z)
    for seed in (-1, 1.5, "a", True):
        with pytest.raises(UserError, match="seed"):
            sample_parameters(c, seed)
