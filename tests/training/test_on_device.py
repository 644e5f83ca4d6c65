"""Voltages that stay on an accelerator, for which a CPU stands in here."""

from functools import partial

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from flyjax.config import Simulation
from flyjax.data import on_device, record
from flyjax.training.data import DeviceRecordings
from flyjax.training.grouping import device_memory

FLY = Simulation(extent=0, visual_input_type="scenes_texture", n_frames=50)
BYTES = 50 * 65 * 4


@pytest.fixture
def room(monkeypatch):
    """Room for two recordings, and the voltages that are sent to the device: a list that grows."""
    sent, put = [], jax.device_put

    def counting(x, *args, **options):
        sent.extend(leaf for leaf in jax.tree.leaves(x) if isinstance(leaf, np.ndarray) and leaf.nbytes == BYTES)
        return put(x, *args, **options)

    monkeypatch.setattr(on_device, "_limit", lambda: 2.5 * BYTES)
    monkeypatch.setattr(jax, "device_put", counting)
    yield sent
    on_device._kept.clear()


def data_of(*recordings):
    by_level = dict(enumerate(recordings))
    levels = tuple(by_level)
    return DeviceRecordings(by_level.__getitem__, field=True).at(
        levels, len(levels), SingleDeviceSharding(jax.devices()[0])
    )


@pytest.mark.parametrize("changes", [{}, {"n_recordings": 2}, {"voltage_dtype": "float16"}, {"target": "difference"}])
def test_a_recording_stays_where_it_was_made(room, changes):
    recording = record(FLY.model_copy(update=changes), 0.05, chunk=7)
    for _ in range(2):
        np.testing.assert_array_equal(data_of(recording)["voltage"], recording.voltage[None])
    voltages = [sent for sent in room if np.shares_memory(sent, recording.voltage)]
    assert len(voltages) == (1 if "voltage_dtype" in changes else 0)


def test_the_least_recently_used_is_dropped(room):
    first, second = record(FLY, 0.05), record(FLY, 0.1)
    assert on_device.kept_bytes() == 2 * BYTES
    on_device.voltages(first)
    third = record(FLY, 0.2)
    assert set(on_device._kept) == {first, third} and not room
    np.testing.assert_array_equal(on_device.voltages(second), second.voltage[None])
    assert len(room) == 1 and set(on_device._kept) == {third, second}
    del third
    assert on_device.kept_bytes() == BYTES


def test_a_program_has_the_memory_of_what_it_does_not_read(room):
    first, second = record(FLY, 0.05), record(FLY, 0.1)
    data = data_of(first, second)
    np.testing.assert_array_equal(data["voltage"], np.stack([first.voltage, second.voltage]))
    assert on_device.kept_bytes() == 0 and not any(np.shares_memory(x, first.voltage) for x in room)
    on_device.voltages(first), on_device.voltages(second)
    data_of(second)
    assert set(on_device._kept) == {second}


def test_what_is_kept_counts_as_free(room, monkeypatch):
    class Device:
        platform, device_kind = "gpu", "stand-in"

        def memory_stats(self):
            return {"bytes_limit": 100_000, "bytes_in_use": 30_000}

    recording = record(FLY, 0.05)
    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert device_memory().free == 70_000 + on_device.kept_bytes() == 70_000 + recording.voltage.nbytes


@pytest.mark.parametrize("changes", [{}, {"measurement_noise_level": 0.01}, {"target": "difference"}])
def test_pairs_on_the_device_are_those_of_the_recording(room, changes):
    recording = record(FLY.model_copy(update=changes), 0.05)
    on_device.voltages(recording)
    found, wanted = (pairs(slice(7, 40)) for pairs in (partial(on_device.pairs, recording), recording.pairs))
    assert isinstance(found[0], np.ndarray) == bool(changes)
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


def test_a_cpu_keeps_nothing_and_shares_its_memory():
    recording = record(FLY, 0.05)
    shared = on_device.voltages(recording)
    assert on_device.kept_bytes() == 0 and shared.unsafe_buffer_pointer() == recording.voltage.ctypes.data
