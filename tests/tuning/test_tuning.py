"""Tuning against made-up responses of known tuning, circuits of known symmetry, and the published directions."""

import jax.numpy as jnp
import numpy as np
import pytest
from support.true_learner import TrueLearner

from flyjax.circuit import Parameters, build_connectome, load_flyvis_parameters
from flyjax.circuit.hexgrid import positions
from flyjax.ground_truth import sample_parameters
from flyjax.simulation import simulate
from flyjax.tuning import (
    Circuit,
    Flashes,
    MovingEdges,
    Network,
    WhiteNoise,
    direction_selectivity,
    flash_response_index,
    flashes,
    moving_edges,
    orientation_selectivity,
    preferred_direction,
    receptive_fields,
)
from flyjax.tuning.fly import respond
from flyjax.tuning.indices import angular_distance
from flyjax.tuning.known import PREFERRED_DIRECTIONS
from flyjax.tuning.stimuli import edge_film, edge_pictures
from flyjax.utils.errors import UserError

ANGLES = np.arange(0, 360, 30)
FAST = MovingEdges(speeds=(25.0,), dt=0.02)


def made_up(curve, off=0.0):
    """Peaks (angles, intensities, speeds, types) of one type: `curve` for ON at two speeds, a share of it for OFF."""
    on = np.stack([curve, 2 * curve], axis=1)
    return np.stack([off * on, on], axis=1)[..., None]


@pytest.fixture(scope="module")
def isolated():
    """Neurons without synapses: photoreceptors filter the luminance of their column, all others rest."""
    c = build_connectome(1)
    n = c.n_neurons
    return Circuit(c, Parameters(np.zeros(c.n_edges), np.full(n, 0.04), np.full(n, 0.1)))


@pytest.fixture(scope="module")
def sampled():
    c = build_connectome(1)
    return Circuit(c, sample_parameters(c, seed=3))


@pytest.mark.parametrize("towards", [0, 75, 200, 340])
def test_indices_of_a_cosine(towards):
    angle = np.deg2rad(ANGLES - towards)
    direction, orientation = made_up(1 + np.cos(angle)), made_up(1 + np.cos(2 * angle))
    assert np.allclose(direction_selectivity(direction, ANGLES), [[0], [0.5]])
    assert np.allclose(preferred_direction(direction, ANGLES)[1], towards)
    assert np.allclose(orientation_selectivity(direction, ANGLES), 0)
    assert np.allclose(orientation_selectivity(orientation, ANGLES), [[0], [0.5]])
    assert np.allclose(direction_selectivity(orientation, ANGLES), 0)


def test_selectivity_is_relative_to_the_stronger_contrast():
    peaks = made_up(1 + np.cos(np.deg2rad(ANGLES)), off=0.1)
    assert np.allclose(direction_selectivity(peaks, ANGLES), [[0.05], [0.5]])


def test_a_silent_type_is_not_selective():
    assert np.all(direction_selectivity(made_up(np.zeros(12)), ANGLES) == 0)
    assert np.all(np.isnan(preferred_direction(made_up(np.zeros(12)), ANGLES)))
    assert flash_response_index(np.zeros((3, 1)), np.zeros((3, 1))) == 0


def test_angular_distance_goes_the_short_way():
    assert np.allclose(angular_distance([350, 10, 90], [10, 350, 270]), [20, 20, 180])


def test_flash_response_index_of_made_up_voltages():
    # Raised by 1, the peaks are 4 (ON) and 1 (OFF); a neuron that only an OFF flash excites has -1.
    on, off = np.array([[0.0, -1], [3, -1]]), np.array([[0.0, -1], [-1, 3]])
    assert np.allclose(flash_response_index(off, on), [(4 - 1) / 5, -1])


@pytest.mark.parametrize("angle", [0, 90, 210])
def test_an_edge_moves_towards_its_angle(angle):
    columns = build_connectome(3).columns
    pictures = edge_pictures(columns, angle, 1.0)
    x, y = positions(columns)
    along = x * np.cos(np.deg2rad(angle)) - y * np.sin(np.deg2rad(angle))  # y grows downwards
    when = np.argmax(pictures > 0.75, axis=0)
    seen = (pictures > 0.75).any(axis=0)
    assert np.corrcoef(along[seen], when[seen])[0, 1] > 0.99
    assert pictures[10, np.flatnonzero((columns == 0).all(axis=1))] == pytest.approx(0.75, abs=0.03)
    assert np.all(np.diff(pictures, axis=0) >= 0)


def test_a_passage_lasts_the_distance_over_the_speed():
    columns = build_connectome(1).columns
    film = edge_film(columns, 0, 0.0, speed=5.0, dt=0.01)
    assert len(film) == int(21 * 2.25 / 5.8 / 5 / 0.01) + 1
    assert np.array_equal(film[-1], film[-2])


def test_a_circuit_without_synapses_is_not_selective(isolated):
    found = moving_edges(isolated, FAST)
    receptor = found.cell_types.index("R1")
    assert found.peaks[:, 1, :, receptor].min() > 0.3
    assert np.all(found.dsi < 1e-3) and np.all(found.osi[:, receptor] < 0.02)


def test_directions_at_once_are_those_one_by_one(sampled):
    together = moving_edges(sampled, FAST)
    for k, angle in enumerate(FAST.angles[:3]):
        alone = moving_edges(sampled, MovingEdges(angles=(angle,), speeds=FAST.speeds, dt=FAST.dt))
        assert np.allclose(alone.peaks[0], together.peaks[k], atol=1e-5)


def test_a_network_with_the_true_functions_responds_as_the_circuit(sampled):
    c, p = sampled
    learner = TrueLearner(c)
    network = Network(learner, {"W": p.weight, "tau": jnp.maximum(p.tau, 0.02), "v_rest": p.v_rest})
    films = np.stack([edge_film(c.columns, angle, 1.0, 25.0, 0.02) for angle in (0, 90)])
    start = sampled.grey(0.02)
    for a, b in zip(*(respond(fly, films, 0.02, c.central, start) for fly in (sampled, network)), strict=True):
        assert np.allclose(a, b, atol=1e-5)
    assert np.allclose(network.grey(0.02), start, atol=0.02), "2 s of grey from 0 and from V_rest"
    assert np.allclose(moving_edges(network, FAST).peaks, moving_edges(sampled, FAST).peaks, atol=0.02)


def test_the_kernel_of_a_linear_neuron_is_its_response_to_one_value(isolated):
    settings = WhiteNoise(hold=0.04, dt=0.02, n_lags=4, duration=80)
    found = receptive_fields(isolated, settings)
    c, centre = isolated.connectome, int(np.flatnonzero((isolated.connectome.columns == 0).all(axis=1))[0])
    film = np.full((2, 8, c.n_columns), 0.5, np.float32)
    film[1, :2, centre] = 1.0
    flat, pulse = np.asarray(simulate(*isolated, film, dt=0.02))[:, 1::2, c.central[0]]
    assert np.allclose(found.kernel[0, :, centre], (pulse - flat) / 0.5, atol=0.05)
    assert np.abs(np.delete(found.kernel[0], centre, axis=1)).max() < 0.06
    assert np.abs(found.kernel[found.cell_types.index("L1")]).max() < 1e-5, "it rests"


def test_a_flash_covers_its_disc(isolated):
    bright = flashes(isolated, Flashes(radius=0, duration=0.3, dt=0.02))
    receptor = bright.cell_types.index("R1")
    assert bright.traces[1, -2, receptor] > 0.9 > bright.traces[1, 0, receptor]
    assert bright.fri[receptor] == pytest.approx((1.1 + 0.1 - 0.6 - 0.1) / (1.1 + 0.6 + 0.2), abs=0.01)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda fly: moving_edges(fly, MovingEdges(speeds=(0,))), "speeds"),
        (lambda fly: moving_edges(fly, MovingEdges(angle=(0,))), "angles"),
        (lambda fly: flashes(fly, Flashes(intensities=(2.0,))), "luminance"),
        (lambda fly: receptive_fields(fly, WhiteNoise(duration=0.1)), "duration"),
    ],
)
def test_what_cannot_be_shown_is_refused(sampled, call, named):
    with pytest.raises(UserError, match=named):
        call(sampled)


def test_a_network_that_diverges_is_refused(sampled):
    c, p = sampled
    unstable = Network(TrueLearner(c), {"W": p.weight, "tau": jnp.full(c.n_neurons, 1e-3), "v_rest": p.v_rest})
    with pytest.raises(UserError, match="diverged"):
        moving_edges(unstable, FAST)


def test_t4_and_t5_of_a_trained_flyvis_model_prefer_the_published_directions(golden):
    c = build_connectome(3)
    fly = Circuit(c, load_flyvis_parameters(c, golden / "flyvis_flow_0000_000.npz"))
    found = moving_edges(fly, MovingEdges(speeds=(19.0,), dt=0.01))
    for name, direction in PREFERRED_DIRECTIONS.items():
        k = found.cell_types.index(name)
        on = int(name.startswith("T4"))
        assert angular_distance(found.preferred[on, k], direction) < 45, name
        # T4d of this model is hardly selective at extent 8 (docs/tuning.md), and less on so small an eye.
        assert found.dsi[on, k] > (0.02 if name == "T4d" else 0.1), name
