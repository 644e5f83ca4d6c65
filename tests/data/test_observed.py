"""Recordings of which neurons or frames are missing."""

import numpy as np
import pytest

from flyjax.config import Simulation, parse_experiment
from flyjax.data import held_out, known_connectome, load_recording, record
from flyjax.data.recorder import lesioned
from flyjax.ground_truth import build_ground_truth, seen_neurons
from flyjax.models.normal_equations import target_noise
from flyjax.utils.errors import UserError

WHOLE = Simulation(extent=1, visual_input_type="scenes_texture", n_frames=100, n_test_frames=20)


def changed(**settings):
    return WHOLE.model_copy(update=settings)


@pytest.mark.parametrize("split", ["train", "test"])
def test_hidden_neurons_leave_the_recording_and_the_circuit(tmp_path, split):
    simulation = changed(hidden_neurons=0.1)
    whole, part = (record(s, 0.05, split) for s in (WHOLE, simulation))
    c, seen = whole.connectome, seen_neurons(whole.connectome, 0.1, 0)
    assert len(seen) == c.n_neurons - round(0.1 * c.n_neurons) and set(c.central) <= set(seen)
    assert np.array_equal(part.voltage, whole.voltage[:, seen]) and np.array_equal(part.final, whole.final[seen])
    # Exact, with the messages of the hidden ones.
    assert np.array_equal(part.derivative, whole.derivative[:, seen])
    known = part.connectome
    assert known == known_connectome(simulation) and part.ground_truth[0] is c
    both = np.isin(c.senders, seen) & np.isin(c.receivers, seen)
    assert np.array_equal(seen[known.senders], c.senders[both]) and np.array_equal(
        seen[known.receivers], c.receivers[both]
    )
    weight, tau, _ = build_ground_truth(simulation)[1]
    assert np.array_equal(part.parameters.weight, np.asarray(weight)[both])
    assert np.array_equal(part.parameters.tau, np.asarray(tau)[seen])
    assert np.array_equal(known.cell_types, c.cell_types) and np.array_equal(known.cell_type, c.cell_type[seen])
    columns = dict(zip(c.inputs.tolist(), c.input_column.tolist()))
    assert dict(zip(seen[known.inputs].tolist(), known.input_column.tolist())) == {
        k: columns[k] for k in columns if k in seen
    }
    again = load_recording(part.save(tmp_path / "saved"))
    assert np.array_equal(again.derivative, part.derivative) and again.connectome == known


def test_one_frame_in_five_has_the_difference_over_the_gap():
    simulation = changed(observe_every=5, n_frames=102)
    whole, part = record(changed(n_frames=102), 0.05), record(simulation, 0.05)
    assert part.n_frames == simulation.n_observed == 20
    assert np.array_equal(part.voltage, whole.voltage[:100:5]) and np.array_equal(
        part.luminance, whole.luminance[:100:5]
    )
    np.testing.assert_allclose(
        part.derivative, (whole.voltage[5:101:5] - whole.voltage[:100:5]) / 0.1, rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(target_noise(part), np.sqrt(5) * 0.05 / (5 * 0.02))
    test = record(simulation, 0.05, "test")
    assert np.array_equal(test.voltage, record(WHOLE, 0.05, "test").voltage) and test.has_equation


def test_what_does_not_work_with_missing_states_is_refused():
    for bad in ({"observe_every": 2, "n_recordings": 2}, {"hidden_neurons": 0.1, "measurement_noise_level": 0.1}):
        with pytest.raises(UserError):
            Simulation(**bad)
    with pytest.raises(UserError, match="rollout_steps"):
        parse_experiment({"simulation": {"observe_every": 5}, "training": {"rollout_steps": 2}})
    part = record(changed(hidden_neurons=0.1, n_frames=16), 0.0)
    for refused in (held_out, lesioned):
        with pytest.raises(UserError, match="hidden_neurons"):
            refused(part)
